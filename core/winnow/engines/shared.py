"""One engine per process: rerankers with the same model and settings share it.

Each engine has an event loop in a thread of its own. Callers from any thread or loop submit work to it. The last one to
release the engine closes it; where the last reranker was dropped without `close`, the engine closes a little later; and
whatever is left at the interpreter's exit is closed then.
"""

import asyncio
import atexit
import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Hashable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from winnow.engines.base import Engine
from winnow.engines.life import PYTHON_ENDS, EngineLife, Started, Work, unless_python_ends
from winnow.errors import EngineError
from winnow.locks import ForkSafeLock

T = TypeVar("T")

logger = logging.getLogger(__name__)

# How long an engine stays when its last reranker was dropped without `close`. A notebook cell that is run again drops
# the old reranker and makes the same one anew: it finds the engine running.
_GRACE_SECONDS = 10.0

# For all engines together at the interpreter's exit.
_EXIT_SECONDS = 8.0

# Between two tries to take the lock where waiting for it is not allowed.
_LOCK_SECONDS = 0.1

# Guards who holds which engine. It is one lock for all engines: the garbage collector may run a user's `__del__`, which
# may close a reranker, at any point within it.
_lock = ForkSafeLock()


class SharedEngine:
    """An engine, its event loop and its thread; see `Lease`. `_lock` guards all but `end`.

    Args:
        factory: Makes the engine. Called in a thread of its own when the first work arrives.
        after: An engine with the same key that is still closing. It must be gone first: a GPU may not hold two.

    Attributes:
        closing: It takes no work any more. Whoever sets this calls `end`.
        closed: Set when it is gone.
    """

    def __init__(self, factory: Callable[[], Engine], after: "SharedEngine | None" = None):
        self.life = EngineLife(self._make, _close_before_others)
        self.closing = False
        self.closed = threading.Event()
        self._factory = factory
        self._after = after
        self._holders: set[weakref.ref[Lease]] = set()
        self._grace: asyncio.TimerHandle | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="winnow-engine", daemon=True)
        self._thread.start()

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def _make(self) -> Engine:
        if self._after is not None:
            self._after.closed.wait()
            self._after = None
        return self._factory()

    # --- who holds it -------------------------------------------------------------------------------------------------

    def hold(self, lease: "Lease") -> None:
        """Keep the engine for as long as `lease` exists, or until it lets go."""
        self._holders = {holder for holder in self._holders if holder() is not None}
        self._holders.add(weakref.ref(lease, self._on_drop))

    def let_go(self, lease: "Lease") -> None:
        """Undo `hold`."""
        self._holders.discard(weakref.ref(lease))

    @property
    def is_held(self) -> bool:
        """Whether a reranker that exists holds it."""
        return any(holder() is not None for holder in self._holders)

    def forget_holders(self) -> None:
        """Nobody holds it, and nobody who is dropped from now on tells."""
        self._holders = set()

    def _on_drop(self, _: object) -> None:
        """Called by the garbage collector: in any thread, at any point of our own code. So it takes no lock."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the engine is gone already
            self._loop.call_soon_threadsafe(self._start_grace)

    def _start_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
        self._grace = self._loop.call_later(_GRACE_SECONDS, self._close_unless_held)

    def _close_unless_held(self) -> None:
        if not _lock.acquire(blocking=False):  # who has it may be waiting for this loop
            self._grace = self._loop.call_later(_LOCK_SECONDS, self._close_unless_held)
            return
        try:
            if self.closing or self.is_held:
                return
            self.closing = True
        finally:
            _lock.release()
        threading.Thread(target=self._end_unseen, name="winnow-close", daemon=True).start()

    def _end_unseen(self) -> None:
        try:
            self.end()
        except Exception as error:  # noqa: BLE001 - nobody is there to be told but the log
            logger.warning("An engine whose rerankers are gone could not be closed: %s", error)

    # --- what it does -------------------------------------------------------------------------------------------------

    def submit(self, work: Work[T], max_restarts: int) -> Future[T] | None:
        """Run `work` on the engine's loop. None if the engine is being closed."""
        if self.closing:
            return None
        return asyncio.run_coroutine_threadsafe(self.life.do(work, max_restarts), self._loop)

    def end(self, timeout: float | None = None) -> None:
        """Wait for work in flight, then close the engine, its loop and its thread. Takes no lock while it waits.

        Args:
            timeout: Seconds to wait for all of it; None to wait as long as it takes.
        """
        last = None if timeout is None else time.monotonic() + timeout
        try:
            asyncio.run_coroutine_threadsafe(self.life.aclose(), self._loop).result(timeout)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(None if last is None else max(0.0, last - time.monotonic()))
            with _lock:
                self.forget_holders()
                for key in [key for key, shared in _registry.items() if shared is self]:
                    del _registry[key]
            self.closed.set()


