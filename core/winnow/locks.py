"""Locks that a forked child finds open: the thread that held one at the fork does not exist there."""

import os
import threading
import weakref


class ForkSafeLock:
    """A lock for `with`. The thread that has it may take it again: the garbage collector may run code in between."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def acquire(self, blocking: bool = True) -> bool:
        """Take it, and say whether that was possible."""
        return self._lock.acquire(blocking)

    def release(self) -> None:
        """Give it back."""
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


# Models bring transformers with them, whose lazy modules raise ImportError where two threads import them at once. Held
# while small files are read, and never while something waits that another model has no part in.
import_lock = ForkSafeLock()

os.register_at_fork(after_in_child=_open_all)
