"""One query through Haystack, LlamaIndex and LangChain: a BM25 retriever, then Winnow as the framework's reranker.

Each function builds what a user of that framework builds. The settings of the reranker are the same for all three.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from haystack import Document as HaystackDocument
from haystack import Pipeline
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.document_stores.in_memory import InMemoryDocumentStore
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document as LangChainDocument
from langchain_core.retrievers import BaseRetriever
from llama_index.core import Settings
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer
from llama_index.core.retrievers import BaseRetriever as LlamaIndexRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from haystack_integrations.components.rankers.winnow import WinnowRanker
from winnow_langchain import WinnowRerank as LangChainRerank
from winnow_llama_index import WinnowRerank as LlamaIndexRerank

Hits = list[tuple[str, float]]  # ids and scores, best first


class Candidates(LlamaIndexRetriever):
    """A LlamaIndex retriever that returns what BM25 found."""

    def __init__(self, found: Sequence[HaystackDocument]):
        super().__init__()
        self._found = found

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [
            NodeWithScore(node=TextNode(id_=document.id, text=document.content or ""), score=document.score)
            for document in self._found
        ]


class CandidatesForLangChain(BaseRetriever):
    """A LangChain retriever that returns what BM25 found."""

    found: list[HaystackDocument]

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[LangChainDocument]:
        return [LangChainDocument(id=document.id, page_content=document.content or "") for document in self.found]


def through_haystack(
    settings: Mapping[str, Any], query: str, passages: Mapping[str, str], candidates: int
) -> tuple[list[HaystackDocument], Hits]:
    """A pipeline of a BM25 retriever and the ranker. Returns what each of them gave."""
    store = InMemoryDocumentStore()
    store.write_documents([HaystackDocument(id=name, content=text) for name, text in passages.items()])
    pipeline = Pipeline()
    pipeline.add_component("retriever", InMemoryBM25Retriever(store, top_k=candidates))
    pipeline.add_component("ranker", WinnowRanker(**settings, top_k=candidates))
    pipeline.connect("retriever.documents", "ranker.documents")
    result = pipeline.run(
        {"retriever": {"query": query}, "ranker": {"query": query}}, include_outputs_from={"retriever"}
    )
    ranked = [(document.id, document.score or 0.0) for document in result["ranker"]["documents"]]
    return result["retriever"]["documents"], ranked


def through_llama_index(settings: Mapping[str, Any], query: str, found: Sequence[HaystackDocument]) -> Hits:
    """A query engine with the postprocessor; it stops before an LLM would answer."""
    Settings.llm = MockLLM()  # LlamaIndex wants one even where none is asked
    engine = RetrieverQueryEngine(
        retriever=Candidates(found),
        response_synthesizer=get_response_synthesizer(response_mode=ResponseMode.NO_TEXT),
        node_postprocessors=[LlamaIndexRerank(**settings, top_n=len(found))],
    )
    return [(hit.node.node_id, hit.score or 0.0) for hit in engine.query(query).source_nodes]


def through_langchain(settings: Mapping[str, Any], query: str, found: Sequence[HaystackDocument]) -> Hits:
    """A contextual compression retriever with the compressor."""
    retriever = ContextualCompressionRetriever(
        base_retriever=CandidatesForLangChain(found=list(found)),
        base_compressor=LangChainRerank(**settings, top_n=len(found)),
    )
    return [(document.id or "", document.metadata["relevance_score"]) for document in retriever.invoke(query)]
