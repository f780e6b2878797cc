"""How well scores are probabilities: Brier score, log loss, expected calibration error."""

from dataclasses import dataclass

import numpy as np

from winnow.evaluation.curves import Flags, Floats

_BINS = 10
_LEAST = 1e-15  # of a probability in the log loss: a wrong 0 or 1 costs 34.5


@dataclass(frozen=True, slots=True)
class Bin:
    """The pairs whose scores are in one tenth of 0…1.

    Attributes:
        pairs: How many they are; above 0.
        score: Their mean score.
        relevant: The share of them that is relevant: the same, if scores are probabilities.
    """

    pairs: int
    score: float
    relevant: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """How well scores are probabilities. Of all three numbers less is better.

    Attributes:
        brier: Mean of (score − label)², with labels of 0 and 1.
        log_loss: Mean of −log(score) of relevant pairs and −log(1 − score) of others.
        ece: Expected calibration error: mean of |score − relevant| over the bins, by their pairs.
        bins: Those of 10 bins of equal width that have pairs, lowest scores first.
    """

    brier: float
    log_loss: float
    ece: float
    bins: tuple[Bin, ...]


def reliability(scores: Floats, relevant: Flags) -> Reliability:
    """How well scores are probabilities.

    Args:
        scores: One for each pair, from 0 to 1.
        relevant: Whether the pairs are relevant.
    """
    places = np.minimum((scores * _BINS).astype(int), _BINS - 1)
    bins = tuple(
        Bin(int(inside.sum()), float(scores[inside].mean()), float(relevant[inside].mean()))
        for place in np.unique(places)
        for inside in [places == place]
    )
    of_label = np.clip(np.where(relevant, scores, 1 - scores), _LEAST, 1)
    return Reliability(
        brier=float(np.mean((scores - relevant) ** 2)),
        log_loss=float(-np.log(of_label).mean()),
        ece=sum(one.pairs * abs(one.score - one.relevant) for one in bins) / len(scores),
        bins=bins,
    )
