"""Blocking work beside an event loop, in a thread that does not keep the interpreter alive."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


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
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the caller's
            done.set_exception(error)
        else:
            done.set_result(result)

    threading.Thread(target=run, name="winnow-load", daemon=True).start()
    return await asyncio.wrap_future(done)
