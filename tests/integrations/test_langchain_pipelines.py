"""The LangChain integration in real pipelines: retrievers, chains, compressor pipelines, ensembles, on vLLM too."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from five_texts import BEST_FIRST, QUERY, TEXTS
from langchain_classic.retrievers import ContextualCompressionRetriever, EnsembleRetriever
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_kit import Call, every_call, fake, ids, make_documents, scores
from langchain_tests.integration_tests import RetrieversIntegrationTests
from langchain_text_splitters import CharacterTextSplitter

from winnow import EngineError, FakeEngine, Reranker
from winnow_langchain import WinnowRerank


class EverythingRetriever(BaseRetriever):
    """Finds all its documents, in its order."""

    documents: list[Document]

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return self.documents


def vector_retriever(documents: list[Document], k: int = 5) -> BaseRetriever:
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=16))
    store.add_documents(documents)
    return store.as_retriever(search_kwargs={"k": k})


def compression(**settings: Any) -> ContextualCompressionRetriever:
    return ContextualCompressionRetriever(
        base_compressor=fake(**settings), base_retriever=vector_retriever(make_documents())
    )


def with_children(run: Any) -> list[Any]:
    return [run, *(below for child in run.child_runs for below in with_children(child))]


Invoke = Callable[..., Any]
every_invoke = pytest.mark.parametrize(
    "invoke",
    [
        lambda runnable, query, config=None: runnable.invoke(query, config),
        lambda runnable, query, config=None: asyncio.run(runnable.ainvoke(query, config)),
        lambda runnable, query, config=None: runnable.batch([query], config)[0],
        lambda runnable, query, config=None: asyncio.run(runnable.abatch([query], config))[0],
    ],
    ids=["invoke", "ainvoke", "batch", "abatch"],
)


# --- ContextualCompressionRetriever -----------------------------------------------------------------------------------


@every_invoke
def test_contextual_compression(invoke: Invoke) -> None:
    found = invoke(compression(top_n=3), QUERY)
    assert ids(found) == BEST_FIRST[:3]
    assert scores(found) == sorted(scores(found), reverse=True)
    assert [document.metadata["source"] for document in found] == [f"page {at}" for at in BEST_FIRST[:3]]


@every_invoke
def test_the_rerankers_run_is_below_the_retrievers(invoke: Invoke) -> None:
    tracer = RunCollectorCallbackHandler()
    config: RunnableConfig = {"callbacks": [tracer], "tags": ["mine"], "metadata": {"user": 1}}
    invoke(compression(top_n=2), QUERY, config)
    (outer,) = tracer.traced_runs
    assert outer.name == "ContextualCompressionRetriever"
    assert [run.name for run in outer.child_runs] == ["VectorStoreRetriever", "WinnowRerank"]
    reranked = outer.child_runs[1]
    assert [run.run_type for run in outer.child_runs] == ["retriever", "chain"]
    assert reranked.outputs["documents"] == outer.outputs["documents"]
    assert "mine" in reranked.tags
    assert reranked.extra["metadata"]["user"] == 1


def test_the_store_keeps_its_documents_as_they_were() -> None:
    documents = make_documents()
    retriever = ContextualCompressionRetriever(
        base_compressor=fake(), base_retriever=EverythingRetriever(documents=documents)
    )
    for query in (QUERY, "noodles", QUERY):
        retriever.invoke(query)
    assert documents == make_documents()


def test_errors_come_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "_logit", lambda *_: float("nan"))
    with pytest.raises(EngineError):
        compression().invoke(QUERY)
    with pytest.raises(EngineError):
        asyncio.run(compression().ainvoke(QUERY))


@every_invoke
def test_fallbacks(monkeypatch: pytest.MonkeyPatch, invoke: Invoke) -> None:
    monkeypatch.setattr(FakeEngine, "_logit", lambda *_: float("nan"))
    documents = make_documents()
    tracer = RunCollectorCallbackHandler()
    retriever = compression().with_fallbacks([EverythingRetriever(documents=documents)])
    assert invoke(retriever, QUERY, {"callbacks": [tracer]}) == documents
    errors = {run.name: run.error for root in tracer.traced_runs for run in with_children(root)}
    assert "nan" in errors["WinnowRerank"]
    assert errors["EverythingRetriever"] is None


@every_invoke
@pytest.mark.parametrize("query", ["", QUERY])
def test_a_chat_goes_on_after_a_blank_query_and_a_stalled_engine(invoke: Invoke, query: str) -> None:
    """An LLM may condense a question to nothing."""
    settings: dict[str, Any] = {"engine_kwargs": {"delay": 600.0}, "deadline": 0.2, "fallback": "retrieval order"}
    found = invoke(compression(top_n=3, **settings), query)
    assert len(found) == 3
    assert all("rerank_error" in document.metadata for document in found)
    if not query:
        with pytest.raises(ValueError, match="query must be a text that is not blank"):
            invoke(compression(), query)


def test_batches() -> None:
    """LangChain calls the compressor from many threads, or many times in a loop."""
    retriever = compression(top_n=1, engine_kwargs={"delay": 0.01})
    queries = ["noodles", "Paris", "Shanghai", "Beijing"] * 8
    expected = [0, 3, 4, 1] * 8
    assert [ids(found)[0] for found in retriever.batch(queries, {"max_concurrency": 16})] == expected
    assert [ids(found)[0] for found in asyncio.run(retriever.abatch(queries))] == expected
    assert [ids(found)[0] for found in asyncio.run(retriever.abatch(queries))] == expected


@pytest.mark.asyncio  # which of them are asynchronous is theirs to say
@pytest.mark.filterwarnings("ignore:.*is marked with '@pytest.mark.asyncio':pytest.PytestWarning")
class TestStandardRetriever(RetrieversIntegrationTests):
    """LangChain's own tests of a retriever."""

    @property
    def retriever_constructor(self) -> Any:
        def make(k: int = 5) -> ContextualCompressionRetriever:
            return compression(top_n=k)

        return make

    @property
    def retriever_query_example(self) -> str:
        return QUERY


