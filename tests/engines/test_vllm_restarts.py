"""Real vLLM that is killed, or hangs: an error says why, a fallback ranks, and the next call starts it again."""

import itertools
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from vllm_children import engine_cores

from gated_engine import wait_until
from running import running
from winnow import EngineDeadError, Ranking, Reranker
from winnow.engines.vllm.engine import VllmEngine
from winnow.models.checkpoint import open_checkpoint
from winnow.observability import metrics

pytestmark = pytest.mark.slow

DOCUMENTS = ["b", "c"]
AGAIN = r"\nThe next call starts it again\.$"
START = 900.0  # seconds that a start of vLLM may take beside much other work
NO_MORE = r"\nIt is not started again \(max_restarts=\d\)"
KILLED = r"died\.\s+Its process was killed by SIGKILL.*"


@pytest.fixture
def counted() -> Iterator[Any]:
    """The registry in which Winnow counts meanwhile."""
    prometheus_client = pytest.importorskip("prometheus_client")
    metrics.enable(registry := prometheus_client.CollectorRegistry())
    yield registry
    metrics.disable()


class Lives:
    """One engine and those who share it, from one life to the next.

    Attributes:
        engine: The engine.
        plain: Raises what happens.
        strict: Never starts it again.
        careful: Has a fallback.
    """

    def __init__(self, model: str):
        self.engine = VllmEngine(open_checkpoint(model), 512, {})
        self.plain = Reranker(model, engine=self.engine)
        self.strict = Reranker(model, engine=self.engine, max_restarts=0)
        self.careful = Reranker(model, engine=self.engine, fallback="retrieval order")
        self._others = engine_cores()

    @property
    def processes(self) -> set[psutil.Process]:
        """The engine's."""
        return engine_cores() - self._others

    def in_work(self) -> int:
        """How many calls wait for the engine."""
        return len(self.plain._lease._shared.life._on_engine)  # type: ignore[union-attr]

    def call(self, size: int, threads: ThreadPoolExecutor) -> tuple[list[Any], list[Any]]:
        """Call it eight times at once; returns when the engine has all of them."""
        calls = [
            threads.submit(one.rank, f"{at}", [f"{at} {number} word" for number in range(size)])
            for at, one in enumerate((self.plain, self.careful) * 4)
        ]
        wait_until(lambda: self.in_work() == len(calls))
        return calls[::2], calls[1::2]

    def check(self, calls: tuple[list[Any], list[Any]], why: str) -> None:
        """All calls got the reason, and those with a fallback have its ranking."""
        for call in calls[0]:
            with pytest.raises(EngineDeadError, match=why + AGAIN):
                call.result()
        for call in calls[1]:
            ranking: Ranking = call.result()
            assert (ranking.degraded, ranking.stats.fallback) == (True, "retrieval order")
            assert [hit.index for hit in ranking] == list(range(len(ranking)))
            assert re.search(why, ranking.stats.error or "")


def test_vllm_that_is_killed_or_hangs_is_an_error_and_the_next_call_starts_it_again(
    needs_vllm: None, tiny_model: str, monkeypatch: pytest.MonkeyPatch, counted: Any
) -> None:
    """One after the other: a start takes long."""
    lives = Lives(tiny_model)
    engine, plain, strict, careful = lives.engine, lives.plain, lives.strict, lives.careful
    with plain, strict, careful, ThreadPoolExecutor(8) as threads:
        expected = plain.score("a", DOCUMENTS)

        # Busy for far longer than it may be silent.
        engine.stall_timeout = 3.0
        last = time.monotonic() + 3 * engine.stall_timeout
        busy = itertools.takewhile(lambda _: time.monotonic() < last, itertools.count())
        assert not any(one.degraded for one in careful.rank_many((str(at), DOCUMENTS) for at in busy))
        engine.stall_timeout = 600.0

        # Core and worker are stopped. From here on it may be silent for a moment only: before, the machine may be busy.
        processes = lives.processes
        assert len(processes) == 2
        for process in processes:
            process.suspend()
        calls = lives.call(1, threads)
        engine.stall_timeout = 1.0
        is_stopped = r"  VLLM::\w+ \(process \d+\) is stopped \(state T\)\."
        lives.check(
            calls, rf"hung: it scored no prompt for 1 seconds while prompts waited\.\n{is_stopped}{is_stopped[1:]}"
        )
        assert not psutil.wait_procs(processes, timeout=60)[1]
        engine.stall_timeout = 600.0
        assert strict.score("a", []) == []
        with pytest.raises(EngineDeadError, match="is stopped .*" + NO_MORE):
            strict.score("a", DOCUMENTS)

        # Killed while it scores.
        monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # without a worker it starts in half the time
        assert plain.score("a", DOCUMENTS) == pytest.approx(expected, abs=1e-5)
        assert strict.score("a", DOCUMENTS) == pytest.approx(expected, abs=1e-5)
        calls = lives.call(2000, threads)
        kill(lives.processes)
        lives.check(calls, KILLED)

        # Killed again before its first request: that was the last time.
        careful.start()
        kill(lives.processes)
        for _ in range(2):
            with pytest.raises(EngineDeadError, match=KILLED + NO_MORE):
                plain.score("a", DOCUMENTS)
            assert re.search(KILLED, careful.rank("a", DOCUMENTS).stats.error or "")
        assert not lives.processes
        labels = {"model": tiny_model, "engine": "vllm"}
        assert (
            counted.get_sample_value("winnow_fallbacks_total", {**labels, "fallback": "retrieval order"}) == 4 + 4 + 2
        )
        assert counted.get_sample_value("winnow_errors_total", {**labels, "type": "EngineDeadError"}) == 4 + 1 + 4 + 2

        careful.close()
        assert careful.score("a", DOCUMENTS) == pytest.approx(expected, abs=1e-5)

        # Killed while it scores for clients of the service, which starts it again without being asked.
        many = {"query": "many", "documents": [f"{number} word" for number in range(2000)]}
        with running(Reranker(tiny_model, engine=engine)) as service, service.client() as client:
            asked = [threads.submit(client.post, "/rerank", json=many) for _ in range(4)]
            wait_until(lambda: lives.in_work() == len(asked))
            kill(lives.processes)
            assert [one.result().status_code for one in asked] == [503] * len(asked)
            assert client.get("/ready").status_code == 503
            wait_until(lambda: service.life.is_ready, START)  # to ask /ready so often would slow the start down
            assert client.get("/ready").status_code == 200
            answer = client.post("/score", json={"queries": "a", "documents": DOCUMENTS}).json()
            assert [pair["score"] for pair in answer["data"]] == pytest.approx(expected, abs=1e-5)
    assert not lives.processes


def kill(processes: set[psutil.Process]) -> None:
    for process in processes:
        process.kill()
