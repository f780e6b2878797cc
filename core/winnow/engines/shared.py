"""One engine per process: rerankers with the same model and settings share it.

Each engine has an event loop in a thread of its own. Callers from any thread or loop submit work to it; the last one to
release the engine closes it, and whatever is left at the interpreter's exit is closed then.
"""

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine, Hashable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from winnow.engines.base import Engine
from winnow.engines.life import EngineLife, Started, Work

T = TypeVar("T")

_EXIT_SECONDS = 30.0

# Engines bring transformers with them, whose lazy modules raise ImportError where two threads import them at once.
_import_lock = threading.Lock()


class SharedEngine:
    """An engine, its event loop and its thread; see `Lease`.

    Args:
        factory: Makes the engine. Called in a thread of its own when the first work arrives.
        after: An engine with the same key that is still closing. It must be gone first: a GPU may not hold two.
    """

    def __init__(self, factory: Callable[[], Engine], after: "SharedEngine | None" = None):
        self.holders = 0
        self.life = EngineLife(self._make, _close_before_others)
        self._factory = factory
        self._after = after
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

    def _make(self) -> Engine:
        if self._after is not None:
            self._after._closed.wait()
            self._after = None
        with _import_lock:
            return self._factory()

    def submit(self, work: Work[T], max_restarts: int) -> Future[T] | None:
        """Run `work` on the engine's loop. None if the engine is being closed."""
        with self._lock:
            if self._closing:
                return None
            return asyncio.run_coroutine_threadsafe(self.life.do(work, max_restarts), self._loop)

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
            asyncio.run_coroutine_threadsafe(self.life.aclose(), self._loop).result(timeout)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout)
            self._closed.set()


_registry: dict[Hashable, SharedEngine] = {}
_registry_lock = threading.Lock()


class Lease:
    """One reranker's hold on a shared engine: taken with the first work, given back with `close`, then taken anew.

    Args:
        key: What makes two engines the same.
        factory: Makes the engine; see `SharedEngine`.
        max_restarts: How often in a row this reranker's calls start an engine that died. All who share the engine share
            the count; each has its own limit.
    """

    def __init__(self, key: Hashable, factory: Callable[[], Engine], max_restarts: int):
        self._key = key
        self._factory = factory
        self._max_restarts = max_restarts
        self._shared: SharedEngine | None = None
        self._lock = threading.Lock()

    def submit(self, work: Work[T]) -> Future[T]:
        """Run `work` on the engine's loop. Returns at once."""
        while True:
            with self._lock:
                shared = self._shared = self._shared or self._acquire()
                future = shared.submit(work, self._max_restarts)
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

    def tell(self, what: Callable[[EngineLife, Started], Coroutine[Any, Any, None]]) -> Future[None] | None:
        """Let the engine `sleep` or `wake`. None if this reranker has none."""
        with self._lock:
            shared = self._shared
            return None if shared is None else shared.submit(partial(what, shared.life), self._max_restarts)

    def interrupt(self) -> None:
        """Make a start that is under way fail."""
        if (shared := self._shared) is not None:
            shared.life.interrupt()

    def close(self) -> None:
        """Give the engine back. The last holder waits for work in flight and until the engine is closed."""
        with self._lock:
            shared, self._shared = self._shared, None
        if shared is None:
            return
        with _registry_lock:
            shared.holders -= 1
            if shared.holders > 0:
                shared.life.forgive()
                return
        try:
            shared.close()
        finally:
            with _registry_lock:
                if _registry.get(self._key) is shared:
                    del _registry[self._key]


def _close_before_others() -> None:
    """Exit handlers run last in, first out: ours must come before those of libraries that an engine brought.

    They would kill its processes under it.
    """
    atexit.unregister(_close_all)
    atexit.register(_close_all)


def _close_all() -> None:
    for shared in list(_registry.values()):
        shared.life.interrupt()
        with contextlib.suppress(Exception):  # nobody is left to tell
            shared.close(_EXIT_SECONDS)


def _forget_all() -> None:
    """In a forked child the threads of the parent do not exist: every engine counts as closed."""
    global _registry_lock, _import_lock
    _registry_lock, _import_lock = threading.Lock(), threading.Lock()
    for shared in _registry.values():
        shared._lock = threading.Lock()
        shared._closing = True
        shared._closed.set()
    _registry.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
