"""What a calibration was fitted on, how good its probabilities are, and what a threshold does."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from winnow.evaluation.curves import Flags, Floats
from winnow.evaluation.packages import needed
from winnow.evaluation.reliability import Reliability
from winnow.evaluation.thresholds import Cut, Threshold, cut
from winnow.ranking import Calibration

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPairs:
    """The judged pairs that have scores, in the order in which they came.

    Attributes:
        queries: Their queries.
        logits: The model's logits.
        relevant: Whether the documents are relevant.
        before: sigmoid(logit), the score without a calibration.
        after: The calibrated probability, held out: of a curve that was fitted on the pairs of other queries.
    """

    queries: list[str]
    logits: Floats
    relevant: Flags
    before: Floats
    after: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationReport:
    """A calibration that was fitted, and how good it is on queries that it was not fitted on.

    Attributes:
        calibration: The calibration, fitted on all pairs: for `Reranker(calibration=...)`, and `save`.
        why: Why it has this method.
        before: How well sigmoid(logit) is a probability.
        after: How well the calibrated score is one, held out by query.
        threshold: The threshold for the precision or recall that was wanted; None if none was.
        left_out: How many pairs have no score, and do not count.
        scored: The others.
    """

    calibration: Calibration
    why: str
    before: Reliability
    after: Reliability
    threshold: Threshold | None
    left_out: int
    scored: ScoredPairs = field(repr=False)

    def cut(self, threshold: float, *, calibrated: bool = True) -> Cut:
        """What any threshold does to the judged pairs.

        Args:
            threshold: The least score that passes.
            calibrated: Whether it is compared with the calibrated score, held out, or with sigmoid(logit).
        """
        return cut(self.scored.after if calibrated else self.scored.before, self.scored.relevant, threshold)

    def to_dataframe(self) -> "pandas.DataFrame":
        """A row for each pair that has a score: query, logit, relevant, before, after; see `ScoredPairs`.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return needed("pandas").DataFrame({name: getattr(self.scored, name) for name in ScoredPairs.__slots__})

    def as_dict(self) -> dict[str, Any]:
        """Everything but the pairs as plain data for JSON."""
        parts = ("calibration", "before", "after", "threshold")
        found = {name: None if (part := getattr(self, name)) is None else asdict(part) for name in parts}
        return found | {"why": self.why, "left_out": self.left_out}

    def __str__(self) -> str:
        """The report as lines of text."""
        fitted = self.calibration
        share = fitted.relevant / fitted.pairs
        left_out = f"; {self.left_out} more have no score" if self.left_out else ""
        numbers = [
            f"{label:10}{getattr(self.before, name):10.4f}{getattr(self.after, name):10.4f}"
            for name, label in (("brier", "Brier"), ("log_loss", "log loss"), ("ece", "ECE"))
        ]
        return "\n".join(
            [
                f"{fitted.pairs} pairs of {fitted.queries} queries, {fitted.relevant} relevant ({share:.1%}){left_out}",
                f"{fitted.method}: {_curve(fitted)} ({self.why})",
                "",
                f"{'':10}{'before':>10}{'after':>10}, held out by query",
                *numbers,
                *([] if self.threshold is None else ["", *self._about(self.threshold)]),
            ]
        )

    def _about(self, chosen: Threshold) -> tuple[str, ...]:
        before = self.cut(chosen.threshold, calibrated=False)
        without = f"{before.precision:.3f}" if before.passing else "none"
        return (
            f"threshold {chosen.threshold:g} for a {chosen.wanted} of {chosen.value:g}; 95% intervals:",
            f"  threshold  {_interval(chosen.threshold_interval)}",
            f"  precision  {_interval(chosen.precision_interval)}, here {chosen.precision:.3f}",
            f"  recall     {_interval(chosen.recall_interval)}, here {chosen.recall:.3f}",
            f"  {chosen.passing:.1%} of the documents pass",
            f"  without the calibration: precision {without}, recall {before.recall:.3f}, {before.passing:.1%} pass",
        )


def _curve(fitted: Calibration) -> str:
    if fitted.slope is None or fitted.intercept is None:
        return f"{len(fitted.knots)} knots"
    return f"sigmoid({fitted.slope:.4g} · logit {'−' if fitted.intercept < 0 else '+'} {abs(fitted.intercept):.4g})"


def _interval(found: tuple[float, float]) -> str:
    return f"{found[0]:.3f} to {found[1]:.3f}"
