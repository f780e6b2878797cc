"""The progress bar of a call, or none."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Bar(Protocol):
    """A progress bar that counts pairs, or something larger."""

    total: float | None

    def update(self, n: float) -> object:
        """Add what was done."""

    def unpause(self) -> None:
        """Start to measure the speed."""


class _NoBar:
    """Used instead of a hidden tqdm bar, which starts a thread, and takes a lock that a forked child may find taken."""

    total: float | None = 0

    def update(self, n: float) -> None:
        """Nothing to show."""

    def unpause(self) -> None:
        """Nothing to measure."""


def progress_bar(show: bool, unit: str = "pair") -> AbstractContextManager[Bar]:
    """A bar on stderr, which appears after a second; or a bar that shows nothing.

    Args:
        show: Whether to show it.
        unit: What it counts.
    """
    if not show:
        return nullcontext(_NoBar())
    from tqdm.auto import tqdm

    bar: AbstractContextManager[Bar] = tqdm(total=0, desc="reranking", unit=unit, delay=1)
    return bar
