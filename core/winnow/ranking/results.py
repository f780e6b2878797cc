"""Group equal documents before scoring, and order them after it. Pure functions."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter, itemgetter
from statistics import fmean

from winnow.errors import DocumentError
from winnow.media import image_identity
from winnow.ranking.calibration import Calibration, sigmoid
from winnow.ranking.config import RerankerConfig
from winnow.text import readable, shows, text_of
from winnow.types import RETRIEVAL_ORDER, Document, RankedDocument, Ranking, RankStats


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The result of scoring one document.

    Attributes:
        logits: One for each window; empty if the document could not be scored.
        truncated: As in `RankedDocument`.
        document_tokens: As in `RankedDocument`.
    """

    logits: Sequence[float]
    truncated: bool
    document_tokens: int


def positions_by_content(
    documents: Sequence[str | Document | None], failed: dict[int, DocumentError]
) -> dict[Hashable, list[int]]:
    """The positions of each different document, without blank ones. Equal documents are scored once.

    Args:
        documents: The caller's documents.
        failed: The function adds the errors of documents of a wrong type here, by position.
    """
    positions: dict[Hashable, list[int]] = {}
    for at, document in enumerate(documents):
        text = text_of(document)
        if text is not None and not isinstance(text, str):
            kind = type(text).__name__
            failed[at] = DocumentError(f"Document {at} is of type {kind}, not a text or a winnow.Document.", at)
        elif isinstance(document, Document) and shows(document):
            media = tuple(map(image_identity, (document.image, document.video)))
            positions.setdefault((readable(document), *media), []).append(at)
        elif readable(document):
            positions.setdefault(text, []).append(at)
    return positions


def hits_of(
    config: RerankerConfig,
    documents: Sequence[str | Document | None],
    judged: Mapping[Hashable, Judged],
    positions: Mapping[Hashable, Sequence[int]],
    failed: Mapping[int, DocumentError],
) -> list[RankedDocument]:
    """One hit for each document, in input order."""
    to_score = _scale(config)
    unscored = -math.inf if config.raw_scores else 0.0
    hits = [
        RankedDocument(index=at, score=unscored, logit=-math.inf, text=text_of(document), windows=0)
        for at, document in enumerate(documents)
    ]
    for content, what in judged.items():
        if not what.logits:
            continue
        logit = _LOGIT_OF_WINDOWS[config.window_score](what.logits)
        for at in positions[content]:
            hits[at] = replace(
                hits[at],
                score=to_score(logit),
                logit=logit,
                truncated=what.truncated,
                document_tokens=what.document_tokens,
                windows=len(what.logits),
                best_window=what.logits.index(max(what.logits)),
            )
    same_as = {at: same for same in positions.values() for at in same}
    for at, error in failed.items():
        for same in same_as.get(at, [at]):
            hits[same] = replace(hits[same], error=str(error))
    return hits


def best_first(
    hits: Sequence[RankedDocument], top_k: int | None, score_threshold: float | None
) -> tuple[RankedDocument, ...]:
    """The `top_k` best hits that reach the threshold, best first; ties keep the input's order."""
    ranked = sorted(hits, key=lambda hit: -hit.logit)
    if score_threshold is not None:
        ranked = [hit for hit in ranked if hit.score >= score_threshold]
    return tuple(ranked[:top_k])


def as_they_came(
    config: RerankerConfig, documents: Sequence[str | Document | None], top_k: int | None, why: str
) -> Ranking:
    """A ranking in input order, without scores.

    Args:
        config: The reranker's settings.
        documents: The documents.
        top_k: How many to return; None for all.
        why: Why nothing was scored.
    """
    hits = hits_of(config, documents, {}, {}, {})
    return Ranking(
        tuple(replace(hit, error=why) for hit in hits[:top_k]),
        RankStats(documents=len(hits), failed=len(hits), fallback=RETRIEVAL_ORDER, error=why),
    )


def in_input_order(ranking: Ranking) -> list[float]:
    """The scores of all documents of a ranking, in input order."""
    return [hit.score for hit in sorted(ranking, key=attrgetter("index"))]


def _scale(config: RerankerConfig) -> Callable[[float], float]:
    """What makes scores of logits."""
    if config.raw_scores:
        return _identity
    return config.calibration.probability if isinstance(config.calibration, Calibration) else sigmoid


def _identity(logit: float) -> float:
    return logit


_LOGIT_OF_WINDOWS: dict[str, Callable[[Sequence[float]], float]] = {"max": max, "mean": fmean, "first": itemgetter(0)}
