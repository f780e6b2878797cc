"""Iterators of users, which may wait and raise as they like: read beside the event loop, in a thread of their own."""

import logging
from collections.abc import AsyncGenerator, Generator
from typing import TypeVar

from winnow.engines.threads import OwnThread

T = TypeVar("T")

logger = logging.getLogger(__name__)

_END = object()


class IteratorFailedError(Exception):
    """What a user's iterator raised, of whatever kind, on its way to the user past all that handles errors.

    As it is, a `KeyboardInterrupt` would end the event loop, a `CancelledError` would pass for a cancelled call, and an
    `EngineDeadError` for the death of our engine.

    Attributes:
        error: What it raised.
    """

    def __init__(self, error: BaseException):
        super().__init__(repr(error))
        self.error = error


async def pulled(items: Generator[T | None]) -> AsyncGenerator[T]:
    """The items one by one, each read when it is asked for.

    One thread reads them all: in the context (`contextvars`) of the caller, and without a share in the threads that
    tokenise. It may wait for ever, and holds up neither other calls nor the interpreter's exit. When no more items are
    wanted, the generator is closed there, as soon as it yields.

    Args:
        items: With None in between, where the generator may be closed though it has no item yet.

    Raises:
        IteratorFailedError: The generator raised.
    """
    wanted = True

    def next_item() -> object:
        try:
            while (item := next(items, _END)) is None and wanted:
                pass
            return item
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the user's
            raise IteratorFailedError(error) from None

    def close() -> None:
        try:
            items.close()
        except BaseException as error:  # noqa: BLE001 - nobody is there to be told but the log
            logger.warning("An iterator that was not read to its end failed when it was closed: %r", error)

    thread = OwnThread("winnow-iterator")
    try:
        while (item := await thread.do(next_item)) is not _END:
            yield item  # type: ignore[misc]
    finally:
        wanted = False
        thread.end(close)
