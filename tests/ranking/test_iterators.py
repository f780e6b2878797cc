"""Iterators that users give: they may wait, raise and go on for ever, and other calls do not notice."""

import asyncio
import contextlib
import contextvars
import gc
import itertools
import signal
import sqlite3
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import pytest

from gated_engine import PATIENCE, loop_goes_on_until, wait_until
from winnow import DocumentError, EngineDeadError, FakeEngine, Ranking, Reranker

T = TypeVar("T")


def in_loop(call: Coroutine[Any, Any, T]) -> T:
    """What a call for event loops returns or raises. `asyncio.run` does not pass on every error as it is."""

    async def main() -> tuple[T | None, BaseException | None]:
        try:
            return await call, None
        except BaseException as error:  # noqa: BLE001 - whatever it is
            return None, error

    found, error = asyncio.run(main())
    if error is not None:
        raise error
    return cast("T", found)


Give = Callable[[Reranker, Iterator[Any]], list[Ranking]]

# Each way to give an iterator.
WAYS: dict[str, Give] = {
    "rank": lambda reranker, documents: [reranker.rank("a", documents)],
    "rank, with a deadline": lambda reranker, documents: [reranker.rank("a", documents, deadline=PATIENCE)],
    "arank": lambda reranker, documents: [in_loop(reranker.arank("a", documents))],
    "rank_many": lambda reranker, documents: reranker.rank_many(("a", [text]) for text in documents),
    "rank_many, its documents": lambda reranker, documents: reranker.rank_many(iter([("a", documents)])),
    "arank_many": lambda reranker, documents: in_loop(reranker.arank_many(("a", [text]) for text in documents)),
}
in_each_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(scope="module")
def fake() -> Iterator[Reranker]:
    with Reranker("fake", engine=FakeEngine()).start() as reranker:
        yield reranker


def iterator_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "winnow-iterator"]


@in_each_way
def test_what_an_iterator_yields_is_ranked(fake: Reranker, way: str) -> None:
    rankings = WAYS[way](fake, iter(["a", "b", "a b"]))
    assert sorted(hit.text for ranking in rankings for hit in ranking if hit.text) == ["a", "a b", "b"]


