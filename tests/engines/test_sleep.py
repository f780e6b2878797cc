"""`sleep` and `wake`: an engine leaves the GPU's memory between calls, and no call finds it asleep."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import pytest
from slow_engine import SlowEngine

from gated_engine import passed, wait_until
from winnow import ConfigurationError, EngineDeadError, EngineError, EngineLoadError, EngineScore, Prompt, Reranker
from winnow.engines.vllm.engine import VllmEngine
from winnow.models.checkpoint import open_checkpoint


class SleepyEngine(SlowEngine):
    """A slow engine that can sleep, and that takes offence at calls while it does.

    Attributes:
        may_sleep: Going to sleep waits for it; it is set at first.
        events: "sleep" and "wake", as they came.
        failure: What `sleep` or `wake` raises, once.
    """

    def __init__(self, start_seconds: float = 0.02):
        super().__init__(start_seconds)
        self.may_sleep = threading.Event()
        self.may_sleep.set()
        self.events: list[str] = []
        self.failure: Exception | None = None
        self.scoring = 0
        self.asleep = False

    async def start(self) -> None:
        self.asleep = False
        await super().start()

    async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
        assert not self.asleep
        self.scoring += 1
        try:
            return await super().score(prompts, priority=priority)
        finally:
            self.scoring -= 1

    async def sleep(self) -> None:
        assert not self.scoring
        self.events.append("sleep")
        self.asleep = not isinstance(self.failure, ConfigurationError)
        await passed(self.may_sleep)
        await self._fail()

    async def wake(self) -> None:
        await self._fail()
        self.asleep = False
        self.events.append("wake")

    async def _fail(self) -> None:
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure


def engine_threads() -> int:
    return sum(thread.name == "winnow-engine" for thread in threading.enumerate())


def test_the_next_call_wakes_it() -> None:
    engine = SleepyEngine()
    with Reranker("fake", engine=engine) as reranker:
        before = reranker.score("a", ["a", "b"])
        reranker.sleep()
        reranker.sleep()  # twice is fine
        assert engine.events == ["sleep"]
        assert reranker.score("a", ["a", "b"]) == before
        reranker.wake()  # awake: nothing to do
        assert engine.events == ["sleep", "wake"]
        reranker.sleep()
        reranker.wake()
        reranker.sleep()
        reranker.start()  # wakes it, too
        assert engine.events == ["sleep", "wake"] * 3
    assert (engine.started, engine.closed) == (1, 1)


def test_before_it_is_loaded_there_is_nothing_to_do() -> None:
    engine = SleepyEngine()
    threads = engine_threads()
    reranker = Reranker("fake", engine=engine)
    reranker.sleep()
    reranker.wake()
    assert engine_threads() == threads
    assert reranker.score("a", [" "])  # has an event loop now, but needed no engine
    reranker.sleep()
    reranker.wake()
    assert (engine.started, engine.events) == (0, [])
    reranker.score("a", ["a"])
    reranker.close()
    reranker.sleep()
    assert engine.events == []


def test_an_engine_that_sleeps_can_be_closed_and_started() -> None:
    engine = SleepyEngine()
    reranker = Reranker("fake", engine=engine).start()
    reranker.sleep()
    reranker.close()
    assert (engine.closed, engine.events) == (1, ["sleep"])
    reranker.start()
    assert (engine.started, engine.events) == (2, ["sleep"])
    reranker.close()


def test_it_waits_for_calls_in_flight_and_calls_wait_for_it() -> None:
    engine = SleepyEngine()
    requests = [(f"a {number}", ["a", "b"]) for number in range(3)]
    with Reranker("fake", engine=engine).start() as reranker, ThreadPoolExecutor(4) as threads:
        engine.gate.clear()
        early = threads.submit(reranker.rank_many, iter(requests))
        wait_until(lambda: engine.scoring > 0)
        shared = reranker._lease._shared
        assert shared is not None
        asleep = threads.submit(reranker.sleep)
        wait_until(lambda: shared.life._sleep_task is not None)
        late = threads.submit(reranker.score, "late", ["a"])
        wait_until(lambda: len(shared.life._work) == 3)
        engine.gate.set()
        assert len(early.result()) == 3
        asleep.result()
        assert engine.events[0] == "sleep"
        assert len(late.result()) == 1
        assert engine.events == ["sleep", "wake"]


def test_it_sleeps_for_all_who_share_it_and_wakes_once() -> None:
    engine = SleepyEngine()
    first, second = (Reranker("fake", engine=engine, instruction=which) for which in ("one", "two"))
    with first, second, ThreadPoolExecutor(8) as threads:
        first.start()
        second.start()
        list(threads.map(lambda reranker: reranker.sleep(), [first, second] * 4))
        assert engine.events == ["sleep"]
        list(threads.map(lambda reranker: reranker.score("a", ["a"]), [first, second] * 4))
        assert engine.events == ["sleep", "wake"]


def test_a_load_under_way_is_waited_for() -> None:
    engine = SleepyEngine()
    with Reranker("fake", engine=engine) as reranker:
        with load_under_way(reranker, engine):
            reranker.sleep()
        assert (engine.started, engine.events) == (1, ["sleep"])
        assert reranker.score("a", ["a"])
    engine.fail_to_start = 1
    with (
        Reranker("fake", engine=engine) as reranker,
        load_under_way(reranker, engine),
        pytest.raises(EngineLoadError),
    ):
        reranker.sleep()


@contextmanager
def load_under_way(reranker: Reranker, engine: SleepyEngine) -> Iterator[None]:
    """The engine starts, for a call that gave up, and goes on when a `sleep` waits for it."""
    engine.may_start.clear()
    with pytest.raises(TimeoutError):
        reranker.rank("a", ["a"], deadline=0.1)
    shared = reranker._lease._shared
    assert shared is not None

    def go_on() -> None:
        wait_until(lambda: shared.life._sleep_task is not None)
        engine.may_start.set()

    with ThreadPoolExecutor(1) as threads:
        going = threads.submit(go_on)
        yield
        going.result()


def test_a_deadline_ends_a_call_that_waits_for_it() -> None:
    engine = SleepyEngine()
    engine.may_sleep.clear()
    with Reranker("fake", engine=engine).start() as reranker, ThreadPoolExecutor(1) as threads:
        asleep = threads.submit(reranker.sleep)
        wait_until(lambda: bool(engine.events))
        with pytest.raises(TimeoutError):
            reranker.rank("a", ["a"], deadline=0.1)
        assert not asleep.done()
        engine.may_sleep.set()
        asleep.result()
        assert engine.events == ["sleep"]


def test_from_event_loops_and_cancelled_it_ends_well() -> None:
    engine = SleepyEngine()

    async def begin_to_sleep(reranker: Reranker) -> None:
        engine.may_sleep.clear()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reranker.async_sleep(), 0.1)
        engine.may_sleep.set()

    async def main() -> None:
        async with Reranker("fake", engine=engine) as reranker:
            before = await reranker.ascore("a", ["a"])
            await begin_to_sleep(reranker)
            assert await reranker.ascore("a", ["a"]) == before  # after it had gone to sleep
            assert engine.events == ["sleep", "wake"]
            await reranker.async_sleep()
            await reranker.async_wake()
            assert engine.events == ["sleep", "wake"] * 2
            await begin_to_sleep(reranker)  # closing waits for it

    asyncio.run(main())
    assert (engine.started, engine.closed, len(engine.events)) == (1, 1, 5)


def test_an_engine_that_fails_to_sleep_or_to_wake_is_woken_by_the_next_call() -> None:
    engine = SleepyEngine()
    with Reranker("fake", engine=engine).start() as reranker:
        engine.failure = EngineError("no room in main memory")
        with pytest.raises(EngineError, match="no room"):
            reranker.sleep()
        assert reranker.score("a", ["a"])
        assert engine.events == ["sleep", "wake"]
        reranker.sleep()
        engine.failure = EngineError("the GPU is full")
        with pytest.raises(EngineError, match="is full"):
            reranker.score("a", ["a"])
        assert reranker.score("a", ["a"])
        assert engine.events == ["sleep", "wake"] * 2
    assert engine.started == 1


def test_an_engine_that_dies_asleep_is_started_again() -> None:
    engine = SleepyEngine()
    with Reranker("fake", engine=engine).start() as reranker:
        engine.failure = EngineDeadError("gone while going to sleep")
        with pytest.raises(EngineDeadError, match=r"going to sleep\nThe next call starts it again"):
            reranker.sleep()
        assert engine.closed == 1
        assert reranker.score("a", ["a"])
        reranker.sleep()
        engine.failure = EngineDeadError("gone in its sleep")
        with pytest.raises(EngineDeadError, match=r"in its sleep\nThe next call starts it again"):
            reranker.score("a", ["a"])
        assert reranker.score("a", ["a"])
    assert (engine.started, engine.closed) == (3, 3)


def test_engines_that_cannot_say_so_and_go_on() -> None:
    engine = SlowEngine(0.02)
    with Reranker("fake", engine=engine).start() as reranker:
        with pytest.raises(ConfigurationError, match=r"The engine 'fake' cannot sleep\. close\(\) frees it"):
            reranker.sleep()
        assert reranker.score("a", ["a"])
    refusing = SleepyEngine()
    with Reranker("fake", engine=refusing).start() as reranker:
        refusing.failure = ConfigurationError("set this and that")
        with pytest.raises(ConfigurationError, match="this and that"):
            reranker.sleep()
        assert reranker.score("a", ["a"])
        assert refusing.events == ["sleep"]


def test_transformers_scores_the_same_when_it_wakes(tiny_model: str) -> None:
    with Reranker(tiny_model, engine="transformers") as reranker:
        before = reranker.score("a", ["b", "c"])
        reranker.sleep()
        assert reranker.score("a", ["b", "c"]) == before


# --- real vLLM --------------------------------------------------------------------------------------------------------


def test_vllm_refuses_its_sleep_mode_without_a_gpu(needs_vllm: None, tiny_model: str) -> None:
    reranker = Reranker(tiny_model, engine="vllm", max_length=512, engine_kwargs={"enable_sleep_mode": True})
    with reranker, pytest.raises(EngineLoadError, match="Sleep mode is not supported on current platform"):
        reranker.start()


def test_vllm_says_what_to_set_and_pauses_while_it_sleeps(needs_vllm: None, tiny_model: str) -> None:
    """On a CPU vLLM's worker keeps its memory, and vLLM refuses the setting; all else of its sleep mode is there."""
    engine = VllmEngine(open_checkpoint(tiny_model), 512, {})
    documents = [f"{number} b" for number in range(50)]
    with Reranker(tiny_model, engine=engine) as reranker:
        reranker.start()
        with pytest.raises(ConfigurationError, match=r"engine_kwargs=\{'enable_sleep_mode': True\}"):
            reranker.sleep()
        engine._engine_args.enable_sleep_mode = True
        reranker.sleep()  # before its first request
        assert sleeps(engine)
        before = reranker.score("a", documents)
        assert not sleeps(engine)
        with ThreadPoolExecutor(1) as threads:
            call = threads.submit(reranker.score, "a b", documents)
            reranker.sleep()
            assert len(call.result()) == 50
        reranker.sleep()
        assert reranker.score("a", documents) == pytest.approx(before, abs=1e-5)
        [core] = engine._processes._roots()
        core.suspend()
        engine.stall_timeout = 1.0
        with pytest.raises(
            EngineDeadError,
            match=r"did not sleep within 1 seconds\.\n.*is stopped \(state T\)\.\nThe next call starts it again",
        ):
            reranker.sleep()
        assert not psutil.wait_procs([core], timeout=60)[1]


def sleeps(engine: VllmEngine) -> bool:
    """What vLLM's process says, asked on the loop that vLLM's client belongs to."""
    loop = engine._llm.engine_core.resources.output_queue_task.get_loop()
    return bool(asyncio.run_coroutine_threadsafe(engine._llm.is_sleeping(), loop).result(60))
