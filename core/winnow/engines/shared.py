"""One engine per process: rerankers with the same model and settings share it.

Each engine has an event loop in a thread of its own. Callers from any thread or loop submit work to it; the last one to
release the engine closes it, and whatever is left at the interpreter's exit is closed then.
"""

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar, cast

from winnow.engines.base import Engine
from winnow.engines.requests import Requests
from winnow.errors import EngineDeadError, EngineLoadError

T = TypeVar("T")

# Waits until the engine runs and returns the way to it. Work that finds nothing to score never asks, and the engine
# stays untouched.
Started = Callable[[], Awaitable[Requests]]
Work = Callable[[Started], Coroutine[Any, Any, T]]

_EXIT_SECONDS = 30.0


class SharedEngine:
    """An engine, its event loop and its thread; see `Lease`.

    Args:
        factory: Makes the engine. Called in the engine's thread when the first work arrives.
        after: An engine with the same key that is still closing. It must be gone first: a GPU may not hold two.
    """

    def __init__(self, factory: Callable[[], Engine], after: "SharedEngine | None" = None):
        self.holders = 0
        self._factory = factory
        self._after = after
        self._running: Requests | None = None
        self._loading: Engine | None = None
        self._interrupted = False
        self._start_task: asyncio.Task[Requests] | None = None
        self._work: set[asyncio.Task[Any]] = set()
        self._lock = threading.Lock()
        self._closing = False
        self._closed = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="winnow-engine", daemon=True)
        self._thread.start()

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def submit(self, work: Work[T]) -> Future[T] | None:
        """Run `work` on the engine's loop. None if the engine is being closed."""
        with self._lock:
            if self._closing:
                return None
            return asyncio.run_coroutine_threadsafe(self._do(work), self._loop)

    async def _do(self, work: Work[T]) -> T:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._work.add(task)
        used: Requests | None = None

        async def started() -> Requests:
            nonlocal used
            used = await self._started()
            return used

        try:
            return await work(started)
        except EngineDeadError:
            if (
                used is not None and used is self._running
            ):  # the first to notice buries it; the next call starts another
                self._running = self._start_task = None
                await used.engine.aclose()
            raise
        finally:
            self._work.discard(task)

    async def _started(self) -> Requests:
        """The running engine. All who wait for a start share its outcome; after a failure the next caller retries."""
        if self._start_task is None:
            self._start_task = asyncio.ensure_future(self._start())
        return await asyncio.shield(self._start_task)

    async def _start(self) -> Requests:
        # What blocks here blocks only this engine's loop, and everyone on it waits for the engine anyway.
        self._interrupted = False
        try:
            if self._after is not None:
                self._after._closed.wait()
                self._after = None
            self._loading = self._factory()
            if self._interrupted:
                raise EngineLoadError("Loading was interrupted.")
            await self._loading.start()
            self._running = Requests(self._loading)
            # Exit handlers run last in, first out: ours must come before those of libraries that the engine brought,
            # which would kill its processes under it.
            atexit.unregister(_close_all)
            atexit.register(_close_all)
        except BaseException:
            self._start_task = None
            raise
        finally:
            self._loading = None
        return self._running

    def interrupt(self) -> None:
        """Make a start that is under way fail: the user pressed Ctrl-C, or the interpreter exits."""
        self._interrupted = True
        if (engine := self._loading) is not None:
            engine.abandon()

    def close(self, timeout: float | None = None) -> None:
        """Wait for work in flight, then close the engine, its loop and its thread.

        Args:
            timeout: Seconds to wait for each of these; None to wait as long as it takes.
        """
        with self._lock:
            if self._closing:
                return
            self._closing = True
        try:
            asyncio.run_coroutine_threadsafe(self._aclose(), self._loop).result(timeout)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout)
            self._closed.set()

    async def _aclose(self) -> None:
        while self._work:
            await asyncio.wait(self._work)
        if self._running is not None:
            await self._running.engine.aclose()


_registry: dict[Hashable, SharedEngine] = {}
_registry_lock = threading.Lock()


class Lease:
    """One reranker's hold on a shared engine: taken with the first work, given back with `close`, then taken anew.

    Args:
        key: What makes two engines the same.
        factory: Makes the engine; see `SharedEngine`.
    """

    def __init__(self, key: Hashable, factory: Callable[[], Engine]):
        self._key = key
        self._factory = factory
        self._shared: SharedEngine | None = None
        self._lock = threading.Lock()

    def submit(self, work: Work[T]) -> Future[T]:
        """Run `work` on the engine's loop. Returns at once."""
        while True:
            with self._lock:
                shared = self._shared = self._shared or self._acquire()
                future = shared.submit(work)
                if future is not None:
                    return future
                self._shared = None  # closed at a fork: take another

    def _acquire(self) -> SharedEngine:
        with _registry_lock:
            shared = _registry.get(self._key)
            if shared is None or shared.holders == 0:  # no holders: it is being closed
                shared = _registry[self._key] = SharedEngine(self._factory, after=shared)
            shared.holders += 1
            return shared

    def interrupt(self) -> None:
        """Make a start that is under way fail."""
        if (shared := self._shared) is not None:
            shared.interrupt()

    def close(self) -> None:
        """Give the engine back. The last holder waits for work in flight and until the engine is closed."""
        with self._lock:
            shared, self._shared = self._shared, None
        if shared is None:
            return
        with _registry_lock:
            shared.holders -= 1
            if shared.holders > 0:
                return
        try:
            shared.close()
        finally:
            with _registry_lock:
                if _registry.get(self._key) is shared:
                    del _registry[self._key]


def _close_all() -> None:
    for shared in list(_registry.values()):
        shared.interrupt()
        with contextlib.suppress(Exception):  # nobody is left to tell
            shared.close(_EXIT_SECONDS)


def _forget_all() -> None:
    """In a forked child the threads of the parent do not exist: every engine counts as closed."""
    global _registry_lock
    _registry_lock = threading.Lock()
    for shared in _registry.values():
        shared._lock = threading.Lock()
        shared._closing = True
        shared._closed.set()
    _registry.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
