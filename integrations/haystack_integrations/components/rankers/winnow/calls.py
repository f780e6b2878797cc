"""One run of the Haystack ranker: its trace, and its output."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from haystack import Document, logging
from haystack.tracing.tracer import tracer

from winnow import DocumentError, RankedDocument, Ranking
from winnow.types import RETRIEVAL_ORDER, finite

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One run, checked.

    Attributes:
        model: The model.
        engine: Name of the engine.
        query: What is searched for, with its prefix.
        instruction: What counts as relevant.
        documents: The candidates, with None where the input had a duplicate, so that positions stay the input's.
        top_k: How many to return; None for all.
        score_threshold: Least score to return.
        scale_score: Whether scores are sigmoid(logit).
    """

    model: str
    engine: str
    query: str
    instruction: str | None
    documents: list[Document | None]
    top_k: int | None
    score_threshold: float | None
    scale_score: bool

    def output(self, ranking: Ranking) -> dict[str, Any]:
        """Copies of the documents with their scores, and `meta`."""
        hits = [(hit, document) for hit in ranking if (document := self.documents[hit.index]) is not None]
        stats = ranking.stats
        if stats.fallback == RETRIEVAL_ORDER:
            best = [document for _, document in hits]
        else:
            scored = [replace(document, score=_score(hit, self.scale_score)) for hit, document in hits]
            least = -math.inf if self.score_threshold is None else self.score_threshold
            best = [document for document in scored if document.score is not None and document.score >= least]
        meta = {
            "model": self.model,
            "usage": {
                "prompt_tokens": stats.prompt_tokens,
                "total_tokens": stats.prompt_tokens,
                "cached_tokens": stats.cached_tokens,
            },
            "documents": len(hits),
            "unique": stats.unique,
            "truncated": [document.id for hit, document in hits if hit.truncated],
            "failed": {document.id: hit.error for hit, document in hits if hit.error is not None},
            "elapsed_ms": stats.elapsed_ms,
            "fallback": stats.fallback,
            "error": stats.error,
        }
        return {"documents": best[: self.top_k], "meta": meta}

    @contextmanager
    def traced(self) -> Iterator[Callable[[Ranking], dict[str, Any]]]:
        """A span around the scoring, whose errors name the document. Yields what turns the ranking into the output."""
        tags = {"winnow.model": self.model, "winnow.engine": self.engine}
        parent = tracer.current_span()
        with tracer.trace("winnow.rank", tags=tags, parent_span=parent) as span:
            span.set_content_tag("winnow.query", self.query)
            span.set_content_tag("winnow.instruction", self.instruction)

            def traced_output(ranking: Ranking) -> dict[str, Any]:
                result = self.output(ranking)
                stats = replace(ranking.stats, documents=result["meta"]["documents"])
                span.set_tags({f"winnow.{name}": value for name, value in asdict(stats).items() if value is not None})
                if stats.failed:
                    logger.warning(
                        "{failed} of {documents} documents could not be ranked; meta['failed'] says why.",
                        failed=stats.failed,
                        documents=stats.documents,
                    )
                return result

            try:
                yield traced_output
            except DocumentError as error:
                if error.index is None or (document := self.documents[error.index]) is None:
                    raise
                raise DocumentError(f"{error} Its id is {document.id!r}.", error.index) from error


def _score(hit: RankedDocument, scale: bool) -> float:
    return hit.score if scale else finite(hit.logit)
