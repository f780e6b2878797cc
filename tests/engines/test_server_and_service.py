"""`winnow serve` in front of two real vLLM servers: both work, one may die, and the scores are those of one alone."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from vllm_servers import API_KEY, FaultyProxy

from gated_engine import PATIENCE, wait_until
from winnow import Reranker

pytestmark = pytest.mark.slow

QUERY = "what is the capital of China?"


@pytest.fixture
def service(tiny_model: str, proxies: list[FaultyProxy], tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of the real command, which reaches each server through its proxy."""
    log = tmp_path / "log"
    urls = [part for proxy in proxies for part in ("--url", proxy.url)]
    command = [sys.executable, "-m", "winnow_command", "serve", tiny_model, "--engine", "server", *urls, "--port", "0"]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*command, "--engine-arg", "chunk_size=2"], stderr=stderr, env=os.environ | {"WINNOW_API_KEY": API_KEY}
        )
    try:
        wait_until(lambda: process.poll() is not None or "requests are answered" in log.read_text())
        address = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        assert address is not None, log.read_text()
        with httpx.Client(base_url=address[0], timeout=PATIENCE, trust_env=False) as client:
            yield client
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0, log.read_text()


def scores(client: httpx.Client, query: str, documents: list[str]) -> list[float]:
    answer = client.post("/v1/rerank", json={"query": query, "documents": documents, "return_documents": False})
    assert answer.status_code == 200, answer.text
    results = sorted(answer.json()["results"], key=lambda result: int(result["index"]))
    return [float(result["relevance_score"]) for result in results]


def test_two_servers_are_one_service_and_one_may_die(
    tiny_model: str, proxies: list[FaultyProxy], service: httpx.Client, passages: list[str]
) -> None:
    with Reranker(tiny_model, engine="server", url=proxies[0].target, api_key=API_KEY) as reranker:
        expected = reranker.score(QUERY, passages)
    assert scores(service, QUERY, passages) == pytest.approx(expected, abs=1e-6)

    def ask(number: int) -> int:
        return len(scores(service, f"question number {number}", passages))

    before = [len(proxy.posts) for proxy in proxies]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(24))) == [len(passages)] * 24
    assert all(len(proxy.posts) > count for proxy, count in zip(proxies, before, strict=True))

    proxies[0].stop()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(24, 48))) == [len(passages)] * 24
    assert scores(service, f"{QUERY} again", passages) != expected
    assert scores(service, QUERY, passages) == pytest.approx(expected, abs=1e-6)
    assert service.get("/ready").status_code == 200

    proxies[0].start()
    back = len(proxies[0].posts)
    numbers = iter(range(48, 10_000))
    wait_until(lambda: ask(next(numbers)) > 0 and len(proxies[0].posts) > back)

    # Nobody is left: clients are to come back, and so is the service when one server does, without being asked.
    for proxy in proxies:
        proxy.stop()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(service.post, "/rerank", json={"query": "q", "documents": passages}) for _ in range(8)]
        for answer in (one.result() for one in asked):
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["retry-after"]) >= 1
    wait_until(lambda: service.get("/ready").status_code == 503)
    assert service.get("/health").status_code == 200
    assert service.post("/rerank", json={"query": "q", "documents": passages}).status_code == 503
    proxies[1].start()
    wait_until(lambda: service.get("/ready").status_code == 200)
    assert scores(service, QUERY, passages) == pytest.approx(expected, abs=1e-6)
