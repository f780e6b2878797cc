"""The garbage collector beside vLLM: what stays is not walked again and again, and nothing is kept for ever."""

import gc
import math
import weakref
from collections.abc import Iterator

import pytest

from winnow.engines.vllm import heap
from winnow.engines.vllm.heap import freeze_heap, thaw_heap


class Cycle:
    """An object that only the garbage collector frees."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """A process in which nothing is frozen, as that of a user; tests/conftest.py freezes ours."""
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.fixture
def engine(thawed: None) -> Iterator[str]:
    """An engine that runs."""
    engine = "an engine"
    freeze_heap(engine)
    yield engine
    thaw_heap(engine)


def test_garbage_is_freed_before_the_heap_is_frozen() -> None:
    garbage = weakref.ref(Cycle())
    freeze_heap(engine := "an engine")
    assert garbage() is None
    assert gc.get_freeze_count() > 1000
    thaw_heap(engine)
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("engine")
def test_what_is_made_later_is_freed_as_ever() -> None:
    garbage = weakref.ref(Cycle())
    gc.collect()
    assert garbage() is None


def test_what_was_frozen_and_became_garbage_is_freed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Cycle()
    freeze_heap(engine := "an engine")
    garbage = weakref.ref(mine)
    del mine
    gc.collect()
    assert garbage() is not None  # or nothing is frozen, and this test shows nothing
    monkeypatch.setattr(heap, "_SECONDS_BETWEEN_WALKS", 0.0)
    gc.collect()
    assert garbage() is not None  # the last walk took more than a thousandth of the time since
    monkeypatch.setattr(heap, "_SHARE_OF_TIME", math.inf)
    gc.collect()
    assert garbage() is None
    assert gc.get_freeze_count() > 1000
    thaw_heap(engine)


def test_of_two_engines_the_last_one_thaws_the_heap(engine: str) -> None:
    freeze_heap(other := "another engine")
    left = Cycle()
    gc.collect()
    garbage = weakref.ref(left)
    del left
    thaw_heap(other)
    thaw_heap(other)  # as when an engine that died is closed
    assert gc.get_freeze_count() > 1000
    gc.collect()
    assert garbage() is None, "what an engine leaves is freed by the next full collection"
    thaw_heap(engine)
    assert gc.get_freeze_count() == 0
    assert heap._on_collection not in gc.callbacks


def test_a_program_that_froze_its_heap_itself_keeps_it_frozen() -> None:
    gc.freeze()
    frozen = gc.get_freeze_count()
    freeze_heap(engine := "an engine")
    thaw_heap(engine)
    assert gc.get_freeze_count() > frozen / 2  # 0 if thawed; what nobody uses any more is freed and no longer counted


def test_a_program_without_the_collector_is_left_alone() -> None:
    gc.disable()
    try:
        freeze_heap("an engine")
        assert gc.get_freeze_count() == 0
    finally:
        gc.enable()
