"""Print a diagnosis: in colours on a terminal that has them, else as plain text."""

from rich.console import Console
from rich.text import Text

from winnow.cli.doctor import Diagnosis
from winnow.cli.terminal import one_line, shown
from winnow.prompts import PART_NAMES, PartName, Piece

_STYLES: dict[PartName, str] = {"query": "cyan", "document": "green", "instruction": "yellow"}
_CONTROL = "bold reverse magenta"
_LONGEST = 2000  # characters of a piece that are shown


def print_report(found: Diagnosis, console: Console | None = None) -> None:
    """Print a diagnosis.

    Control tokens are in ⟦ ⟧, so that one typed in a document looks different even without colours; ↵ is a line break.

    Args:
        found: The diagnosis.
        console: Where to print; standard output by default.
    """
    console = console or Console(highlight=False)

    def line(name: str, text: str, style: str = "") -> None:
        console.print(Text.assemble((f"{name:<11}", "bold"), (shown(one_line(text)), style)), soft_wrap=True)

    line("model", f"{found.model} ({', '.join(found.architectures) or 'unknown architecture'})")
    if found.adapter is not None:
        line("adapter", f"of {found.adapter['base']}")
        when = "" if found.adapter["merged"] else ", when a reranker or winnow convert first loads it"
        line("merged", f"into {found.adapter['folder']}{when}")
    if found.family:
        line("recipe", f"{found.family}: score = sigmoid({found.formula})")
    if found.labels:
        line("labels", ", ".join(f"{label!r} = {index}" for label, index in found.labels.items()))
    if found.template:
        line("template", found.template)
    if found.pieces:
        console.print(Text.assemble(("prompt", "bold"), "     (⟦control token⟧, ↵ line break)"), soft_wrap=True)
        console.print(Text.assemble(*map(_shown, found.pieces), "\n"), soft_wrap=True)
    if found.tokens:
        parts = " + ".join(f"{found.tokens[name]} {name}" for name in PART_NAMES if found.tokens[name])
        line("tokens", f"{len(found.ids)} = {parts}")
    if found.judged:
        line("judged", f"the last token, {found.judged!r}")
    if found.max_length:
        query = f", a query up to {found.max_query_tokens}" if found.max_query_tokens else ""
        line("limits", f"a prompt up to {found.max_length} tokens{query}")
    for warning in found.warnings:
        line("warning", warning, "yellow")
    for problem in found.problems:
        line("problem", problem, "red")
    line("verdict", found.verdict, "red" if found.problems else "yellow" if found.warnings else "green")
    if found.serve:
        console.print(Text(f'\nA vLLM server of it, for engine="server":\n{shown(found.serve)}'), soft_wrap=True)


def _shown(piece: Piece) -> Text:
    if piece.control:
        return Text(f"⟦{shown(piece.text)}⟧", _CONTROL)
    text = piece.text
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} […{len(text) - _LONGEST} characters…] {text[-_LONGEST // 2 :]}"
    return Text("↵\n".join(map(shown, text.split("\n"))), _STYLES.get(piece.part, ""))
