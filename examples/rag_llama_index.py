"""Retrieval-augmented generation in LlamaIndex: a vector index finds, Winnow reranks, and a language model answers.

    python examples/rag_llama_index.py ["your question"]

Three stand-ins need no download; put your own in their places: `WordCounts` is the embedding model, `MockLLM` the
language model, which repeats its prompt, and RERANKER the demo's small one on PyTorch. For work it is
{"model": "Qwen/Qwen3-Reranker-0.6B"}.
"""

import sys
from pathlib import Path

from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.schema import TextNode
from sklearn.feature_extraction.text import HashingVectorizer

import demo_model
from winnow.evaluation import read_corpus
from winnow_llama_index import WinnowRerank

RERANKER = {**demo_model.settings_of("winnow-demo-cross-encoder"), "engine": "transformers"}
QUESTION = "Why does the water at the coast come and go?"
SIZE = 4096


class WordCounts(MockEmbedding):
    """Which words a text has, as a vector."""

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        vectors: list[list[float]] = (
            HashingVectorizer(n_features=SIZE, stop_words="english").transform([text]).toarray()
        )
        return list(map(float, vectors[0]))


def main(question: str = QUESTION) -> None:
    corpus = read_corpus(Path(__file__).with_name("everyday") / "corpus.jsonl")
    nodes = [TextNode(id_=name, text=text) for name, text in corpus.items()]
    index = VectorStoreIndex(nodes, embed_model=WordCounts(embed_dim=SIZE))
    engine = index.as_query_engine(
        llm=MockLLM(),
        similarity_top_k=20,
        node_postprocessors=[WinnowRerank(**RERANKER, top_n=3, score_threshold=0.5)],
    )

    answer = engine.query(question)
    print("The index found first:", *(hit.node.node_id for hit in index.as_retriever().retrieve(question)))
    print("Winnow keeps:", *(f"{hit.node.node_id} ({hit.score:.2f})" for hit in answer.source_nodes))
    print(f"\n{answer}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
