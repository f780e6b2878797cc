"""The LlamaIndex integration in LlamaIndex: events, query and chat engines, tools, evaluators, workflows; vLLM."""

import asyncio
import json
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import reported
from five_texts import BEST_FIRST, QUERY, TEXTS
from llama_index.core import MockEmbedding, SummaryIndex, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.evaluation import RetrieverEvaluator
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.postprocessor import SentenceTransformerRerank, SimilarityPostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import (
    NodeWithScore,
    QueryBundle,
)
from llama_index.core.tools import RetrieverTool
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step
from llama_index_helpers import Call, fake, ids, scored, text_nodes

from winnow import Reranker
from winnow_llama_index import WinnowRerank

pytest_plugins = ["llama_index_helpers"]

# --- events and spans -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("top_n", "effective"), [(2, 2), (None, 5), (99, 5)])
def test_instrumentation_events(call: Call, events: list[BaseEvent], top_n: int | None, effective: int) -> None:
    nodes = scored(text_nodes())
    bundle = QueryBundle(QUERY + "\n")
    found = call(fake(top_n=top_n), nodes, query_bundle=bundle)
    start, end = events
    assert isinstance(start, ReRankStartEvent)
    assert isinstance(end, ReRankEndEvent)
    assert (start.query, start.nodes, start.top_n, start.model_name) == (bundle, nodes, effective, "fake")
    assert start.timestamp <= end.timestamp
    assert end.nodes == found
    stats = end.tags["winnow"]
    assert (stats["documents"], stats["unique"], stats["truncated"]) == (5, 5, 0)
    assert json.dumps(stats)


def test_the_end_event_holds_all_that_the_core_reports(call: Call, events: list[BaseEvent]) -> None:
    call(fake(**reported.SETTINGS), scored(text_nodes(reported.TEXTS)), query_str=reported.QUERY)
    reported.check_reported(events[-1].tags["winnow"])


def test_legacy_callbacks(call: Call) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    nodes = scored(text_nodes())
    found = call(fake(top_n=2, callback_manager=CallbackManager([debug])), nodes, query_str=QUERY + "\n")
    ((start, end),) = debug.get_event_pairs(CBEventType.RERANKING)
    assert start.payload == {
        EventPayload.NODES: nodes,
        EventPayload.MODEL_NAME: "fake",
        EventPayload.QUERY_STR: QUERY + "\n",
        EventPayload.TOP_K: 2,
    }
    assert end.payload == {EventPayload.NODES: found}


def test_reranking_has_its_own_span(events: list[BaseEvent], spans: SimpleSpanHandler) -> None:
    """Events must point at the postprocessor's span, not at the query's: tracers label a span by its events."""
    engine = SummaryIndex(text_nodes()).as_query_engine(llm=MockLLM(), node_postprocessors=[fake()])
    for name, run in {
        "WinnowRerank._postprocess_nodes": lambda: engine.query(QUERY),
        "WinnowRerank._apostprocess_nodes": lambda: asyncio.run(engine.aquery(QUERY)),
    }.items():
        events.clear()
        run()
        assert [event.span_id.rsplit("-", 5)[0] for event in events] == [name, name]
        (span,) = [span for span in spans.completed_spans if span.id_ == events[0].span_id]
        assert span.parent_id.startswith("RetrieverQueryEngine.")


# --- inside LlamaIndex ------------------------------------------------------------------------------------------------


@pytest.fixture
def index() -> VectorStoreIndex:
    return VectorStoreIndex(text_nodes(), embed_model=MockEmbedding(embed_dim=8))


def test_vector_index_query_engine(index: VectorStoreIndex) -> None:
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=5, node_postprocessors=[fake(top_n=2)])
    for response in (engine.query(QUERY), asyncio.run(engine.aquery(QUERY)), asyncio.run(engine.aquery(QUERY))):
        assert ids(response.source_nodes) == BEST_FIRST[:2]
        assert str(response).index(TEXTS[1]) < str(response).index(TEXTS[2])
        assert TEXTS[0] not in str(response)


