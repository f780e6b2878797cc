"""An engine's life: started once, shared, closed by the last one, gone with the interpreter, back after a death."""

import asyncio
import copy
import gc
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from slow_engine import SlowEngine

from gated_engine import PATIENCE, loop_goes_on_until, wait_until
from winnow import EngineLoadError, Reranker
from winnow.engines import request_queue, shared
from winnow.prompts import DocumentPrompts, PromptBuilder


def test_many_threads_start_one_engine_once() -> None:
    engine = SlowEngine()
    reranker = Reranker("fake", engine=engine)
    with ThreadPoolExecutor(16) as threads:
        scores = list(threads.map(lambda _: reranker.score("a b", ["a", "a b"]), range(16)))
    reranker.close()
    assert engine.started == 1
    assert all(found == scores[0] for found in scores)


def test_rerankers_with_the_same_settings_share_an_engine_and_the_last_one_closes_it() -> None:
    engine = SlowEngine()
    first, second = (Reranker("fake", engine=engine, instruction=which) for which in ("one", "two"))
    first.start()
    second.start()
    first.close()
    assert (engine.started, engine.closed) == (1, 0)
    assert second.score("a", ["a"])
    second.close()
    assert (engine.started, engine.closed) == (1, 1)


def test_few_threads_tokenise_however_many_call() -> None:
    before = set(threading.enumerate())
    with Reranker("fake", engine="fake") as reranker, ThreadPoolExecutor(32) as callers:
        list(callers.map(lambda number: reranker.rank(f"question {number}", ["a", "b"]), range(64)))
        new = set(threading.enumerate()) - before
    assert 1 <= sum(thread.name.startswith("winnow-tokenize") for thread in new) <= 4


def test_a_large_call_leaves_threads_for_others_to_tokenise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_queue, "_TOKENIZING_THREADS", 2)
    begun, goes_on = threading.Event(), threading.Event()
    build = PromptBuilder.build

    def slow(self: PromptBuilder, query: Any, documents: Any, **kwargs: Any) -> list[DocumentPrompts]:
        if len(documents) > 2:
            begun.set()
            assert goes_on.wait(PATIENCE)
        return build(self, query, documents, **kwargs)

    monkeypatch.setattr(PromptBuilder, "build", slow)
    with Reranker("fake", engine="fake") as reranker, ThreadPoolExecutor(1) as caller:
        large = caller.submit(reranker.rank, "question", [f"document {number}" for number in range(1000)])
        assert begun.wait(PATIENCE)
        try:
            assert len(reranker.rank("question", ["a", "b"], deadline=PATIENCE)) == 2
        finally:
            goes_on.set()
        assert len(large.result()) == 1000


def test_close_waits_for_calls_in_flight() -> None:
    engine = SlowEngine()
    reranker = Reranker("fake", engine=engine).start()
    with ThreadPoolExecutor(5) as threads:
        engine.gate.clear()
        calls = [threads.submit(reranker.score, "a", [f"a {number}", f"b {number}"]) for number in range(4)]
        wait_until(lambda: engine.waiting == 4)
        shared = reranker._lease._shared
        closing = threads.submit(reranker.close)
        wait_until(lambda: shared is not None and shared.closing)
        assert not closing.done()
        engine.gate.set()
        closing.result()
        assert all(len(call.result()) == 2 for call in calls)
    assert engine.closed == 1
    assert not engine.closed_at_work


def test_after_close_a_call_starts_it_again() -> None:
    engine = SlowEngine()
    reranker = Reranker("fake", engine=engine)
    before = reranker.score("a", ["a"])
    reranker.close()
    reranker.close()  # twice is fine
    assert reranker.score("a", ["a"]) == before
    reranker.close()
    assert (engine.started, engine.closed) == (2, 2)


def test_two_event_loops_one_after_the_other() -> None:
    with Reranker("fake", engine="fake") as reranker:
        scores = [asyncio.run(reranker.ascore("a", ["a", "b"])) for _ in range(2)]
    assert scores[0] == scores[1]


def test_an_event_loop_goes_on_while_it_waits() -> None:
    async def main() -> None:
        engine = SlowEngine()
        engine.may_start.clear()
        engine.gate.clear()
        async with Reranker("fake", engine=engine) as reranker:
            call = asyncio.ensure_future(reranker.arank("a", ["a"]))
            await loop_goes_on_until(lambda: engine.started == 1)
            engine.may_start.set()
            await loop_goes_on_until(lambda: engine.waiting == 1)
            engine.gate.set()
            assert len(await call) == 1

    asyncio.run(main())


