"""What Winnow costs beside vLLM itself: a model so small that only the way to it counts, and every way there is.

One process has one vLLM engine, which Winnow and bare `AsyncLLM.encode` share, and one `LLM`. All contenders score the
same number of pairs in turn; each round has texts that no other has seen. Counted are pairs per second, and the CPU
time of this process (vLLM's engine runs in another), which is what a busy machine distorts least.

    python benchmarks/overhead.py [--rounds 5] [--pairs 3200] [--json FILE]
"""

import argparse
import asyncio
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from shared import (
    MAX_LENGTH,
    Calls,
    Round,
    Score,
    behind_a_lock,
    calls_of,
    device,
    largest_difference,
    nano_model,
    plain_llm,
    plain_settings,
    settle,
    spread,
    tolerance,
    winnow_settings,
)

from winnow import Reranker
from winnow.engines.vllm.engine import VllmEngine
from winnow.models import bind_template, open_checkpoint
from winnow.prompts import Limits, PromptBuilder, PromptLayout
from winnow.templates import built_in

CALLERS, QUERIES = 16, 32
# What vLLM has on one GPU. Its scheduler and its worker share one process: on a CPU it takes two, which wait for each
# other without a pause, and with two cores the way to them would have none. And the tokens of a step: with the few that
# Winnow takes on a CPU, the step itself costs more than the way to it.
AS_ON_GPU = {
    "distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
    "max_num_batched_tokens": 16384,
}
Prompts = list[list[list[int]]]


class Bench:
    """The engines and the contenders. Each contender takes calls, and returns the probabilities of each."""

    def __init__(self, model: str):
        from vllm import PoolingParams
        from vllm.inputs import tokens_input

        checkpoint = open_checkpoint(model)
        engine = VllmEngine(checkpoint, MAX_LENGTH, winnow_settings() | AS_ON_GPU)
        self.reranker = Reranker(model, engine=engine).start()
        segments = bind_template(checkpoint, None, None, with_instruction=False)
        self._builder = PromptBuilder(PromptLayout(checkpoint.tokenizer, segments, Limits(max_length=MAX_LENGTH)))
        self._bare: Any = engine._llm
        self._numbers = iter(range(10**12))
        self._params = partial(PoolingParams, task="classify", use_activation=False)
        self._input = tokens_input
        self.llm = plain_llm(model, MAX_LENGTH, plain_settings() | AS_ON_GPU)
        self._score = partial(self.llm.score, chat_template=str(built_in("qwen3_reranker").source), use_tqdm=False)
        self._locked = behind_a_lock(lambda *call: [output.outputs.score for output in self._score(*call)])

    def ids(self, query: str, documents: list[str]) -> list[list[int]]:
        """Token ids of a call's prompts."""
        return [list(prompt.ids) for one in self._builder.build(query, documents) for prompt in one.prompts]

    # --- Winnow ---

    def winnow(self, calls: Calls) -> list[list[float]]:
        """`Reranker.score`, one caller after another."""
        return [self.reranker.score(*call) for call in calls]

    def winnow_threads(self, calls: Calls) -> list[list[float]]:
        """`Reranker.score`, each caller in a thread of its own."""
        return in_threads(self.reranker.score, calls)

    def winnow_many(self, calls: Calls) -> list[list[float]]:
        """`Reranker.rank_many`."""
        rankings = self.reranker.rank_many(calls)
        return [[hit.score for hit in sorted(ranking, key=lambda hit: hit.index)] for ranking in rankings]

    # --- vLLM ---

    def _on_engines_loop(self, work: Coroutine[Any, Any, list[list[float]]]) -> list[list[float]]:
        return self.reranker._lease.submit(lambda _: work).result()

    async def _encode(self, ids: list[int]) -> float:
        async for output in self._bare.encode(self._input(ids), self._params(), f"bare-{next(self._numbers)}"):
            if output.finished:
                return 1 / (1 + math.exp(-output.outputs.data.item()))
        raise RuntimeError("vLLM returned no score")

    async def _encode_all(self, prompts: Prompts) -> list[list[float]]:
        return await asyncio.gather(*(asyncio.gather(*map(self._encode, ids)) for ids in prompts))

    def ready(self, prompts: Prompts) -> list[list[float]]:
        """Bare `AsyncLLM.encode`, ids ready before the clock starts, all at once."""
        return self._on_engines_loop(self._encode_all(prompts))

    async def _build_and_encode(self, query: str, documents: list[str]) -> list[float]:
        ids = await asyncio.to_thread(self.ids, query, documents)
        return await asyncio.gather(*map(self._encode, ids))

    def built(self, calls: Calls) -> list[list[float]]:
        """The prompts built in threads by Winnow's own builder, then bare `AsyncLLM.encode`; all calls at once.

        A call of many documents is built in slices, as Winnow does: while one is scored, the next is built.
        """

        async def sliced(query: str, documents: list[str]) -> list[float]:
            slices = [documents[at : at + 256] for at in range(0, len(documents), 256)]
            found = await asyncio.gather(*(self._build_and_encode(query, one) for one in slices))
            return [score for one in found for score in one]

        async def everything() -> list[list[float]]:
            return await asyncio.gather(*(sliced(*call) for call in calls))

        return self._on_engines_loop(everything())

    def built_threads(self, calls: Calls) -> list[list[float]]:
        """`built`, each caller in a thread of its own."""
        return in_threads(lambda *call: self.built([call])[0], calls)

    def llm_ready(self, prompts: Prompts) -> list[list[float]]:
        """`LLM.encode`, ids ready before the clock starts."""
        flat = [self._input(ids) for call in prompts for ids in call]
        outputs = iter(self.llm.encode(flat, self._params(), pooling_task="classify", use_tqdm=False))
        return [[1 / (1 + math.exp(-next(outputs).outputs.data.item())) for _ in call] for call in prompts]

    def llm_score(self, calls: Calls) -> list[list[float]]:
        """`LLM.score`, one call after another, each with all its documents."""
        return [[output.outputs.score for output in self._score(*call)] for call in calls]

    def locked(self, calls: Calls) -> list[list[float]]:
        """`LLM.score` behind a lock, as frameworks' rerankers call it: batches of 64, sorted, without duplicates."""
        return in_threads(self._locked, calls)

    def close(self) -> None:
        """End both engines."""
        self.reranker.close()
        self.llm.llm_engine.engine_core.shutdown()


