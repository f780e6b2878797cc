"""The pictures of the notebooks and of the README: each function draws one with matplotlib and returns the figure."""

from collections.abc import Mapping, Sequence
from os import PathLike
from statistics import fmean
from textwrap import shorten
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

# Of Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
BLUE, ORANGE, GREY, PALE, INK = "#0072B2", "#D55E00", "#8C8C8C", "#E3E6E8", "#24292F"


def moves(
    before: Sequence[str],
    after: Sequence[str],
    texts: Mapping[str, str],
    *,
    titles: tuple[str, str],
    scores: Mapping[str, float],
    chosen: Sequence[str] = (),
    shown: int = 8,
    characters: int = 52,
) -> Figure:
    """Which way each text moved from one order to another.

    Args:
        before: Names of the texts in the first order.
        after: Their names in the second order.
        texts: The texts, by name.
        titles: What stands above the two orders.
        scores: The score of each in the second order.
        chosen: Names of those that are drawn in blue; by default those that moved up.
        shown: How many places of each order are shown.
        characters: How much of a text is shown.
    """
    shown = min(shown, len(before))
    figure, axes = _canvas(11, 0.6 + 0.36 * shown)
    axes.set(xlim=(-2.05, 3.3), ylim=(shown - 0.45, -1.1))  # what comes from below is cut at the edge
    axes.axis("off")
    chosen = chosen or [name for name in after if after.index(name) < before.index(name)]
    for name in sorted(before, key=lambda name: name in chosen):  # the blue ones on top
        left, right = before.index(name), after.index(name)
        if min(left, right) >= shown:
            continue
        colour = BLUE if name in chosen else GREY
        ends = [(0.04, left), (0.5, left), (0.5, right), (0.96, right)]
        curve = Path(ends, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
        width = 2.4 if name in chosen else 1.0
        axes.add_patch(PathPatch(curve, fill=False, edgecolor=colour, linewidth=width, alpha=0.9, clip_on=True))
        text = shorten(texts[name], characters, placeholder=" …")
        style: dict[str, Any] = {
            "color": INK if name in chosen else "#57606A",
            "va": "center",
            "fontsize": 9,
            "parse_math": False,
        }
        if left < shown:
            axes.text(-0.06, left, text, ha="right", **style)
            axes.text(0, left, str(left + 1), ha="center", **{**style, "color": colour, "fontweight": "bold"})
        if right < shown:
            axes.text(1, right, str(right + 1), ha="center", **{**style, "color": colour, "fontweight": "bold"})
            axes.text(1.06, right, f"{scores[name]:.2f}", ha="left", **{**style, "color": colour})
            axes.text(1.28, right, text, ha="left", **style)
    heads: dict[str, Any] = {"fontsize": 10.5, "fontweight": "bold", "color": INK, "va": "center", "parse_math": False}
    axes.text(-0.06, -0.75, titles[0], ha="right", **heads)
    axes.text(1.06, -0.75, titles[1], ha="left", **heads)
    return figure


def heat(scores: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """Scores between 0 and 1 as colours: a row for each query, a column for each document."""
    figure, axes = _canvas(3.2 + 0.6 * len(columns), 1.2 + 0.42 * len(rows))
    axes.imshow(scores, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="left", rotation_mode="anchor", fontsize=9)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for row, values in enumerate(scores):
        for column, value in enumerate(values):
            if value >= 0.05:
                colour = "white" if value > 0.6 else INK
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    return figure


def leanings(differences: Mapping[str, Mapping[str, float]], *, left: str, right: str, title: str) -> Figure:
    """Which of two meanings each instruction prefers: a row for each instruction, a dot for each word.

    Args:
        differences: For each instruction and word the logit of the right meaning less that of the left one.
        left: What a negative number means.
        right: What a positive number means.
        title: What stands above.
    """
    figure, axes = _canvas(9, 1.3 + 0.62 * len(differences))
    for place, words in enumerate(differences.values()):
        values = list(words.values())
        axes.plot([min(values), max(values)], [place, place], color=PALE, linewidth=7, solid_capstyle="round", zorder=1)
        axes.scatter(
            values,
            [place] * len(values),
            s=42,
            color=[BLUE if one > 0 else ORANGE for one in values],
            alpha=0.75,
            edgecolor="white",
            zorder=2,
        )
        axes.scatter([fmean(values)], [place], marker="|", s=420, color=INK, linewidth=2, zorder=3)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(differences)), list(differences), fontsize=9)
    axes.set_ylim(len(differences) - 0.4, -0.6)
    axes.set_xlabel(f"← {left}          difference of the logits          {right} →")
    axes.set_title(title, loc="left", fontsize=11)
    _bare(axes)
    return figure


