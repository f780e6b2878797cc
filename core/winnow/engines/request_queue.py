"""The way to an engine: threads that tokenise for it, and a queue in which callers take turns.

In the queue equal prompts share one request. Each running engine has one `Requests`. It runs on the engine's event
loop, so it needs no locks.
"""

import asyncio
import contextvars
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from winnow.engines.base import Engine, EngineScore, WatchedEngine
from winnow.engines.watchdog import Watchdog
from winnow.errors import EngineDeadError, EngineError, as_engine_error
from winnow.prompts import Prompt

T = TypeVar("T")

# Most prompts of one request to the engine: few, so that callers take turns often.
_PROMPTS = 32

# Threads that tokenise for an engine. Between their calls of the tokenizer they hold Python's lock, for which the event
# loop waits; and they leave half of the processors to the engine's own process (docs/performance.md).
_TOKENIZING_THREADS = min(4, max(1, (os.cpu_count() or 1) // 2))


@dataclass(slots=True)
class Turn:
    """One call's place in the order of requests.

    Attributes:
        reached: The priority of the call's next request, in tokens; see `Requests`.
        offset: Added to the priorities of its requests: how many tokens of other calls may go first.
    """

    reached: int = 0
    offset: int = 0


@dataclass(slots=True, eq=False)
class _Flight:
    """One request to the engine, and how many calls wait for it."""

    task: "asyncio.Task[list[EngineScore]]"
    keys: list[bytes]
    waiting: int = 0


class RequestScore(NamedTuple):
    """The score of one prompt, and whether it came from another call's request."""

    score: EngineScore
    shared: bool


class Requests:
    """Sends prompts to an engine, and lends calls the threads in which they tokenise.

    The order is self-clocked fair queueing (Golestani, 1994). The engine's clock is the priority of the last request
    that it finished, in tokens. A request's priority is the clock, or the end of its call's last request if that is
    later. So a call of ten documents does not wait for a running call of ten thousand, and a stream of small calls does
    not starve a large one.

    Args:
        engine: The running engine.

    Attributes:
        has_scored: Whether the engine has scored anything since its start.
        death: The error with which it died; it gets no more requests then.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self._tokenizing = ThreadPoolExecutor(_TOKENIZING_THREADS, "winnow-tokenize")
        self.has_scored = False
        self.death: EngineDeadError | None = None
        self._clock = 0
        self._flying: dict[bytes, tuple[_Flight, int]] = {}
        self._watchdog: Watchdog | None = None
        if isinstance(engine, WatchedEngine):
            self._watchdog = Watchdog(engine, lambda: bool(self._flying), lambda: self._fail_all(engine))

    async def aclose(self) -> None:
        """Close the engine.

        Raises:
            EngineError: It raised an error of any kind.
        """
        if self._watchdog is not None:
            self._watchdog.end()
        self._tokenizing.shutdown(wait=False)
        with as_engine_error(f"The engine {self.engine.name} of {self.engine.checkpoint.model} could not be closed"):
            await self.engine.aclose()

    async def tokenize(self, work: Callable[[], T]) -> T:
        """Run `work` in one of the few threads that tokenise for all calls, with the caller's context (`contextvars`).

        They do nothing else: what waits for a disk or a network must not keep other calls from tokenising.

        Args:
            work: The work. If the caller is cancelled, work that has begun goes on, and its result is dropped.

        Raises:
            EngineDeadError: The engine has died.
        """
        self._raise_if_dead()
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, lambda: context.run(work))

    async def score(self, prompts: Sequence[Prompt], turn: Turn) -> list[RequestScore]:
        """Score prompts, in order. Cancelling it withdraws the prompts that no other call waits for.

        Args:
            prompts: The prompts; they are sent one after another without waiting.
            turn: The call's turn.

        Raises:
            EngineError: The engine failed with any error, or did not return scores.
        """
        places: list[tuple[_Flight, int, bool]] = []
        for at in range(0, len(prompts), _PROMPTS):
            places += self._send(prompts[at : at + _PROMPTS], turn)
        flights = list(dict.fromkeys(flight for flight, _, _ in places))
        for flight in flights:
            flight.waiting += 1
        try:
            await asyncio.gather(*(asyncio.shield(flight.task) for flight in flights))
        finally:
            for flight in flights:
                flight.waiting -= 1
                if not flight.waiting and not flight.task.done():
                    flight.task.cancel()
                    self._land(flight)
        return [RequestScore(flight.task.result()[at], shared) for flight, at, shared in places]

    def _send(self, prompts: Sequence[Prompt], turn: Turn) -> list[tuple[_Flight, int, bool]]:
        """Where the score of each prompt will be: in a request that was sent already, or in a new one."""
        keys = [prompt.key for prompt in prompts]
        new = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._flying}
        if new:
            begin = max(self._clock, turn.reached)
            turn.reached = begin + sum(len(prompt.ids) for prompt in new.values())
            flight = _Flight(asyncio.ensure_future(self._request(list(new.values()), begin, turn.offset)), list(new))
            self._flying |= {key: (flight, at) for at, key in enumerate(new)}
            flight.task.add_done_callback(lambda _: self._land(flight))
            if self._watchdog is not None:
                self._watchdog.watch()
        return [(*self._flying[key], key not in new) for key in keys]

    def _land(self, flight: _Flight) -> None:
        if flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # read, so that asyncio does not warn if no call waits for it any more
        for key in flight.keys:
            if key in self._flying and self._flying[key][0] is flight:
                del self._flying[key]

    async def _request(self, prompts: Sequence[Prompt], begin: int, offset: int) -> list[EngineScore]:
        self._raise_if_dead()
        try:
            with as_engine_error(self._failing(len(prompts))):
                scores = list(await self.engine.score(prompts, priority=begin + offset))
        except EngineDeadError as error:
            self.death = self.death or error
            raise
        except asyncio.CancelledError:
            self._raise_if_dead()  # see `_fail_all`
            raise
        self.has_scored = True
        self._clock = max(self._clock, begin)
        if len(scores) != len(prompts):
            raise EngineError(
                f"The engine {self.engine.name} returned {len(scores)} scores for {len(prompts)} prompts."
            )
        return scores

    def _raise_if_dead(self) -> None:
        if self.death is not None:
            raise EngineDeadError(str(self.death)) from self.death

    def _fail_all(self, engine: WatchedEngine) -> None:
        """The engine hangs: it counts as dead, and all waiting calls fail."""
        self.death = EngineDeadError(
            f"The engine {engine.name} of {engine.checkpoint.model} hung: it scored no prompt for "
            f"{engine.stall_timeout:g} seconds while prompts waited.\n  {engine.hang()}"
        )
        for flight in {flight for flight, _ in self._flying.values()}:
            flight.task.cancel()

    def _failing(self, prompts: int) -> str:
        return f"The engine {self.engine.name} of {self.engine.checkpoint.model} failed on {prompts} prompts"