def in_threads(score: Score, calls: Calls) -> list[list[float]]:
    """The scores of calls, each called from a thread of its own."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(lambda call: list(score(*call)), calls))


class Contender(NamedTuple):
    """A way to score pairs.

    Attributes:
        name: Its name in the table.
        run: The method of `Bench`.
        calls: How many calls the pairs are split into.
        takes_ids: Whether it gets token ids, made before the clock starts.
    """

    name: str
    run: Callable[[Bench, Any], list[list[float]]]
    calls: int
    takes_ids: bool = False

    def given(self, bench: Bench, seed: str, pairs: int) -> Any:
        """Calls of this contender, with texts that no other seed gives."""
        calls = calls_of(seed, self.calls, pairs)
        return [bench.ids(*call) for call in calls] if self.takes_ids else calls


ONE, MANY = "Winnow, 1 caller", f"Winnow, {CALLERS} callers"
RANK_MANY = f"Winnow, rank_many of {QUERIES} queries"
BUILT_ONE, BUILT_MANY, BUILT_QUERIES = (
    f"build, then bare AsyncLLM, {calls}" for calls in ("1 caller", f"{CALLERS} callers", f"{QUERIES} queries")
)
# With more queries vLLM has more to compute, because fewer prompts share their beginning.
READY_ONE, READY_MANY, READY_QUERIES = (
    f"bare AsyncLLM, ready ids, {queries}" for queries in ("1 query", f"{CALLERS} queries", f"{QUERIES} queries")
)
SCORE, LOCKED = "LLM.score, 1 caller", f"LLM.score behind a lock, {CALLERS} callers"
CONTENDERS = [
    Contender(ONE, Bench.winnow, 1),
    Contender(BUILT_ONE, Bench.built, 1),
    Contender(MANY, Bench.winnow_threads, CALLERS),
    Contender(BUILT_MANY, Bench.built_threads, CALLERS),
    Contender(RANK_MANY, Bench.winnow_many, QUERIES),
    Contender(BUILT_QUERIES, Bench.built, QUERIES),
    Contender(READY_ONE, Bench.ready, 1, takes_ids=True),
    Contender(READY_MANY, Bench.ready, CALLERS, takes_ids=True),
    Contender(READY_QUERIES, Bench.ready, QUERIES, takes_ids=True),
    Contender("LLM.encode, ready ids, 1 query", Bench.llm_ready, 1, takes_ids=True),
    Contender(SCORE, Bench.llm_score, 1),
    Contender(LOCKED, Bench.locked, CALLERS),
]
# Two contenders each, whose ratio is printed.
RATIOS = [
    (ONE, BUILT_ONE),
    (MANY, BUILT_MANY),
    (RANK_MANY, BUILT_QUERIES),
    (ONE, READY_ONE),
    (MANY, READY_MANY),
    (RANK_MANY, READY_QUERIES),
    (RANK_MANY, ONE),
    (READY_QUERIES, READY_ONE),
    (ONE, SCORE),
    (MANY, LOCKED),
]


def difference_of(bench: Bench) -> float:
    """How far the contenders' scores of the same pairs are apart."""
    same = [contender._replace(calls=QUERIES) for contender in CONTENDERS]
    return largest_difference([one.run(bench, one.given(bench, "check", 320)) for one in same])


