"""A gate between every fake engine and its answers, for tests of what goes on meanwhile: no clock is in them."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from winnow import EngineScore, FakeEngine, Prompt

_PATIENCE = 120.0  # seconds, for what takes none where nothing else runs


class EngineGate:
    """Fake engines answer when `opened` is set.

    Args:
        monkeypatch: Of the test.

    Attributes:
        opened: Set it to let all answers out.
        waiting: How many requests wait.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.waiting = 0
        answer = FakeEngine.score

        async def score(engine: FakeEngine, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
            self.waiting += 1
            try:
                while not self.opened.is_set():
                    await asyncio.sleep(0.005)
            finally:
                self.waiting -= 1
            return await answer(engine, prompts, priority=priority)

        monkeypatch.setattr(FakeEngine, "score", score)

    async def has(self, requests: int) -> None:
        """Wait until so many requests wait. The event loop must go on for it."""
        async with asyncio.timeout(_PATIENCE):
            while self.waiting != requests:
                await asyncio.sleep(0.005)
