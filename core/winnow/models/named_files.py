"""Files that a model's own files name. Each must be inside the model's folder; other names are refused.

Whoever wrote the checkpoint wrote the names, too, and is not trusted: if an index of weights named
`/home/you/model.safetensors`, Winnow would read or overwrite another model. Only the owner of the machine can make
links, so reading follows them, as engines do. A link that leads out of the folder is never copied.
"""

from pathlib import Path
from typing import Any

from winnow.errors import ModelError
from winnow.outside_text import shown

_LONGEST = 255  # bytes of a file's name, on every file system in use


def file_in(folder: Path, name: Any, source: str) -> Path:
    """The file of a folder that a checkpoint names.

    Args:
        folder: The model's folder.
        name: What the checkpoint says. It must be a plain name: a text without a path in it.
        source: The file and field that say so, for the error.

    Raises:
        ModelError: It is no plain name.
    """
    if not _is_plain(name):
        raise _refused(name, source)
    return folder / str(name)


def path_inside(path: Any, source: str) -> str:
    """The path of a file or folder below a model's folder that a checkpoint names; "" is the folder itself.

    Args:
        path: What the checkpoint says. Every part of it must be a plain name; "./" before it and "/" after it may be.
        source: The file and field that say so, for the error.

    Raises:
        ModelError: A part is no plain name.
    """
    if not leads_inside(path):
        raise _refused(path, source)
    return "/".join(_parts(path))


def leads_inside(path: Any) -> bool:
    """Whether a text is a path to a file or folder below another, each part of it a plain name, or is empty."""
    return isinstance(path, str) and not path.startswith("/") and all(map(_is_plain, _parts(path)))


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def refuse_links_out(folder: Path, model: str, below: str = "") -> None:
    """Refuse to copy a folder in which a file is a link to a place outside.

    Files of the Hugging Face Hub's cache are links to its blobs, which belong to the folder.

    Args:
        folder: The model's folder.
        model: Its name, for the error.
        below: The folder in it whose files are checked, instead of its own.

    Raises:
        ModelError: There is such a link. The message names it.
    """
    real = folder.resolve()
    homes = [real, *_blobs_of(real)]
    for file in sorted(file for file in (folder / below).iterdir() if file.is_file()):
        target = file.resolve()
        if not any(target.is_relative_to(home) for home in homes):
            raise ModelError(
                f"{file} of {model} is a link to {target}, outside the model's folder, and is not copied. If you made "
                "the link, put the file itself in its place."
            )


def _is_plain(name: Any) -> bool:
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not {"/", "\\"} & set(name)
        and name.isprintable()
        and len(name.encode()) <= _LONGEST
    )


def _refused(name: Any, source: str) -> ModelError:
    return ModelError(
        f"{source} names {shown(repr(name), 80)}, which is no file inside the model's folder. Winnow takes no "
        "others: download the model again, from its publisher."
    )


def _blobs_of(folder: Path) -> list[Path]:
    """Where the Hub's client keeps what the files of a snapshot link to: for the repository, or for all of them.

    The cache holds `models--ORG--NAME/snapshots/COMMIT`, `models--ORG--NAME/blobs` and, from huggingface_hub 2 on,
    `blobs` (huggingface_hub/utils/_shared_blobs.py).
    """
    if folder.parent.name != "snapshots" or not folder.parents[1].name.startswith("models--"):
        return []
    return [(parent / "blobs").resolve() for parent in folder.parents[1:3]]  # on another disk it is a link