def test_a_sync_call_works_inside_a_running_loop() -> None:
    async def main() -> list[float]:
        with Reranker("fake", engine="fake") as reranker:
            return reranker.score("a", ["a"])

    assert len(asyncio.run(main())) == 1


def test_the_methods_for_event_loops_work_on_uvloop() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        engine = SlowEngine(0)
        async with Reranker("fake", engine=engine) as reranker:
            assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
            assert len(await reranker.arank("a", ["a", "b"])) == 2
            assert len(reranker.rank("a", ["a", "b"])) == 2
            assert len(await reranker.arank_many(("a", [f"a {number}"]) for number in range(3))) == 3
            assert isinstance(reranker._lease._shared and reranker._lease._shared._loop, uvloop.Loop)
            engine.gate.clear()
            call = asyncio.ensure_future(reranker.arank("a", ["a"]))
            await loop_goes_on_until(lambda: engine.waiting == 1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    policy = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())  # also for the engine's own loop
    try:
        asyncio.run(main())
    finally:
        asyncio.set_event_loop_policy(policy)


def test_an_event_loop_ends_while_an_engine_is_still_closing() -> None:
    engine = SlowEngine(0)
    reranker = Reranker("fake", engine=engine).start()
    engine.may_close.clear()

    async def main() -> None:
        closing = asyncio.ensure_future(reranker.aclose())
        await loop_goes_on_until(lambda: engine.closing)
        closing.cancel()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    try:
        assert not thread.is_alive()
        assert engine.closing
    finally:
        engine.may_close.set()
    wait_until(lambda: engine.closed == 1)


def test_all_who_wait_get_the_error_of_a_failed_start_and_the_next_call_tries_again() -> None:
    engine = SlowEngine()
    engine.fail_to_start = 1
    reranker = Reranker("fake", engine=engine)
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(reranker.score, "a", ["a"]) for _ in range(4)]
        assert all(isinstance(call.exception(), EngineLoadError) for call in calls)
    assert engine.started == 1
    assert reranker.score("a", ["a"])
    assert engine.started == 2
    reranker.close()


def test_a_deadline_ends_a_call_while_another_engine_is_still_closing() -> None:
    engine = SlowEngine()
    first, second = (Reranker("fake", engine=engine) for _ in range(2))
    first.start()
    engine.may_close.clear()
    closing = threading.Thread(target=first.close)
    closing.start()
    wait_until(lambda: engine.closing)
    with pytest.raises(TimeoutError):
        second.rank("a", ["a"], deadline=0.1)
    assert closing.is_alive()
    assert engine.started == 1
    engine.may_close.set()
    assert second.score("a", ["a"])
    assert (engine.started, engine.closed) == (2, 1)
    second.close()
    closing.join()


def test_a_deadline_while_loading_harms_no_other_call() -> None:
    engine = SlowEngine()
    engine.may_start.clear()
    first, second = (Reranker("fake", engine=engine) for _ in range(2))
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(second.score, "a", ["a"])
        with pytest.raises(TimeoutError):
            first.rank("a", ["a"], deadline=0.1)
        assert not call.done()
        wait_until(lambda: engine.started == 1)
        first.close()
        engine.may_start.set()
        assert call.result()
    second.close()
    assert (engine.started, engine.closed) == (1, 1)


def test_after_a_deadline_the_load_goes_on_for_the_next_call() -> None:
    engine = SlowEngine()
    engine.may_start.clear()
    with Reranker("fake", engine=engine) as reranker:
        with pytest.raises(TimeoutError):
            reranker.rank("a", ["a"], deadline=0.1)
        engine.may_start.set()
        assert reranker.score("a", ["a"])
    assert (engine.started, engine.closed) == (1, 1)


def test_close_waits_for_calls_that_wait_for_the_load() -> None:
    engine = SlowEngine()
    engine.may_start.clear()
    reranker = Reranker("fake", engine=engine)
    with ThreadPoolExecutor(2) as threads:
        call = threads.submit(reranker.score, "a", ["a"])
        wait_until(lambda: engine.started == 1)
        shared = reranker._lease._shared
        closing = threads.submit(reranker.close)
        wait_until(lambda: shared is not None and shared.closing)
        engine.may_start.set()
        closing.result()
        assert call.result()
    assert engine.closed == 1


