"""Write the settings into the docs and the integrations, each sentence from its one source.

The docstring of `RerankerConfig` has the sentences for what a reranker takes, winnow/engines/setting_table.py those for
what an engine takes, and an integration's class those for what only it takes. `make fix` runs this file; `make lint`
runs it with --check, which changes nothing and fails where something is stale. In the pages cog writes the tables,
between its marks.

    python docs/generate.py [--check] [FILE ...]
"""

import ast
import dataclasses
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Mapping
from difflib import unified_diff
from itertools import pairwise
from pathlib import Path
from typing import Any

from cogapp import Cog

from winnow import RankStats, RerankerConfig
from winnow.engines.setting_table import RERANKER_SETTINGS, SETTINGS, Setting
from winnow.observability import metrics

DOCS = Path(__file__).parent
WIDTH = 120
_KEEP_WORDS: Any = {"break_long_words": False, "break_on_hyphens": False}


PACKAGES = DOCS.parent / "integrations"
# Files in which an integration describes a reranker's settings, by its page.
SOURCES = {
    "haystack": [PACKAGES / "haystack_integrations/components/rankers/winnow/ranker.py"],
    "langchain": [PACKAGES / "winnow_langchain/settings.py", PACKAGES / "winnow_langchain/compressor.py"],
    "llama_index": [PACKAGES / "winnow_llama_index/settings.py"],
}
# What a page or an integration says instead of the core's words.
_NO_OBJECTS = {
    '"transformers", "fake" (no model, for tests), or an `Engine`': '"transformers", or "fake" (no model, for tests)',
    ", another `Reranker`, or": ", or",
    " Such a ranking is `degraded`.": "",
}
WORDS = {
    "settings": {},
    "haystack": {
        "an `Engine`": "a `winnow.Engine`, which cannot be saved",
        ", another `Reranker`, or": ", or",
        "Such a ranking is `degraded`": '`meta["fallback"]` then says so',
        "in `error`": 'in `meta["failed"]`',
    },
    "langchain": {**_NO_OBJECTS, "in `error`": 'in `metadata["rerank_error"]`'},
    "llama_index": {**_NO_OBJECTS, "in `error`": "in its metadata, as `rerank_error`", "document": "node"},
}
# What only an integration has to say about a setting.
ADDED = {
    "haystack": {
        "api_key": "A `Secret`, read when it is first needed, and for no other engine.",
        "deadline": "See docs/haystack.md#deadlines-and-blank-queries.",
        "device": "A Haystack `ComponentDevice`, or its text.",
    },
    "langchain": {
        "api_key": "By default that in `WINNOW_API_KEY`. It is never dumped.",
        "engine_kwargs": "`hf_token` is never dumped.",
        "fallback": 'After "retrieval order", `metadata["rerank_error"]` says why.',
    },
    "llama_index": {
        "api_key": "None for that in `WINNOW_API_KEY`, read with the first query. It is never serialized.",
        "engine_kwargs": "`hf_token` is never serialized.",
        "fallback": 'After "retrieval order", `rerank_error` in the metadata says why.',
    },
}
# Of fields whose default or sentence is not ours.
DEFAULTS = {"langchain": {"api_key": "`WINNOW_API_KEY`"}, "llama_index": {"callback_manager": "new"}}
FOREIGN = {"callback_manager": "LlamaIndex's; query and chat engines put their own in its place."}


