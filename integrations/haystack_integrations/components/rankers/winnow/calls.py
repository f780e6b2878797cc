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
        query: What is searched for, with prefix and suffix.
        instruction: What counts as relevant.
        documents: The candidates, with None where the input had a duplicate, so that positions stay the input's.
        top_k: How many to return; None for all.
        score_threshold: Least score to return.
        scale_score: Whether scores are between 0 and 1, instead of logits.
        deadline: Seconds after which it gives up; None for what was set at init.
    """

    model: str
    engine: str
    query: str
    instruction: str | None
    documents: list[Document | None]
    top_k: int | None
    score_threshold: float | None
    scale_score: bool
    deadline: float | None

    def output(self, ranking: Ranking) -> dict[str, Any]:
        """Copies of the documents with their scores, and `meta`."""
        ranked = [(hit, document) for hit in ranking if (document := self.documents[hit.index]) is not None]
        as_they_came = ranking.stats.fallback == RETRIEVAL_ORDER
        scores = [document.score if as_they_came else _score(hit, self.scale_score) for hit, document in ranked]
        least = -math.inf if self.score_threshold is None else self.score_threshold
        best = [
            replace(document, score=score)
            for (_, document), score in zip(ranked, scores, strict=True)
            if as_they_came or (score is not None and score >= least)
        ]
        said = replace(ranking, hits=tuple(hit for hit, _ in ranked)).as_dict()
        prompt_tokens, cached_tokens = said.pop("prompt_tokens"), said.pop("cached_tokens")
        meta = {
            "model": self.model,
            "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens, "cached_tokens": cached_tokens},
            **said,
            "documents": len(ranked),
            "truncated": [document.id for hit, document in ranked if hit.truncated],
            "failed": {document.id: hit.error for hit, document in ranked if hit.error is not None},
            "hits": [
                {"id": document.id, **facts, "score": score}
                for facts, (_, document), score in zip(said["hits"], ranked, scores, strict=True)
            ],
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
                documents, failed = result["meta"]["documents"], len(result["meta"]["failed"])
                stats = replace(ranking.stats, documents=documents, failed=failed)
                span.set_tags({f"winnow.{name}": value for name, value in asdict(stats).items() if value is not None})
                if failed:
                    logger.warning(
                        "{failed} of {documents} documents could not be ranked; meta['failed'] says why.",
                        failed=failed,
                        documents=documents,
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
