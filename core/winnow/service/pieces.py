"""Long work on an event loop, in pieces, so that other work of the loop does not wait for all of it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

T = TypeVar("T")

# What is done with one item takes some microseconds.
_PIECE = 500


async def pieces(items: Sequence[T]) -> AsyncIterator[Sequence[T]]:
    """Slices of a sequence, in order. Between two of them the event loop goes on with other work."""
    for at in range(0, len(items), _PIECE):
        if at:
            await asyncio.sleep(0)
        yield items[at : at + _PIECE]
