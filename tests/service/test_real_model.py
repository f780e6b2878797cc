"""With a real model, the service's scores are those of the reranker in this process."""

import argparse
from collections.abc import Iterator

import httpx
import pytest

from running import running
from winnow import CallLimits, Reranker

pytestmark = pytest.mark.slow

QUERY = "what is the capital of China?"
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
TEMPLATE = "{{ instruction }} Q: {{ query }} D: {{ document }} A:"


@pytest.fixture(scope="module")
def reranker(tiny_model: str) -> Iterator[Reranker]:
    with Reranker(tiny_model, engine="transformers", engine_kwargs={"dtype": "float32"}) as reranker:
        yield reranker


@pytest.fixture(scope="module")
def client(reranker: Reranker) -> Iterator[httpx.Client]:
    with running(Reranker(**vars(reranker.config))) as server, server.client() as client:
        yield client


def test_scores_equal_those_of_the_reranker(client: httpx.Client, reranker: Reranker, passages: list[str]) -> None:
    texts = passages[:12]
    expected = reranker.rank(QUERY, texts, instruction=INSTRUCTION)
    body = {"query": QUERY, "documents": texts, "instruction": INSTRUCTION}
    found = client.post("/v1/rerank", json=body).json()
    assert [result["index"] for result in found["results"]] == [hit.index for hit in expected]
    scores = [result["relevance_score"] for result in found["results"]]
    assert scores == pytest.approx([hit.score for hit in expected], abs=1e-4)
    assert found["usage"]["prompt_tokens"] == expected.stats.usage_tokens
    pairs = client.post("/score", json={"queries": [QUERY] * 12, "documents": texts, "instruction": INSTRUCTION}).json()
    by_index = {hit.index: hit.score for hit in expected}
    assert [pair["score"] for pair in pairs["data"]] == pytest.approx([by_index[at] for at in range(12)], abs=1e-4)


def test_a_template_and_lengths_of_a_request_act(client: httpx.Client, reranker: Reranker, passages: list[str]) -> None:
    texts = passages[:4]
    limits = CallLimits(max_document_tokens=8, keep="end")
    expected = reranker.rank(QUERY, texts, instruction=INSTRUCTION, template=TEMPLATE, limits=limits, raw_scores=True)
    body = {
        "query": QUERY,
        "documents": texts,
        "instruction": INSTRUCTION,
        "score_template": TEMPLATE,
        "raw_scores": True,
    }
    cut = {"max_tokens_per_doc": 8, "truncation_side": "left"}
    found = client.post("/v1/rerank", json={**body, **cut}).json()["results"]
    assert [result["relevance_score"] for result in found] == pytest.approx([hit.logit for hit in expected], abs=1e-4)
    assert [result["truncated"] for result in found] == [hit.truncated for hit in expected]
    plain = reranker.rank(QUERY, texts, instruction=INSTRUCTION)
    assert [hit.score for hit in plain] != pytest.approx([hit.score for hit in expected], abs=1e-4)


@pytest.mark.filterwarnings("ignore")  # the benchmark's client leaves its sockets open
def test_vllms_benchmark_has_no_failed_request(
    needs_vllm: None, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`vllm bench serve` finds the model and its tokenizer out by itself."""
    monkeypatch.setenv("OPENAI_API_KEY", "not-asked-for")
    from vllm.benchmarks.serve import add_cli_args, main  # what `vllm bench serve` runs

    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    options = ["--backend", "vllm-rerank", "--endpoint", "/v1/rerank", "--base-url", str(client.base_url)]
    dataset = ["--dataset-name", "random-rerank", "--random-input-len", "32", "--random-batch-size", "4"]
    found = main(parser.parse_args([*options, *dataset, "--num-prompts", "40", "--max-concurrency", "8"]))
    assert found["completed"] == 10  # all: four documents make a request
    assert found["total_input_tokens"] > 0
