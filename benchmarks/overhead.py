"""What Winnow costs beside vLLM itself: a model so small that only the way to it counts, and every way there is.

One process has one vLLM engine, which Winnow and bare `AsyncLLM.encode` share, and one `LLM`. All contenders score the
same number of pairs in turn; each round has texts that no other has seen. Counted are pairs per second, and the CPU
time of this process (vLLM's engine runs in another), which is what a busy machine distorts least.

    python benchmarks/overhead.py [--rounds 5] [--pairs 3200] [--out FILE.json]
"""

import argparse
import asyncio
import gc
import json
import math
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from tiny_model import build_tiny_reranker, read_passages
from winnow import Reranker
from winnow.engines.vllm.engine import VllmEngine
from winnow.models import bind_template, open_checkpoint
from winnow.prompts import Limits, PromptBuilder, PromptLayout
from winnow.templates import built_in

CALLERS, QUERIES, MAX_LENGTH = 16, 32, 1024
# Characters of a document: prompts then have about 178 tokens.
CHARACTERS = 300
Calls = list[tuple[str, list[str]]]


class Round(NamedTuple):
    """What one contender did in one round."""

    pairs_per_s: float
    cpu_us_per_pair: float


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


class Bench:
    """The engines and the contenders. Each contender takes calls, and returns the probabilities of each."""

    def __init__(self, model: str):
        from vllm import LLM, PoolingParams
        from vllm.inputs import tokens_input

        checkpoint = open_checkpoint(model)
        engine = VllmEngine(checkpoint, MAX_LENGTH, {})
        self.reranker = Reranker(model, engine=engine).start()
        segments = bind_template(checkpoint, None, None, with_instruction=False)
        self._builder = PromptBuilder(PromptLayout(checkpoint.tokenizer, segments, Limits(max_length=MAX_LENGTH)))
        self._bare: Any = engine._llm
        self._numbers = iter(range(10**12))
        self._params = partial(PoolingParams, task="classify", use_activation=False)
        self._input = tokens_input
        self.llm = LLM(
            model=model,
            runner="pooling",
            dtype="float32",
            enforce_eager=True,
            block_size=32,
            max_model_len=MAX_LENGTH,
            gpu_memory_utilization=0.2,
            hf_overrides={**checkpoint.vllm_overrides},
            disable_log_stats=True,
        )
        self._score = partial(
            self.llm.score, chat_template=str(built_in("qwen3_reranker").source), use_tqdm=False
        )
        self._lock = threading.Lock()

    def ids(self, query: str, documents: list[str]) -> list[list[int]]:
        """Token ids of a call's prompts."""
        return [list(prompt.ids) for one in self._builder.build(query, documents) for prompt in one.prompts]

    # --- Winnow ---

    def winnow(self, calls: Calls) -> list[list[float]]:
        """`Reranker.score`, one caller after another."""
        return [self.reranker.score(*call) for call in calls]

    def winnow_threads(self, calls: Calls) -> list[list[float]]:
        """`Reranker.score`, each caller in a thread of its own."""
        with ThreadPoolExecutor(len(calls)) as threads:
            return list(threads.map(lambda call: self.reranker.score(*call), calls))

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

    async def _encode_all(self, prompts: list[list[list[int]]]) -> list[list[float]]:
        return await asyncio.gather(*(asyncio.gather(*map(self._encode, ids)) for ids in prompts))

    def ready(self, prompts: list[list[list[int]]]) -> list[list[float]]:
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

    def llm_ready(self, prompts: list[list[list[int]]]) -> list[list[float]]:
        """`LLM.encode`, ids ready before the clock starts."""
        flat = [self._input(ids) for call in prompts for ids in call]
        outputs = iter(self.llm.encode(flat, self._params(), pooling_task="classify", use_tqdm=False))
        return [[1 / (1 + math.exp(-next(outputs).outputs.data.item())) for _ in call] for call in prompts]

    def llm_score(self, calls: Calls) -> list[list[float]]:
        """`LLM.score`, one call after another, each with all its documents."""
        return [[output.outputs.score for output in self._score(*call)] for call in calls]

    def locked(self, calls: Calls) -> list[list[float]]:
        """`LLM.score` behind a lock, as frameworks' rerankers call it: batches of 64, sorted, without duplicates."""

        def one(call: tuple[str, list[str]]) -> list[float]:
            query, documents = call
            known: dict[str, float] = {}
            order = sorted(dict.fromkeys(documents), key=len)
            for start in range(0, len(order), 64):
                batch = order[start : start + 64]
                with self._lock:
                    outputs = self._score(query, batch)
                known |= zip(batch, (output.outputs.score for output in outputs), strict=True)
            return [known[document] for document in documents]

        with ThreadPoolExecutor(len(calls)) as threads:
            return list(threads.map(one, calls))

    def close(self) -> None:
        """End both engines."""
        self.reranker.close()
        self.llm.llm_engine.engine_core.shutdown()


