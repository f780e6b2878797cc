"""The LangChain door: documents in, documents out, best first."""

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.messages import convert_to_openai_image_block
from pydantic import Field

import winnow
from winnow.types import RETRIEVAL_ORDER, finite
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

    top_n: int | None = Field(default=3, ge=1)
    """How many documents to return; None for all."""

    score_threshold: float | None = Field(default=None, allow_inf_nan=False)
    """Least score to return (inclusive), applied before `top_n`."""

    metadata_fields: list[str] = Field(default_factory=list)
    """Metadata to put before the text when a document is scored; a field that is missing or None is left out."""

    embedding_separator: str = "\n"
    """What stands between these metadata and the text."""

    fallback: str | None = Field(default=None, frozen=True)
    """What ranks where the engine fails: the name of another engine, or "retrieval order", which leaves the documents
    as they came and says why in `metadata["rerank_error"]`. None to raise."""

    image_key: str | None = "image"
    """Where in the metadata a document's image is: a data URI, an address, or a standard content block. None to read
    the text only."""

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
    ) -> list[Document]:
        """Rerank documents.

        Args:
            documents: What was retrieved. Not changed.
            query: What was searched for.
            callbacks: The caller's; by default those of the run that this is called in.
            instruction: Instead of the reranker's; "" for the template's default. Retrievers cannot give it.
            top_n: Instead of the reranker's.

        Returns:
            The best `top_n`, best first; ties keep the input's order.

        Raises:
            TypeError: `documents` are not documents.
            ValueError: The query is blank, or `top_n` is below 1.
            DocumentError: A document cannot be scored, and `on_error` is "raise".
            ConfigurationError: The model or the template cannot be used.
            EngineError: The engine failed.
        """
        options = self._options(instruction, top_n)
        found = _check_documents(documents)
        if not found:
            return []
        with traced(**self._run(query, found, callbacks)) as outputs:
            ranking = self._reranker.rank(query, self._readable(found), **options)
            reranked = self._reranked(found, ranking)
            outputs.update(documents=reranked, winnow=ranking.as_dict())
        return reranked

    async def acompress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,
        *,
        instruction: str | None = None,
        top_n: int | None = None,
    ) -> list[Document]:
        """`compress_documents` for event loops. Cancelling it withdraws its prompts from the engine."""
        options = self._options(instruction, top_n)
        found = _check_documents(documents)
        if not found:
            return []
        async with atraced(**self._run(query, found, callbacks)) as outputs:
            ranking = await self._reranker.arank(query, self._readable(found), **options)
            reranked = self._reranked(found, ranking)
            outputs.update(documents=reranked, winnow=ranking.as_dict())
        return reranked

    def rerank(
        self,
        documents: Sequence[str | Document],
        query: str,
        *,
        instruction: str | None = None,
        top_n: int | None = None,
        callbacks: Callbacks | None = None,
    ) -> list[dict[str, Any]]:
        """Rank documents or texts, with settings for this call.

        Args:
            documents: Documents, or texts.
            query: What was searched for.
            instruction: As in `compress_documents`.
            top_n: As in `compress_documents`.
            callbacks: As in `compress_documents`.

        Returns:
            `{"index": position in documents, "relevance_score": score}`, best first; one that was skipped has a
            "rerank_error" too.

        Raises:
            TypeError: `documents` is a single one. Others as in `compress_documents`.
        """
        options = self._options(instruction, top_n)
        found = _check_list(documents)
        if not found:
            return []
        with traced(**self._run(query, found, callbacks)) as outputs:
            ranking = self._reranker.rank(query, self._readable(found), **options)
            results = _as_results(ranking)
            outputs.update(results=results, winnow=ranking.as_dict())
        return results

    async def arerank(
        self,
        documents: Sequence[str | Document],
        query: str,
        *,
        instruction: str | None = None,
        top_n: int | None = None,
        callbacks: Callbacks | None = None,
    ) -> list[dict[str, Any]]:
        """`rerank` for event loops."""
        options = self._options(instruction, top_n)
        found = _check_list(documents)
        if not found:
            return []
        async with atraced(**self._run(query, found, callbacks)) as outputs:
            ranking = await self._reranker.arank(query, self._readable(found), **options)
            results = _as_results(ranking)
            outputs.update(results=results, winnow=ranking.as_dict())
        return results

    def _options(self, instruction: str | None, top_n: int | None) -> dict[str, Any]:
        if top_n is not None and top_n < 1:
            raise ValueError(f"top_n must be > 0, but got {top_n}")
        return {
            "top_k": self.top_n if top_n is None else top_n,
            "score_threshold": self.score_threshold,
            "instruction": self.instruction if instruction is None else instruction,
        }

    def _run(self, query: str, documents: Sequence[str | Document], callbacks: Callbacks | None) -> dict[str, Any]:
        """How a call is traced."""
        return {
            "name": type(self).__name__,
            "inputs": {"query": query, "documents": documents},
            "metadata": {"rerank_model": self.model},
            "callbacks": callbacks,
        }

    def _readable(self, documents: Sequence[str | Document]) -> list[str | winnow.Document]:
        """What the model reads of each document."""
        return [
            self._text_and_media(at, document) if isinstance(document, Document) else document
            for at, document in enumerate(documents)
        ]

    def _text_and_media(self, at: int, document: Document) -> str | winnow.Document:
        metadata = document.metadata
        parts = [str(metadata[name]) for name in self.metadata_fields if metadata.get(name) is not None]
        if document.page_content.strip():
            parts.append(document.page_content)
        text = self.embedding_separator.join(parts)
        image, video = (self._medium(at, metadata, key) for key in (self.image_key, self.video_key))
        return text if image is video is None else winnow.Document(text=text or None, image=image, video=video)

    def _medium(self, at: int, metadata: Mapping[str, Any], key: str | None) -> Any:
        """The image or video below a key of the metadata, as the core takes it; None if there is none."""
        medium = None if key is None else metadata.get(key)
        if isinstance(medium, str) and not medium.strip():
            return None
        if not isinstance(medium, dict):
            return medium
        try:
            return convert_to_openai_image_block(medium)["image_url"]["url"]  # blocks of videos look the same
        except ValueError as error:
            if self.on_error == "skip":
                return medium  # skipped by the core, which knows no such image
            raise winnow.DocumentError(
                f"Document {at}: metadata[{key!r}] is not a block that can be read: {error} "
                "Give a data URI, an address, or a standard content block with url, or base64 and mime_type.",
                at,
            ) from error

    def _reranked(self, documents: Sequence[Document], ranking: winnow.Ranking) -> list[Document]:
        if ranking.stats.failed:
            logger.warning("%d of %d documents could not be reranked.", ranking.stats.failed, len(documents))
        scored = ranking.stats.fallback != RETRIEVAL_ORDER
        return [_with_score(documents[hit.index], hit, scored) for hit in ranking]


def _check_list(documents: Sequence[Any]) -> list[Any]:
    if isinstance(documents, str | Document):  # a Document is iterable too: over its fields
        raise TypeError("documents must be several, but got a single one: put it into a list")
    return list(documents)


def _check_documents(documents: Sequence[Document]) -> list[Document]:
    found = _check_list(documents)
    for at, document in enumerate(found):
        if not isinstance(document, Document):
            raise TypeError(
                f"documents[{at}] is a {type(document).__name__}, not a langchain_core Document; rerank() takes texts"
            )
    return found


def _with_score(document: Document, hit: winnow.RankedDocument, scored: bool) -> Document:
    metadata = deepcopy(document.metadata)
    if scored:
        metadata["relevance_score"] = finite(hit.score)
    metadata.pop("rerank_error", None)
    if hit.error is not None:
        metadata["rerank_error"] = hit.error
    return document.model_copy(update={"metadata": metadata})


def _as_results(ranking: winnow.Ranking) -> list[dict[str, Any]]:
    return [
        {
            "index": hit.index,
            "relevance_score": finite(hit.score),
            **({} if hit.error is None else {"rerank_error": hit.error}),
        }
        for hit in ranking
    ]
