"""The Haystack integration in real pipelines: hybrid retrieval, event loops, YAML, evaluation, tools, vLLM."""

import asyncio
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from five_texts import QUERY, TEXTS
from haystack import Document, Pipeline, SuperComponent
from haystack.components.builders import PromptBuilder
from haystack.components.embedders import MockTextEmbedder
from haystack.components.evaluators import DocumentMRREvaluator, DocumentNDCGEvaluator
from haystack.components.joiners import DocumentJoiner
from haystack.components.rankers import LostInTheMiddleRanker
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever, InMemoryEmbeddingRetriever
from haystack.core.errors import PipelineRuntimeError
from haystack.dataclasses import ByteStream
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.tools import ComponentTool
from haystack_help import BEST_FIRST, Run, documents, fake, ids, run_async, run_sync

from haystack_integrations.components.rankers.winnow import WinnowRanker
from winnow import EngineError, FakeEngine, ModelError, Reranker


def store_of(found: list[Document]) -> InMemoryDocumentStore:
    embedder = MockTextEmbedder()
    store = InMemoryDocumentStore()
    store.write_documents(
        [
            Document(
                id=each.id, content=each.content, meta=each.meta, embedding=embedder.run(each.content)["embedding"]
            )
            for each in found
        ]
    )
    return store


def hybrid(ranker: WinnowRanker, store: InMemoryDocumentStore) -> Pipeline:
    """BM25 and embedding retrieval, joined without merging, then reranked."""
    pipeline = Pipeline()
    pipeline.add_component("embedder", MockTextEmbedder())
    pipeline.add_component("dense", InMemoryEmbeddingRetriever(store, top_k=5))
    pipeline.add_component("sparse", InMemoryBM25Retriever(store, top_k=5))
    pipeline.add_component("joiner", DocumentJoiner(join_mode="concatenate"))
    pipeline.add_component("ranker", ranker)
    pipeline.connect("embedder.embedding", "dense.query_embedding")
    pipeline.connect("dense.documents", "joiner.documents")
    pipeline.connect("sparse.documents", "joiner.documents")
    pipeline.connect("joiner.documents", "ranker.documents")
    return pipeline


def question(query: str = QUERY, **ranker: Any) -> dict[str, dict[str, Any]]:
    return {"embedder": {"text": query}, "sparse": {"query": query}, "ranker": {"query": query, **ranker}}


def test_hybrid_retrieval() -> None:
    pipeline = hybrid(fake(), store_of(documents()))
    result = pipeline.run(question(), include_outputs_from={"joiner"})
    assert ids(result["ranker"]) == BEST_FIRST
    assert result["ranker"]["meta"]["documents"] == 5
    assert ids(pipeline.run(question(top_k=2))["ranker"]) == BEST_FIRST[:2]
    pipeline.close()


def test_two_retrievers_connected_without_a_joiner() -> None:
    """Haystack joins lists by itself, duplicates and all: each document comes back once."""
    store = store_of(documents())
    pipeline = Pipeline()
    for name in ("one", "two"):
        pipeline.add_component(name, InMemoryBM25Retriever(store, top_k=5))
    pipeline.add_component("ranker", fake())
    for name in ("one", "two"):
        pipeline.connect(f"{name}.documents", "ranker.documents")
    result = pipeline.run({"one": {"query": QUERY}, "two": {"query": "Rice Paris"}, "ranker": {"query": QUERY}})
    assert ids(result["ranker"]) == BEST_FIRST


def test_hybrid_retrieval_in_event_loops() -> None:
    pipeline = hybrid(fake(), store_of(documents()))
    for _ in range(2):  # a ranker must outlive the loop it was first used in
        result = asyncio.run(pipeline.run_async(question()))
        assert ids(result["ranker"]) == BEST_FIRST

    async def many() -> list[dict[str, Any]]:
        return await asyncio.gather(*(pipeline.run_async(question(top_k=1 + at % 5)) for at in range(20)))

    assert [ids(result["ranker"]) for result in asyncio.run(many())] == [BEST_FIRST[: 1 + at % 5] for at in range(20)]
    asyncio.run(pipeline.close_async())


