"""The service is ready when the engine has scored, starts a dead engine again, and answers what runs before it ends."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from gated_engine import PATIENCE, GatedEngine, passed, wait_until
from running import running
from winnow import EngineDeadError, EngineLoadError, EngineScore, FakeEngine, Prompt, Reranker

pytestmark = pytest.mark.slow

GOOD = {"query": "a", "documents": ["b"]}


def test_it_is_ready_when_the_engine_has_scored_its_first_pair() -> None:
    class Loading(GatedEngine):
        """Loads until it is told to."""

        def __init__(self) -> None:
            super().__init__()
            self.loaded = threading.Event()

        async def start(self) -> None:
            await passed(self.loaded)

    engine = Loading()
    with running(Reranker("tiny", engine=engine), until_ready=False) as server, server.client() as client:

        def check_that_it_loads() -> None:
            assert client.get("/health").status_code == 200
            for answer in (client.get("/ready"), client.get("/ping"), client.post("/rerank", json=GOOD)):
                assert answer.status_code == 503
                assert int(answer.headers["retry-after"]) >= 1

        check_that_it_loads()
        engine.loaded.set()
        wait_until(lambda: engine.waiting == 1)
        check_that_it_loads()
        engine.gate.set()
        wait_until(lambda: client.get("/ready").status_code == 200)
        assert client.post("/rerank", json=GOOD).status_code == 200


class Mortal(FakeEngine):
    """Dies when it is told to, and does not start for some time."""

    def __init__(self) -> None:
        super().__init__()
        self.dies = False
        self.starts_in_vain = 0

    async def start(self) -> None:
        await super().start()
        if self.starts_in_vain:
            self.starts_in_vain -= 1
            raise EngineLoadError("there is no memory")

    async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
        if self.dies:
            self.dies = False
            raise EngineDeadError("killed")
        return await super().score(prompts, priority=priority)


@pytest.mark.parametrize("starts_in_vain", [0, 2])
def test_an_engine_that_died_is_started_until_it_scores(starts_in_vain: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("winnow.service.life._FIRST_PAUSE", 0.01)
    engine = Mortal()
    reranker = Reranker("tiny", engine=engine, max_restarts=0, score_cache=100)
    with running(reranker) as server, server.client() as client:
        engine.dies, engine.starts_in_vain = True, starts_in_vain
        failed = client.post("/rerank", json=GOOD)
        assert failed.status_code == 503
        assert int(failed.headers["retry-after"]) >= 1
        wait_until(lambda: client.get("/ready").status_code == 200)
        assert client.post("/rerank", json=GOOD).status_code == 200
        assert engine.started == 2 + starts_in_vain


class Frail(FakeEngine):
    """Dies with every fifth call."""

    async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
        scores = await super().score(prompts, priority=priority)
        if self.calls % 5 == 0:
            raise EngineDeadError("killed")
        return scores


def test_an_engine_that_dies_again_and_again_under_load_loses_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("winnow.service.life._FIRST_PAUSE", 0.01)
    engine = Frail()
    requests = [{"query": f"query {at}", "documents": ["query", f"query {at}", f"{at}"]} for at in range(200)]
    with running(Reranker("tiny", engine=engine)) as server, server.client() as client:

        def ask(request: dict[str, Any]) -> list[tuple[int, float]]:
            """As clients do: again and again while the answer is 503."""
            while (answer := client.post("/rerank", json=request)).status_code != 200:
                assert answer.status_code == 503
                assert int(answer.headers["retry-after"]) >= 1
                wait_until(lambda: client.get("/ready").status_code == 200)
            return [(result["index"], result["relevance_score"]) for result in answer.json()["results"]]

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, requests))
        assert client.get("/health").status_code == 200
        assert server.queue.inside == 0
    assert engine.started > 4
    rankings = Reranker("tiny", engine="fake").rank_many((one["query"], one["documents"]) for one in requests)
    for found, ranking in zip(answers, rankings, strict=True):
        assert found == [(hit.index, pytest.approx(hit.score)) for hit in ranking]


def test_an_engine_that_never_starts_again_makes_the_service_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("winnow.service.life._FIRST_PAUSE", 0.01)
    engine = Mortal()
    with running(Reranker("tiny", engine=engine)) as server, server.client() as client:
        engine.dies, engine.starts_in_vain = True, 1_000_000
        assert client.post("/rerank", json=GOOD).status_code == 503
        wait_until(lambda: client.get("/health").status_code == 503)
        engine.starts_in_vain = 0
        wait_until(lambda: client.get("/health").status_code == 200)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "winnow_command", "serve", *arguments]


def asked(client: httpx.Client) -> tuple[threading.Thread, list[httpx.Response]]:
    """A request in a thread of its own, and the list that its answer goes into."""
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(client.post("/rerank", json=GOOD)))
    asking.start()
    return asking, answers


def test_after_sigterm_what_runs_is_answered_and_others_are_refused() -> None:
    engine = GatedEngine()
    engine.gate.set()
    with running(Reranker("tiny", engine=engine)) as server, server.client() as client, server.client() as other:
        assert other.get("/ready").status_code == 200  # its connection stays open
        engine.gate.clear()
        asking, answers = asked(client)
        wait_until(lambda: engine.waiting == 1)
        server.signal(signal.SIGTERM)
        wait_until(lambda: other.get("/ready").status_code == 503)
        refused = other.post("/rerank", json=GOOD)
        assert refused.status_code == 503
        assert "ending" in refused.json()["detail"]
        engine.gate.set()
        asking.join(PATIENCE)
        assert [answer.status_code for answer in answers] == [200]
        wait_until(lambda: not server.thread.is_alive())


def test_what_runs_too_long_after_sigterm_is_broken_off() -> None:
    engine = GatedEngine()
    engine.gate.set()
    with running(Reranker("tiny", engine=engine), drain_seconds=1) as server, server.client() as client:
        engine.gate.clear()
        asking, answers = asked(client)
        wait_until(lambda: engine.waiting == 1)
        server.signal(signal.SIGTERM)
        asking.join(PATIENCE)
        assert [answer.status_code for answer in answers] == [503]
        wait_until(lambda: not server.thread.is_alive())


def test_sigterm_ends_the_command_when_what_runs_is_answered(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as stderr:
        arguments = ("tiny", "--engine", "fake", "--engine-arg", "delay=1", "--port", "0")
        process = subprocess.Popen(command(*arguments), stderr=stderr)
    try:
        wait_until(lambda: process.poll() is not None or "requests are answered" in log.read_text())
        url = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        assert url is not None, log.read_text()
        with httpx.Client(base_url=url[0], timeout=PATIENCE, trust_env=False) as client:
            asking, answers = asked(client)
            with httpx.Client(base_url=url[0], timeout=PATIENCE, trust_env=False) as other:
                wait_until(lambda: "requests_running 1.0" in other.get("/metrics").text or bool(answers))
            process.send_signal(signal.SIGTERM)
            asking.join(PATIENCE)
        assert [answer.status_code for answer in answers] == [200]
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


def test_a_model_that_cannot_be_loaded_ends_the_command_with_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        command(str(tmp_path / "none"), "--engine", "transformers", "--port", "0"),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 1
    assert "does not exist" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_one_line() -> None:
    with running(Reranker("tiny", engine="fake")) as server:
        port = server.url.rpartition(":")[2]
        done = subprocess.run(
            command("tiny", "--engine", "fake", "--port", port),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    assert done.returncode == 1
    assert done.stderr.strip() == f"winnow: 127.0.0.1:{port}: Address already in use"
