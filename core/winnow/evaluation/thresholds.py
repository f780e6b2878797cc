"""Choose a threshold for a precision or a recall, and say how sure that is."""

import math
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from winnow.errors import ConfigurationError
from winnow.evaluation.curves import Flags, Floats, Groups

Wanted = Literal["precision", "recall"]
Interval = tuple[float, float]
Counts = NDArray[np.float64] | NDArray[np.int64]

# A precision of fewer pairs says little: the first pair alone has 0 or 1.
_FEWEST_ABOVE = 10
_RESAMPLES = 1000
_NUMBERS_AT_ONCE = 2_000_000
_CONFIDENCE = (2.5, 97.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What a threshold does.

    Attributes:
        threshold: The least score that passes.
        precision: Share of the pairs that pass that is relevant; NaN if none passes.
        recall: Share of the relevant pairs that passes.
        passing: Share of all pairs that passes.
    """

    threshold: float
    precision: float
    recall: float
    passing: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold(Cut):
    """A threshold that was chosen. Intervals have a confidence of 95%: of 1000 bootstraps over the queries.

    Attributes:
        wanted: What it was chosen for: "precision" or "recall".
        value: How much of it.
        threshold_interval: Of the threshold that would be chosen with other queries. One that does not reach the
            precision counts as 1.
        precision_interval: Of the precision of this threshold.
        recall_interval: Of its recall.
    """

    wanted: Wanted
    value: float
    threshold_interval: Interval
    precision_interval: Interval
    recall_interval: Interval


def cut(scores: Floats, relevant: Flags, threshold: float) -> Cut:
    """What a threshold does to pairs."""
    above = scores >= threshold
    return Cut(
        threshold=threshold,
        precision=float(relevant[above].mean()) if above.any() else math.nan,
        recall=float(above[relevant].mean()),
        passing=float(above.mean()),
    )


def choose(scores: Floats, relevant: Flags, groups: Groups, wanted: Wanted, value: float) -> Threshold:
    """The lowest threshold that reaches a precision, or the highest that reaches a recall.

    Args:
        scores: One for each pair.
        relevant: Whether the pairs are relevant.
        groups: The numbers of their queries, from 0.
        wanted: "precision" or "recall".
        value: How much, above 0 and at most 1.

    Raises:
        ConfigurationError: No threshold that 10 pairs pass reaches the precision.
    """
    curve = _Curve(scores, relevant, groups)
    everything = np.ones((1, curve.queries))
    precision, recall = (found[0] for found in curve.at_cuts(everything))
    place = int(curve.places(everything, wanted, value)[0])
    if place < 0:
        best = int(np.argmax(np.where(curve.enough(everything)[0], precision, -1)))
        raise ConfigurationError(
            f"No threshold has a precision of {value:g} on {_FEWEST_ABOVE} or more of these pairs, held out by query: "
            f"the best is {precision[best]:.3f}, with a recall of {recall[best]:.3f}. Ask for less, or take a better "
            "model or a more exact instruction."
        )
    random = np.random.default_rng(0)
    thresholds: list[Floats] = []
    precisions: list[Floats] = []
    recalls: list[Floats] = []
    for done in range(0, _RESAMPLES, curve.at_once):
        rows = min(curve.at_once, _RESAMPLES - done)
        drawn = random.multinomial(curve.queries, np.full(curve.queries, 1 / curve.queries), rows)
        places = curve.places(drawn, wanted, value)
        thresholds.append(np.where(places < 0, 1.0, curve.cuts[places]))
        for kept, found in zip((precisions, recalls), curve.at_cuts(drawn), strict=True):
            kept.append(found[:, place])
    threshold = _shortest(curve.below(place), float(curve.cuts[place]))
    return Threshold(
        **asdict(cut(scores, relevant, threshold)),
        wanted=wanted,
        value=value,
        threshold_interval=_interval(thresholds),
        precision_interval=_interval(precisions),
        recall_interval=_interval(recalls),
    )


class _Curve:
    """Precision and recall at each place where a threshold can be: between two different scores.

    Its methods take how often each query counts, in rows that they handle at once: [rows, queries].

    Attributes:
        cuts: The scores, without repeats, highest first: the pairs of this score are the last that pass.
        queries: How many queries there are.
        at_once: How many rows to handle at once, so that they fit into memory.
    """

    def __init__(self, scores: Floats, relevant: Flags, groups: Groups):
        order = np.argsort(-scores, kind="stable")
        ranked = scores[order]
        self._last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of each run of equal scores
        self._relevant = relevant[order]
        self._groups = groups[order]
        self.cuts = ranked[self._last]
        self.queries = int(groups.max()) + 1
        self.at_once = max(1, min(_RESAMPLES, _NUMBERS_AT_ONCE // len(scores)))

    def at_cuts(self, counts: Counts) -> tuple[Floats, Floats]:
        """Precision and recall at each cut: [rows, cuts]. Precision is NaN where nothing passes."""
        above, hits = self._above(counts), self._above(counts, self._relevant)
        precision = np.divide(hits, above, out=np.full(hits.shape, np.nan), where=above > 0)
        return precision, hits / np.maximum(hits[:, -1:], 1)

    def enough(self, counts: Counts) -> Flags:
        """At which cuts enough pairs pass for a precision: [rows, cuts]."""
        found: Flags = self._above(counts) >= _FEWEST_ABOVE
        return found

    def places(self, counts: Counts, wanted: Wanted, value: float) -> Groups:
        """Which cut is chosen: [rows]. −1 if none reaches the value."""
        precision, recall = self.at_cuts(counts)
        if wanted == "recall":
            reached = recall >= value
            place = reached.argmax(axis=1)
        else:
            reached = (precision >= value) & self.enough(counts)
            place = len(self.cuts) - 1 - reached[:, ::-1].argmax(axis=1)
        return np.where(reached.any(axis=1), place, -1)

    def below(self, place: int) -> float:
        """The highest score that no longer passes."""
        return float(self.cuts[place + 1]) if place + 1 < len(self.cuts) else -math.inf

    def _above(self, counts: Counts, which: Flags | None = None) -> Floats:
        weights = counts[:, self._groups].astype(float)
        found: Floats = np.cumsum(weights if which is None else weights * which, axis=1)[:, self._last]
        return found


def _shortest(below: float, score: float) -> float:
    """The decimal number with the fewest digits that is above `below` and at most `score`."""
    for digits in range(2, 17):
        short: float = math.floor(score * 10**digits) / 10**digits
        if below < short <= score:
            return short
    return score


def _interval(values: list[Floats]) -> Interval:
    low, high = np.nanpercentile(np.concatenate(values), _CONFIDENCE)
    return float(low), float(high)
