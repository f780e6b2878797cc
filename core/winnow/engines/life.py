"""The life of one engine on its event loop: start, sleep, wake, restart after a death, close.

Nothing here blocks the loop, so that a deadline can end a call while the engine loads.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar, cast

from winnow.engines.base import Engine, SleepingEngine
from winnow.engines.request_queue import Requests
from winnow.errors import ConfigurationError, EngineDeadError, EngineError, EngineLoadError, as_engine_error
from winnow.threads import end_threads, in_daemon_thread

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Waits until the engine runs, and returns its queue. Work that has nothing to score does not call it, and so does not
# start the engine.
Started = Callable[[], Awaitable[Requests]]
Work = Callable[[Started], Coroutine[Any, Any, T]]

PYTHON_ENDS = "Python is ending: nothing can be scored any more."
# Python's errors when it starts no more threads: of the executors, of `threading` (from 3.12 on), and of an import of
# the executors at that time. A thread that is not a daemon may run for long after the main thread.
_PYTHON_ENDS = (
    "cannot schedule new futures",
    "can't create new thread at interpreter shutdown",
    "can't register atexit after shutdown",
)

# Between two tries to end a load that no call waits for: vLLM may not have started all of its processes yet.
_INTERRUPT_SECONDS = 0.5


class EngineLife:
    """An engine and the work on it. All methods run on one event loop, except those marked "from any thread".

    Args:
        make: Makes the engine. Called in a thread of its own when work first needs it.
        on_start: Called when an engine has started.
    """

    def __init__(self, make: Callable[[], Engine], on_start: Callable[[], None]):
        self._make = make
        self._on_start = on_start
        self._running: Requests | None = None  # also while it sleeps
        self._loading: Engine | None = None
        self._interrupted = False
        self._given_up = False
        self._start_task: asyncio.Task[Requests] | None = None  # None while an engine in `_running` sleeps
        self._sleep_task: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()  # for starting, and for closing a dead engine
        self._failure: EngineError | None = None  # the last death, or why the start after it failed
        self._restarts = 0  # since the last score
        self._work: set[asyncio.Task[Any]] = set()
        self._on_engine: set[asyncio.Task[Any]] = set()  # the work that uses the engine

    async def do(self, work: Work[T], max_restarts: int) -> T:
        """Do some work.

        Args:
            work: The work. It gets a function that returns the engine's queue.
            max_restarts: How often in a row it may start an engine that died.
        """
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._work.add(task)

        async def started() -> Requests:
            while self._sleep_task is not None and task not in self._on_engine:
                await asyncio.wait([self._sleep_task])
            self._on_engine.add(task)
            return await self._started(max_restarts)

        try:
            with unless_python_ends():
                return await work(started)
        except EngineDeadError as error:
            await self._close_dead()
            raise EngineDeadError(f"{error}\n{self._what_next(max_restarts)}") from error
        finally:
            self._on_engine.discard(task)
            await self._close_dead()  # also if a fallback ranked
            self._work.discard(task)

    async def _started(self, max_restarts: int) -> Requests:
        """The running engine's queue. All calls that wait for a start share its outcome; the next call tries again."""
        await self._close_dead()
        if self._start_task is None:
            if self._running is None and self._failure is not None:
                if self._restarts >= max_restarts:
                    raise EngineDeadError(str(self._failure)) from self._failure
                self._restarts += 1
            self._start_task = asyncio.ensure_future(self._start())
            self._start_task.add_done_callback(_read_error)
        return await asyncio.shield(self._start_task)

    async def _start(self) -> Requests:
        self._interrupted = False
        try:
            async with self._one_at_a_time:
                if self._running is not None:
                    await self._wake(self._running)
                    return self._running
                with as_engine_error("The engine could not be made", EngineLoadError):
                    self._loading = await in_daemon_thread(self._make)
                if self._interrupted:
                    raise EngineLoadError("Loading was interrupted.")
                with as_engine_error(f"{_named(self._loading)} did not start", EngineLoadError):
                    await self._loading.start()
                self._running = Requests(self._loading)
                self._on_start()
                return self._running
        except BaseException as error:
            self._start_task = None
            if self._failure is not None and isinstance(error, EngineError):
                self._failure = error
            raise
        finally:
            self._loading = None

    async def _close_dead(self) -> None:
        """Close an engine that died. The first work that notices does it; the next call starts another engine."""
        dead = self._running
        if dead is None or dead.death is None:
            return
        self._running = self._start_task = None
        self._failure = dead.death
        if dead.has_scored:
            self._restarts = 0
        async with self._one_at_a_time:
            try:
                await dead.aclose()
            except EngineError as error:  # the call's own error, or its fallback's ranking, says more
                logger.warning("%s", error)

    def _what_next(self, max_restarts: int) -> str:
        if self._start_task is not None or self._restarts < max_restarts:
            return "The next call starts it again."
        return (
            f"It is not started again (max_restarts={max_restarts}): close() the reranker, and its next call "
            "starts it afresh."
        )

    async def sleep(self, _: Started) -> None:
        """Put the engine to sleep when the calls in flight are done. Calls that come meanwhile wait, and then wake it.

        Nothing happens if it is not loaded, or sleeps already. `sleep` and `wake` are work themselves.

        Raises:
            ConfigurationError: The engine cannot sleep.
        """
        if self._sleep_task is None and self._start_task is not None:
            self._sleep_task = asyncio.ensure_future(self._sleep())
            self._sleep_task.add_done_callback(_read_error)
        if self._sleep_task is not None:
            await asyncio.shield(self._sleep_task)

    async def _sleep(self) -> None:
        try:
            while self._on_engine:
                await asyncio.wait(self._on_engine)
            if (start := self._start_task) is None:
                return  # it died meanwhile
            running = await start
            if not isinstance(running.engine, SleepingEngine):
                raise ConfigurationError(
                    f"The engine {running.engine.name!r} cannot sleep. close() frees it, and the next call starts it."
                )
            self._start_task = None  # even if this fails, the next call wakes the engine
            try:
                with as_engine_error(f"{_named(running.engine)} could not sleep"):
                    await running.engine.sleep()
            except ConfigurationError:  # it cannot sleep, and is unchanged
                self._start_task = start
                raise
            except EngineDeadError as error:
                running.death = error
                raise
        finally:
            self._sleep_task = None

    async def wake(self, started: Started) -> None:
        """Wake the engine, if it sleeps. Nothing happens if it is not loaded."""
        if self._running is not None:
            await started()

    async def _wake(self, running: Requests) -> None:
        try:
            with as_engine_error(f"{_named(running.engine)} could not wake up"):
                await cast("SleepingEngine", running.engine).wake()
        except EngineDeadError as error:
            running.death = error
            raise

    def interrupt(self) -> None:
        """Make a running start fail, because the user pressed Ctrl-C or no call waits for it. From any thread."""
        self._interrupted = True
        if self._given_up:
            end_threads()
        if (engine := self._loading) is not None:
            _abandon(engine)

    def give_up(self) -> None:
        """Withdraw all work and kill a running start, because Python is ending. From any thread; then call `aclose`."""
        self._given_up = True
        self.interrupt()
        if (running := self._running) is not None:
            _abandon(running.engine)

    def reset_restarts(self) -> None:
        """Let the next call start the engine again, however often it died. From any thread."""
        self._failure, self._restarts = None, 0

    async def aclose(self) -> None:
        """Wait for the work in flight, then close the engine. A load that no work waits for is interrupted."""
        for task in self._work if self._given_up else ():
            task.cancel()
        while self._work:
            await asyncio.wait(self._work)
        while left := [task for task in (self._start_task, self._sleep_task) if task is not None and not task.done()]:
            self.interrupt()
            await asyncio.wait(left, timeout=_INTERRUPT_SECONDS)
        if self._running is not None:
            await self._running.aclose()


@contextlib.contextmanager
def unless_python_ends() -> Iterator[None]:
    """Turns the error of a thread that cannot start because Python is ending into an `EngineError`.

    Raises:
        EngineError: Python is ending.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _PYTHON_ENDS):
            raise
        raise EngineError(PYTHON_ENDS) from error


def _read_error(task: asyncio.Task[Any]) -> None:
    """Read a task's error, so that asyncio does not log it as never retrieved if no call waits any more."""
    if not task.cancelled():
        task.exception()


def _abandon(engine: Engine) -> None:
    try:
        engine.abandon()
    except BaseException as error:  # noqa: BLE001 - other engines are still to be closed
        logger.warning("%s could not be abandoned: %r", _named(engine), error)


def _named(engine: Engine) -> str:
    return f"The engine {engine.name} of {engine.checkpoint.model}"