# Name, method, number of calls that the pairs are split into, whether it gets ids.
Contender = tuple[str, Callable[[Bench, Any], list[list[float]]], int, bool]
CONTENDERS: list[Contender] = [
    ("Winnow, 1 caller", Bench.winnow, 1, False),
    (f"Winnow, {CALLERS} callers", Bench.winnow_threads, CALLERS, False),
    (f"Winnow, rank_many of {QUERIES} queries", Bench.winnow_many, QUERIES, False),
    ("build, then bare AsyncLLM, 1 caller", Bench.built, 1, False),
    (f"build, then bare AsyncLLM, {CALLERS} callers", Bench.built, CALLERS, False),
    ("bare AsyncLLM, ready ids", Bench.ready, 1, True),
    ("LLM.encode, ready ids", Bench.llm_ready, 1, True),
    ("LLM.score, 1 caller", Bench.llm_score, 1, False),
    (f"LLM.score behind a lock, {CALLERS} callers", Bench.locked, CALLERS, False),
]


def largest_difference(bench: Bench) -> float:
    """How far the contenders' scores of the same pairs are apart."""
    found = []
    for _, run, _, takes_ids in CONTENDERS:
        calls = calls_of("check", 4, 160)
        found.append(run(bench, [bench.ids(*call) for call in calls] if takes_ids else calls))
    flat = [[score for call in scores for score in call] for scores in found]
    return max(abs(a - b) for other in flat[1:] for a, b in zip(flat[0], other, strict=True))


def measured(bench: Bench, contender: Contender, seed: str, pairs: int) -> Round:
    """One round of one contender."""
    _, run, number, takes_ids = contender
    calls = calls_of(seed, number, pairs)
    given: Any = [bench.ids(*call) for call in calls] if takes_ids else calls
    gc.collect()
    begin, cpu = time.perf_counter(), time.process_time()
    run(bench, given)
    cpu, elapsed = time.process_time() - cpu, time.perf_counter() - begin
    done = sum(len(documents) for _, documents in calls)
    return Round(done / elapsed, cpu / done * 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender runs (default: 5)")
    parser.add_argument("--pairs", type=int, default=3200, help="pairs of a round (default: 3200)")
    parser.add_argument("--out", type=Path, help="write the numbers to this file, as JSON")
    parser.add_argument("--only", default="", help="only contenders whose name has this")
    parser.add_argument("--heap", choices=["as it is", "frozen", "not frozen"], default="as it is")
    arguments = parser.parse_args()
    model = str(build_tiny_reranker(Path(tempfile.mkdtemp()) / "qwen3-reranker-nano", layers=1, width=32))
    bench = Bench(model)
    difference = largest_difference(bench)
    tokens = statistics.mean(len(ids) for call in calls_of("check", 4, 160) for ids in bench.ids(*call))
    rows: dict[str, list[Round]] = {contender[0]: [] for contender in CONTENDERS if arguments.only in contender[0]}
    for number in range(-1, arguments.rounds):  # the first round warms up
        for contender in CONTENDERS:
            if contender[0] in rows:
                found = measured(bench, contender, f"{number}{contender[0][:3]}{contender[2]}", arguments.pairs)
                if number >= 0:
                    rows[contender[0]].append(found)
    bench.close()
    print(f"{tokens:.0f} tokens a prompt, {arguments.pairs} pairs a round; largest difference of a score {difference:.1e}")
    for name, rounds in rows.items():
        speeds = [one.pairs_per_s for one in rounds]
        cpu = [one.cpu_us_per_pair for one in rounds]
        print(f"{name:44} {statistics.median(speeds):6.0f} pairs/s ({min(speeds):.0f} to {max(speeds):.0f}), "
              f"{statistics.median(cpu):4.0f} µs CPU ({min(cpu):.0f} to {max(cpu):.0f})")
    if arguments.out:
        arguments.out.write_text(json.dumps({name: [one._asdict() for one in rounds] for name, rounds in rows.items()}, indent=1))


if __name__ == "__main__":
    main()