# --- chains and other compressors -------------------------------------------------------------------------------------


def rag_chain(retriever: Runnable[str, list[Document]]) -> Runnable[str, str]:
    def join(documents: list[Document]) -> str:
        return " / ".join(document.page_content for document in documents)

    prompt = ChatPromptTemplate.from_template("{context} ? {question}")
    model = RunnableLambda(lambda value: value.to_messages()[0])  # answers with what it was asked
    return {"context": retriever | join, "question": RunnablePassthrough()} | prompt | model | StrOutputParser()


@every_invoke
def test_in_a_chain(invoke: Invoke) -> None:
    tracer = RunCollectorCallbackHandler()
    answer = invoke(rag_chain(compression(top_n=2)), QUERY, {"callbacks": [tracer]})
    assert answer == f"{TEXTS[1]} / {TEXTS[2]} ? {QUERY}"
    assert [run.name for run in with_children(tracer.traced_runs[0])].count("WinnowRerank") == 1


def test_streaming_a_chain() -> None:
    chain = rag_chain(compression(top_n=1))
    assert "".join(chain.stream(QUERY)) == f"{TEXTS[1]} ? {QUERY}"

    async def main() -> str:
        return "".join([part async for part in chain.astream(QUERY)])

    assert asyncio.run(main()) == f"{TEXTS[1]} ? {QUERY}"


@every_call
def test_compressor_pipeline(call: Call) -> None:
    """After a splitter, and a second time with other settings: the first score is overwritten."""
    text = "\n".join(TEXTS)
    splitter = CharacterTextSplitter(separator="\n", chunk_size=35, chunk_overlap=0)
    first, second = fake(top_n=3), fake(top_n=2, raw_scores=True)
    pipeline: Any = DocumentCompressorPipeline(transformers=[splitter, first, second])
    found = call(pipeline, [Document(text)], QUERY)
    assert [document.page_content for document in found] == [TEXTS[1], f"{TEXTS[2]}\n{TEXTS[3]}"]
    assert scores(found)[0] > 1
    retriever = ContextualCompressionRetriever(
        base_compressor=pipeline, base_retriever=EverythingRetriever(documents=[Document(text)])
    )
    tracer = RunCollectorCallbackHandler()
    assert retriever.invoke(QUERY, {"callbacks": [tracer]}) == found
    assert [run.name for run in tracer.traced_runs[0].child_runs] == ["EverythingRetriever"] + 2 * ["WinnowRerank"]


