"""Blocking work beside an event loop, in threads that do not keep the interpreter alive.

The threads of `asyncio.to_thread` are joined at the interpreter's exit, before any exit handler runs: work that may
take minutes would hold up a Ctrl-C until it is done, and all work of a loop shares a few of them. A daemon thread is
not joined.
"""

import asyncio
import contextvars
import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class ThreadEndedError(BaseException):
    """A thread was ended from outside. Nothing catches it on its way, as it is no `Exception`."""


class OwnThread:
    """A daemon thread for one caller's work, piece by piece, in the context (`contextvars`) of who makes it.

    Whoever makes one calls `end`.

    Args:
        name: The thread's.
    """

    def __init__(self, name: str):
        self._pieces: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(_work_off, self._pieces), name=name, daemon=True).start()

    async def do(self, function: Callable[[], T]) -> T:
        """Do one piece of work. If the caller is cancelled and it has begun, it goes on; what it returns is lost."""
        done: Future[T] = Future()
        self._pieces.put((done, function))
        return await asyncio.wrap_future(done)

    def end(self, last: Callable[[], object] | None = None) -> None:
        """Let the thread end when it is done with the work that it has. Does not wait for that.

        Args:
            last: What it does at the end, though nobody waits for it.
        """
        if last is not None:
            self._pieces.put((Future(), last))
        self._pieces.put(None)


def _work_off(pieces: "SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]") -> None:
    while (piece := pieces.get()) is not None:
        _do(*piece)
        del piece  # nothing is kept while it waits for the next


def _do(done: "Future[T]", function: Callable[[], T]) -> None:
    try:
        if done.set_running_or_notify_cancel():
            done.set_result(function())
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the caller's
        done.set_exception(error)
    finally:
        del done, function  # an error refers to this frame: a cycle, which would keep what the work refers to


async def in_daemon_thread(function: Callable[[], T]) -> T:
    """Like `asyncio.to_thread`, for work that may take minutes.

    Args:
        function: The work. It goes on if the caller is cancelled; what it returns is then lost.
    """

    def registered() -> T:
        me = threading.get_ident()
        try:
            _working.add(me)
            return function()
        finally:
            _working.discard(me)

    thread = OwnThread("winnow-load")
    try:
        return await thread.do(registered)
    finally:
        thread.end()


_working: set[int] = set()  # threads of `in_daemon_thread`, by their identifiers


def end_threads() -> None:
    """Raise `ThreadEndedError` in all threads of `in_daemon_thread`, at the next line of Python that they run.

    Only for the interpreter's end. Imports take most of the time before a model's weights are read; a thread that goes
    on importing while the interpreter is taken down may crash it, and an import that was broken off is of no use later.
    """
    for thread in list(_working):
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(ThreadEndedError))
