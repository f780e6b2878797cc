"""What the benchmarks share: a tiny model on real vLLM, texts that no round has seen, and how numbers are printed."""

import gc
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from tiny_model import build_tiny_reranker, read_passages

# Most tokens of a prompt.
MAX_LENGTH = 1024
# Characters of a document: prompts then have about 240 tokens.
CHARACTERS = 180

Calls = list[tuple[str, list[str]]]
"""Queries, each with its documents."""


class Round(NamedTuple):
    """What one contender did in one round."""

    pairs_per_s: float
    cpu_us_per_pair: float


def nano_model() -> str:
    """The folder of a model so small that only the way to it counts."""
    return str(build_tiny_reranker(Path(tempfile.mkdtemp()) / "qwen3-reranker-nano", layers=1, width=32))


def calls_of(seed: str, calls: int, pairs: int) -> Calls:
    """Queries and as many different passages for each, `pairs` together; `seed` keeps them apart from all others."""
    text = " ".join(passage["text"] for passage in read_passages())
    return [
        (
            f"{seed}: question {call} about {text[97 * call % 5000 :][:40]}",
            [
                f"{seed}.{call}.{number} {text[61 * (call + number) % (len(text) - CHARACTERS) :][:CHARACTERS]}"
                for number in range(pairs // calls)
            ],
        )
        for call in range(calls)
    ]


def largest_difference(found: Sequence[Sequence[Sequence[float]]]) -> float:
    """How far the scores of the same calls are apart, which several contenders gave."""
    first, *others = ([score for call in scores for score in call] for scores in found)
    return max(abs(a - b) for other in others for a, b in zip(first, other, strict=True))


def settle() -> None:
    """Wait until nothing that ran before costs the next contender anything.

    vLLM's workers look for work without a pause for a second after their last step (`SpinCondition` in
    vllm/distributed/device_communicators/shm_broadcast.py). And once a minute a collection of Python's walks the whole
    heap (winnow/engines/vllm/heap.py), which must not fall to the contender whose turn it happens to be.
    """
    gc.collect()
    time.sleep(2)


def machine() -> str:
    """What the numbers were measured on."""
    return f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}"


def spread(values: Sequence[float], digits: int = 0) -> str:
    """A median, with the least and the most."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
