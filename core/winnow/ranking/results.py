"""Group equal documents before scoring, and order them after it."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from operator import attrgetter, itemgetter
from statistics import fmean

from winnow.errors import DocumentError
from winnow.logits import sigmoid
from winnow.media import medium_identity
from winnow.ranking.calibration import Calibration
from winnow.ranking.config import RerankerConfig
from winnow.ranking.options import Call, CallOptions
from winnow.ranking.score_cache import Costs
from winnow.text import readable, shows, text_of
from winnow.types import RETRIEVAL_ORDER, Document, RankedDocument, Ranking, RankStats


@dataclass(frozen=True, slots=True)
class Contents:
    """The different documents of a call.

    Attributes:
        positions: The positions of each, by what it holds, without blank ones. Equal documents are scored once.
        failed: The errors of documents of a wrong type, by position.
    """

    positions: Mapping[Hashable, Sequence[int]]
    failed: Mapping[int, DocumentError]


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What scoring documents of a call found.

    Attributes:
        hits: The documents that were scored, by position.
        failed: The errors of the others, by the first position of each.
        unique: As in `RankStats`.
        usage_tokens: As in `RankStats`.
        costs: What it cost.
        query_truncated: Whether the query was cut.
        not_finite: Why a logit is not a finite number, if there was one.
    """

    hits: dict[int, RankedDocument] = field(default_factory=dict)
    failed: dict[int, DocumentError] = field(default_factory=dict)
    unique: int = 0
    usage_tokens: int = 0
    costs: Costs = field(default_factory=Costs)
    query_truncated: bool = False
    not_finite: str | None = None

    def add(self, other: "Outcome") -> None:
        """Add what scoring other documents of the call found."""
        self.hits.update(other.hits)
        self.failed.update(other.failed)
        self.unique += other.unique
        self.usage_tokens += other.usage_tokens
        self.costs += other.costs
        self.query_truncated |= other.query_truncated
        self.not_finite = self.not_finite or other.not_finite


def contents_of(documents: Sequence[str | Document | None]) -> Contents:
    """The different documents among those of a call."""
    positions: dict[Hashable, list[int]] = {}
    failed: dict[int, DocumentError] = {}
    for at, document in enumerate(documents):
        text = text_of(document)
        if text is not None and not isinstance(text, str):
            kind = type(text).__name__
            failed[at] = DocumentError(f"Document {at} is of type {kind}, not a text or a winnow.Document.", at)
        elif isinstance(document, Document) and shows(document):
            media = tuple(map(medium_identity, (document.image, document.video)))
            positions.setdefault((readable(document), *media), []).append(at)
        elif readable(document):
            positions.setdefault(text, []).append(at)
    return Contents(positions, failed)


def raise_first(failed: Mapping[int, DocumentError]) -> None:
    """Raise the error of the first document that has one."""
    if failed:
        raise failed[min(failed)]


class HitMaker:
    """Makes hits of the logits of documents.

    Args:
        config: The reranker's settings.
        call: The call.
    """

    def __init__(self, config: RerankerConfig, call: Call):
        self._documents = call.documents
        self._to_score = _scale(config, call.options)
        self._logit_of = _LOGIT_OF_WINDOWS[config.window_score]

    def hits(
        self, positions: Sequence[int], logits: Sequence[float], *, truncated: bool, document_tokens: int
    ) -> dict[int, RankedDocument]:
        """The hits of equal documents, by position.

        Args:
            positions: Where they are among the call's documents.
            logits: One for each window.
            truncated: As in `RankedDocument`.
            document_tokens: As in `RankedDocument`.
        """
        logit = self._logit_of(logits)
        score = self._to_score(logit)
        best_window = logits.index(max(logits))
        return {
            at: RankedDocument(
                index=at,
                score=score,
                logit=logit,
                text=text_of(self._documents[at]),
                truncated=truncated,
                document_tokens=document_tokens,
                windows=len(logits),
                best_window=best_window,
            )
            for at in positions
        }


def ranking_of(call: Call, contents: Contents, outcome: Outcome) -> Ranking:
    """The ranking of a call.

    Args:
        call: The call.
        contents: Its different documents.
        outcome: What scoring them found.
    """
    errors = _errors_of_all(contents, outcome)
    hits = [
        outcome.hits[at] if at in outcome.hits else _unscored(call, at, document, errors.get(at))
        for at, document in enumerate(call.documents)
    ]
    return Ranking(
        _best_first(hits, call.options),
        RankStats(
            documents=len(hits),
            unique=outcome.unique,
            truncated=sum(hit.truncated for hit in hits),
            failed=sum(hit.error is not None for hit in hits),
            usage_tokens=outcome.usage_tokens,
            query_truncated=outcome.query_truncated,
            **asdict(outcome.costs),
        ),
    )


def as_they_came(call: Call, why: str) -> Ranking:
    """A ranking in input order, without scores.

    Args:
        call: The call.
        why: Why nothing was scored.
    """
    hits = [_unscored(call, at, document, why) for at, document in enumerate(call.documents)]
    return Ranking(
        tuple(hits[: call.options.top_k]),
        RankStats(documents=len(hits), failed=len(hits), fallback=RETRIEVAL_ORDER, error=why),
    )


def in_input_order(ranking: Ranking) -> list[float]:
    """The scores of all documents of a ranking, in input order."""
    return [hit.score for hit in sorted(ranking, key=attrgetter("index"))]


def _unscored(call: Call, at: int, document: str | Document | None, error: str | None) -> RankedDocument:
    score = -math.inf if call.options.raw_scores else 0.0
    return RankedDocument(index=at, score=score, logit=-math.inf, text=text_of(document), windows=0, error=error)


def _errors_of_all(contents: Contents, outcome: Outcome) -> dict[int, str]:
    """Why documents have no score, by position, also of those that equal one that was tried."""
    errors = {at: str(error) for at, error in contents.failed.items()}
    if outcome.failed:
        same_as = {same[0]: same for same in contents.positions.values()}
        errors.update((at, str(error)) for first, error in outcome.failed.items() for at in same_as[first])
    return errors


def _best_first(hits: Sequence[RankedDocument], options: CallOptions) -> tuple[RankedDocument, ...]:
    """The `top_k` best hits that reach the threshold, best first; ties keep the input's order."""
    ranked = sorted(hits, key=lambda hit: -hit.logit)
    if options.score_threshold is not None:
        ranked = [hit for hit in ranked if hit.score >= options.score_threshold]
    return tuple(ranked[: options.top_k])


def _scale(config: RerankerConfig, options: CallOptions) -> Callable[[float], float]:
    """What makes scores of logits."""
    if options.raw_scores:
        return _identity
    return config.calibration.probability if isinstance(config.calibration, Calibration) else sigmoid


def _identity(logit: float) -> float:
    return logit


_LOGIT_OF_WINDOWS: dict[str, Callable[[Sequence[float]], float]] = {"max": max, "mean": fmean, "first": itemgetter(0)}