def test_a_saved_pipeline_loads_without_an_allow_list_and_ranks_the_same() -> None:
    pipeline = hybrid(fake(top_k=3, scale_score=False), store_of(documents()))
    loaded = Pipeline.loads(pipeline.dumps())
    assert loaded.run(question())["ranker"]["documents"] == pipeline.run(question())["ranker"]["documents"]


def test_what_goes_on_after_the_ranker() -> None:
    pipeline = hybrid(fake(top_k=4), store_of(documents()))
    pipeline.add_component("middle", LostInTheMiddleRanker())
    pipeline.add_component("prompt", PromptBuilder("{% for d in documents %}{{ d.content }}|{% endfor %}"))
    pipeline.connect("ranker.documents", "middle.documents")
    pipeline.connect("middle.documents", "prompt.documents")
    prompt = pipeline.run(question())["prompt"]["prompt"]
    assert prompt == "|".join(TEXTS[int(at)] for at in ("1", "4", "3", "2")) + "|"


def test_an_instruction_may_come_from_another_component() -> None:
    pipeline = Pipeline()
    pipeline.add_component("instruct", PromptBuilder("in {{ place }}"))
    pipeline.add_component("ranker", fake(top_k=1))
    pipeline.connect("instruct.prompt", "ranker.instruction")
    result = pipeline.run({"instruct": {"place": "Shanghai"}, "ranker": {"query": "is", "documents": documents()}})
    assert ids(result["ranker"]) == ["4"]


def test_errors_name_the_component_and_the_document() -> None:
    pipeline = Pipeline()
    pipeline.add_component("ranker", fake(on_overflow="error", max_length=100))
    with pytest.raises(PipelineRuntimeError, match=r"(?s)ranker.*Document 0.*'0'"):
        pipeline.run({"ranker": {"query": QUERY, "documents": documents(["China " * 100])}})


def run_native(pipeline: Pipeline, inputs: dict[str, Any]) -> dict[str, Any]:
    return asyncio.run(pipeline.run_async(inputs))


@pytest.mark.parametrize("start", [Pipeline.run, run_native, lambda pipeline, _: pipeline.warm_up()])
def test_a_failed_load_names_the_component_too(start: Callable[[Pipeline, Any], Any], tmp_path: Path) -> None:
    """Haystack wraps errors of `run`, but not those of the warm-up, with which each run begins."""
    ranker = WinnowRanker(tmp_path / "no-such-model", engine="transformers")
    with pytest.raises(ModelError, match="no-such-model"):  # no component
        ranker.warm_up()
    pipeline = Pipeline()
    pipeline.add_component("my_ranker", ranker)
    with pytest.raises(PipelineRuntimeError, match=r"(?s)my_ranker.*WinnowRanker.*no-such-model") as error:
        start(pipeline, {"my_ranker": {"query": QUERY, "documents": documents()}})
    assert isinstance(error.value.__cause__, ModelError)
    assert (error.value.component_name, error.value.component_type) == ("my_ranker", WinnowRanker)


def test_as_a_super_component_and_as_a_tool() -> None:
    pipeline = Pipeline()
    pipeline.add_component("retriever", InMemoryBM25Retriever(store_of(documents()), top_k=5))
    pipeline.add_component("ranker", fake(top_k=2))
    pipeline.connect("retriever.documents", "ranker.documents")
    search = SuperComponent(
        pipeline,
        input_mapping={"query": ["retriever.query", "ranker.query"]},
        output_mapping={"ranker.documents": "documents"},
    )
    assert ids(search.run(query=QUERY)) == BEST_FIRST[:2]
    tool = ComponentTool(search, name="search", description="Search the passages.")
    assert ids(tool.invoke(query=QUERY)) == BEST_FIRST[:2]


