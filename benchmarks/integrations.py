"""What an integration adds to `Reranker.rank`: 1,000 documents, no model, each integration beside the core.

Printed is the median of the paired differences: building the framework's results, tracing and events included.

    python benchmarks/integrations.py [--json]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from haystack import Document as HaystackDocument
from langchain_core.documents import Document as LangChainDocument
from llama_index.core.schema import NodeWithScore, TextNode

from haystack_integrations.components.rankers.winnow import WinnowRanker
from winnow import Reranker
from winnow_langchain import WinnowRerank as LangChainRerank
from winnow_llama_index import WinnowRerank as LlamaIndexRerank

DOCUMENTS, ROUNDS = 1000, 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    arguments = parser.parse_args()

    query = "question 7"
    texts = [f"passage {number} about question {number % 50}" for number in range(DOCUMENTS)]
    metadata = {"source": "benchmark", "page": 1}
    documents = [HaystackDocument(id=str(at), content=text, meta=dict(metadata)) for at, text in enumerate(texts)]
    nodes = [
        NodeWithScore(
            node=TextNode(id_=str(at), text=text, metadata=metadata, excluded_embed_metadata_keys=[*metadata]),
            score=0.5,
        )
        for at, text in enumerate(texts)
    ]
    pages = [LangChainDocument(id=str(at), page_content=text, metadata=metadata) for at, text in enumerate(texts)]

    reranker = Reranker("fake", engine="fake")
    ranker = WinnowRanker("fake", engine="fake", top_k=None)
    postprocessor = LlamaIndexRerank(model="fake", engine="fake", top_n=None)
    compressor = LangChainRerank(model="fake", engine="fake", top_n=None)
    calls: dict[str, Callable[[], Any]] = {
        "Haystack": lambda: ranker.run(query=query, documents=documents),
        "LlamaIndex": lambda: postprocessor.postprocess_nodes(nodes, query_str=query),
        "LangChain": lambda: compressor.compress_documents(pages, query),
    }

    def milliseconds(call: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        call()
        return (time.perf_counter() - begin) * 1000

    added: dict[str, list[float]] = {name: [] for name in calls}
    core: list[float] = []
    for number in range(-2, ROUNDS):  # the first rounds warm up
        for name, call in calls.items():
            alone = milliseconds(lambda: reranker.rank(query, texts))
            through = milliseconds(call)
            if number >= 0:
                core.append(alone)
                added[name].append(through - alone)
    for made in (reranker, ranker, postprocessor, compressor):
        made.close()

    medians = {name: statistics.median(values) for name, values in added.items()}
    if arguments.json:
        print(json.dumps({"added_ms": medians, "core_ms": statistics.median(core), "documents": DOCUMENTS}))
        return
    print(f"{'Reranker.rank alone':20} {statistics.median(core):6.1f} ms")
    for name, value in medians.items():
        print(f"{name:20} {value:+6.1f} ms  ({min(added[name]):.1f} to {max(added[name]):.1f}, {ROUNDS} rounds)")


if __name__ == "__main__":
    main()
