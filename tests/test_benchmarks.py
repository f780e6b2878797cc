"""The workloads of benchmarks/contenders.py."""

import math
import runpy
import statistics
from pathlib import Path
from typing import Any

import pytest

WORDS = [f"word{number}" for number in range(500)]
WORKLOADS = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "workloads.py"))


@pytest.fixture
def texts() -> Any:
    return WORKLOADS["Texts"](WORDS, tokens_per_word=2.0)


def workload(**fields: Any) -> Any:
    return WORKLOADS["Workload"](**{"name": "one", "calls": 4, "documents": 500, "contenders": ("Winnow",), **fields})


def lengths(calls: Any) -> list[int]:
    """Tokens of the documents, without the tag before each."""
    return [2 * (len(document.split()) - 1) for _, documents in calls for document in documents]


def test_lengths_are_lognormal(texts: Any) -> None:
    logarithms = [math.log(length) for length in lengths(texts.calls(workload(), 0, "a"))]
    assert math.exp(statistics.median(logarithms)) == pytest.approx(150, rel=0.05)
    assert statistics.stdev(logarithms) == pytest.approx(0.4, rel=0.05)


def test_without_spread_all_have_one_length(texts: Any) -> None:
    calls = texts.calls(workload(calls=1, documents=2, median=32_000, sigma=0), 0, "a")
    assert lengths(calls) == [32_000, 32_000]


@pytest.mark.parametrize("share", [0, 0.3])
def test_duplicates_are_a_share_of_each_query(texts: Any, share: float) -> None:
    calls = texts.calls(workload(documents=100, duplicates=share), 0, "a")
    assert [len(set(documents)) for _, documents in calls] == [100 - 100 * share] * 4
    assert {len(documents) for _, documents in calls} == {100}


def test_a_round_is_the_same_in_every_run_and_shares_no_text_with_another(texts: Any) -> None:
    one, again = (texts.calls(workload(), 0, "a") for _ in range(2))
    assert one == again
    other = texts.calls(workload(), 0, "b")  # another contender
    assert lengths(other) == lengths(one)
    later = texts.calls(workload(), 1, "c")  # another round
    assert lengths(later) != lengths(one)
    seen = [{text for query, documents in calls for text in (query, *documents)} for calls in (one, other, later)]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]


def test_an_instruction_has_its_length(texts: Any) -> None:
    assert texts.instruction(workload()) is None
    assert len(texts.instruction(workload(instruction_tokens=300)).split()) == 150