def test_evaluation_before_and_after() -> None:
    """The retriever's best is wrong; ids are compared, as reranked documents have other scores and may be truncated."""
    pipeline = hybrid(fake(top_k=3), store_of(documents()))
    queries = [QUERY, "capital of France", "noodles Rice"]
    truth = [[documents()[at]] for at in (1, 2, 0)]
    retrieved, reranked = [], []
    for query in queries:
        result = pipeline.run(question(query), include_outputs_from={"dense"})
        retrieved.append(result["dense"]["documents"])
        reranked.append(result["ranker"]["documents"])
    for evaluator in (DocumentMRREvaluator, DocumentNDCGEvaluator):
        before, after = (
            evaluator(document_comparison_field="id").run(ground_truth_documents=truth, retrieved_documents=found)
            for found in (retrieved, reranked)
        )
        assert before["score"] < after["score"] == 1.0


# --- vLLM -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ranker(vllm_model: str) -> WinnowRanker:
    return WinnowRanker(vllm_model, engine="vllm", top_k=None)


def test_vllm_gives_the_scores_of_the_core(ranker: WinnowRanker, vllm_model: str, passages: list[str]) -> None:
    core = Reranker(vllm_model, engine="vllm").rank(QUERY, passages, instruction="Which passage answers?")
    for run in (run_sync, run_async):
        result = run(ranker, QUERY, documents(passages), instruction="Which passage answers?")
        assert ids(result) == [str(hit.index) for hit in core]
        assert [each.score for each in result["documents"]] == pytest.approx([hit.score for hit in core], abs=1e-3)
        assert result["meta"]["usage"]["prompt_tokens"] == core.stats.prompt_tokens


def test_vllm_in_a_hybrid_pipeline(ranker: WinnowRanker, passages: list[str]) -> None:
    pipeline = hybrid(ranker, store_of(documents(passages)))
    sync = pipeline.run(question())["ranker"]
    native = [asyncio.run(pipeline.run_async(question()))["ranker"] for _ in range(2)]
    assert len(sync["documents"]) >= 5
    for result in native:
        assert [each.score for each in result["documents"]] == pytest.approx(
            [each.score for each in sync["documents"]], abs=1e-3
        )
    pipeline.close()


def test_vllm_from_many_threads(ranker: WinnowRanker, passages: list[str]) -> None:
    found = documents(passages[:6])
    alone = {each.id: each.score for each in ranker.run(QUERY, found)["documents"]}
    with ThreadPoolExecutor(6) as pool:
        for result in pool.map(lambda _: ranker.run(QUERY, found), range(12)):
            assert {each.id: each.score for each in result["documents"]} == pytest.approx(alone, abs=1e-3)


def test_vllm_reads_the_text_of_documents_with_images(ranker: WinnowRanker, passages: list[str]) -> None:
    """A text model reads no image: neither blobs nor files, which need not even exist."""
    found = documents(passages[:3])
    pictured = [
        replace(found[0], blob=ByteStream(data=b"no picture", mime_type="image/png")),
        replace(found[1], meta={"file_path": "paper.pdf"}),
        replace(found[2], content=None, meta={"text": passages[2], "file_path": "no/such/picture.png"}),
    ]
    ranker.meta_fields_to_embed = ["text"]
    alone = {each.id: each.score for each in ranker.run(QUERY, found)["documents"]}
    result = ranker.run(QUERY, pictured)
    assert {each.id: each.score for each in result["documents"]} == pytest.approx(alone, abs=1e-3)
    assert result["meta"]["failed"] == {}


def test_vllm_truncates_the_document_and_says_so(ranker: WinnowRanker, passages: list[str]) -> None:
    found = [*documents(passages[:2]), Document(id="long-one", content=" ".join(passages) * 20)]
    result = ranker.run(QUERY, found, scale_score=False)
    assert result["meta"]["truncated"] == ["long-one"]
    assert all(type(each.score) is float and math.isfinite(each.score) for each in result["documents"])
    scores = [each.score for each in result["documents"]]
    assert scores == sorted(scores, reverse=True)