def windows(best: Sequence[tuple[int, int]], cut: Sequence[float], windowed: Sequence[float]) -> Figure:
    """Which window of each document won, and what that changed.

    Args:
        best: For each document the window that won, from 0, and how many there are.
        cut: The score of each document of which only the beginning was read.
        windowed: The score of each document that was read in windows.
    """
    figure = Figure(layout="constrained", figsize=(9, 1.3 + 0.34 * len(best)))
    pieces, scores = figure.subplots(1, 2, width_ratios=[3, 2], sharey=True)
    for place, (won, count) in enumerate(best):
        colours = [BLUE if at == won else PALE for at in range(count)]
        pieces.barh([place] * count, [0.92] * count, left=range(count), height=0.72, color=colours)
        scores.plot([cut[place], windowed[place]], [place, place], color=PALE, linewidth=4, zorder=1)
    places = range(len(best))
    scores.scatter(cut, places, color=ORANGE, s=110, label="beginning only", zorder=2)
    scores.scatter(windowed, places, color=BLUE, s=40, label="in windows", zorder=3)
    scores.set(xlim=(-0.05, 1.05), xlabel="score")
    scores.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False, fontsize=9)
    pieces.set_title("windows of each document; the one that won is blue", loc="left", fontsize=10)
    pieces.set_yticks(places, [f"answer at place {place + 1}" for place in places], fontsize=9)
    pieces.set_xticks([])
    pieces.invert_yaxis()
    for axes in (pieces, scores):
        _bare(axes)
    pieces.spines["bottom"].set_visible(False)
    return figure


def cuts(panels: Mapping[str, tuple[Sequence[float], float]], relevant: Sequence[bool]) -> Figure:
    """Where a threshold cuts: a panel for each scale, a dot for each judged pair.

    Args:
        panels: The scores of all pairs, and the threshold, by the panel's title.
        relevant: Whether each pair is relevant.
    """
    figure = Figure(layout="constrained", figsize=(9, 1.75 * len(panels)))
    for axes, (title, (scores, threshold)) in zip(
        figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0], panels.items(), strict=True
    ):
        for row, (wanted, colour) in enumerate(((True, BLUE), (False, ORANGE))):
            values = [score for score, fact in zip(scores, relevant, strict=True) if bool(fact) is wanted]
            # The golden ratio spreads dots evenly, where random numbers would make heaps.
            heights = [row + 0.7 * ((at * 0.618) % 1 - 0.5) for at in range(len(values))]
            axes.scatter(values, heights, s=22, color=colour, alpha=0.55, edgecolor="none")
        axes.axvspan(threshold, 1.02, color=BLUE, alpha=0.07, linewidth=0)
        axes.axvline(threshold, color=INK, linewidth=1.2)
        axes.set_yticks([0, 1], ["relevant", "not relevant"], fontsize=9)
        axes.set(xlim=(-0.02, 1.02), ylim=(1.5, -0.5))
        axes.set_title(title, loc="left", fontsize=10)
        _bare(axes)
    axes.set_xlabel("score")
    return figure


def places(found: Mapping[str, Sequence[int]], queries: Sequence[str]) -> Figure:
    """At which place each order has the first relevant document: a row for each query.

    Args:
        found: For each order the place of each query's first relevant document, from 1.
        queries: The texts of the queries.
    """
    figure, axes = _canvas(9, 1.2 + 0.25 * len(queries))
    rows = range(len(queries))
    for row in rows:
        ends = [order[row] for order in found.values()]
        axes.plot([min(ends), max(ends)], [row, row], color=PALE, linewidth=5, solid_capstyle="round", zorder=1)
    for (name, order), colour, size in zip(found.items(), (GREY, ORANGE, BLUE), (95, 60, 26), strict=False):
        axes.scatter(order, rows, s=size, color=colour, label=name, zorder=2)  # smaller ones on top: none is hidden
    axes.set_yticks(rows, queries, fontsize=9, parse_math=False)
    axes.set_ylim(len(queries) - 0.3, -0.7)
    axes.set_xlabel("place of the first relevant document (1 is best)")
    axes.set_xticks(range(1, max(max(order) for order in found.values()) + 1))
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(found), frameon=False, fontsize=9)
    _bare(axes)
    return figure


def save(figure: Figure, file: str | PathLike[str], description: str) -> None:
    """Write a picture. The same figure gives the same file; texts of SVG stay texts, which can be searched.

    Args:
        figure: The picture.
        file: Where it goes.
        description: What it was made with. An SVG file has it in its metadata.
    """
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "winnow"}):
        metadata = {"Date": None, "Description": description} if str(file).endswith(".svg") else None
        figure.savefig(file, dpi=150, bbox_inches="tight", pad_inches=0.15, metadata=metadata)


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches that no interactive window belongs to, and its axes."""
    figure = Figure(layout="constrained", figsize=(width, height))
    return figure, figure.subplots()


def _bare(axes: Axes) -> None:
    """Leave out all lines that say nothing."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.spines["bottom"].set_color(GREY)