def entries(described: type, section: str = "Args") -> dict[str, str]:
    """The sentences of a section of a class's docstring, by name, each in one line."""
    arguments = inspect.cleandoc(str(described.__doc__)).split(f"{section}:\n")[1].split("\n\n")[0] + "\n"
    found = re.findall(r"^ {4}(\w+): (.*\n(?: {8}.*\n)*)", arguments, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


SHARED = entries(RerankerConfig)


def sentence(name: str, page: str) -> str:
    """What a page and its integration say about a setting of the reranker.

    Args:
        name: The setting.
        page: Name of the page, "settings" or an integration's.
    """
    text = SHARED[name]
    for ours, theirs in WORDS[page].items():
        # A word also in the plural, but not where it is a part of a name.
        text = re.sub(rf"\b{ours}(?=s?\b)", theirs, text) if ours.isidentifier() else text.replace(ours, theirs)
    return " ".join([text, *filter(None, [ADDED.get(page, {}).get(name)])])


# --- the integrations' docstrings -------------------------------------------------------------------------------------


def rewritten(source: str, page: str) -> str:
    """The source of an integration's module with the sentences of today.

    Args:
        source: Its text. The settings are in the Args of a class, or they are attributes with docstrings.
        page: The integration.
    """
    return with_arguments(source) if page == "haystack" else with_attributes(source, page)


def with_arguments(source: str) -> str:
    """Replace entries in the Args of Haystack's class."""

    def entry(found: re.Match[str]) -> str:
        name = found[1]
        return wrapped(f"{name}: {sentence(name, 'haystack')}", " " * 8, " " * 12) if name in SHARED else found[0]

    described, init, rest = source.partition("    def __init__")
    return re.sub(r"^ {8}(\w+): .*\n(?: {12}.*\n)*", entry, described, flags=re.MULTILINE) + init + rest


def with_attributes(source: str, page: str) -> str:
    """Replace the docstrings below attributes that are settings."""
    lines = source.splitlines(keepends=True)
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    for field, docstring in reversed([pair for node in classes for pair in pairwise(node.body)]):
        if isinstance(field, ast.AnnAssign) and isinstance(docstring, ast.Expr) and isinstance(field.target, ast.Name):
            name = field.target.id
            if name in SHARED:
                text = wrapped(f'"""{sentence(name, page)}', " " * 4, " " * 4)
                fits = len(text.splitlines()[-1]) + 3 <= WIDTH
                lines[docstring.lineno - 1 : docstring.end_lineno] = [text[:-1], '"""\n' if fits else '\n    """\n']
    return "".join(lines)


def wrapped(text: str, first: str, later: str) -> str:
    """A paragraph in lines of the width that ruff allows."""
    lines = textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=later, **_KEEP_WORDS)
    return "\n".join(lines) + "\n"


# --- the tables of the pages ------------------------------------------------------------------------------------------


