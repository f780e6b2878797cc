"""The sources of the training data, where their files are, and their licences.

Every source is a package of Debian main, or a Python library in the running environment. Nothing is installed: packages
are downloaded and unpacked into a folder. A source without a free licence is left out.
"""

import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata, util
from pathlib import Path

from training.dictionaries import (
    read_devil,
    read_dictionary,
    read_elements,
    read_foldoc,
    read_gcide,
    read_gene_ontology,
    read_wordnet,
)
from training.pages import read_pages, read_pod
from training.passages import Passage, plain
from training.tools import read_descriptions, read_docstrings, read_manual


@dataclass(frozen=True)
class Source:
    """A place that passages come from: a Debian package, or a Python library that is installed here.

    Attributes:
        name: The package.
        wanted: The number of passages that are taken, a random choice of all.
        read: Makes the passages of the unpacked package's folder, or of the library's.
        library: Whether `name` is a Python distribution.
        licence: The licence, where the package has no copyright file of its own.
        long: The number of long passages that are taken besides.
    """

    name: str
    wanted: int
    read: Callable[[Path], Iterator[Passage]]
    library: bool = False
    licence: str = ""
    long: int = 0


_pages = partial(partial, read_pages)

SOURCES = (
    Source("apt", 2600, read_descriptions, licence="those of the packages described, all in Debian main", long=700),
    Source("dict-wn", 1500, read_wordnet),
    Source("dict-gcide", 900, read_gcide, long=200),
    Source("dict-foldoc", 1000, read_foldoc, long=500),
    Source("dict-jargon", 300, read_dictionary, long=150),
    Source("dict-devil", 100, read_devil),
    Source("dict-elements", 120, read_elements),
    Source("r-bioc-go.db", 1000, read_gene_ontology, long=700),
    Source("anarchism", 1700, _pages(pattern="usr/share/doc/anarchism/html/*.html", kind="prose"), long=400),
    Source(
        "debian-handbook",
        700,
        _pages(pattern="usr/share/doc/debian-handbook/html/en-US/*.html", kind="prose"),
        long=200,
    ),
    Source("debian-history", 150, _pages(pattern="usr/share/doc/debian-history/docs/*.en.html", kind="prose")),
    Source("debian-reference-en", 200, _pages(pattern="usr/share/**/*.en.html", kind="documentation")),
    Source("debian-policy", 200, _pages(pattern="usr/share/doc/**/*.html", kind="documentation")),
    Source("developers-reference", 200, _pages(pattern="usr/share/**/*.html", kind="documentation")),
    Source("debian-faq", 150, _pages(pattern="usr/share/**/*.en.html", kind="documentation")),
    Source("gnumed-doc", 50, _pages(pattern="usr/share/**/*.html", kind="prose")),
    Source("gnome-user-docs", 500, _pages(pattern="usr/share/help/C/**/*.page", kind="documentation")),
    Source("stellarium-data", 500, _pages(pattern="usr/share/stellarium/skycultures/*/*.en.utf8", kind="prose")),
    Source("postgresql-doc-15", 400, _pages(pattern="usr/share/doc/**/*.html", kind="documentation"), long=150),
    Source("git-doc", 200, _pages(pattern="usr/share/doc/**/*.html", kind="documentation")),
    Source("sqlite3-doc", 350, _pages(pattern="usr/share/doc/**/*.html", kind="documentation")),
    Source(
        "python3.11-doc",
        800,
        _pages(pattern="usr/share/doc/python3.11/html/**/*.html", kind="documentation"),
        licence="PSF-2.0",
    ),
    Source("perl-doc", 400, read_pod),
    Source("manpages", 250, read_manual),
    Source("manpages-dev", 500, read_manual, licence="as manpages"),
    Source("scikit-learn", 450, read_docstrings, library=True),
    Source("torch", 500, read_docstrings, library=True),
    Source("transformers", 500, read_docstrings, library=True),
    Source("sentence-transformers", 100, read_docstrings, library=True),
    Source("scipy", 350, read_docstrings, library=True),
    Source("numpy", 250, read_docstrings, library=True),
)

_IMPORTED_AS = {"scikit-learn": "sklearn", "sentence-transformers": "sentence_transformers"}
_FREE = re.compile(
    r"\b(?:L?GPL|GNU (?:Lesser |Library )?General Public|GFDL|FDL|GNU Free Documentation|Apache|BSD|MIT|Expat|PSF|"
    r"CC0|CC-BY(?:-SA)?|Creative Commons Attribution|Artistic|public[ -]domain|PostgreSQL|WordNet|"
    r"Permission is granted to copy and distribute modified versions)\b[\w.+-]*",
    re.IGNORECASE,
)


def folder_of(source: Source, folder: Path) -> Path:
    """Where the files of `source` are: downloads and unpacks its Debian package into `folder` if they are not there."""
    if source.library:
        found = util.find_spec(_IMPORTED_AS.get(source.name, source.name))
        if found is None or not found.submodule_search_locations:
            raise ModuleNotFoundError(f"The training data is made from the docstrings of {source.name}: install it.")
        return Path(found.submodule_search_locations[0])
    unpacked = folder / source.name
    if source.name != "apt" and not unpacked.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _run("apt-get", "-q", "download", source.name, cwd=folder)
        package = next(folder.glob(f"{source.name}_*.deb"))
        partly = folder / f"{source.name}.part"
        _run("dpkg", "-x", package.name, partly.name, cwd=folder)
        package.unlink()
        partly.rename(unpacked)
    return unpacked


def version(source: Source) -> str:
    """The version of the source: Debian's, or the library's."""
    if source.library:
        return metadata.version(source.name)
    if source.name == "apt":
        return "Debian " + Path("/etc/debian_version").read_text(encoding="utf-8").strip()
    shown = re.search(r"^Version: (.*)$", _run("apt-cache", "show", "--no-all-versions", source.name), re.MULTILINE)
    return shown[1] if shown else ""


def licences(source: Source, folder: Path) -> list[str]:
    """The free licences that the copyright file, or a library's metadata, names; none means: do not use it."""
    if source.licence:
        return [source.licence]
    if source.library:
        about = metadata.metadata(source.name)
        lines = [line for name in ("License-Expression", "License", "Classifier") for line in about.get_all(name, [])]
        text = "\n".join(line[:200] for line in lines if not line.startswith("Programming Language"))
    else:
        text = "\n".join(file.read_text(errors="replace") for file in sorted(folder.glob("usr/share/doc/*/copyright")))
        if named := re.findall(r"^Licen[cs]e: *(\S.*)$", text, re.MULTILINE):
            text = "\n".join(named)
    return sorted({plain(match[0]).rstrip(".") for match in _FREE.finditer(text)})


def _run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError(
            f"`{' '.join(command)}` failed: {done.stderr.strip()[-500:]}\nOn Debian run first: "
            "apt-get update -o Acquire::Languages=en"
        )
    return done.stdout