# --- servers ----------------------------------------------------------------------------------------------------------


class GatewayError(BaseHTTPRequestHandler):
    """What stands before a vLLM server that is down."""

    requests = 0

    def do_GET(self) -> None:
        GatewayError.requests += 1
        self.send_response(502)
        self.end_headers()
        self.wfile.write(b"<html><body>Bad gateway</body></html>")

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Keep still."""


@pytest.fixture
def gateway() -> Iterator[str]:
    GatewayError.requests = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), GatewayError) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_answer_that_is_no_json_is_an_engine_error_that_names_the_server(gateway: str, tiny_model: str) -> None:
    ranker = WinnowRanker(tiny_model, engine="server", url=f"{gateway}/v1", engine_kwargs={"max_retries": 0})
    for _ in range(2):  # the error does not outlive its call
        with pytest.raises(EngineError, match=gateway) as error:
            ranker.run(QUERY, documents())
        assert "502" in str(error.value)
    with pytest.raises(EngineError, match=gateway):
        asyncio.run(ranker.run_async(QUERY, documents()))
    ranker.close()


class Silence(BaseHTTPRequestHandler):
    """A server that takes requests and answers none until the test is over."""

    over = threading.Event()

    def do_GET(self) -> None:
        self.over.wait()

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Keep still."""


@pytest.fixture
def silence() -> Iterator[str]:
    Silence.over.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Silence) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        Silence.over.set()
        server.shutdown()


def test_a_chat_does_not_wait_for_a_stalled_server(
    silence: str, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the ranking nor in the warm-up before it. Without the deadline this would take ten hours."""
    monkeypatch.setattr("winnow.engines.server.client._LOOKUP_SECONDS", 36000.0)
    ranker = WinnowRanker(
        tiny_model,
        engine="server",
        url=silence,
        engine_kwargs={"timeout": 36000},
        deadline=0.5,
        fallback="retrieval order",
    )
    pipeline = hybrid(ranker, store_of(documents()))
    for run in (pipeline.run, lambda inputs: asyncio.run(pipeline.run_async(inputs))):
        result = run(question())["ranker"]
        assert len(result["documents"]) == 5
        assert result["meta"]["fallback"] == "retrieval order"
        assert "deadline" in result["meta"]["error"]
    Silence.over.set()
    pipeline.close()


def test_a_server_that_is_down_is_not_asked_again_by_each_warm_up(
    gateway: str, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("winnow.ranking.fallback._RETRY_SECONDS", 36000.0)
    ranker = WinnowRanker(tiny_model, engine="server", url=gateway, fallback="retrieval order")
    pipeline = hybrid(ranker, store_of(documents()))
    asked = []
    for run in (pipeline.run, lambda inputs: asyncio.run(pipeline.run_async(inputs))):
        assert "502" in run(question())["ranker"]["meta"]["error"]
        asked.append(GatewayError.requests)
    assert asked[0] == asked[1] > 0
    pipeline.close()


@pytest.mark.parametrize("run", [run_sync, run_async])
def test_the_deadline_of_the_run_wins(run: Run) -> None:
    slow = FakeEngine(delay=36000)
    with pytest.raises(TimeoutError):
        run(fake(engine=slow, deadline=0.1), QUERY, documents())
    with pytest.raises(TimeoutError):
        run(fake(engine=slow, deadline=36000), QUERY, documents(), deadline=0.1)
    late = run(fake(engine=slow, fallback="retrieval order"), QUERY, documents(), deadline=0.1)
    assert ids(late) == ["0", "1", "2", "3", "4"]
    assert late["meta"]["fallback"] == "retrieval order"
    assert "deadline" in late["meta"]["error"]
    assert ids(run(fake(engine=FakeEngine(delay=0.2), deadline=0.1), QUERY, documents(), deadline=600)) == BEST_FIRST
