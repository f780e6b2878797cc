"""Evaluations as a picture: how good each run is, and which queries won and lost."""

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any

from winnow.evaluation.metrics import Comparison
from winnow.evaluation.packages import needed
from winnow.evaluation.pictures import BLUE, ENDINGS, GREY, ORANGE, PURPLE, SKY_BLUE, YELLOW, check_picture_file
from winnow.evaluation.results import Evaluation, QueryChange

_RUNS = (GREY, SKY_BLUE, YELLOW, PURPLE)  # the runs that the reranked one, in blue, is compared with
_LABELLED = 40  # queries that have a line and a label each
_LABEL = 60  # characters
_WIDTH, _LINE = 10.0, 0.26  # inches

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
svg { max-width: 100%; height: auto }
table { border-collapse: collapse; margin: 1em 0 }
th, td { text-align: left; vertical-align: top; padding: .3em .8em; border-bottom: 1px solid #ddd }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
"""


def check_plot_file(file: str | PathLike[str]) -> None:
    """See `check_picture_file`; `plot` writes pages, too."""
    check_picture_file(file, (*ENDINGS, ".html"))


def plot(evaluations: Evaluation | Sequence[Evaluation], file: str | PathLike[str]) -> None:
    """Draw evaluations: the metrics of each run, and how much each query won or lost by the first metric.

    Args:
        evaluations: One evaluation, or several that are drawn below each other.
        file: What to write: .png, .svg, .pdf, or .html, a page without scripts which also lists the queries that won
            and lost most.

    Raises:
        ValueError: The file's name ends with something else.
        MissingExtraError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    check_plot_file(file)
    drawn = [evaluations] if isinstance(evaluations, Evaluation) else list(evaluations)
    if Path(file).suffix.lower() == ".html":
        Path(file).write_text(_page(drawn), encoding="utf-8")
    else:
        _save(drawn, file)


def _save(evaluations: Sequence[Evaluation], file: Any, **options: Any) -> None:
    """Draw one panel below the other: the metrics, and then the queries against each other run."""
    matplotlib = needed("matplotlib")
    panels = [panel for evaluation in evaluations for panel in _panels(evaluation)]
    heights = [height for height, _ in panels]
    figure = needed("matplotlib.figure").Figure(layout="constrained", figsize=(_WIDTH, sum(heights)))
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for one, (_, draw) in zip(axes, panels, strict=True):
        draw(one)
        one.spines[["top", "right"]].set_visible(False)
    # Texts of SVG stay texts, which can be searched and read aloud.
    with matplotlib.rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a query's language may lack in the font
        figure.savefig(file, dpi=150, **options)


def _panels(evaluation: Evaluation) -> Iterator[tuple[float, Callable[[Any], None]]]:
    """The height of each panel in inches, and the function that draws it."""
    yield 1.1 + _LINE * (len(evaluation.measured) + 0.5) * len(evaluation.metrics), partial(_draw_metrics, evaluation)
    lines = len(evaluation.queries) if len(evaluation.queries) <= _LABELLED else 10
    for other in evaluation.others:
        yield 1.4 + _LINE * lines, partial(_draw_changes, evaluation, other.run.name)


def _draw_metrics(evaluation: Evaluation, axes: Any) -> None:
    """A group of bars for each metric, with a bar for each run."""
    runs = evaluation.measured
    colours = [*(_RUNS[at % len(_RUNS)] for at in range(len(runs) - 1)), BLUE]
    places, names = [], []
    for group, metric in enumerate(evaluation.metrics):
        for at, (one, colour) in enumerate(zip(runs, colours, strict=True)):
            places.append(group * (len(runs) + 0.5) + at)
            names.append(f"{metric}   {_short(one.run.name)}")
            bar = axes.barh(places[-1], one.metrics.means[metric], color=colour)
            axes.bar_label(bar, fmt="%.3f", padding=3, fontsize=9)
    axes.set_yticks(places, names, fontsize=9, parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    queries = f"{len(evaluation.queries)} {'query' if len(evaluation.queries) == 1 else 'queries'}"
    axes.set_title(f"{evaluation.run.name} on {evaluation.collection}, {queries}", loc="left", parse_math=False)


def _draw_changes(evaluation: Evaluation, against: str, axes: Any) -> None:
    """A bar for each query, from the one that won most to the one that lost most."""
    metric = evaluation.metrics[0]
    changes = evaluation.changes(metric, against)[::-1]
    differences = [change.difference for change in changes]
    places = range(len(changes))
    if len(changes) <= _LABELLED:
        axes.barh(places, differences, color=[BLUE if one > 0 else ORANGE for one in differences])
        axes.set_yticks(places, [_short(change.text) for change in changes], fontsize=9, parse_math=False)
        axes.invert_yaxis()
        axes.axvline(0, color="#222", linewidth=0.8)
    else:
        for colour, part in ((BLUE, max), (ORANGE, min)):
            axes.fill_between(places, [part(one, 0.0) for one in differences], step="mid", color=colour, linewidth=0)
        axes.axhline(0, color="#222", linewidth=0.8)
        axes.margins(x=0)
        axes.set_xlabel("queries, from the one that won most to the one that lost most")
    found = next(one for one in evaluation.comparisons if (one.metric, one.against) == (metric, against))
    axes.set_title(f"{metric} less that of {against}, query by query\n{in_words(found)}", loc="left", parse_math=False)


def in_words(comparison: Comparison) -> str:
    """A comparison as a line, such as "+0.030 (p = 0.0021): better on 80, worse on 40, equal on 180 queries"."""
    p_value = comparison.p_value
    chance = "" if p_value is None else " (p < 0.001)" if p_value < 0.001 else f" (p = {p_value:.2g})"
    equal = comparison.queries - comparison.better - comparison.worse
    return (
        f"{comparison.difference:+.3f}{chance}: "
        f"better on {comparison.better}, worse on {comparison.worse}, equal on {equal} queries"
    )


def _page(evaluations: Sequence[Evaluation]) -> str:
    svg = io.StringIO()
    _save(evaluations, svg, format="svg", metadata={"Date": None})
    picture = svg.getvalue()
    parts = "".join(map(_tables, evaluations))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Reranking, evaluated</title>'
        f'<style>{_STYLE}</style></head><body><figure role="img" aria-label="Metrics of each run, and the difference '
        f'of each query; the numbers are in the tables below.">{picture[picture.index("<svg") :]}</figure>'
        f"{parts}</body></html>\n"
    )


def _tables(evaluation: Evaluation) -> str:
    """Metrics, and the queries that won and lost most, in HTML."""
    heads = "".join(f"<th>{escape(name)}</th>" for name in evaluation.metrics)
    rows = "".join(
        f"<tr><td>{escape(one.run.name)}</td>{''.join(map(_number, one.metrics.means.values()))}</tr>"
        for one in evaluation.measured
    )
    compared = "".join(
        f"<li>{escape(one.metric)} against {escape(one.against)}: {in_words(one)}</li>"
        for one in evaluation.comparisons
    )
    metric = escape(evaluation.metrics[0])
    return (
        f"<h2>{escape(evaluation.run.name)} on {escape(evaluation.collection)}</h2>"
        f"<table><tr><th>run</th>{heads}</tr>{rows}</table><ul>{compared}</ul>"
        f"<h3>Queries that won most, by {metric}</h3>{_changes(evaluation.winners())}"
        f"<h3>Queries that lost most</h3>{_changes(evaluation.losers())}"
    )


def _changes(changes: Sequence[QueryChange]) -> str:
    if not changes:
        return "<p>None.</p>"
    rows = "".join(
        f"<tr>{_number(one.before)}{_number(one.after)}<td>{escape(one.query)}</td>"
        f"<td><bdi>{escape(one.text)}</bdi></td></tr>"
        for one in changes
    )
    return f"<table><tr><th>before</th><th>after</th><th>id</th><th>query</th></tr>{rows}</table>"


def _number(value: float) -> str:
    return f'<td class="number">{value:.4f}</td>'


def _short(text: str) -> str:
    line = " ".join(text[: 2 * _LABEL].split())
    return line if len(line) <= _LABEL else f"{line[: _LABEL - 1]}…"
