"""The progress bar of a call, or none."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from tqdm.auto import tqdm


class Bar(Protocol):
    """What is told of a call's progress, in pairs."""

    total: float | None

    def update(self, n: float) -> object:
        """So many more are done."""

    def unpause(self) -> None:
        """Begin to measure the speed."""


class _NoBar:
    """Instead of a hidden bar of tqdm's, which starts a thread, and takes a lock that a forked child may find taken."""

    total: float | None = 0

    def update(self, n: float) -> None:
        """Nothing to show."""

    def unpause(self) -> None:
        """Nothing to measure."""


def progress_bar(show: bool) -> AbstractContextManager[Bar]:
    """A bar on stderr, which appears after a second, or one that shows nothing."""
    bar: AbstractContextManager[Bar]
    bar = tqdm(total=0, desc="reranking", unit="pair", delay=1) if show else nullcontext(_NoBar())
    return bar
