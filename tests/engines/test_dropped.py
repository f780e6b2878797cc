"""A reranker that is dropped without `close` gives its hold back; the last one's engine goes a little later."""

import asyncio
import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Iterator

import pytest
from slow_engine import SlowEngine

from gated_engine import wait_until
from winnow import Reranker
from winnow.engines import shared
from winnow.types import Ranking


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_GRACE_SECONDS", 0.1)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is gone within this is gone because nothing refers to it: it waits for no cyclic collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_thirty_rerankers_dropped_leave_no_thread_and_no_engine(short_grace: None, no_collector: None) -> None:
    engines = [SlowEngine(0) for _ in range(30)]
    before = set(threading.enumerate())
    for engine in engines:
        assert len(Reranker("fake", engine=engine).score("a", ["a", "b"])) == 2
    wait_until(lambda: all(engine.closed == 1 for engine in engines))
    wait_until(lambda: set(threading.enumerate()) <= before)


def test_a_cell_run_again_finds_the_engine_running_and_close_then_frees_it(no_collector: None) -> None:
    engine = SlowEngine()
    for _ in range(3):
        reranker = Reranker("fake", engine=engine)  # only now is the one before dropped
        assert reranker.score("a", ["a"])
    assert (engine.started, engine.closed) == (1, 0)
    reranker.close()
    assert (engine.started, engine.closed) == (1, 1)


def test_one_that_comes_within_the_grace_keeps_the_engine(monkeypatch: pytest.MonkeyPatch, no_collector: None) -> None:
    monkeypatch.setattr(shared, "_GRACE_SECONDS", 1.0)
    engine = SlowEngine()
    assert Reranker("fake", engine=engine).score("a", ["a"])
    second = Reranker("fake", engine=engine)
    assert second.score("a", ["a"])
    running = shared._registry[second.engine_key]
    wait_until(lambda: running._grace is not None and running._grace.when() < running._loop.time())
    assert second.score("a", ["a"])  # on the loop whose timer has gone off
    assert (engine.started, engine.closed) == (1, 0)
    del second
    wait_until(lambda: engine.closed == 1)
    assert Reranker("fake", engine=engine).score("a", ["a"])  # afresh
    assert engine.started == 2


def test_a_call_of_a_reranker_that_is_dropped_goes_on_to_its_end(short_grace: None, no_collector: None) -> None:
    engine = SlowEngine(delay=1)

    async def main() -> Ranking:
        return await asyncio.ensure_future(Reranker("fake", engine=engine).arank("a", ["a", "b"]))

    assert len(asyncio.run(main())) == 2
    future = Reranker("fake", engine=engine)._lease.submit(lambda started: started())
    assert future.result().engine is engine
    wait_until(lambda: engine.closed == engine.started)


def test_copies_hold_nothing_until_they_are_used(short_grace: None, no_collector: None) -> None:
    reranker = Reranker("fake", engine="fake", engine_kwargs={"delay": 0.001}).start()
    running = shared._registry[reranker.engine_key]
    copies = [copy.copy(reranker), copy.deepcopy(reranker), pickle.loads(pickle.dumps(reranker))]  # noqa: S301
    reranker.close()
    assert running.closed.is_set()  # the copies kept nothing
    assert all(one.score("a", ["a"]) for one in copies)
    assert reranker.engine_key in shared._registry
    del copies
    wait_until(lambda: reranker.engine_key not in shared._registry)


@pytest.mark.parametrize("fallback", [None, "retrieval order", "fake"])
@pytest.mark.parametrize("deadline", [None, 0.01])
def test_nothing_but_its_user_refers_to_a_reranker(
    no_collector: None, fallback: str | None, deadline: float | None
) -> None:
    other = Reranker("other", engine="fake") if fallback == "fake" else fallback
    reranker = Reranker("fake", engine=SlowEngine(delay=0.05), fallback=other)
    try:
        reranker.rank("a", ["a", "b"], deadline=deadline)
        reranker.rank_many([("a", ["a"]), ("b", ["b"])], deadline=deadline)
    except TimeoutError:
        assert deadline
    seen = weakref.ref(reranker)
    del reranker
    assert seen() is None


def test_the_collector_may_run_while_the_lock_is_held(short_grace: None, no_collector: None) -> None:
    """In the same thread, by a lease or by a user's `__del__` that closes a reranker."""
    engine, other = SlowEngine(), SlowEngine()

    class Search:
        def __init__(self, engine: SlowEngine) -> None:
            self.reranker = Reranker("fake", engine=engine)
            self.itself = self  # for the cyclic collector

    class ClosingSearch(Search):
        def __del__(self) -> None:
            self.reranker.close()

    assert Search(engine).reranker.score("a", ["a"])
    assert ClosingSearch(other).reranker.score("a", ["a"])
    with shared._lock:
        gc.collect()
        assert other.closed == 1
    wait_until(lambda: engine.closed == 1)