def test_close_ends_a_load_that_no_call_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    class Patient(SlowEngine):
        """An engine that starts until it is abandoned."""

        async def start(self) -> None:
            self.abandoned = asyncio.Event()
            self.loop = asyncio.get_running_loop()
            await self.abandoned.wait()
            raise EngineLoadError("abandoned")

        def abandon(self) -> None:
            self.loop.call_soon_threadsafe(self.abandoned.set)

    engine = Patient()
    reranker = Reranker("fake", engine=engine)
    with pytest.raises(TimeoutError):
        reranker.rank("a", ["a"], deadline=0.1)
    reranker.close()
    assert engine.abandoned.is_set()
    assert engine.closed == 0  # it never ran
    gc.collect()
    assert not caplog.records  # asyncio's "exception was never retrieved", say


def test_a_running_engine_is_notified_when_python_ends() -> None:
    class Notified(SlowEngine):
        notified = False

        def abandon(self) -> None:
            self.notified = True

    engine = Notified()
    reranker = Reranker("fake", engine=engine)
    assert reranker.score("a", ["a"])
    assert not engine.notified
    shared._registry[reranker.engine_key].life.give_up()
    assert engine.notified
    reranker.close()
    assert engine.closed == 1


def test_a_cancelled_call_ends_at_once_and_harms_no_other() -> None:
    async def main() -> None:
        engine = SlowEngine(0)
        engine.gate.clear()
        async with Reranker("fake", engine=engine) as reranker:
            call = asyncio.ensure_future(reranker.arank("a", ["a"]))
            await loop_goes_on_until(lambda: engine.waiting == 1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        # Closing waits for calls in flight. There is none left, though the gate is shut.
        assert (engine.closed, engine.waiting) == (1, 0)

    asyncio.run(main())


def test_pickle_and_deepcopy_keep_the_settings_and_share_the_engine() -> None:
    reranker = Reranker("fake", engine="fake", instruction="find it").start()
    twins = [pickle.loads(pickle.dumps(reranker)), copy.deepcopy(reranker)]  # noqa: S301
    for twin in twins:
        assert twin.instruction == "find it"
        assert twin.engine_key == reranker.engine_key
        assert twin.score("a", ["a"]) == reranker.score("a", ["a"])
        twin.close()
    reranker.close()


def test_a_forked_child_starts_its_own_engine() -> None:
    reranker = Reranker("fake", engine="fake").start()
    expected = reranker.score("a", ["a"])
    code = f"""
import os, sys
from winnow import Reranker
reranker = Reranker("fake", engine="fake").start()
child = os.fork()
if child == 0:
    os._exit(0 if reranker.score("a", ["a"]) == {expected!r} else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    reranker.close()
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=200, check=False).returncode == 0


def test_a_child_that_is_forked_while_another_thread_has_every_lock_scores() -> None:
    code = """
import contextlib, os, signal, sys, threading
from winnow import Reranker
from winnow.locks import _locks

reranker = Reranker("fake", engine="fake", score_cache=10).start()
expected = reranker.score("a", ["a"])
held = threading.Event()

def hold():
    with contextlib.ExitStack() as stack:
        for lock in list(_locks):
            stack.enter_context(lock)
        held.set()
        threading.Event().wait()

threading.Thread(target=hold, daemon=True).start()
held.wait()
if (child := os.fork()) == 0:
    signal.alarm(60)
    os._exit(0 if reranker.score("a", ["a", "b"])[:1] == expected else 1)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=120, check=False).returncode == 0


@pytest.mark.parametrize("started", ["", ".start()"])
def test_a_call_while_python_ends_fails_at_once(started: str) -> None:
    """From an exit handler, from `__del__`, and in a thread that outlives the main one."""
    code = f"""
import atexit, threading, time
from winnow import EngineError, Reranker

def call(*_):
    try:
        reranker.score("a", ["a"])
    except EngineError as error:
        print(error, flush=True)

class Last:
    __del__ = call

def late():
    threading.main_thread().join()
    call()

atexit.register(call)
reranker = Reranker("fake", engine="fake"){started}  # whose own exit handler comes first
atexit.register(call)  # before it
last = Last()
threading.Thread(target=late).start()
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=120, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["Python is ending: nothing can be scored any more."] * 4
