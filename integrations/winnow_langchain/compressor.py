"""WinnowRerank: documents in, documents out, best first."""

import logging
from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import Field, StrictFloat, StrictInt

import winnow
from winnow.ranking import checked_top_k
from winnow_langchain.documents import Reading, as_results, check_documents, check_list, reranked
from winnow_langchain.settings import WinnowSettings
from winnow_langchain.tracing import atraced, traced

logger = logging.getLogger(__name__)


class WinnowRerank(WinnowSettings, BaseDocumentCompressor):
    """Reorders documents by their relevance to the query, with a reranker model on vLLM.

    Documents come back as copies with their id and class, and their score in `metadata["relevance_score"]`. A document
    with neither text nor image is not scored: it ranks last, with 0.0, or with `raw_scores` the least float32. One that
    `on_error="skip"` passed over ranks last too, and says why in `metadata["rerank_error"]`.

    Each call is traced as a chain run of its own, below the caller's. Its outputs hold the documents and, as `winnow`,
    what `winnow.Ranking.as_dict` says: what the call cost, and what was truncated or failed.
    """

    top_n: StrictInt | None = Field(default=3, ge=1)
    """How many documents to return; None for all."""

    score_threshold: StrictFloat | None = Field(default=None, allow_inf_nan=False)
    """Least score to return (inclusive), applied before `top_n`."""

    metadata_fields: list[str] = Field(default_factory=list)
    """Metadata to put before the text when a document is scored; a field that is missing or None is left out."""

    embedding_separator: str = "\n"
    """What stands between these metadata and the text."""

    fallback: str | None = Field(default=None, frozen=True)
    """What ranks if the engine fails: the name of another engine for the same model, or "retrieval order", which leaves
    the documents as they came, also when a deadline passes. With any fallback a blank query leaves them as they came,
    too. None to raise. See docs/operations.md#when-the-engine-fails. After "retrieval order",
    `metadata["rerank_error"]` says why."""

    image_key: str | None = "image"
    """Where in the metadata a document's image is, for models that take images: a data URI, an address, or a standard
    content block. A number, a flag, something empty or another record is no image. None to read none."""

    video_key: str | None = None
    """Where in the metadata a document's video is: likewise, or a list of frames. None to read none."""

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,
        *,
        instruction: str | None = None,
        top_n: int | None = None,
        deadline: float | None = None,
    ) -> list[Document]:
        """Rerank documents.

        Args:
            documents: What was retrieved. Not changed.
            query: What was searched for.
            callbacks: The caller's; by default those of the run that this is called in.
            instruction: Instead of the reranker's; "" for the template's default. Retrievers cannot give it.
            top_n: Instead of the reranker's.
            deadline: Instead of the reranker's: seconds after which the call gives up.

        Returns:
            The best `top_n`, best first; ties keep the input's order. Where nothing could be ranked (a blank query with
            `on_error="skip"` or a `fallback`, or the fallback "retrieval order"), the first `top_n` as they came, each
            with the reason in `metadata["rerank_error"]`.

        Raises:
            TypeError: `documents` are not documents, or `top_n` is no integer.
            ValueError: The query is blank, or `top_n` is below 1.
            DocumentError: A document cannot be scored, and `on_error` is "raise".
            ConfigurationError: The model or the template cannot be used.
            EngineError: The engine failed, and there is no `fallback`.
            TimeoutError: The deadline passed, and `fallback` is not "retrieval order".
        """
        options = self._options(instruction, top_n, deadline)
        found = check_documents(documents)
        if not found:
            return []
        with traced(**self._run(query, found, callbacks)) as outputs:
            ranking = self._reranker.rank(query, self._readable(found), **options)
            best = reranked(found, ranking)
            outputs.update(documents=best, winnow=_reported(ranking))
        return best

    async def acompress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,
        *,
        instruction: str | None = None,
        top_n: int | None = None,
        deadline: float | None = None,
    ) -> list[Document]:
        """`compress_documents` for event loops. Cancelling it withdraws its prompts from the engine."""
        options = self._options(instruction, top_n, deadline)
        found = check_documents(documents)
        if not found:
            return []
        async with atraced(**self._run(query, found, callbacks)) as outputs:
            ranking = await self._reranker.arank(query, self._readable(found), **options)
            best = reranked(found, ranking)
            outputs.update(documents=best, winnow=_reported(ranking))
        return best

    def rerank(
        self,
        documents: Sequence[str | Document],
        query: str,
        *,
        instruction: str | None = None,
        top_n: int | None = None,
        deadline: float | None = None,
        callbacks: Callbacks | None = None,
    ) -> list[dict[str, Any]]:
        """Rank documents or texts, with settings for this call; traced as `compress_documents` is.

        Args:
            documents: Documents, or texts.
            query: What was searched for.
            instruction: As in `compress_documents`.
            top_n: As in `compress_documents`.
            deadline: As in `compress_documents`.
            callbacks: As in `compress_documents`.

        Returns:
            `{"index": position in documents, "relevance_score": score}`, best first; one that was not scored because of
            an error has a "rerank_error" too.

        Raises:
            TypeError: `documents` is a single one. Others as in `compress_documents`.
        """
        options = self._options(instruction, top_n, deadline)
        found = check_list(documents)
        if not found:
            return []
        with traced(**self._run(query, found, callbacks)) as outputs:
            ranking = self._reranker.rank(query, self._readable(found), **options)
            results = as_results(ranking)
            outputs.update(results=results, winnow=_reported(ranking))
        return results

    async def arerank(
        self,
        documents: Sequence[str | Document],
        query: str,
        *,
        instruction: str | None = None,
        top_n: int | None = None,
        deadline: float | None = None,
        callbacks: Callbacks | None = None,
    ) -> list[dict[str, Any]]:
        """`rerank` for event loops."""
        options = self._options(instruction, top_n, deadline)
        found = check_list(documents)
        if not found:
            return []
        async with atraced(**self._run(query, found, callbacks)) as outputs:
            ranking = await self._reranker.arank(query, self._readable(found), **options)
            results = as_results(ranking)
            outputs.update(results=results, winnow=_reported(ranking))
        return results

    def _options(self, instruction: str | None, top_n: int | None, deadline: float | None) -> dict[str, Any]:
        top_n = checked_top_k(top_n, "top_n")
        return {
            "top_k": self.top_n if top_n is None else top_n,
            "score_threshold": self.score_threshold,
            "instruction": self.instruction if instruction is None else instruction,
            "deadline": self.deadline if deadline is None else deadline,
        }

    def _readable(self, documents: Sequence[str | Document]) -> list[str | winnow.Document]:
        reading = Reading(
            metadata_fields=self.metadata_fields,
            embedding_separator=self.embedding_separator,
            image_key=self.image_key,
            video_key=self.video_key,
        )
        return [reading.of(document) for document in documents]

    def _run(self, query: str, documents: Sequence[str | Document], callbacks: Callbacks | None) -> dict[str, Any]:
        """How a call is traced."""
        return {
            "name": type(self).__name__,
            "inputs": {"query": query, "documents": documents},
            "metadata": {"rerank_model": self.model},
            "callbacks": callbacks,
        }


def _reported(ranking: winnow.Ranking) -> dict[str, Any]:
    """What a trace says about a ranking; failures are logged, too."""
    if ranking.stats.failed:
        logger.warning("%d of %d documents could not be reranked.", ranking.stats.failed, ranking.stats.documents)
    return ranking.as_dict()
