"""Reads descriptions of what software does: packages, manual pages, docstrings."""

import ast
import gzip
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from training.pages import sections
from training.passages import Passage, cut, lower_first, plain, sentences

_REQUESTS = (
    "{}",
    "{}",  # twice: it is what most people type
    "I need software for this: {}",
    "Which package should I install? {}",
    "Recommend a tool: {}",
    "We are starting a project and look for the following: {}",
    "What can I use for {}?",
    "Is there something like {}?",
    "I am looking for {}",
)

# Names of packages that are data or parts of others, and of families that are too large.
_NO_TOOL = (
    r"-(?:dbg|dev|doc|common|data|l10n.*)$|^(?:task|librust|libghc|fonts|tesseract-ocr|hunspell|aspell|node|golang)-"
)


def read_descriptions(_: Path) -> Iterator[Passage]:
    """The descriptions of packages in apt's lists, asked for by their summaries."""
    files = sorted(Path("/var/lib/apt/lists").glob("*_main_i18n_Translation-en*"))
    if not files:
        raise FileNotFoundError("apt has no descriptions. Run: apt-get update -o Acquire::Languages=en")
    text = ""
    for file in files:
        done = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", file], capture_output=True, check=True)  # noqa: S603
        text += done.stdout.decode()
    seen = set()
    for block in text.split("\n\n"):
        match = re.match(r"Package: (\S+)\n(?:.*\n)*?Description-en: (.*)\n((?: .*\n?)*)", block)
        if not match or re.search(_NO_TOOL, match[1]):
            continue
        name, summary, body = match.groups()
        body = plain(re.split(r"\n \.\n (?:This package|It contains)", re.sub(r"\n \.\n", "\n\n", body))[0])
        if len(body.split()) < 18 or body in seen or len(summary.split()) < 3:
            continue
        seen.add(body)
        asked = re.sub(r"\s*\((?:[^)]*)\)\s*$| [-–] .*$", "", summary)
        queries = [("request", form.format(asked)) for form in _REQUESTS]
        yield Passage(cut(body, 80), name, "package", queries=queries, whole=body)


def read_manual(folder: Path) -> Iterator[Passage]:
    """The first paragraphs of manual pages; the very first is asked for by the line that says what the page is of."""
    for file in sorted(folder.glob("usr/share/man/man*/*.gz")):
        with gzip.open(file, "rt", encoding="utf-8", errors="replace") as page:
            text = re.sub(r"\\f(?:[A-Z]|\(..)|\\[&/,]", "", page.read()).replace("\\-", "-")
        lines = []
        for line in text.splitlines():
            macro = re.match(r"\.(SH|PP|P|B|I|BR|IR|RB|BI|IB|RI|SM)\b\s*(.*)", line)
            if macro and macro[1] in ("PP", "P", "SH"):
                lines.append("\n\n" + ("# " + macro[2] + "\n\n" if macro[1] == "SH" else ""))
            elif macro:
                joint = " " if macro[1] in ("B", "I", "SM") else ""
                lines.append(joint.join(quoted or word for quoted, word in re.findall(r'"([^"]*)"|(\S+)', macro[2])))
            elif not line.startswith((".", "'")):
                lines.append(line)
        blocks = [plain(block) for block in re.split(r"\n\s*\n", "\n".join(lines))]
        name = re.match(r"(\S+)(?:, \S+)* -+ (.{15,})", next((b for b in blocks if " - " in b[:80]), ""))
        body = [b for b in blocks if len(b.split()) >= 20 and "\\" not in b]
        if name and body:
            forms = ("How do I do this in C or a shell on Linux: {}?", "{}", "Which function or command is this: {}?")
            queries = [("request", form.format(lower_first(name[2].rstrip(".")))) for form in forms]
            yield Passage(cut(body[0], 90), name[1].rstrip(","), "api", queries=queries)
            yield from sections([("", block) for block in body[1:4]], "documentation")


_API_REQUESTS = (
    "How can I {}?",
    "I want to {}. Which function or class should I use?",
    "Our team has to {}. Find an API that does it.",
    "Python code to {}",
    "{}",
)
_VERBS = frozenset(
    """
    add adjust allow apply approximate assign build calculate cast check clip combine compile compute construct
    convert copy count create decode decompose decorate define delete denoise detect determine disable download
    draw dump enable encode ensure estimate evaluate expand export extract fetch fill filter find fit flatten
    fold format freeze generate get give group implement import initialize insert integrate interpolate invert
    iterate join learn list load log make map mask measure merge minimize move multiply normalize pack pad parse
    perform permute plot pool predict prepare print process project prune push quantize raise read reduce
    register remove reorder repeat replace reset reshape resize restore return rotate run sample save scale
    score search select send set shift show shuffle simulate solve sort split stack start stop store sum swap
    take test tokenize train transform transpose truncate unpack update upload use validate wait wrap write
    """.split()  # noqa: SIM905
)
_NOUN_REQUESTS = ("{}", "I need an API for this: {}", "Which class implements this: {}?", "Suggest something like {}")


def read_docstrings(folder: Path) -> Iterator[Passage]:
    """What public classes and functions do, asked for by their docstrings' first sentences."""
    seen = set()
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder.parent).with_suffix("").parts
        if any(part.startswith(("test", "conftest", "_test", "_internal")) for part in parts):
            continue
        module = ".".join(part for part in parts if not part.startswith("_"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8", errors="replace"))):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            whole = re.split(
                r"\n\s*(?:Parameters|Args|Arguments|Returns|Examples?|Attributes|References|\.\. \w+)\b|>>>|```",
                ast.get_docstring(node) or "",
            )[0]
            text = plain(
                re.sub(
                    r":\w+:`[~.]?([^`]*)`|`+([^`]*)`+|\*\*?([^*]*)\*\*?|\[`?~?([^\]`]*)`?\]\([^)]*\)|r?\"\"\"",
                    lambda m: next((g for g in m.groups() if g), ""),
                    whole,
                )
            )
            if (
                len(text.split()) < 14
                or re.search(r"TODO|deprecated", text, re.IGNORECASE)
                or "{" in text
                or "http" in text
                or text[:60] in seen
            ):
                continue
            seen.add(text[:60])
            first, *rest = sentences(text)
            first = first.rstrip(".")
            if 4 <= len(first.split()) <= 30:
                verb = re.sub(r"(?<=[^s])s$", "", first.split()[0].lower())
                is_verb = verb in _VERBS
                asked = f"{verb} {' '.join(first.split()[1:])}" if is_verb else lower_first(first)
                queries = [("request", form.format(asked)) for form in (_API_REQUESTS if is_verb else _NOUN_REQUESTS)]
                if len(" ".join(rest).split()) >= 20:  # The description can do without the sentence that asks for it.
                    yield Passage(cut(" ".join(rest), 90), f"{module}.{node.name}", "api", queries=queries)
                else:
                    yield Passage(cut(text, 90), f"{module}.{node.name}", "api", queries=queries)