def test_postprocessors_in_a_row() -> None:
    after = [fake(keep_retrieval_score=True), SimilarityPostprocessor(similarity_cutoff=0.5)]
    engine = SummaryIndex(text_nodes()).as_query_engine(llm=MockLLM(), node_postprocessors=after)
    response = engine.query(QUERY)
    assert ids(response.source_nodes) == BEST_FIRST[:2]  # the others share fewer than half of the query's words
    assert "retrieval_score" in response.source_nodes[0].node.metadata
    assert "retrieval_score" not in str(response)


def test_retriever_query_engine_hands_down_its_callbacks(index: VectorStoreIndex) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    manager = CallbackManager([debug])
    reranker = fake(top_n=3)
    engine = RetrieverQueryEngine.from_args(
        index.as_retriever(similarity_top_k=5),
        llm=MockLLM(),
        node_postprocessors=[reranker],
        callback_manager=manager,
    )
    assert ids(engine.query(QUERY).source_nodes) == BEST_FIRST[:3]
    assert reranker.callback_manager is engine.callback_manager
    assert len(debug.get_event_pairs(CBEventType.RERANKING)) == 1


@pytest.mark.parametrize("query", [" ", QUERY])
def test_a_chat_goes_on_after_a_blank_query_and_a_stalled_engine(index: VectorStoreIndex, query: str) -> None:
    """An LLM may condense a question to nothing."""
    reranker = fake(top_n=2, engine_kwargs={"delay": 600.0}, deadline=0.2, fallback="retrieval order")
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=5, node_postprocessors=[reranker])
    retrieved = index.as_retriever(similarity_top_k=5).retrieve(query)
    for response in (engine.query(query), asyncio.run(engine.aquery(query))):
        assert ids(response.source_nodes) == ids(retrieved)[:2]
        assert [hit.score for hit in response.source_nodes] == [hit.score for hit in retrieved[:2]]
        assert all("rerank_error" in hit.node.metadata for hit in response.source_nodes)
        assert "rerank_error" not in str(response)  # hidden from the LLM


@pytest.mark.parametrize("kind", [ContextChatEngine, CondensePlusContextChatEngine])
def test_chat_engines(index: VectorStoreIndex, kind: Any) -> None:
    engine = kind.from_defaults(
        retriever=index.as_retriever(similarity_top_k=5),
        llm=MockLLM(),
        memory=ChatMemoryBuffer.from_defaults(),  # the default memory leaves a database connection open
        node_postprocessors=[fake(top_n=2)],
    )
    assert ids(engine.chat(QUERY).source_nodes) == BEST_FIRST[:2]
    engine.reset()
    assert ids(asyncio.run(engine.achat(QUERY)).source_nodes) == BEST_FIRST[:2]


def test_retriever_tool(index: VectorStoreIndex) -> None:
    """The tool appends two line breaks to the query, which reach the model as any other part of a query does."""
    tool = RetrieverTool.from_defaults(index.as_retriever(similarity_top_k=5), node_postprocessors=[fake(top_n=2)])
    expected = fake(top_n=2).postprocess_nodes(scored(text_nodes()), query_str=QUERY + "\n\n")
    for output in (tool.call(QUERY), asyncio.run(tool.acall(QUERY))):
        assert [hit.score for hit in output.raw_output] == [hit.score for hit in expected]
        assert output.content == f"{TEXTS[1]}\n\n{TEXTS[2]}\n\n"


def test_retriever_evaluator_before_and_after() -> None:
    """The evaluator calls the synchronous method inside its event loop."""
    retriever = SummaryIndex(text_nodes()).as_retriever()
    before = RetrieverEvaluator.from_metric_names(["mrr"], retriever=retriever)
    after = RetrieverEvaluator.from_metric_names(["mrr"], retriever=retriever, node_postprocessors=[fake()])
    scores = [evaluator.evaluate(QUERY, expected_ids=["1"]).metric_vals_dict["mrr"] for evaluator in (before, after)]
    assert scores == [0.5, 1.0]


