"""Several vLLM servers as one: routing, a queue of requests, and a circuit breaker for each server.

* The prompts of a query go to one server, if possible, because its prefix cache then holds the query's prefix. A hash
  chooses the server (rendezvous hashing), so all processes with the same servers choose the same one. If that server
  has many more prompts than the least loaded one, another is taken: computing a prefix twice costs less than waiting.
* When all servers are busy, queries take turns: a small query does not wait behind all of a large one.
* If a server fails several times in a row, its circuit opens: it gets no requests for a while. Then it is checked in
  the background. If the check succeeds, the circuit closes; otherwise it stays open for twice as long.
"""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import chain

from winnow.engines.server.client import ReplicaError
from winnow.engines.server.replica import Replica
from winnow.errors import EngineError

logger = logging.getLogger(__name__)

_START_SECONDS = 10.0  # time for each server's first check, if another server is up
_FAILURES = 3  # in a row, which open a circuit
_COOLDOWN = 1.0, 30.0  # seconds that a circuit stays open, at first and at most
_BREAK = 0.5  # seconds between checks of a server while none is up
_PATIENCE = 60.0  # a server whose Retry-After is longer counts as down


class ReplicaPool:
    """Assigns servers to requests.

    Args:
        replicas: The servers.
        concurrency: Most requests in flight on each.
        slack: How many more prompts than the least loaded server the preferred one may have in flight.
    """

    def __init__(self, replicas: Sequence[Replica], *, concurrency: int, slack: int):
        self.replicas = replicas
        self._concurrency = concurrency
        self._slack = slack
        self._waiting: OrderedDict[bytes, deque[_Waiter]] = OrderedDict()
        self._alarm: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Check all servers. Those that do not answer in time are checked again later.

        Raises:
            EngineError: No server answers, or a server answers but does not serve the model as the user wants.
        """
        found = await self._first_checks()
        for outcome in found:
            if outcome is not None and not isinstance(outcome, ReplicaError):
                raise outcome
        for replica, fault in zip(self.replicas, found, strict=True):
            replica.up = fault is None
            if fault is not None:
                self._open(replica, str(fault))
        if not any(replica.up for replica in self.replicas):
            raise self._none_up()
        for replica in self.replicas:
            if not replica.up:
                logger.warning("Starting without a server: %s", replica.why_down)

    async def _first_checks(self) -> list[BaseException | None]:
        """The error of each server's first check, or None. A server that hangs does not delay the others."""
        checks = [asyncio.create_task(replica.check()) for replica in self.replicas]
        try:
            await asyncio.wait(checks, timeout=_START_SECONDS)
            while not any(check.done() and check.exception() is None for check in checks):
                late = [check for check in checks if not check.done()]
                if not late:
                    break
                await asyncio.wait(late, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for check in checks:
                check.cancel()
            found = await asyncio.gather(*checks, return_exceptions=True)
        too_late = [ReplicaError(f"{replica.url} was too slow at the start.") for replica in self.replicas]
        return [
            late if isinstance(outcome, asyncio.CancelledError) else outcome
            for late, outcome in zip(too_late, found, strict=True)
        ]

    async def aclose(self) -> None:
        """Cancel all checks."""
        if self._alarm is not None:
            self._alarm.cancel()
        checks = [replica.checking for replica in self.replicas if replica.checking is not None]
        for check in checks:
            check.cancel()
        await asyncio.gather(*checks, return_exceptions=True)

    @asynccontextmanager
    async def lend(self, key: bytes, prompts: int, avoid: Replica | None = None) -> AsyncIterator[Replica]:
        """A server for one request. It waits while all are busy, and records whether the request succeeded.

        Args:
            key: Equal for requests with the same prefix.
            prompts: How many prompts the request has.
            avoid: A server that is not taken if there is another.

        Raises:
            ReplicaError: No server is up.
        """
        replica = await self._take(_Waiter(key, prompts, avoid))
        try:
            yield replica
        except ReplicaError as fault:
            self._note_fault(replica, fault)
            raise
        else:
            replica.failures = 0
            replica.cooldown = 0.0
        finally:
            replica.requests -= 1
            replica.prompts -= prompts
            self._serve_waiting()

    def has_other(self, replica: Replica | None) -> bool:
        """Whether a server besides this one takes requests now."""
        return any(other is not replica for other in self._ready())

    # --- routing and queue --------------------------------------------------------------------------------------------

    async def _take(self, waiter: "_Waiter") -> Replica:
        self._check_those_due()
        if not self._any_up():
            checks = [replica.checking for replica in self.replicas if replica.checking is not None]
            if checks:
                await asyncio.wait(checks, return_when=asyncio.FIRST_COMPLETED)
            if not self._any_up():
                raise self._none_up()
        self._waiting.setdefault(waiter.key, deque()).append(waiter)
        self._serve_waiting()
        try:
            return await waiter.replica
        except asyncio.CancelledError:
            if waiter.replica.done() and not waiter.replica.cancelled() and waiter.replica.exception() is None:
                replica = waiter.replica.result()  # it was assigned at the moment of cancelling
                replica.requests -= 1
                replica.prompts -= waiter.prompts
                self._serve_waiting()
            raise

    def _serve_waiting(self) -> None:
        """Assign free servers to waiting requests: one request of each query in turn."""
        if not self._any_up():
            for waiter in chain.from_iterable(self._waiting.values()):
                if not waiter.replica.done():
                    waiter.replica.set_exception(self._none_up())
            self._waiting.clear()
        while self._waiting:
            key, queue = next(iter(self._waiting.items()))
            waiter = queue[0]
            if not waiter.replica.done():
                replica = self._choose(waiter)
                if replica is None:
                    self._serve_later()
                    return
                replica.requests += 1
                replica.prompts += waiter.prompts
                waiter.replica.set_result(replica)
            queue.popleft()
            self._waiting.move_to_end(key)
            if not queue:
                del self._waiting[key]

    def _serve_later(self) -> None:
        """Serve waiting requests when a server's pause is over, as well as at the end of each request."""
        now = time.monotonic()
        pauses = [replica.retry_at - now for replica in self.replicas if replica.up and replica.retry_at > now]
        if pauses and self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_later(min(pauses) + 0.01, self._on_alarm)

    def _on_alarm(self) -> None:
        self._alarm = None
        self._serve_waiting()

    def _choose(self, waiter: "_Waiter") -> Replica | None:
        ready = self._ready()
        ready = [replica for replica in ready if replica is not waiter.avoid] or ready
        free = [replica for replica in ready if replica.requests < self._concurrency]
        if not free:
            return None
        least = min(free, key=lambda replica: replica.prompts)
        preferred = max(ready, key=lambda replica: hashlib.blake2b(waiter.key + replica.url.encode()).digest())
        return preferred if preferred in free and preferred.prompts <= least.prompts + self._slack else least

    def _any_up(self) -> bool:
        return any(replica.up for replica in self.replicas)

    def _ready(self) -> list[Replica]:
        now = time.monotonic()
        return [replica for replica in self.replicas if replica.up and replica.retry_at <= now]

    # --- circuit breaker ----------------------------------------------------------------------------------------------

    def _note_fault(self, replica: Replica, fault: ReplicaError) -> None:
        if fault.retry_after is not None and fault.retry_after <= _PATIENCE:
            replica.retry_at = max(replica.retry_at, time.monotonic() + fault.retry_after)
            return
        replica.failures += 1
        if replica.up and (replica.failures >= _FAILURES or fault.retry_after is not None):
            self._open(replica, str(fault), fault.retry_after)
            logger.warning("A server gets no prompts for %.0f s: %s", replica.cooldown, fault)

    def _open(self, replica: Replica, why: str, seconds: float | None = None) -> None:
        first, most = _COOLDOWN
        replica.up = False
        replica.why_down = why
        replica.cooldown = seconds or min(most, 2 * replica.cooldown or first)
        replica.asked_at = time.monotonic()
        replica.retry_at = replica.asked_at + replica.cooldown

    def _check_those_due(self) -> None:
        """Check servers whose circuit was open long enough; if no server is up, check all, with short pauses."""
        now = time.monotonic()
        for replica in self.replicas:
            due = replica.retry_at if self._any_up() else min(replica.retry_at, replica.asked_at + _BREAK)
            if not replica.up and replica.checking is None and due <= now:
                replica.checking = asyncio.create_task(self._check(replica))

    async def _check(self, replica: Replica) -> None:
        try:
            await replica.check()
        except EngineError as error:
            self._open(replica, str(error))
            logger.info("A server still gets no prompts: %s", error)
        else:
            replica.up = True
            replica.failures = 0
            replica.retry_at = replica.asked_at
            logger.info("%s is back.", replica.url)
        finally:
            replica.checking = None
        self._serve_waiting()

    def _none_up(self) -> ReplicaError:
        reasons = "; ".join(replica.why_down for replica in self.replicas)
        return ReplicaError(f"No server is up. {reasons}")


class _Waiter:
    """A request that waits for a server."""

    def __init__(self, key: bytes, prompts: int, avoid: Replica | None):
        self.key = key
        self.prompts = prompts
        self.avoid = avoid
        self.replica: asyncio.Future[Replica] = asyncio.get_running_loop().create_future()
