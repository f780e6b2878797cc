"""Retrieval-augmented generation in Haystack: BM25 finds, Winnow reranks, and a prompt for a language model is built.

    python examples/rag_haystack.py ["your question"]

The reranker is the demo's small one, on PyTorch. For work: RERANKER = {"model": "Qwen/Qwen3-Reranker-0.6B"}.
"""

import sys
from pathlib import Path

from haystack import Document, Pipeline
from haystack.components.builders import PromptBuilder
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

import demo_model
from haystack_integrations.components.rankers.winnow import WinnowRanker
from winnow.evaluation import read_corpus

RERANKER = {**demo_model.settings_of("winnow-demo-cross-encoder"), "engine": "transformers"}
QUESTION = "Why does the water at the coast come and go?"
PROMPT = """Answer the question from these passages.
{% for document in documents %}
[{{ document.id }}] {{ document.content }}{% endfor %}

Question: {{ question }}
Answer:"""


def main(question: str = QUESTION) -> None:
    store = InMemoryDocumentStore()
    corpus = read_corpus(Path(__file__).with_name("everyday") / "corpus.jsonl")
    store.write_documents([Document(id=name, content=text) for name, text in corpus.items()])

    pipeline = Pipeline()
    pipeline.add_component("retriever", InMemoryBM25Retriever(store, top_k=20))
    pipeline.add_component("ranker", WinnowRanker(**RERANKER, top_k=3, score_threshold=0.5))
    pipeline.add_component("prompt", PromptBuilder(PROMPT, required_variables="*"))  # your generator comes after it
    pipeline.connect("retriever", "ranker")
    pipeline.connect("ranker.documents", "prompt.documents")

    result = pipeline.run(
        {"retriever": {"query": question}, "ranker": {"query": question}, "prompt": {"question": question}},
        include_outputs_from={"retriever", "ranker"},
    )
    print("BM25 found first:", *(document.id for document in result["retriever"]["documents"][:3]))
    print("Winnow keeps:", *(f"{document.id} ({document.score:.2f})" for document in result["ranker"]["documents"]))
    print("\n" + result["prompt"]["prompt"])


if __name__ == "__main__":
    main(*sys.argv[1:2])
