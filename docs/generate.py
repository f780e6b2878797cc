"""Write the settings into the docs and the integrations, each sentence from its one source.

The docstring of `RerankerConfig` has the sentences for what a reranker takes, winnow/engines/setting_table.py those for
what an engine takes. `make fix` runs this file; `make lint` runs it with --check, which changes nothing and fails where
something is stale. In the pages cog writes the tables, between its marks.

    python docs/generate.py [--check] [PAGE ...]
"""

import dataclasses
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from cogapp import Cog

from winnow import RerankerConfig
from winnow.engines.setting_table import RERANKER_SETTINGS, SETTINGS, Setting

DOCS = Path(__file__).parent

# An entry of a docstring's Args.
_ENTRY = re.compile(r"^ {8}(\w+): (.*\n(?: {12}.*\n)*)", re.MULTILINE)


def entries(docstring: str) -> dict[str, str]:
    """The sentences of a class's Args, by name, each in one line.

    Args:
        docstring: It is indented by 4 spaces, as in the source.
    """
    arguments = docstring.split("Args:\n")[1].split("\n\n")[0] + "\n"
    return {name: " ".join(text.split()) for name, text in _ENTRY.findall(arguments)}


SHARED = entries(str(RerankerConfig.__doc__))


def reranker_table() -> str:
    """The arguments of a reranker, for docs/settings.md."""
    variables = {**SETTINGS, **RERANKER_SETTINGS}
    rows = [
        (
            f"`{field.name}`",
            variable(variables, field.name),
            default_of(field),
            in_markdown(SHARED[field.name], "settings"),
        )
        for field in dataclasses.fields(RerankerConfig)
    ]
    return table("name", "variable", "default", "", rows=rows)


def engine_table() -> str:
    """The settings of the engines, for docs/settings.md."""
    rows = [
        (
            f"`{name}`",
            variable(SETTINGS, name),
            ", ".join(setting.engines),
            "" if setting.default is None else f"`{setting.default:g}`",
            setting.values.text,
            in_markdown(setting.text, "settings"),
        )
        for name, setting in SETTINGS.items()
    ]
    return table("name", "variable", "engines", "default", "values", "", rows=rows)


def table(*heads: str, rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(heads)} |".replace("|  |", "| |"), "|---" * len(heads) + "|"]
    return "\n".join(
        [*lines, *(f"| {' | '.join(row)} |".replace("|  |", "| |").replace("|  |", "| |") for row in rows)]
    )


def in_markdown(text: str, page: str) -> str:
    """A sentence of a docstring as Markdown: quoted words as code, and places in the docs as links.

    Args:
        text: The sentence.
        page: Name of the page that it is written in.
    """
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [re.sub(r'"[^"]*"', r"`\g<0>`", part) for part in parts[::2]]
    return re.sub(r"docs/(\w+)\.md(#[\w-]+)", lambda found: link(*found.groups(), page), "".join(parts))


def link(target: str, anchor: str, page: str) -> str:
    """A link to a heading of the docs."""
    return f"[below]({anchor})" if target == page else f"[{target}]({target}.md{anchor})"


def default_of(field: dataclasses.Field[object]) -> str:
    """The default of a field, as code; nothing if it has none."""
    made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return "" if made is dataclasses.MISSING else as_code(made)


def as_code(value: object) -> str:
    """A value as Python code, with double quotes."""
    return f"`{value!r}`".replace("'", '"')


def variable(settings: Mapping[str, Setting], name: str) -> str:
    """The environment variable of a setting, if it has one."""
    return f"`{settings[name].variable}`" if name in settings else ""


def main() -> None:
    """Write everything, or with --check see whether anything is stale."""
    check = "--check" in sys.argv
    pages = [name for name in sys.argv[1:] if name != "--check"] or [str(page) for page in sorted(DOCS.glob("*.md"))]
    how = ["--check", "--diff", "--check-fail-msg=A page is stale: run make fix."] if check else ["-r"]
    sys.exit(Cog().main(["cog", "--verbosity=1", "-I", str(DOCS), "-p", "import generate", *how, *pages]))


if __name__ == "__main__":
    main()