def measured(bench: Bench, contender: Contender, seed: str, pairs: int) -> Round:
    """One round of one contender."""
    given = contender.given(bench, seed, pairs)
    settle()
    begin, cpu = time.perf_counter(), time.process_time()
    done = sum(map(len, contender.run(bench, given)))
    cpu, elapsed = time.process_time() - cpu, time.perf_counter() - begin
    return Round(done / elapsed, cpu / done * 1e6)


def ratios(rows: dict[str, list[Round]]) -> dict[str, dict[str, float]]:
    """Medians of the ratios of two contenders in the same round."""
    return {
        f"{one} / {other}": {
            field: statistics.median(
                getattr(a, field) / getattr(b, field) for a, b in zip(rows[one], rows[other], strict=True)
            )
            for field in Round._fields
        }
        for one, other in RATIOS
        if one in rows and other in rows
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender runs (default: 5)")
    parser.add_argument("--pairs", type=int, default=3200, help="pairs of a round (default: 3200)")
    parser.add_argument("--only", default="", help="only the contenders whose name has this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to this file")
    arguments = parser.parse_args()

    bench = Bench(nano_model())
    difference = difference_of(bench)
    if difference > tolerance():
        sys.exit(f"The contenders' scores differ by {difference:.1e}: their times cannot be compared.")
    lengths = [len(ids) for call in calls_of("check", QUERIES, 320) for ids in bench.ids(*call)]
    rows: dict[str, list[Round]] = {one.name: [] for one in CONTENDERS if arguments.only in one.name}
    for number in range(-1, arguments.rounds):  # the first round warms up
        turns = [one for one in CONTENDERS if one.name in rows]
        random.Random(number).shuffle(turns)  # noqa: S311 - so that none always comes after the same other one
        for contender in turns:
            # This is in each text. With a contender's name in it, some would have longer texts than others.
            texts = f"{number + 1}.{CONTENDERS.index(contender)}"
            found = measured(bench, contender, texts, arguments.pairs)
            if number >= 0:
                rows[contender.name].append(found)
            print(f"round {number}: {contender.name:44} {found}", file=sys.stderr, flush=True)
    bench.close()

    report = {
        "machine": device(),
        "load": os.getloadavg(),
        "tokens_per_prompt": statistics.mean(lengths),
        "largest_score_difference": difference,
        "rounds": {name: [one._asdict() for one in rounds] for name, rounds in rows.items()},
        "ratios": ratios(rows),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(
        f"{report['machine']}, load {os.getloadavg()[0]:.1f}; prompts of {statistics.mean(lengths):.0f} tokens, "
        f"{arguments.pairs} pairs a round, medians of {arguments.rounds}; scores differ by {difference:.0e} at most\n"
    )
    print("| | pairs/s (least to most) | CPU of the calling process, µs a pair |\n|---|---|---|")
    for name, rounds in rows.items():
        speed, cpu = ([getattr(one, field) for one in rounds] for field in Round._fields)
        print(f"| {name} | {spread(speed)} | {spread(cpu)} |")
    print("\n| medians of paired ratios | pairs/s | CPU |\n|---|---|---|")
    for name, ratio in report["ratios"].items():
        print(f"| {name} | {ratio['pairs_per_s']:.2f} | {ratio['cpu_us_per_pair']:.2f} |")


if __name__ == "__main__":
    main()
