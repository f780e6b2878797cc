"""Scores in a folder, through diskcache: SQLite, safe for many threads and processes."""

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from os import PathLike
from typing import Any

import diskcache

from winnow.locks import ForkSafeLock

# Seconds to wait for another process that writes.
_PATIENCE = 10.0


class FloatDisk(diskcache.Disk):  # type: ignore[misc]
    """Keys of bytes, values of floats, nothing else: diskcache would unpickle what others put into the folder."""

    def put(self, key: Any) -> Any:
        """A key for the database.

        Raises:
            TypeError: It is no bytes.
        """
        if type(key) is not bytes:
            raise TypeError(f"keys are bytes, not {type(key).__name__}")
        return super().put(key)

    def get(self, key: Any, raw: bool) -> Any:
        """A key of the database.

        Raises:
            ValueError: It is a pickle.
        """
        if not raw:
            raise ValueError("it holds a key that Winnow did not write")
        return super().get(key, raw)

    def store(self, value: Any, read: bool, key: Any = diskcache.UNKNOWN) -> Any:
        """A value for the database.

        Raises:
            TypeError: It is no float.
        """
        if type(value) is not float:
            raise TypeError(f"values are floats, not {type(value).__name__}")
        return super().store(value, read, key=key)

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:  # noqa: ARG002
        """A value of the database, read from no other file.

        Raises:
            ValueError: It is no finite float.
        """
        if type(value) is not float or not math.isfinite(value):
            raise ValueError("it holds a value that Winnow did not write")
        return value


class DiskScores:
    """Scores in a folder, up to diskcache's limit of 1 GiB, about nine million; the oldest make room.

    Args:
        folder: Made if it is not there, with the first score.
    """

    def __init__(self, folder: str | PathLike[str]):
        self._folder = os.path.expanduser(folder)  # noqa: PTH111 - a text is what diskcache takes
        self._opening = ForkSafeLock()
        self._cache: Any = None

    def _open(self) -> Any:
        """The cache, to be closed after use: each thread has a connection of its own, and threads come and go."""
        with self._opening:
            if self._cache is None:
                self._cache = diskcache.Cache(self._folder, disk=FloatDisk, timeout=_PATIENCE)
        return closing(self._cache)

    def get(self, keys: Sequence[bytes]) -> list[float | None]:
        """The logits, None where there is none."""
        with self._open() as cache:
            return [cache.get(key) for key in keys]

    def put(self, logits: Mapping[bytes, float]) -> None:
        """Keep logits, all in one transaction."""
        with self._open() as cache, cache.transact():
            for key, logit in logits.items():
                cache.set(key, logit)
