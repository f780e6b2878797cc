"""What the tests of the Haystack integration share."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import five_texts
from five_texts import TEXTS
from haystack import Document

from haystack_integrations.components.rankers.winnow import WinnowRanker

BEST_FIRST = [str(at) for at in five_texts.BEST_FIRST]  # as the ids of `documents`

Run = Callable[..., dict[str, Any]]


def fake(**settings: Any) -> WinnowRanker:
    return WinnowRanker(**{"model": "fake", "engine": "fake", "top_k": None, **settings})


def documents(texts: Sequence[str | None] = TEXTS) -> list[Document]:
    return [Document(id=str(at), content=text) for at, text in enumerate(texts)]


def ids(result: dict[str, Any]) -> list[str]:
    return [document.id for document in result["documents"]]


def run_sync(ranker: WinnowRanker, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return ranker.run(*args, **kwargs)


def run_async(ranker: WinnowRanker, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return asyncio.run(ranker.run_async(*args, **kwargs))


def run_sync_in_loop(ranker: WinnowRanker, *args: Any, **kwargs: Any) -> dict[str, Any]:
    async def main() -> dict[str, Any]:
        return ranker.run(*args, **kwargs)

    return asyncio.run(main())
