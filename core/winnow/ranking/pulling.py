"""Read users' iterators, which may wait and raise anything, in threads of their own beside the event loop."""

import logging
from collections.abc import AsyncGenerator, Generator
from typing import TypeVar

from winnow.threads import OwnThread

T = TypeVar("T")

logger = logging.getLogger(__name__)

_END = object()


class IteratorFailedError(Exception):
    """Wraps the error of a user's iterator, so that no code on its way to the user takes it for its own.

    Without it, a `KeyboardInterrupt` would end the event loop, a `CancelledError` would look like a cancelled call, and
    an `EngineDeadError` like the death of our engine.

    Attributes:
        error: The iterator's error.
    """

    def __init__(self, error: BaseException):
        super().__init__(repr(error))
        self.error = error


async def pulled(items: Generator[T | None]) -> AsyncGenerator[T]:
    """Yields the items of a generator; each is read when it is needed.

    One thread of its own reads all of them, in the context (`contextvars`) of the caller. The generator may wait for
    ever: it delays neither other calls nor the interpreter's exit. When no more items are needed, that thread closes
    the generator at its next `yield`.

    Args:
        items: The generator. It may yield None, where it has no item but may be closed.

    Raises:
        IteratorFailedError: The generator raised.
    """
    wanted = True

    def next_item() -> object:
        try:
            while (item := next(items, _END)) is None and wanted:
                pass
            return item
        except BaseException as error:  # noqa: BLE001 - the user's code may raise anything
            raise IteratorFailedError(error) from None

    def close() -> None:
        try:
            items.close()
        except BaseException as error:  # noqa: BLE001 - no caller waits any more, so it is logged
            logger.warning("An iterator that was not read to its end failed when it was closed: %r", error)

    thread = OwnThread("winnow-iterator")
    try:
        while (item := await thread.do(next_item)) is not _END:
            yield item  # type: ignore[misc]
    finally:
        wanted = False
        thread.end(close)
