"""The reliability of scores as a picture: do documents with a score of 0.8 have 8 relevant ones in 10?"""

from os import PathLike
from typing import Any

from winnow.evaluation.calibration_report import CalibrationReport
from winnow.evaluation.packages import needed
from winnow.evaluation.pictures import BLUE, GREY, ORANGE, check_picture_file
from winnow.evaluation.reliability import Reliability


def plot_reliability(report: CalibrationReport, file: str | PathLike[str]) -> None:
    """Draw how well scores are probabilities before and after the calibration, and how scores are distributed.

    Args:
        report: What `calibrate` returned.
        file: What to write: .png, .svg or .pdf.

    Raises:
        ValueError: The file's name ends with something else.
        MissingExtraError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    check_picture_file(file)
    matplotlib = needed("matplotlib")
    figure = needed("matplotlib.figure").Figure(layout="constrained", figsize=(7, 8))
    curves, scores = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    fitted = report.calibration
    figure.suptitle(f"{fitted.model}: {fitted.pairs} pairs of {fitted.queries} queries", parse_math=False)
    curves.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="a score that is a probability")
    ways: tuple[tuple[str, Reliability, Any, str], ...] = (
        ("before: sigmoid(logit)", report.before, report.scored.before, ORANGE),
        (f"after: {fitted.method}, held out by query", report.after, report.scored.after, BLUE),
    )
    for name, found, values, colour in ways:
        places = [one.score for one in found.bins]
        curves.plot(places, [one.relevant for one in found.bins], color=colour, linewidth=1.5)
        sizes = [20 + 280 * one.pairs / fitted.pairs for one in found.bins]
        label = f"{name}; ECE {found.ece:.3f}, Brier {found.brier:.3f}"
        curves.scatter(places, [one.relevant for one in found.bins], s=sizes, color=colour, label=label, zorder=3)
        scores.hist(values, bins=40, range=(0, 1), histtype="stepfilled", color=colour, alpha=0.5)
    if report.threshold is not None:
        line = f"threshold {report.threshold.threshold:g}: {report.threshold.wanted} {report.threshold.value:g}"
        curves.axvline(report.threshold.threshold, color="#222", linewidth=1, linestyle=":", label=line)
        scores.axvline(report.threshold.threshold, color="#222", linewidth=1, linestyle=":")
    curves.set_ylabel("share of relevant documents")
    curves.set_ylim(-0.03, 1.03)
    curves.legend(loc="upper left", framealpha=1, edgecolor="none", fontsize=9)
    scores.set_xlabel("score")
    scores.set_ylabel("pairs")
    scores.set_xlim(-0.03, 1.03)
    for axes in (curves, scores):
        axes.spines[["top", "right"]].set_visible(False)
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # texts stay texts
        figure.savefig(file, dpi=150)
