"""Calibrate a reranker on judged pairs."""

import logging
import math
from collections.abc import Iterable
from dataclasses import replace
from os import PathLike
from typing import Literal

import numpy as np

from winnow.errors import ConfigurationError
from winnow.evaluation.calibration_report import CalibrationReport, ScoredPairs
from winnow.evaluation.curves import Fitting, checked_method, chosen, fit
from winnow.evaluation.judged_pairs import JudgedPair, read_pairs
from winnow.evaluation.packages import needed
from winnow.evaluation.reliability import reliability
from winnow.evaluation.thresholds import choose
from winnow.logits import sigmoid
from winnow.ranking import Reranker

logger = logging.getLogger(__name__)

# Less says nothing: of the curve, of the queries that are held out, of the threshold.
_FEWEST_OF_A_KIND = 10
_FEWEST_QUERIES = 5


def calibrate(
    reranker: Reranker,
    pairs: Iterable[JudgedPair] | str | PathLike[str],
    *,
    method: Fitting = "auto",
    relevant_from: float = 1,
    precision: float | None = None,
    recall: float | None = None,
    progress: bool = False,
) -> CalibrationReport:
    """Score judged pairs, fit a curve that makes probabilities of the logits, and choose a threshold.

    Pairs should be those that the threshold will meet: what your retriever finds, judged. All numbers about quality are
    held out: each pair is scored by a curve that was fitted on other queries. The same pairs give the same report.

    Args:
        reranker: The reranker, with all settings that change logits: instruction, template, lengths. With `score_cache`
            set to a folder, a run that was interrupted goes on where it was.
        pairs: The pairs, or a file of them; see `read_pairs`, and `pairs_of` for a collection.
        method: "platt" (a sigmoid, two numbers), "isotonic" (any curve that rises; for 1000 pairs or more), or "auto":
            "isotonic" if there are so many pairs and its held-out Brier score is clearly lower, else "platt".
        relevant_from: The least label that counts as relevant.
        precision: Choose the lowest threshold with this share of relevant documents among those that pass.
        recall: Choose the highest threshold that this share of the relevant documents passes. One of the two, or none.
        progress: Show a progress bar on stderr.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        ConfigurationError: An argument is wrong; there are too few pairs, or of one kind only; relevant documents have
            no higher logits than others; or no threshold reaches the precision. The message says what to do.
        ValueError: The file of pairs is malformed.
        DocumentError: A document cannot be scored, and `on_error` of the reranker is "raise".
        EngineError: The engine failed.
    """
    checked_method(method)
    for name, value in (("precision", precision), ("recall", recall)):
        if value is not None and not 0 < value <= 1:
            raise ConfigurationError(f"{name} must be above 0 and at most 1, but got {value!r}")
    if precision is not None and recall is not None:
        raise ConfigurationError("give precision or recall, not both: a threshold is chosen for one of them")
    needed("sklearn")  # before hours of scoring, not after
    found = read_pairs(pairs) if isinstance(pairs, str | PathLike) else list(pairs)
    _check_enough(found, relevant_from)
    logits = _logits(reranker, found, progress)
    scored = [pair for pair in found if pair in logits]
    _check_enough(scored, relevant_from)
    values = np.array([logits[pair] for pair in scored])
    relevant = np.array([pair.label >= relevant_from for pair in scored])
    _, groups = np.unique([pair.query for pair in scored], return_inverse=True)
    if np.ptp(values) == 0:
        raise ConfigurationError(
            f"All pairs have the logit {values[0]:g}, so no curve makes probabilities of them. Check that the model is "
            "a reranker, with `winnow doctor`."
        )
    taken, after, why = chosen(method, values, relevant, groups)
    before = np.array([sigmoid(value) for value in values.tolist()])
    wanted: tuple[Literal["precision", "recall"], float] | None = None
    if precision is not None:
        wanted = ("precision", precision)
    elif recall is not None:
        wanted = ("recall", recall)
    instructions = {pair.instruction or reranker.config.instruction or "" for pair in scored}
    return CalibrationReport(
        calibration=replace(
            fit(taken, values, relevant),
            model=reranker.config.model,
            instruction=instructions.pop() if len(instructions) == 1 else None,
            pairs=len(scored),
            relevant=int(relevant.sum()),
            queries=int(groups.max()) + 1,
        ),
        why=why,
        before=reliability(before, relevant),
        after=reliability(after, relevant),
        threshold=None if wanted is None else choose(after, relevant, groups, *wanted),
        left_out=len(found) - len(scored),
        scored=ScoredPairs(
            queries=[pair.query for pair in scored], logits=values, relevant=relevant, before=before, after=after
        ),
    )


def _logits(reranker: Reranker, pairs: list[JudgedPair], progress: bool) -> dict[JudgedPair, float]:
    """The logits of the pairs that could be scored."""
    by_query: dict[tuple[str, str | None], list[JudgedPair]] = {}
    for pair in pairs:
        by_query.setdefault((pair.query, pair.instruction), []).append(pair)
    requests = [
        (query, [pair.document for pair in each], instruction) for (query, instruction), each in by_query.items()
    ]
    logits: dict[JudgedPair, float] = {}
    failed: list[tuple[JudgedPair, str]] = []
    for each, ranking in zip(by_query.values(), reranker.rank_many(requests, progress=progress), strict=True):
        if ranking.degraded and reranker.config.fallback is not None:
            raise ConfigurationError(
                f"The fallback {ranking.stats.fallback!r} scored a query, because: {ranking.stats.error} A calibration "
                "needs the model's own logits: calibrate without a fallback."
            )
        logits |= {each[hit.index]: hit.logit for hit in ranking if math.isfinite(hit.logit)}
        failed += [(each[hit.index], hit.error or "it is blank") for hit in ranking if not math.isfinite(hit.logit)]
    if failed:
        (pair, why), *_ = failed
        logger.warning(
            "%d of %d pairs have no score and are left out, such as the document %r of the query %r: %s",
            len(failed),
            len(pairs),
            pair.document[:80],
            pair.query[:80],
            why,
        )
    return logits


def _check_enough(pairs: list[JudgedPair], relevant_from: float) -> None:
    """Refuse pairs that are too few to fit a curve and to try it on other queries."""
    relevant = sum(pair.label >= relevant_from for pair in pairs)
    queries = len({pair.query for pair in pairs})
    if min(relevant, len(pairs) - relevant) >= _FEWEST_OF_A_KIND and queries >= _FEWEST_QUERIES:
        return
    labels = sorted({pair.label for pair in pairs})
    shown = ", ".join(f"{label:g}" for label in labels[:5]) + (", …" if len(labels) > 5 else "")
    raise ConfigurationError(
        f"{relevant} pairs are relevant and {len(pairs) - relevant} are not, of {queries} queries. A calibration needs "
        f"{_FEWEST_OF_A_KIND} of each and {_FEWEST_QUERIES} queries; some hundreds make it useful. Relevant are labels "
        f"from {relevant_from:g}, and the labels are {shown or 'none'}. Judge more documents, also those that are not "
        "relevant (with a collection: add its run), or set relevant_from."
    )