_registry: dict[Hashable, SharedEngine] = {}
_exiting = False


class Lease:
    """One reranker's hold on a shared engine: taken with the first work, given back with `close`, then taken anew.

    A lease that is garbage holds nothing.

    Args:
        key: What makes two engines the same.
        factory: Makes the engine; see `SharedEngine`. It must not refer to the lease or to who has it: the engine
            keeps it.
        max_restarts: How often in a row this reranker's calls start an engine that died. All who share the engine share
            the count; each has its own limit.
    """

    def __init__(self, key: Hashable, factory: Callable[[], Engine], max_restarts: int):
        self._key = key
        self._factory = factory
        self._max_restarts = max_restarts
        self._shared: SharedEngine | None = None

    def submit(self, work: Work[T]) -> Future[T]:
        """Run `work` on the engine's loop. Returns at once.

        Raises:
            EngineError: The interpreter is ending, and its engines are closed.
        """
        while True:
            with _lock:
                shared = self._shared = self._shared or self._acquire()
                future = shared.submit(work, self._max_restarts)
                if future is not None:
                    return future
                self._shared = None  # closed at a fork or at the exit: take another

    def _acquire(self) -> SharedEngine:
        if _exiting:
            raise EngineError(PYTHON_ENDS)
        shared = _registry.get(self._key)
        if shared is None or shared.closing:
            with unless_python_ends():
                shared = _registry[self._key] = SharedEngine(self._factory, after=shared)
        shared.hold(self)
        return shared

    def tell(self, what: Callable[[EngineLife, Started], Coroutine[Any, Any, None]]) -> Future[None] | None:
        """Let the engine `sleep` or `wake`. None if this reranker has none."""
        with _lock:
            shared = self._shared
            return None if shared is None else shared.submit(partial(what, shared.life), self._max_restarts)

    def interrupt(self) -> None:
        """Make a start that is under way fail."""
        if (shared := self._shared) is not None:
            shared.life.interrupt()

    def close(self) -> None:
        """Give the engine back. The last holder waits for work in flight and until the engine is closed."""
        with _lock:
            shared, self._shared = self._shared, None
            if shared is None or shared.closing:
                return
            shared.let_go(self)
            if shared.is_held:
                shared.life.forgive()
                return
            shared.closing = True
        shared.end()


def _close_before_others() -> None:
    """Exit handlers run last in, first out: ours must come before those of libraries that an engine brought.

    They would kill its processes under it.
    """
    atexit.unregister(_close_all)
    atexit.register(_close_all)


def _close_all() -> None:
    global _exiting
    with _lock:
        _exiting = True
        engines = [(shared, shared.closing) for shared in _registry.values()]
        for shared, _ in engines:
            shared.closing = True
    for shared, _ in engines:
        shared.life.give_up()
    last = time.monotonic() + _EXIT_SECONDS
    for shared, is_closing in engines:
        left = max(0.0, last - time.monotonic())
        with contextlib.suppress(Exception):  # nobody is left to tell
            if is_closing:
                shared.closed.wait(left)
            else:
                shared.end(left)


def _forget_all() -> None:
    """In a forked child the threads of the parent do not exist: every engine counts as closed."""
    global _exiting
    _exiting = False
    for shared in _registry.values():
        shared.closing = True
        shared.forget_holders()
        shared.closed.set()
    _registry.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