def reranker_table() -> str:
    """The arguments of a reranker, for docs/settings.md."""
    variables = {**SETTINGS, **RERANKER_SETTINGS}
    rows = [
        (
            f"`{field.name}`",
            variable(variables, field.name),
            default_of(field),
            in_markdown(sentence(field.name, "settings"), "settings"),
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


def parameter_table(page: str) -> str:
    """The parameters of an integration: the model, those that only it has, and those of every reranker."""
    own = haystack_parameters() if page == "haystack" else pydantic_parameters(page)
    shared = [name for name in SHARED if name in own and name != "model"]
    special = sorted((name for name in own if name not in SHARED), key=lambda name: name in FOREIGN)
    order = ["model", *special, *shared]
    rows = [(own[name][0], own[name][1], in_markdown(own[name][2], page)) for name in order]
    return table("Parameter", "Default", "", rows=rows)


def haystack_parameters() -> dict[str, tuple[str, str, str]]:
    """Name, default and sentence of each parameter of Haystack's ranker."""
    from haystack.utils.auth import EnvVarSecret

    from haystack_integrations.components.rankers.winnow import WinnowRanker

    sentences = entries(WinnowRanker)
    found = {}
    for name, parameter in list(inspect.signature(WinnowRanker.__init__).parameters.items())[1:]:
        default = "required" if parameter.default is inspect.Parameter.empty else as_code(parameter.default)
        if isinstance(parameter.default, EnvVarSecret):
            default = " or ".join(f"`{variable}`" for variable in parameter.default.to_dict()["env_vars"])
        found[name] = (f"`{name}`", default, sentence(name, page="haystack") if name in SHARED else sentences[name])
    return found


def pydantic_parameters(page: str) -> dict[str, tuple[str, str, str]]:
    """Name (with • if it may be assigned), default and sentence of each field of LangChain's or LlamaIndex's class."""
    fields = importlib.import_module(f"winnow_{page}").WinnowRerank.model_fields
    found = {}
    for name, field in fields.items():
        default = "required" if field.is_required() else as_code(field.get_default(call_default_factory=True))
        found[name] = (
            f"`{name}`" + ("" if field.frozen else " •"),
            DEFAULTS[page].get(name, default),
            sentence(name, page) if name in SHARED else FOREIGN.get(name) or " ".join(field.description.split()),
        )
    return found


def haystack_meta_table() -> str:
    """The second output of Haystack's ranker: the fields of `RankStats`, some as Haystack has them, and the hits."""
    stats = entries(RankStats, "Attributes")
    tokens = {name: stats.pop(name) for name in ("prompt_tokens", "cached_tokens")}
    usage = " ".join(f"`{name}`: {text}" for name, text in tokens.items())
    said = {
        "model": "The ranker's `model`.",
        "usage": f"{usage} `total_tokens`: the same as `prompt_tokens`.",
        **stats,
        "truncated": "Ids of the documents that were cut.",
        "failed": "Ids of the documents that could not be scored, with the reason.",
        "hits": "For each document, best first: `id`, `index` (its place in the input), `score`, `logit`, `truncated`, "
        '`document_tokens` (how many the model read), `windows` and `best_window` (with `on_overflow="window"`), '
        "`error`.",
    }
    return table("`meta`", "", rows=[(f"`{name}`", in_markdown(text, "haystack")) for name, text in said.items()])


def metrics_table() -> str:
    """The metrics, for docs/operations.md."""
    return "\n".join(line for line in str(metrics.__doc__).splitlines() if line.startswith("|"))


def demo_scores_table() -> str:
    """How well the demo's models rank, for the README: what the tables of their cards say."""
    cards = sorted((DOCS.parent / "examples" / "models").glob("*/README.md"))
    heads: tuple[str, ...] = ()
    rows = []
    for card in cards:
        scores = card.read_text(encoding="utf-8").partition("\n## Scores\n")[2].partition("\n## ")[0]
        lines = [line.strip("|").split("|") for line in scores.splitlines() if line.startswith("|")]
        cells = [tuple(cell.strip() for cell in line) for line in lines if set(line[0]) != {"-"}]
        heads = cells[0] if cells else heads
        rows += [(f"[{card.parent.name}](examples/models/{card.parent.name})", *row) for row in cells[1:]]
    return table("model", *heads, rows=rows)


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
    return f"`{getattr(value, 'value', value)!r}`".replace("'", '"')


def variable(settings: Mapping[str, Setting], name: str) -> str:
    """The environment variable of a setting, if it has one."""
    return f"`{settings[name].variable}`" if name in settings else ""


# --- the command ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Write everything, or with --check see whether anything is stale."""
    check = "--check" in sys.argv
    everything = [
        *(file for files in SOURCES.values() for file in files),
        DOCS.parent / "README.md",
        *sorted(DOCS.glob("*.md")),
    ]
    files = [Path(name) for name in sys.argv[1:] if name != "--check"] or everything
    lost = {ours for words in WORDS.values() for ours in words if not any(ours in text for text in SHARED.values())}
    if lost:
        sys.exit(f"WORDS in docs/generate.py replaces what no sentence of RerankerConfig says: {', '.join(lost)}")
    stale = False
    for file in (file for file in files if file.suffix == ".py"):
        page = next(page for page in SOURCES if any(file.parts[-2:] == ours.parts[-2:] for ours in SOURCES[page]))
        source = file.read_text(encoding="utf-8")
        new = rewritten(source, page)
        if new != source and check:
            sys.stderr.writelines(unified_diff(source.splitlines(True), new.splitlines(True), str(file), "fresh"))
            stale = True
        elif new != source:
            file.write_text(new, encoding="utf-8")
    pages = [str(file) for file in files if file.suffix == ".md"]
    how = ["--check", "--diff"] if check else ["-r"]
    failed = pages and Cog().main(["cog", "--verbosity=1", "-I", str(DOCS), "-p", "import generate", *how, *pages])
    if stale or failed:
        sys.exit("Stale, or not to be written: run make fix.")


if __name__ == "__main__":
    main()
