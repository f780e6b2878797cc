"""A process for each engine: several are loaded at the same time, and then measured in turn."""

import contextlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import psutil

from gpu.measuring import Card, Round
from gpu.systems import Job, Run, System, matmul_tflops
from gpu.workload import Prompts, Size


class EngineProcess:
    """A process that loads a system's engine. It begins with what needs no model: it imports vLLM.

    Args:
        system: One of `gpu.systems`.
        settings: Arguments of vLLM.
        size: How much it scores.
    """

    def __init__(self, system: System, settings: dict[str, Any], size: Size):
        self._system, self._settings, self._size = system, settings, size
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        self._pool.submit(_prepare, tempfile.mkdtemp())

    def matmul_tflops(self) -> Future[float]:
        """Measure the speed of a large matrix product, before an engine is loaded."""
        return self._pool.submit(matmul_tflops)

    def load(self, model: str, rounds: Sequence[int]) -> Future[tuple[float, list[str]]]:
        """Load the engine, and make the texts of these rounds. Returns the seconds, and what it can `score` with."""
        return self._pool.submit(_load, self._system, model, self._settings, self._size, rounds)

    def make_texts(self, rounds: Sequence[int]) -> None:
        """Make the texts of more rounds."""
        self._pool.submit(_make_texts, self._size, rounds).result()

    def logits(self, name: str) -> list[float]:
        """The logits of the pairs whose scores are compared."""
        return self._pool.submit(_logits, name, self._size).result()

    def warm_up(self, name: str) -> None:
        """Score a quarter of a round's texts: the first ones take longer."""
        self.round(name, WARM_UP, PART)

    def round(self, name: str, number: int, share: int = 1) -> Round:
        """Score a round's texts, or a part of them, which this engine has not seen."""
        return self._pool.submit(_round, name, self._size, number, share).result()

    def latency(self, name: str) -> list[float]:
        """Milliseconds of calls with one query's documents each, one after another."""
        return self._pool.submit(_latency, name, self._size).result()

    def beside_large_call(self, name: str) -> list[float]:
        """Milliseconds of calls with `SMALL` documents, one after another, while one call has all of a round's."""
        return self._pool.submit(_beside_large_call, name, self._size).result()

    def close(self) -> None:
        """Close the engine; its memory is free then."""
        with contextlib.suppress(Exception):  # an engine that did not load
            self._pool.submit(_close).result()
        self._pool.shutdown()


def kill_all() -> None:
    """End all engines at once, and the processes that they have started."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


# Numbers of rounds that are not for speed: the first texts that an engine gets, and those of single calls. Of their
# texts a part is scored; this is its divisor.
WARM_UP, LATENCY, PART = -1, -2, 4
# Documents of a small call.
SMALL = 10

# What the process of an engine holds.
_stack = contextlib.ExitStack()
_runs: dict[str, Run] = {}
_card: Card
_prompts: Prompts


def _prepare(cache: str) -> None:
    global _card
    os.environ["VLLM_CACHE_ROOT"] = cache  # two processes that compile the same would write the same files
    _card = Card()


def _load(
    system: System, model: str, settings: dict[str, Any], size: Size, rounds: Sequence[int]
) -> tuple[float, list[str]]:
    global _prompts
    _prompts = Prompts(model)
    begin = time.monotonic()
    with ThreadPoolExecutor(1) as thread:  # while vLLM's process loads the model, this one has nothing to do
        made = thread.submit(_make_texts, size, rounds)
        _runs.update(_stack.enter_context(system(Job(model, settings, _prompts, size))))
        seconds = time.monotonic() - begin
        made.result()
    return seconds, list(_runs)


def _make_texts(size: Size, rounds: Sequence[int]) -> None:
    _prompts(size.check_work())
    for number in (LATENCY, WARM_UP, *rounds):
        for at in range(2):  # those of a third way, the reference, are not timed
            _prompts(size.work(_seed(number, at), PART if number < 0 else 1))


def _logits(name: str, size: Size) -> list[float]:
    return [logit for query in _runs[name](size.check_work()).logits for logit in query]


def _round(name: str, size: Size, number: int, share: int) -> Round:
    work = size.work(_seed(number, list(_runs).index(name)), share)
    lengths = [len(ids) for query in _prompts(work) for ids in query]
    with _card.watch() as device:
        begin = time.perf_counter()
        outcome = _runs[name](work)
        seconds = time.perf_counter() - begin
    return Round(number=number, lengths=lengths, seconds=seconds, cached=outcome.cached, device=device)


def _latency(name: str, size: Size) -> list[float]:
    times = []
    for call in size.work(_seed(LATENCY, list(_runs).index(name)), PART):
        _prompts([call])
        begin = time.perf_counter()
        _runs[name]([call])
        times.append((time.perf_counter() - begin) * 1000)
    return times


def _beside_large_call(name: str, size: Size) -> list[float]:
    # The texts of the first round and of the warm-up. The prefix cache has long lost them.
    at = list(_runs).index(name)
    (query, _), *_ = large = size.work(_seed(0, at))
    times: list[float] = []
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(_runs[name], [(query, [document for _, documents in large for document in documents])])
        for small, documents in size.work(_seed(WARM_UP, at), PART):
            for start in range(0, len(documents), SMALL):
                begin = time.perf_counter()
                _runs[name]([(small, documents[start : start + SMALL])])
                if running.done():
                    return times
                times.append((time.perf_counter() - begin) * 1000)
    return times


def _seed(number: int, at: int) -> int:
    """The texts of a round; two ways that share an engine have different ones."""
    return 1000 * (at + 1) + number


def _close() -> None:
    _stack.close()