@every_invoke
def test_over_an_ensemble(invoke: Invoke) -> None:
    """Reranking what two retrievers found; the ensemble drops what both found."""
    documents = make_documents()
    ensemble = EnsembleRetriever(
        retrievers=[EverythingRetriever(documents=documents[:3]), EverythingRetriever(documents=documents[2:])],
        id_key="source",
    )
    retriever = ContextualCompressionRetriever(base_compressor=fake(), base_retriever=ensemble)
    assert ids(invoke(retriever, QUERY)) == BEST_FIRST


@every_invoke
def test_inside_an_ensemble(invoke: Invoke) -> None:
    """Reciprocal rank fusion reads our order."""
    ensemble = EnsembleRetriever(
        retrievers=[compression(), EverythingRetriever(documents=make_documents())], weights=[0.9, 0.1], id_key="source"
    )
    assert ids(invoke(ensemble, QUERY))[0] == 1


def test_retriever_tool() -> None:
    tool = create_retriever_tool(compression(top_n=2), "search", "Searches.")
    assert tool.invoke({"query": QUERY}) == f"{TEXTS[1]}\n\n{TEXTS[2]}"
    assert asyncio.run(tool.ainvoke({"query": QUERY})) == f"{TEXTS[1]}\n\n{TEXTS[2]}"


# --- on vLLM ----------------------------------------------------------------------------------------------------------


@every_call
def test_vllm_scores_are_the_cores(vllm_model: str, passages: list[str], call: Call) -> None:
    expected = Reranker(vllm_model, engine="vllm").rank(QUERY, passages)
    found = call(WinnowRerank(model=vllm_model, engine="vllm", top_n=None), make_documents(passages), QUERY)
    assert ids(found) == [hit.index for hit in expected]
    assert scores(found) == pytest.approx([hit.score for hit in expected], abs=1e-5)
    assert len(set(scores(found))) > 1


@every_invoke
def test_vllm_in_a_chain(vllm_model: str, passages: list[str], invoke: Invoke) -> None:
    reranker = WinnowRerank(model=vllm_model, engine="vllm", top_n=3)
    documents = make_documents(passages)
    retriever = ContextualCompressionRetriever(
        base_compressor=reranker, base_retriever=vector_retriever(documents, k=len(passages))
    )
    expected = [hit.text for hit in Reranker(vllm_model, engine="vllm").rank(QUERY, passages, top_k=3)]
    assert invoke(rag_chain(retriever), QUERY) == f"{' / '.join(expected)} ? {QUERY}"


def test_vllm_reads_the_instruction(vllm_model: str, passages: list[str]) -> None:
    reranker = WinnowRerank(model=vllm_model, engine="vllm", top_n=None)
    plain = {one["index"]: one["relevance_score"] for one in reranker.rerank(passages, QUERY)}
    instruction = "Judge whether the document names a city."
    instructed = {
        one["index"]: one["relevance_score"] for one in reranker.rerank(passages, QUERY, instruction=instruction)
    }
    assert any(abs(plain[at] - instructed[at]) > 1e-4 for at in plain)
    copied = reranker.model_copy(update={"instruction": instruction})
    found = copied.compress_documents(make_documents(passages), QUERY)
    assert dict(zip(ids(found), scores(found), strict=True)) == pytest.approx(instructed, abs=1e-5)


def test_vllm_answers_batches(vllm_model: str, passages: list[str]) -> None:
    reranker = WinnowRerank(model=vllm_model, engine="vllm", top_n=None)
    retriever = ContextualCompressionRetriever(
        base_compressor=reranker, base_retriever=EverythingRetriever(documents=make_documents(passages))
    )
    queries = [f"{QUERY} {number}" for number in range(8)]
    for batch in (retriever.batch(queries), asyncio.run(retriever.abatch(queries))):
        for query, found in zip(queries, batch, strict=True):
            alone = Reranker(vllm_model, engine="vllm").score(query, passages)
            assert scores(sorted(found, key=lambda document: int(document.id))) == pytest.approx(alone, abs=1e-5)
