"""Retrieval-augmented generation in LangChain: a vector store finds, Winnow reranks, and a chain builds the prompt.

    python examples/rag_langchain.py ["your question"]

Two stand-ins need no download; put your own in their places: `WordCounts` is the embedding model, and RERANKER the
demo's small one on PyTorch. For work it is {"model": "Qwen/Qwen3-Reranker-0.6B"}. The chain ends before your language
model.
"""

import sys
from pathlib import Path

from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from sklearn.feature_extraction.text import HashingVectorizer

import demo_model
from winnow.evaluation import read_corpus
from winnow_langchain import WinnowRerank

RERANKER = {**demo_model.settings_of("winnow-demo-cross-encoder"), "engine": "transformers"}
QUESTION = "Why does the water at the coast come and go?"
PROMPT = PromptTemplate.from_template("""Answer the question from these passages.

{passages}

Question: {question}
Answer:""")


class WordCounts(Embeddings):
    """Which words a text has, as a vector."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = HashingVectorizer(n_features=4096, stop_words="english").transform(texts).toarray()
        return [list(map(float, vector)) for vector in vectors]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def in_lines(documents: list[Document]) -> str:
    return "\n".join(f"[{document.id}] {document.page_content}" for document in documents)


def main(question: str = QUESTION) -> None:
    corpus = read_corpus(Path(__file__).with_name("everyday") / "corpus.jsonl")
    store = InMemoryVectorStore.from_texts(list(corpus.values()), WordCounts(), ids=list(corpus))
    finding = store.as_retriever(search_kwargs={"k": 20})
    reranking = ContextualCompressionRetriever(
        base_retriever=finding, base_compressor=WinnowRerank(**RERANKER, top_n=3, score_threshold=0.5)
    )
    chain = {"passages": reranking | in_lines, "question": RunnablePassthrough()} | PROMPT  # | your language model

    print("The store found first:", *(document.id for document in finding.invoke(question)[:3]))
    kept = reranking.invoke(question)
    print("Winnow keeps:", *(f"{document.id} ({document.metadata['relevance_score']:.2f})" for document in kept))
    print("\n" + chain.invoke(question).to_string())


if __name__ == "__main__":
    main(*sys.argv[1:2])