def test_workflow(index: VectorStoreIndex) -> None:
    class Search(Workflow):
        @step
        async def search(self, event: StartEvent) -> StopEvent:
            nodes = await index.as_retriever(similarity_top_k=5).aretrieve(event.query)
            found = await fake(top_n=2).apostprocess_nodes(nodes, query_str=event.query)
            return StopEvent(result=ids(found))

    async def main() -> list[list[int]]:
        return list(await asyncio.gather(*(Search(timeout=30).run(query=QUERY) for _ in range(3))))

    assert asyncio.run(main()) == [BEST_FIRST[:2]] * 3


@pytest.mark.parametrize("kind", [SentenceTransformerRerank, partial(WinnowRerank, engine="transformers")])
def test_takes_the_place_of_sentence_transformer_rerank(kind: Any, tiny_model: str, passages: list[str]) -> None:
    """The calls of LlamaIndex's own documentation, word for word."""
    rerank = kind(model=tiny_model, top_n=3)
    index = VectorStoreIndex(text_nodes(passages), embed_model=MockEmbedding(embed_dim=8))
    engine = index.as_query_engine(similarity_top_k=10, node_postprocessors=[rerank], llm=MockLLM())
    source_nodes = engine.query(QUERY).source_nodes
    scores = [hit.score for hit in source_nodes]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    nodes = index.as_retriever(similarity_top_k=10).retrieve(QUERY)
    assert ids(rerank.postprocess_nodes(nodes, query_str=QUERY)) == ids(source_nodes)
    assert ids(rerank.postprocess_nodes(nodes, query_bundle=QueryBundle(QUERY))) == ids(source_nodes)


def test_missing_llama_index_names_the_extra() -> None:
    code = "import sys; sys.modules['llama_index'] = None; import winnow_llama_index"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "MissingExtraError" in done.stderr
    assert '"winnow-rerank[llama-index]"' in done.stderr


# --- on vLLM ----------------------------------------------------------------------------------------------------------


def test_vllm_scores_are_the_cores(vllm_model: str, passages: list[str], call: Call) -> None:
    expected = Reranker(vllm_model, engine="vllm").rank(QUERY, passages)
    reranker = WinnowRerank(model=vllm_model, engine="vllm", top_n=None)
    found = call(reranker, scored(text_nodes(passages)), query_str=QUERY)
    assert ids(found) == [hit.index for hit in expected]
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    assert len({hit.score for hit in found}) > 1


def test_vllm_in_a_query_engine(vllm_model: str, passages: list[str]) -> None:
    reranker = WinnowRerank(model=vllm_model, engine="vllm", top_n=3)
    engine = SummaryIndex(text_nodes(passages)).as_query_engine(llm=MockLLM(), node_postprocessors=[reranker])
    expected = [hit.index for hit in Reranker(vllm_model, engine="vllm").rank(QUERY, passages, top_k=3)]
    assert ids(engine.query(QUERY).source_nodes) == expected
    assert ids(asyncio.run(engine.aquery(QUERY)).source_nodes) == expected


def test_vllm_reads_the_instruction(vllm_model: str, passages: list[str]) -> None:
    reranker = WinnowRerank(model=vllm_model, engine="vllm", top_n=None)
    nodes = scored(text_nodes(passages))
    plain = {hit.node.node_id: hit.score for hit in reranker.postprocess_nodes(nodes, query_str=QUERY)}
    reranker.instruction = "Judge whether the document names a city."
    instructed = {hit.node.node_id: hit.score for hit in reranker.postprocess_nodes(nodes, query_str=QUERY)}
    assert any(abs(plain[node] - instructed[node]) > 1e-4 for node in plain)


def test_vllm_answers_many_at_once(vllm_model: str, passages: list[str]) -> None:
    reranker = WinnowRerank(model=vllm_model, engine="vllm", top_n=None)
    queries = [f"{QUERY} {number}" for number in range(8)]
    nodes = scored(text_nodes(passages))

    async def main() -> list[list[NodeWithScore]]:
        return list(await asyncio.gather(*(reranker.apostprocess_nodes(nodes, query_str=query) for query in queries)))

    for query, found in zip(queries, asyncio.run(main()), strict=True):
        alone = {hit.node.node_id: hit.score for hit in reranker.postprocess_nodes(nodes, query_str=query)}
        assert {hit.node.node_id: hit.score for hit in found} == pytest.approx(alone, abs=1e-5)
