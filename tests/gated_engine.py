"""An engine whose answers wait at a gate, for tests of what goes on meanwhile: no clock is in them."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence

import pytest

from winnow import EngineScore, FakeEngine, Prompt

PATIENCE = 120.0  # seconds, for what takes none where nothing else runs


class GatedEngine(FakeEngine):
    """A fake that answers when `gate` is set.

    Attributes:
        gate: Set it to let all answers out.
        waiting: How many calls of `score` wait at the gate.
    """

    def __init__(self, *, delay: float = 0.0) -> None:
        super().__init__(delay=delay)
        self.gate = threading.Event()
        self.waiting = 0

    async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
        await self.let_through()
        return await super().score(prompts, priority=priority)

    async def let_through(self) -> None:
        """Wait at the gate."""
        self.waiting += 1
        try:
            await passed(self.gate)
        finally:
            self.waiting -= 1


def gated_fake(monkeypatch: pytest.MonkeyPatch) -> GatedEngine:
    """The engine at whose gate every `engine="fake"` waits from now on: integrations take an engine by its name.

    One that runs already waits, too: a reranker that was dropped leaves its engine to others for some seconds.
    """
    gated, answer = GatedEngine(), FakeEngine.score

    async def score(engine: FakeEngine, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
        await gated.let_through()
        return await answer(engine, prompts, priority=priority)

    monkeypatch.setattr(FakeEngine, "score", score)
    return gated


async def passed(gate: threading.Event) -> None:
    """Wait for an event that any thread may set, and leave the loop free."""
    while not gate.is_set():
        await asyncio.sleep(0.005)


def wait_until(condition: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Wait for what another thread brings about.

    Args:
        condition: Whether it has come about.
        patience: Most seconds.

    Raises:
        AssertionError: It does not come about.
    """
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


async def loop_goes_on_until(condition: Callable[[], bool]) -> None:
    """`wait_until` on an event loop, which must go on for it."""
    await asyncio.wait_for(_until(condition), PATIENCE)


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)
