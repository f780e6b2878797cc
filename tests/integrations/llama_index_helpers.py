"""What tests of the LlamaIndex integration share: nodes, ways to call, and fixtures (the tests load it as a plugin).

PYTEST_DONT_REWRITE: imported before it is a plugin, which pytest would warn of; it asserts nothing.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from five_texts import TEXTS
from llama_index.core.instrumentation import root_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.schema import NodeWithScore, TextNode

from winnow_llama_index import WinnowRerank

Call = Callable[..., list[NodeWithScore]]


def fake(**settings: Any) -> WinnowRerank:
    return WinnowRerank(**{"model": "fake", "engine": "fake", "top_n": None, **settings})


def scored(nodes: Sequence[Any], first: float | None = 0.5) -> list[NodeWithScore]:
    return [NodeWithScore(node=node, score=first) for node in nodes]


def text_nodes(texts: Sequence[str] = TEXTS) -> list[TextNode]:
    return [TextNode(id_=str(at), text=text) for at, text in enumerate(texts)]


def ids(nodes: Sequence[NodeWithScore]) -> list[int]:
    return [int(hit.node.node_id) for hit in nodes]


def call_sync(reranker: WinnowRerank, *args: Any, **kwargs: Any) -> list[NodeWithScore]:
    return reranker.postprocess_nodes(*args, **kwargs)


def call_async(reranker: WinnowRerank, *args: Any, **kwargs: Any) -> list[NodeWithScore]:
    return asyncio.run(reranker.apostprocess_nodes(*args, **kwargs))


def call_sync_in_loop(reranker: WinnowRerank, *args: Any, **kwargs: Any) -> list[NodeWithScore]:
    async def main() -> list[NodeWithScore]:
        return reranker.postprocess_nodes(*args, **kwargs)

    return asyncio.run(main())


@pytest.fixture(params=[call_sync, call_async, call_sync_in_loop], ids=["sync", "async", "sync-in-loop"])
def call(request: pytest.FixtureRequest) -> Call:
    """Each way LlamaIndex calls a postprocessor."""
    return request.param


class Recorder(BaseEventHandler):
    """Keeps the rerank events."""

    seen: list[BaseEvent]

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        if isinstance(event, ReRankStartEvent | ReRankEndEvent):
            self.seen.append(event)


@pytest.fixture
def events() -> Iterator[list[BaseEvent]]:
    recorder = Recorder(seen=[])
    root_dispatcher.event_handlers.append(recorder)
    yield recorder.seen
    root_dispatcher.event_handlers.remove(recorder)


@pytest.fixture
def spans() -> Iterator[SimpleSpanHandler]:
    handler = SimpleSpanHandler()
    root_dispatcher.span_handlers.append(handler)
    yield handler
    root_dispatcher.span_handlers.remove(handler)