@pytest.mark.parametrize("end", ["deadline", "Ctrl-C"])
@pytest.mark.parametrize(
    "call",
    [
        "reranker.rank_many(waiting(), deadline=deadline)",
        "asyncio.run(reranker.arank_many(waiting(), deadline=deadline))",
        "asyncio.run(reranker.arank('a', waiting(), deadline=deadline))",
    ],
)
def test_one_that_waits_for_ever_does_not_keep_the_process(call: str, end: str) -> None:
    code = f"""
import asyncio, signal, threading
from winnow import Reranker

signal.signal(signal.SIGINT, signal.default_int_handler)
reranker = Reranker("fake", engine="fake").start()
deadline = {"None" if end == "Ctrl-C" else "0.5"}

def waiting():
    print("waits", flush=True)
    threading.Event().wait()
    yield "never"

{call}
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "waits\n"
            if end == "Ctrl-C":
                process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert (
        errors.rstrip()
        .splitlines()[-1]
        .startswith("KeyboardInterrupt" if end == "Ctrl-C" else "TimeoutError: The deadline passed.")
    )


def test_fifty_that_wait_hold_up_no_other_call(fake: Reranker) -> None:
    go_on, waiting = threading.Event(), []

    def patient(number: int) -> Iterator[tuple[str, list[str]]]:
        waiting.append(number)
        go_on.wait(PATIENCE)
        yield "a", [f"a {number}"]

    with ThreadPoolExecutor(50) as threads:
        calls = [threads.submit(fake.rank_many, patient(number)) for number in range(50)]
        try:
            wait_until(lambda: len(waiting) == 50)
            assert len(fake.rank("a", [f"b {number}" for number in range(1000)], deadline=PATIENCE)) == 1000
            assert not any(call.done() for call in calls)
        finally:
            go_on.set()
        assert [call.result()[0][0].text for call in calls] == [f"a {number}" for number in range(50)]


def test_documents_that_wait_leave_the_caller_s_loop_free(fake: Reranker) -> None:
    go_on, began = threading.Event(), threading.Event()

    def patient() -> Iterator[str]:
        began.set()
        go_on.wait(PATIENCE)
        yield "a"

    async def main() -> None:
        call = asyncio.ensure_future(fake.arank("a", patient()))
        await loop_goes_on_until(began.is_set)
        go_on.set()
        assert len(await call) == 1

    asyncio.run(main())


@in_each_way
@pytest.mark.parametrize(
    "error",
    [
        ValueError("mine"),
        GeneratorExit("mine"),
        SystemExit(3),
        asyncio.CancelledError("mine"),
        TimeoutError("mine"),
        EngineDeadError("another engine's"),
        DocumentError("another call's", 5),
        RuntimeError("cannot schedule new futures: mine"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_it_raises_reaches_the_caller_as_it_is(fake: Reranker, way: str, error: BaseException) -> None:
    cause = KeyError("the cause")

    def failing() -> Iterator[str]:
        yield "a"
        raise error from cause

    with pytest.raises(type(error)) as caught:
        WAYS[way](fake, failing())
    assert caught.value is error
    assert error.__cause__ is cause
    assert not hasattr(error, "__notes__")
    assert len(fake.rank("a", ["a"])) == 1  # the engine and its loop go on


@in_each_way
def test_a_stop_iteration_is_no_end(fake: Reranker, way: str) -> None:
    class Broken:
        """Documents whose `__iter__` raises what would end a loop around it."""

        def __iter__(self) -> Iterator[str]:
            raise StopIteration

    def failing() -> Iterator[str]:
        yield "a"
        next(iter(()))

    with pytest.raises(RuntimeError, match="StopIteration"):
        WAYS[way](fake, failing())
    with pytest.raises(RuntimeError, match="StopIteration"):
        fake.rank_many(("a", documents) for documents in (["a"], Broken()))


@in_each_way
def test_it_has_the_caller_s_context_and_keeps_its_own(fake: Reranker, way: str) -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")

    def seeing() -> Iterator[str]:
        token = name.set(name.get() + " b")
        try:
            yield "a"
            yield name.get()
        finally:
            name.reset(token)

    def call() -> list[Ranking]:
        name.set("a")
        return WAYS[way](fake, seeing())

    assert {hit.text for ranking in contextvars.copy_context().run(call) for hit in ranking} == {"a", "a b"}


def test_it_is_closed_when_the_call_ends_early(fake: Reranker) -> None:
    threads, closed = set(), threading.Event()

    def requests() -> Iterator[tuple[str, list[str]]]:
        try:
            for number in itertools.count():
                threads.add(threading.current_thread())
                yield f"{number}", ["\ud800" if number == 3 else "a"]
        finally:
            threads.add(threading.current_thread())
            closed.set()

    generator = requests()
    with pytest.raises(DocumentError, match="surrogate"):
        fake.rank_many(generator)
    assert closed.wait(PATIENCE)
    assert len(threads) == 1


def test_it_is_closed_when_it_yields_where_it_waited_as_the_call_ended(fake: Reranker) -> None:
    go_on, closed = threading.Event(), threading.Event()

    def patient() -> Iterator[str]:
        with contextlib.ExitStack() as stack:
            stack.callback(closed.set)
            for number in itertools.count():
                go_on.wait(PATIENCE)
                yield f"a {number}"

    documents = patient()
    for _ in range(2):
        with pytest.raises(TimeoutError):
            fake.rank("a", documents, deadline=0.1)
        assert go_on.is_set() or not closed.is_set()
        go_on.set()
        assert closed.wait(PATIENCE)
        closed.clear()
        documents = patient()  # without an end: it is not read on when the call is over
    wait_until(lambda: not iterator_threads())


def test_one_that_fails_when_it_is_closed_is_logged(fake: Reranker, caplog: pytest.LogCaptureFixture) -> None:
    def stubborn() -> Iterator[tuple[str, list[str]]]:
        try:
            for number in itertools.count():
                yield f"{number}", ["\ud800"]
        finally:
            raise SystemExit("not now")

    with pytest.raises(DocumentError, match="surrogate"):
        fake.rank_many(stubborn())
    wait_until(lambda: not iterator_threads())
    assert "SystemExit('not now')" in caplog.text


@pytest.mark.slow
def test_one_thread_a_call_reads_it_and_ends_with_the_call(fake: Reranker) -> None:
    readers = []

    def requests() -> Iterator[tuple[str, Iterator[str]]]:
        for _ in range(3):
            readers.append(threading.get_ident())
            yield "a", iter([str(readers.append(threading.get_ident()))])

    for _ in range(1000):
        readers.clear()
        assert len(fake.rank_many(requests())) == 3
        assert len(readers) == 6
        assert len(set(readers)) == 1
        assert threading.get_ident() not in readers
    wait_until(lambda: not iterator_threads())


def test_what_is_in_memory_takes_no_thread(fake: Reranker) -> None:
    readers = set()

    class Watched(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            readers.add(threading.get_ident())
            return super().__iter__()

    documents = Watched(["a", "b"])
    requests = Watched([("a", documents), ("b", {"a", "b"}), ("c", {"a": 1}.keys())])
    fake.rank("a", documents, deadline=PATIENCE)
    fake.score("a", documents, deadline=PATIENCE)
    fake.rank_many(requests, deadline=PATIENCE)
    in_loop(fake.arank("a", documents))
    in_loop(fake.ascore("a", documents))
    in_loop(fake.arank_many(requests))
    assert readers == {threading.get_ident()}


def test_rank_reads_documents_in_the_caller_s_thread(fake: Reranker) -> None:
    """Where a database's cursor, say, belongs to one thread."""
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        rows = database.execute("VALUES ('a'), ('b')")
        assert [hit.text for hit in fake.rank("a", (text for (text,) in rows))] == ["a", "b"]


def test_one_that_waits_keeps_no_reranker() -> None:
    go_on = threading.Event()

    def patient() -> Iterator[tuple[str, list[str]]]:
        go_on.wait(PATIENCE)
        yield "a", ["a"]

    reranker = Reranker("fake", engine=FakeEngine())
    with pytest.raises(TimeoutError):
        reranker.rank_many(patient(), deadline=0.1)
    there = weakref.ref(reranker)
    del reranker
    gc.collect()
    assert there() is None
    go_on.set()


def test_it_may_raise_a_keyboard_interrupt_of_its_own(fake: Reranker) -> None:
    def failing() -> Iterator[str]:
        yield "a"
        raise KeyboardInterrupt("mine")

    for way in WAYS:
        with pytest.raises(KeyboardInterrupt):
            WAYS[way](fake, failing())
    assert len(fake.rank("a", ["a"])) == 1
