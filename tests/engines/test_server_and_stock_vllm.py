"""The service beside a stock vLLM server that has the same template: the same requests get the same scores."""

from typing import Any

import httpx
import pytest
from vllm_servers import API_KEY, VllmServer

from running import running
from winnow import Reranker

pytestmark = pytest.mark.slow

QUERY = "what is the capital of China?"


def test_scores_are_those_of_stock_vllm(
    start_servers: object, vllm_model: str, servers: list[VllmServer], passages: list[str]
) -> None:
    texts = passages[:12]
    reranking = {"query": QUERY, "documents": texts, "model": vllm_model}
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/rerank", reranking),
        ("/v1/rerank", {**reranking, "instruction": "Find what answers the question"}),
        ("/v2/rerank", {**reranking, "chat_template_kwargs": {"instruction": "Find a city"}, "top_n": 3}),
        ("/rerank", {**reranking, "use_activation": False}),
        ("/score", {"text_1": QUERY, "text_2": texts, "model": vllm_model}),
        ("/v1/score", {"queries": [QUERY, "rivers"], "documents": texts[:2], "model": vllm_model}),
    ]
    stock = httpx.Client(base_url=servers[0].url, headers={"Authorization": f"Bearer {API_KEY}"}, timeout=120)
    with running(Reranker(vllm_model, engine="vllm")) as service, service.client() as ours, stock:
        for path, body in requests:
            theirs, found = (client.post(path, json=body).raise_for_status().json() for client in (stock, ours))
            assert [index for index, _ in scores(found)] == [index for index, _ in scores(theirs)], path
            expected = [score for _, score in scores(theirs)]
            assert [score for _, score in scores(found)] == pytest.approx(expected, abs=1e-4), path
            assert len({round(score, 3) for score in expected}) > 1
            assert found["usage"]["prompt_tokens"] == theirs["usage"]["prompt_tokens"], path


def scores(answer: dict[str, Any]) -> list[tuple[int, float]]:
    """Indices and scores of a reranking or a scoring, in its order."""
    if "results" in answer:
        return [(result["index"], result["relevance_score"]) for result in answer["results"]]
    return [(pair["index"], pair["score"]) for pair in answer["data"]]
