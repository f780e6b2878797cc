"""An engine that hangs is noticed and restarted, and all waiting calls fail; an engine that is slow is not touched.

With real vLLM: test_vllm_processes.py.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from slow_engine import SlowEngine

from gated_engine import passed, wait_until
from winnow import EngineDeadError, EngineScore, Prompt, Reranker

STALL = 0.4
HUNG = (
    "The engine fake of fake hung: it scored no prompt for 0.4 seconds while prompts waited.\n  life 1 hangs\nThe next "
    "call starts it again."
)


class HangingEngine(SlowEngine):
    """An engine that hangs while its gate is shut.

    Attributes:
        stall_timeout: As `WatchedEngine` has it.
        answered: As `WatchedEngine` has it.
        hung: How often it was said to hang.
        pings: How often it was asked whether it lives.
        slow: Whether it takes a quarter of `STALL` for each prompt.
    """

    def __init__(self) -> None:
        super().__init__(0)
        self.stall_timeout = STALL
        self.answered = 0
        self.hung = 0
        self.pings = 0
        self.slow = False

    async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
        scores = await super().score(prompts, priority=priority)
        for _ in prompts:
            await asyncio.sleep(STALL / 4 if self.slow else 0)
            self.answered += 1
        return scores

    async def ping(self) -> None:
        self.pings += 1
        await passed(self.gate)

    def hang(self) -> str:
        self.hung += 1
        return f"life {self.started} hangs"


def test_all_waiting_calls_fail_and_the_next_call_starts_it_again() -> None:
    engine = HangingEngine()
    with Reranker("fake", engine=engine) as reranker, ThreadPoolExecutor(4) as threads:
        expected = reranker.score("a", ["a", "b"])
        engine.gate.clear()
        calls = [threads.submit(reranker.score, "a", ["a", str(number)]) for number in range(4)]
        assert {str(call.exception()) for call in calls} == {HUNG}
        assert {type(call.exception()) for call in calls} == {EngineDeadError}
        assert (engine.hung, engine.closed, engine.waiting) == (1, 1, 0)
        engine.gate.set()
        assert reranker.score("a", ["a", "b"]) == expected
        assert engine.started == 2


def test_it_is_started_again_as_often_as_after_a_death() -> None:
    engine = HangingEngine()
    engine.gate.clear()
    with Reranker("fake", engine=engine) as reranker, Reranker("fake", engine=engine, fallback="retrieval order") as it:
        with pytest.raises(EngineDeadError, match="The next call starts it again"):
            reranker.score("a", ["a"])
        ranking = it.rank("a", ["a"])
        assert ranking.degraded
        assert "hung: it scored no prompt" in (ranking.stats.error or "")
        for _ in range(2):  # the second at once
            with pytest.raises(EngineDeadError, match="life 2 hangs\nIt is not started again"):
                reranker.score("a", ["a"])
        assert (engine.started, engine.closed) == (2, 2)


def test_it_is_found_out_though_every_call_has_a_deadline() -> None:
    engine = HangingEngine()
    with Reranker("fake", engine=engine) as reranker:
        expected = reranker.score("a", ["a"])
        engine.gate.clear()
        with pytest.raises(TimeoutError):
            reranker.rank("a", ["a"], deadline=STALL / 8)
        wait_until(lambda: engine.hung == 1)
        engine.gate.set()
        assert reranker.score("a", ["a"]) == expected
        assert (engine.started, engine.closed) == (2, 1)
        assert engine.pings


def test_it_is_left_alone_where_it_only_takes_longer_than_a_deadline() -> None:
    engine = HangingEngine()
    with Reranker("fake", engine=engine) as reranker:
        assert reranker.score("a", ["a"])
        engine.slow = True
        with pytest.raises(TimeoutError):
            reranker.rank("a", ["a"], deadline=STALL / 8)
        wait_until(lambda: engine.pings > 0)  # and it answers
        wait_until(lambda: not is_watched(reranker))
        assert (engine.hung, engine.started) == (0, 1)


def test_it_is_left_alone_while_it_answers_one_prompt_after_the_other() -> None:
    """All of them are one request, which takes four times as long as the engine may be silent."""
    engine = HangingEngine()
    engine.slow = True
    with Reranker("fake", engine=engine) as reranker:
        assert len(reranker.score("a", [str(number) for number in range(16)])) == 16
        wait_until(lambda: not is_watched(reranker))
    assert (engine.hung, engine.started) == (0, 1)


def test_time_between_two_looks_does_not_count() -> None:
    engine = HangingEngine()
    with Reranker("fake", engine=engine) as reranker, ThreadPoolExecutor(1) as threads:
        assert reranker.score("a", ["a"])
        engine.gate.clear()
        call = threads.submit(reranker.score, "a", ["b"])
        wait_until(lambda: engine.waiting == 1)

        def hold_up_the_loop() -> None:
            time.sleep(3 * STALL)  # as where this process is stopped
            engine.gate.set()

        reranker._lease._shared._loop.call_soon_threadsafe(hold_up_the_loop)  # type: ignore[union-attr]
        assert len(call.result()) == 1
    assert (engine.hung, engine.started) == (0, 1)


def test_while_nothing_waits_it_is_not_watched() -> None:
    engine = HangingEngine()
    with Reranker("fake", engine=engine) as reranker:
        assert reranker.score("a", ["a"])
        wait_until(lambda: not is_watched(reranker))
        engine.gate.clear()
        time.sleep(2 * STALL)
        engine.gate.set()
        assert reranker.score("a", ["a"])
    assert (engine.hung, engine.started) == (0, 1)


def test_close_ends_the_watch() -> None:
    engine = HangingEngine()
    engine.stall_timeout = 600
    with Reranker("fake", engine=engine) as reranker:
        engine.gate.clear()
        with pytest.raises(TimeoutError):
            reranker.rank("a", ["a"], deadline=0.1)
    assert (engine.hung, engine.closed) == (0, 1)  # and asyncio does not warn of a task that is left


def is_watched(reranker: Reranker) -> bool:
    running = reranker._lease._shared.life._running  # type: ignore[union-attr]
    task = running._watchdog._task  # type: ignore[union-attr]
    return task is not None and not task.done()
