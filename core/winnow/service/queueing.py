"""The queue before the reranker: how many requests are scored at once, and how many may wait for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from winnow.service import metrics
from winnow.service.errors import RETRY_BUSY, ServiceError


class RequestQueue:
    """Lets a number of requests run, and a number wait. Within the reranker all that run take fair turns.

    Args:
        running: Most requests that are scored at once.
        waiting: Most that wait for that; more are refused.

    Attributes:
        waiting: How many wait.
        inside: How many wait or run.
    """

    def __init__(self, running: int, waiting: int):
        self._turns = asyncio.Semaphore(running)
        self._most_waiting = waiting
        self.waiting = 0
        self.inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and keep it.

        Raises:
            ServiceError: Too many requests wait already.
        """
        if self._turns.locked() and self.waiting >= self._most_waiting:
            raise ServiceError(429, f"{self.waiting} requests wait already: try again later.", retry_after=RETRY_BUSY)
        self._enter()
        try:
            await self._wait()
            metrics.running().inc()
            try:
                yield
            finally:
                metrics.running().dec()
                self._turns.release()
        finally:
            self._leave()

    async def empty(self) -> None:
        """Wait until no request waits or runs."""
        await self._empty.wait()

    async def _wait(self) -> None:
        self.waiting += 1
        metrics.waiting().inc()
        try:
            await self._turns.acquire()
        finally:
            self.waiting -= 1
            metrics.waiting().dec()

    def _enter(self) -> None:
        self.inside += 1
        self._empty.clear()

    def _leave(self) -> None:
        self.inside -= 1
        if not self.inside:
            self._empty.set()
