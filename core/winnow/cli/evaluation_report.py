"""Print an evaluation: in colours on a terminal that has them, else as plain text."""

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from winnow.cli.terminal import one_line, shown
from winnow.evaluation import Costs, Evaluation, in_words

_QUERIES = 5  # that won or lost most


def print_report(evaluation: Evaluation, console: Console | None = None) -> None:
    """Print an evaluation.

    Args:
        evaluation: The evaluation.
        console: Where to print; standard output by default.
    """
    console = console or Console(highlight=False)
    for parts in (_metrics(evaluation), _comparisons(evaluation), _queries(evaluation), _costs(evaluation.costs)):
        for text, style in parts:
            console.print(Text(shown(text), style), soft_wrap=True)
        console.print()


def _metrics(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """A table of the metrics of each run."""
    queries = len(evaluation.queries)
    yield f"{evaluation.collection}, {queries} {'query' if queries == 1 else 'queries'}", "bold"
    widths = {name: max(8, len(name)) for name in evaluation.metrics}
    names = max(len(one.run.name) for one in evaluation.measured)
    yield "  ".join(["run".ljust(names), *(name.rjust(width) for name, width in widths.items())]), "dim"
    for one in evaluation.measured:
        values = (f"{one.metrics.means[name]:{width}.4f}" for name, width in widths.items())
        yield "  ".join([one.run.name.ljust(names), *values]), "bold" if one is evaluation.reranked else ""


def _comparisons(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    for one in evaluation.comparisons:
        style = "green" if one.difference > 0 else "red" if one.difference < 0 else ""
        yield f"{one.metric} against {one.against}: {in_words(one)}", style


def _queries(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """The queries that won and lost most."""
    metric = evaluation.metrics[0]
    for head, changes, style in (
        (f"won most by {metric}", evaluation.winners(_QUERIES), "green"),
        (f"lost most by {metric}", evaluation.losers(_QUERIES), "red"),
    ):
        yield head if changes else f"{head}: none", "dim"
        for one in changes:
            numbers = f"{one.difference:+.3f}  {one.before:.3f} → {one.after:.3f}"
            yield f"{numbers}  [{one.query}]  {one_line(one.text)}", style


def _costs(costs: Costs) -> Iterator[tuple[str, str]]:
    if costs.pairs_per_second is None:
        speed = f"{costs.cache_hits} prompts were in the score cache"
    else:
        speed = f"{costs.pairs_per_second:.1f} pairs/s"
    tokens = f"{costs.prompt_tokens} tokens, of which {costs.cached_tokens} in the engine's prefix cache"
    yield f"{costs.documents} pairs in {costs.seconds:.1f} s, {speed}; {tokens}", ""
    yield f"documents: {costs.truncated} cut, {costs.windowed} in windows, {costs.failed} failed", ""
    if costs.queries_truncated:
        yield f"{costs.queries_truncated} queries were cut: the model saw their beginning", "yellow"
    if costs.degraded:
        yield f"{costs.degraded} queries were ranked by the fallback", "yellow"
    if costs.truncated:
        yield "--on-overflow window scores all of a document that is cut", "yellow"
    if costs.failed:
        yield "why documents failed stands in the JSON (--json FILE)", "yellow"
