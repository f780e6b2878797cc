"""Blocking work beside an event loop, in threads that do not keep the interpreter alive.

Python joins the threads of `asyncio.to_thread` at its exit, before any exit handler runs, so work that takes minutes
would delay a Ctrl-C until it is done. They are also few, and shared by all work of a loop. A daemon thread is not
joined.
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
    """Raised in a thread to end it. It is not an `Exception`, so that no code catches it on its way."""


class OwnThread:
    """A daemon thread for one caller's work, with the context (`contextvars`) of the code that makes it.

    The code that makes it calls `end`.

    Args:
        name: The thread's name.
    """

    def __init__(self, name: str):
        self._pieces: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(_work_off, self._pieces), name=name, daemon=True).start()

    async def do(self, function: Callable[[], T]) -> T:
        """Do one piece of work. If the caller is cancelled, work that has begun goes on, and its result is dropped."""
        done: Future[T] = Future()
        self._pieces.put((done, function))
        return await asyncio.wrap_future(done)

    def end(self, last: Callable[[], object] | None = None) -> None:
        """Let the thread end when it has done the work it was given. This does not wait for the thread.

        Args:
            last: More work, done at the end; its result is dropped.
        """
        if last is not None:
            self._pieces.put((Future(), last))
        self._pieces.put(None)


def _work_off(pieces: "SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]") -> None:
    while (piece := pieces.get()) is not None:
        _do(*piece)
        del piece  # it is not kept alive while the thread waits for the next one


def _do(done: "Future[T]", function: Callable[[], T]) -> None:
    try:
        if done.set_running_or_notify_cancel():
            done.set_result(function())
    except BaseException as error:  # noqa: BLE001 - the caller gets every error
        done.set_exception(error)
    finally:
        # An error refers to this frame: a reference cycle, which would keep the work's objects alive.
        del done, function


async def in_daemon_thread(function: Callable[[], T]) -> T:
    """Like `asyncio.to_thread`, for work that may take minutes.

    Args:
        function: The work. If the caller is cancelled, the work goes on, and its result is dropped.
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

    Only for the interpreter's exit. Before a model's weights are read, such threads mostly import modules, and a thread
    that imports while the interpreter exits may crash it. An import that was interrupted cannot be used later.
    """
    for thread in list(_working):
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(ThreadEndedError))
