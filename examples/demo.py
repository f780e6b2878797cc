"""Rerank real text through all three integrations: Haystack, LlamaIndex and LangChain, on one shared vLLM engine.

    python examples/demo.py [--model MODEL] [--query QUERY] [--instruction INSTRUCTION]

Without --model it builds a tiny random reranker first (seconds, no download): everything is real but its judgement.
"""

import argparse
import sys
from pathlib import Path

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
from rich.console import Console
from rich.table import Table

from haystack_integrations.components.rankers.winnow import WinnowRanker
from tiny_model import build_tiny_reranker, read_passages
from winnow import Reranker
from winnow_langchain import WinnowRerank as LangChainRerank
from winnow_llama_index import WinnowRerank as LlamaIndexRerank

TINY_MODEL = Path(__file__).parents[1] / ".cache" / "qwen3-reranker-tiny"
CANDIDATES, TOP_K = 10, 5

Hits = list[tuple[str, float]]  # ids and scores, best first


class Candidates(LlamaIndexRetriever):
    """A LlamaIndex retriever that returns what BM25 found."""

    def __init__(self, found: list[HaystackDocument]):
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


def through_haystack(model: str, query: str, instruction: str | None) -> tuple[list[HaystackDocument], Hits]:
    """A pipeline of a BM25 retriever and the ranker. Returns what each of them gave."""
    store = InMemoryDocumentStore()
    store.write_documents([HaystackDocument(id=passage["id"], content=passage["text"]) for passage in read_passages()])
    pipeline = Pipeline()
    pipeline.add_component("retriever", InMemoryBM25Retriever(store, top_k=CANDIDATES))
    pipeline.add_component("ranker", WinnowRanker(model, top_k=TOP_K, instruction=instruction))
    pipeline.connect("retriever.documents", "ranker.documents")
    result = pipeline.run(
        {"retriever": {"query": query}, "ranker": {"query": query}}, include_outputs_from={"retriever"}
    )
    ranked = [(document.id, document.score or 0.0) for document in result["ranker"]["documents"]]
    return result["retriever"]["documents"], ranked


def through_llama_index(model: str, query: str, instruction: str | None, found: list[HaystackDocument]) -> Hits:
    """A query engine with the postprocessor; it stops before an LLM would answer."""
    Settings.llm = MockLLM()  # LlamaIndex wants one even where none is asked
    engine = RetrieverQueryEngine(
        retriever=Candidates(found),
        response_synthesizer=get_response_synthesizer(response_mode=ResponseMode.NO_TEXT),
        node_postprocessors=[LlamaIndexRerank(model=model, top_n=TOP_K, instruction=instruction)],
    )
    return [(hit.node.node_id, hit.score or 0.0) for hit in engine.query(query).source_nodes]


def through_langchain(model: str, query: str, instruction: str | None, found: list[HaystackDocument]) -> Hits:
    """A contextual compression retriever with the compressor."""
    retriever = ContextualCompressionRetriever(
        base_retriever=CandidatesForLangChain(found=found),
        base_compressor=LangChainRerank(model=model, top_n=TOP_K, instruction=instruction),
    )
    return [(document.id or "", document.metadata["relevance_score"]) for document in retriever.invoke(query)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a reranker's folder, or its name on the Hugging Face Hub")
    parser.add_argument("--query", default="What is the capital of China?")
    parser.add_argument("--instruction", default="Given a question, retrieve passages that answer it")
    arguments = parser.parse_args()
    console = Console()
    query, instruction = arguments.query, arguments.instruction

    model = arguments.model
    if model is None:
        if not TINY_MODEL.exists():
            build_tiny_reranker(TINY_MODEL)
        model = str(TINY_MODEL)
        console.print(
            "[bold]The model is tiny and random: it has learned nothing, so its ranking means nothing.[/] Everything "
            "else is real: vLLM, the prompt, the frameworks.\nFor a ranking that means something: --model "
            "Qwen/Qwen3-Reranker-0.6B\n"
        )
    # Holding a reranker of the model keeps its engine for all three integrations; they share it in any case.
    with console.status("Loading vLLM (about 20 s on a CPU)"):
        reranker = Reranker(model).start()
    with reranker:
        found, haystack = through_haystack(model, query, instruction)
        by_integration = {
            "Haystack": haystack,
            "LlamaIndex": through_llama_index(model, query, instruction, found),
            "LangChain": through_langchain(model, query, instruction, found),
        }

    text = {document.id: document.content or "" for document in found}
    before = Table("", "BM25", "", title=f"Before: {query}", title_justify="left")
    for place, document in enumerate(found, 1):
        before.add_row(str(place), f"{document.score:.3f}", text[document.id])
    after = Table("", *by_integration, "", title="After: reranked, scores by integration", title_justify="left")
    for place, hits in enumerate(zip(*by_integration.values(), strict=True), 1):
        after.add_row(str(place), *(f"{score:.4f}" for _, score in hits), text[hits[0][0]])
    console.print(before, after)
    agree = all(
        mine[0] == theirs[0] and abs(mine[1] - theirs[1]) < 1e-5
        for hits in by_integration.values()
        for mine, theirs in zip(haystack, hits, strict=True)
    )
    console.print("The three integrations agree." if agree else "[red]The three integrations do not agree.[/]")
    sys.exit(not agree)


if __name__ == "__main__":
    main()
