"""The watchdog notices that an engine hangs: prompts wait, it scores nothing, and there is no error."""

import asyncio
import contextlib
from collections.abc import Callable

from winnow.engines.base import WatchedEngine

# The longest time between two looks, and the least number of looks until an engine counts as hanging.
_LOOK_SECONDS = 1.0
_LOOKS = 10


class Watchdog:
    """Watches one running engine while prompts wait. It runs on the engine's event loop.

    It counts looks, not time: the time between two looks always counts as one interval. So time does not count in which
    this process was stopped, the host slept, or the event loop was blocked.

    Args:
        engine: The running engine.
        is_waited_for: Whether prompts wait for it.
        on_hang: Called once, when it hangs.
    """

    def __init__(self, engine: WatchedEngine, is_waited_for: Callable[[], bool], on_hang: Callable[[], None]):
        self._engine = engine
        self._is_waited_for = is_waited_for
        self._on_hang = on_hang
        self._task: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Start to watch, unless it does already. It stops when no prompt waits and the engine gave a sign of life."""
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._watch())

    def end(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        engine, answered, silent = self._engine, self._engine.answered, 0.0
        question: asyncio.Task[None] | None = None
        try:
            while silent < engine.stall_timeout:
                interval = min(_LOOK_SECONDS, engine.stall_timeout / _LOOKS)
                await asyncio.sleep(interval)
                silent += interval
                if engine.answered != answered or (question is not None and question.done()):
                    answered, silent, question = engine.answered, 0.0, None
                    if not self._is_waited_for():
                        return
                elif question is None and not self._is_waited_for():
                    # All waiting calls gave up, as calls with deadlines do. The engine may hang all the same.
                    question = asyncio.ensure_future(self._ask())
        finally:
            if question is not None:
                question.cancel()
        self._on_hang()

    async def _ask(self) -> None:
        with contextlib.suppress(Exception):  # an error is a sign of life, too; the next call will get it
            await self._engine.ping()
