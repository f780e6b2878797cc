"""One engine per process: rerankers with the same model and settings share it.

Each engine has an event loop in a thread of its own. Callers from any thread or loop submit work to it. References are
counted: the last reranker that releases the engine closes it. If the last one is garbage-collected without `close`, the
engine closes a little later. Engines that still run at the interpreter's exit are closed then.
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

# How long an engine stays when its last reranker was garbage-collected without `close`. A notebook cell that is run
# again drops the old reranker and makes an equal one, which then finds the engine running.
_GRACE_SECONDS = 10.0

# Time for closing all engines at the interpreter's exit.
_EXIT_SECONDS = 8.0

# Between two tries to take the lock where waiting for it is not allowed.
_LOCK_SECONDS = 0.1

# Guards the references to engines. All engines share one lock, because at any point within it the garbage collector may
# run a user's `__del__`, which may close another reranker.
_lock = ForkSafeLock()


class SharedEngine:
    """An engine, its event loop and its thread; see `Lease`. `_lock` guards all but `end`.

    Args:
        factory: Makes the engine. Called in a thread of its own when the first work arrives.
        after: An engine with the same key that is still closing. This one waits for it: a GPU may not hold both.

    Attributes:
        closing: True when it takes no more work. The code that sets this calls `end`.
        closed: Set when it is closed.
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

    # --- references ---------------------------------------------------------------------------------------------------

    def hold(self, lease: "Lease") -> None:
        """Add a reference: the engine stays until `let_go`, or until the lease is garbage-collected."""
        self._holders = {holder for holder in self._holders if holder() is not None}
        self._holders.add(weakref.ref(lease, self._on_drop))

    def let_go(self, lease: "Lease") -> None:
        """Remove the reference of `hold`."""
        self._holders.discard(weakref.ref(lease))

    @property
    def is_held(self) -> bool:
        """Whether a reranker still refers to it."""
        return any(holder() is not None for holder in self._holders)

    def forget_holders(self) -> None:
        """Remove all references. Leases that are garbage-collected from now on are not noticed."""
        self._holders = set()

    def _on_drop(self, _: object) -> None:
        """Called by the garbage collector, in any thread and at any point of our code, so it takes no lock."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and so is the engine
            self._loop.call_soon_threadsafe(self._start_grace)

    def _start_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
        self._grace = self._loop.call_later(_GRACE_SECONDS, self._close_unless_held)

    def _close_unless_held(self) -> None:
        if not _lock.acquire(blocking=False):  # the thread that has it may be waiting for this loop
            self._grace = self._loop.call_later(_LOCK_SECONDS, self._close_unless_held)
            return
        try:
            if self.closing or self.is_held:
                return
            self.closing = True
        finally:
            _lock.release()
        threading.Thread(target=self._end_or_log, name="winnow-close", daemon=True).start()

    def _end_or_log(self) -> None:
        try:
            self.end()
        except Exception as error:  # noqa: BLE001 - no caller waits, so it is logged
            logger.warning("An engine whose rerankers are gone could not be closed: %s", error)

    # --- work ---------------------------------------------------------------------------------------------------------

    def submit(self, work: Work[T], max_restarts: int) -> Future[T] | None:
        """Run `work` on the engine's loop. None if the engine is being closed."""
        if self.closing:
            return None
        return asyncio.run_coroutine_threadsafe(self.life.do(work, max_restarts), self._loop)

    def end(self, timeout: float | None = None) -> None:
        """Wait for work in flight, then close the engine, its loop and its thread. It holds no lock while it waits.

        Args:
            timeout: Seconds to wait for all of this; None to wait as long as it takes.
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
    """One reranker's reference to a shared engine. It is taken with the first work, and released with `close`.

    After `close` the next work takes it again. A lease that is garbage-collected releases it, too.

    Args:
        key: Engines with equal keys are shared.
        factory: Makes the engine; see `SharedEngine`. The engine keeps it, so it must not refer to the lease or to the
            reranker.
        max_restarts: How often in a row this reranker's calls restart an engine that died. Rerankers that share an
            engine share the count, but each has its own limit.
    """

    def __init__(self, key: Hashable, factory: Callable[[], Engine], max_restarts: int):
        self._key = key
        self._factory = factory
        self._max_restarts = max_restarts
        self._shared: SharedEngine | None = None

    def submit(self, work: Work[T]) -> Future[T]:
        """Run `work` on the engine's loop. It returns at once.

        Raises:
            EngineError: The interpreter is ending, and its engines are closed.
        """
        while True:
            with _lock:
                shared = self._shared = self._shared or self._acquire()
                future = shared.submit(work, self._max_restarts)
                if future is not None:
                    return future
                self._shared = None  # it was closed at a fork or at the exit: take another one

    def _acquire(self) -> SharedEngine:
        if _exiting:
            raise EngineError(PYTHON_ENDS)
        shared = _registry.get(self._key)
        if shared is None or shared.closing:
            with unless_python_ends():
                shared = _registry[self._key] = SharedEngine(self._factory, after=shared)
        shared.hold(self)
        return shared

    def request(self, what: Callable[[EngineLife, Started], Coroutine[Any, Any, None]]) -> Future[None] | None:
        """Make the engine `sleep` or `wake`. None if this reranker has no engine now."""
        with _lock:
            shared = self._shared
            return None if shared is None else shared.submit(partial(what, shared.life), self._max_restarts)

    def interrupt(self) -> None:
        """Make a running start fail."""
        if (shared := self._shared) is not None:
            shared.life.interrupt()

    def close(self) -> None:
        """Release the engine. The last reranker waits for work in flight and until the engine is closed."""
        with _lock:
            shared, self._shared = self._shared, None
            if shared is None or shared.closing:
                return
            shared.let_go(self)
            if shared.is_held:
                shared.life.reset_restarts()
                return
            shared.closing = True
        shared.end()


def _close_before_others() -> None:
    """Register our exit handler again, so that it runs before those of libraries that an engine has imported.

    Exit handlers run in reverse order, and those libraries' handlers would kill the engine's processes first.
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
        with contextlib.suppress(Exception):  # Python is ending: nothing can be done about it
            if is_closing:
                shared.closed.wait(left)
            else:
                shared.end(left)


def _forget_all() -> None:
    """A forked child does not have its parent's threads, so every engine counts as closed there."""
    global _exiting
    _exiting = False
    for shared in _registry.values():
        shared.closing = True
        shared.forget_holders()
        shared.closed.set()
    _registry.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
