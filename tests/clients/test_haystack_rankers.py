"""Haystack's rankers that speak to a server."""

import asyncio
from typing import Any

import pytest
from served import DOCUMENTS, MODEL, PRESET, QUERY, Service

pytest.importorskip("haystack_integrations.components.rankers.vllm")
pytest.importorskip("haystack_integrations.components.rankers.jina")
pytest.importorskip("haystack_integrations.components.rankers.huggingface_api")
from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker
from haystack_integrations.components.rankers.jina import JinaRanker
from haystack_integrations.components.rankers.vllm import VLLMRanker

pytestmark = pytest.mark.slow


def ranker(kind: str, service: Service, model: str = MODEL, **fields: Any) -> Any:
    key = Secret.from_token(service.key or "")
    if kind == "vllm":
        return VLLMRanker(model=model, api_key=key, api_base_url=f"{service.url}/v1", **fields)
    if kind == "jina":
        return JinaRanker(model=model, api_key=key, base_url=f"{service.url}/v1/rerank", **fields)
    return HuggingFaceTEIRanker(url=service.url, token=key, **fields)


def pairs(answer: Any) -> list[tuple[int, float]]:
    return [(DOCUMENTS.index(document.content), document.score) for document in answer["documents"]]


def documents() -> list[Document]:
    return [Document(content=text) for text in DOCUMENTS]


@pytest.mark.parametrize("kind", ["vllm", "jina", "tei"])
def test_each_ranker_ranks(service: Service, kind: str) -> None:
    one = ranker(kind, service)
    service.check(pairs(one.run(query=QUERY, documents=documents())))
    service.check(pairs(one.run(query=QUERY, documents=documents(), top_k=2)), 2)
    service.check(pairs(asyncio.run(one.run_async(query=QUERY, documents=documents()))))


def test_parameters_of_vllm_pass(service: Service) -> None:
    preset = ranker("vllm", service, PRESET).run(query=QUERY, documents=documents())
    service.check(pairs(preset), model=PRESET)
    assert preset["meta"]["usage"]["prompt_tokens"] > 0
    instructed = ranker("vllm", service, extra_parameters={"instruction": "Find Beijing and rice"})
    service.check(pairs(instructed.run(query=QUERY, documents=documents())), model=PRESET)


@pytest.mark.parametrize("kind", ["vllm", "jina"])
def test_an_error_says_what_is_wrong(service: Service, kind: str) -> None:
    with pytest.raises(RuntimeError, match="No model of this name is served"):
        ranker(kind, service, "other").run(query=QUERY, documents=documents())


def test_an_error_of_the_tei_ranker_says_what_is_wrong(service: Service) -> None:
    with pytest.raises(RuntimeError, match="A valid API key is missing"):
        HuggingFaceTEIRanker(url=service.url, token=None, max_retries=1).run(query=QUERY, documents=documents())
