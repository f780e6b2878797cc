"""Blocking work beside an event loop, in a thread that does not keep the interpreter alive."""

import asyncio
import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class ThreadEndedError(BaseException):
    """A thread was ended from outside. Nothing catches it on its way, as it is no `Exception`."""


_working: set[int] = set()  # by the threads' identifiers


async def in_daemon_thread(function: Callable[[], T]) -> T:
    """Like `asyncio.to_thread`, for work that may take minutes.

    The threads of `asyncio.to_thread` are joined at the interpreter's exit, before any exit handler runs: a load under
    way would hold up a Ctrl-C until it is done. A daemon thread is not joined.

    Args:
        function: The work. It goes on if the caller is cancelled; what it returns is then lost.
    """
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()  # from here on nobody can cancel it

    def run() -> None:
        me = threading.get_ident()
        try:
            _working.add(me)
            try:
                result = function()
            finally:
                _working.discard(me)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the caller's
            done.set_exception(error)
        else:
            done.set_result(result)

    threading.Thread(target=run, name="winnow-load", daemon=True).start()
    return await asyncio.wrap_future(done)


def end_threads() -> None:
    """Raise `ThreadEndedError` in all threads of `in_daemon_thread`, at the next line of Python that they run.

    Only for the interpreter's end. Imports take most of the time before a model's weights are read; a thread that goes
    on importing while the interpreter is taken down may crash it, and an import that was broken off is of no use later.
    """
    for thread in list(_working):
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(ThreadEndedError))
