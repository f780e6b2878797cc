"""Write everyday/run.bm25.trec: the ten passages that Haystack's BM25 finds for each query of everyday/.

python examples/retrieve.py
"""

from pathlib import Path

from haystack import Document
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

from winnow.evaluation import Run, read_collection

FOLDER = Path(__file__).with_name("everyday")
RUN = FOLDER / "run.bm25.trec"


def retrieve() -> Run:
    """What BM25 finds."""
    collection = read_collection(FOLDER)
    store = InMemoryDocumentStore()
    store.write_documents([Document(id=name, content=text) for name, text in collection.documents.items()])
    retriever = InMemoryBM25Retriever(store, top_k=10)
    found = {
        query: {document.id: round(document.score or 0.0, 4) for document in retriever.run(text)["documents"]}
        for query, text in collection.queries.items()
    }
    return Run("bm25", found)


if __name__ == "__main__":
    retrieve().write(RUN)
