"""Locks that are free in a forked child, where the thread that held them does not exist."""

import os
import threading
import weakref


class ForkSafeLock:
    """A reentrant lock, because the garbage collector may run code that takes it while the same thread holds it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def acquire(self, blocking: bool = True) -> bool:
        """Take the lock. Returns whether that succeeded."""
        return self._lock.acquire(blocking)

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _open(self) -> None:
        self._lock = threading.RLock()


_locks: "weakref.WeakSet[ForkSafeLock]" = weakref.WeakSet()


def _open_all() -> None:
    for lock in list(_locks):
        lock._open()


# transformers' lazy modules raise ImportError if two threads import them at once. This lock is held while a model's
# small files are read, but not while one model's template is rendered, so that other models do not wait for it.
import_lock = ForkSafeLock()

os.register_at_fork(after_in_child=_open_all)
