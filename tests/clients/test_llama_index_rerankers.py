"""LlamaIndex's postprocessors that speak to a server."""

from typing import Any

import pytest
from served import DOCUMENTS, MODEL, QUERY, Service

pytest.importorskip("llama_index.postprocessor.jinaai_rerank")
pytest.importorskip("llama_index.postprocessor.tei_rerank")
pytest.importorskip("llama_index.postprocessor.xinference_rerank")
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.jinaai_rerank import JinaRerank
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference
from llama_index.postprocessor.xinference_rerank import XinferenceRerank

pytestmark = pytest.mark.slow


def pairs(reranker: Any) -> list[tuple[int, float]]:
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in DOCUMENTS]
    return [(DOCUMENTS.index(node.text), node.score) for node in reranker.postprocess_nodes(nodes, query_str=QUERY)]


def test_jina(service: Service) -> None:
    base_url = f"{service.url}/v1"
    service.check(pairs(JinaRerank(top_n=2, model=MODEL, base_url=base_url, api_key=service.key)), 2)
    with pytest.raises(RuntimeError, match="No model of this name is served"):
        pairs(JinaRerank(model="other", base_url=base_url, api_key=service.key))


def test_tei(service: Service) -> None:
    service.check(pairs(TextEmbeddingInference(top_n=2, base_url=service.url, auth_token=f"Bearer {service.key}")), 2)


def test_xinference(open_service: Service) -> None:
    """It sends no key."""
    open_service.check(pairs(XinferenceRerank(top_n=2, model=MODEL, base_url=open_service.url)), 2)
    with pytest.raises(Exception, match="No model of this name is served"):
        pairs(XinferenceRerank(model="other", base_url=open_service.url))
