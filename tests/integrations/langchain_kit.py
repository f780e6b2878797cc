"""What the tests of the LangChain integration share."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from five_texts import TEXTS
from langchain_core.documents import Document

from winnow import Reranker
from winnow_langchain import WinnowRerank

Call = Callable[..., list[Document]]


def fake(**settings: Any) -> WinnowRerank:
    return WinnowRerank(**{"model": "fake", "engine": "fake", "top_n": None, **settings})


def make_documents(texts: Sequence[str] = TEXTS) -> list[Document]:
    return [Document(text, id=str(at), metadata={"source": f"page {at}"}) for at, text in enumerate(texts)]


def ids(documents: Sequence[Document]) -> list[int]:
    return [int(document.id) for document in documents]


def scores(documents: Sequence[Document]) -> list[float]:
    return [document.metadata["relevance_score"] for document in documents]


def call_sync(reranker: WinnowRerank, *args: Any, **kwargs: Any) -> list[Document]:
    return reranker.compress_documents(*args, **kwargs)


def call_async(reranker: WinnowRerank, *args: Any, **kwargs: Any) -> list[Document]:
    return asyncio.run(reranker.acompress_documents(*args, **kwargs))


def call_sync_in_loop(reranker: WinnowRerank, *args: Any, **kwargs: Any) -> list[Document]:
    async def main() -> list[Document]:
        return reranker.compress_documents(*args, **kwargs)

    return asyncio.run(main())


every_call = pytest.mark.parametrize(
    "call", [call_sync, call_async, call_sync_in_loop], ids=["sync", "async", "sync-in-loop"]
)


def record_handed_over(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collects the documents that the core is given, then lets it rank them."""
    handed: list[Any] = []
    rank, arank = Reranker.rank, Reranker.arank

    def recording_rank(self: Reranker, query: str, documents: Any, **options: Any) -> Any:
        handed.extend(documents)
        return rank(self, query, documents, **options)

    async def recording_arank(self: Reranker, query: str, documents: Any, **options: Any) -> Any:
        handed.extend(documents)
        return await arank(self, query, documents, **options)

    monkeypatch.setattr(Reranker, "rank", recording_rank)
    monkeypatch.setattr(Reranker, "arank", recording_arank)
    return handed
