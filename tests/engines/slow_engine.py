"""An engine without a model whose life can be made hard."""

import asyncio
import threading
from collections.abc import Sequence

from gated_engine import GatedEngine, passed
from winnow import EngineDeadError, EngineLoadError, EngineScore, Prompt


class SlowEngine(GatedEngine):
    """A fake that takes its time to start, to score and to close, and notes what happens to it.

    Each of the three waits for an event, which is set at first: a test that clears it holds the engine there.

    Attributes:
        may_start: Starts wait for it.
        may_close: Closing waits for it.
        closing: Whether it is being closed.
        closed: How many times it was closed.
        closed_at_work: Whether it was ever closed while it scored.
        fail_to_start: How many of the next starts fail.
        die: How many of the next lives end with the first score.
        dies: Whether this life ends with the next score.
    """

    def __init__(self, start_seconds: float = 0.2, *, delay: float = 0.0):
        super().__init__(delay=delay)
        self.start_seconds = start_seconds
        self.gate.set()
        self.may_start, self.may_close = threading.Event(), threading.Event()
        self.may_start.set()
        self.may_close.set()
        self.closing = False
        self.closed = 0
        self.closed_at_work = False
        self.fail_to_start = 0
        self.die = 0
        self.dies = False

    async def start(self) -> None:
        await super().start()
        await asyncio.sleep(self.start_seconds)
        await passed(self.may_start)
        if self.fail_to_start:
            self.fail_to_start -= 1
            raise EngineLoadError("no memory")
        self.dies = self.die > 0
        self.die -= self.dies

    async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
        if self.dies:
            raise EngineDeadError(f"life {self.started} ended")
        return await super().score(prompts, priority=priority)

    async def aclose(self) -> None:
        self.closed_at_work |= self.waiting > 0
        self.closing = True
        await passed(self.may_close)
        self.closing = False
        self.closed += 1
