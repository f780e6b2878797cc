"""An engine without a model whose life can be made hard."""

import asyncio
from collections.abc import Sequence

from winnow import EngineDeadError, EngineLoadError, EngineScore, FakeEngine, Prompt


class SlowEngine(FakeEngine):
    """A fake that takes its time to start and to close, and notes what happens to it.

    Attributes:
        closed: How many times it was closed.
        fail_to_start: How many of the next starts fail.
        die: How many of the next lives end with the first score.
        dies: Whether this life ends with the next score.
    """

    def __init__(self, start_seconds: float = 0.2, close_seconds: float = 0.0, delay: float = 0.0):
        super().__init__(delay=delay)
        self.start_seconds = start_seconds
        self.close_seconds = close_seconds
        self.closed = 0
        self.fail_to_start = 0
        self.die = 0
        self.dies = False

    async def start(self) -> None:
        await super().start()
        await asyncio.sleep(self.start_seconds)
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
        await asyncio.sleep(self.close_seconds)
        self.closed += 1
