"""A load test on real vLLM: 64 threads and 64 tasks, mixed sizes, a tenth cancelled, the engine killed once.

Ends with a report, and with exit code 1 if a call was lost, a score differs from the serial run's, or memory grew.

    python benchmarks/soak.py [--seconds 60] [--json]
"""

import argparse
import asyncio
import gc
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from tiny_model import build_tiny_reranker, read_passages
from winnow import EngineDeadError, Reranker

CALLERS, QUERIES, TOLERANCE = 64, 24, 1e-4
SIZES = (1, 1, 3, 10, 32, 100, 300)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long callers start new calls")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_args()

    passages = [passage["text"] for passage in read_passages()]
    chance = random.Random(0)  # noqa: S311
    work = [
        (
            f"question {number} about {passages[number % len(passages)][:30]}",
            [f"{at} {passages[(number + at) % len(passages)]}" for at in range(chance.choice(SIZES))],
        )
        for number in range(QUERIES)
    ]
    model = str(build_tiny_reranker(Path(tempfile.mkdtemp()) / "qwen3-reranker-tiny"))
    reranker = Reranker(model, engine="vllm").start()
    expected = [reranker.score(query, documents) for query, documents in work]

    counts: Counter[str] = Counter()
    counting = threading.Lock()
    largest = 0.0
    end = time.monotonic() + arguments.seconds

    def note(outcome: str, number: int = 0, scores: list[float] | None = None) -> None:
        nonlocal largest
        with counting:
            counts[outcome] += 1
            if scores is not None:
                largest = max(largest, *(abs(a - b) for a, b in zip(scores, expected[number], strict=True)))

    def thread(seed: int) -> None:
        mine = random.Random(seed)  # noqa: S311
        while time.monotonic() < end:
            number = mine.randrange(QUERIES)
            query, documents = work[number]
            note("started")
            try:
                if mine.random() < 0.1:
                    reranker.rank(query, documents, deadline=0.001)
                    note("done")
                else:
                    note("done", number, reranker.score(query, documents))
            except TimeoutError:
                note("cancelled")
            except EngineDeadError:
                note("engine died")

    async def task(seed: int) -> None:
        mine = random.Random(seed)  # noqa: S311
        while time.monotonic() < end:
            number = mine.randrange(QUERIES)
            note("started")
            call = asyncio.ensure_future(reranker.ascore(*work[number]))
            if mine.random() < 0.1:
                await asyncio.sleep(mine.random() * 0.02)
                call.cancel()
            try:
                note("done", number, await call)
            except asyncio.CancelledError:
                note("cancelled")
            except EngineDeadError:
                note("engine died")

    async def tasks() -> None:
        await asyncio.gather(*(task(1000 + seed) for seed in range(CALLERS)))

    def kill() -> None:
        time.sleep(arguments.seconds / 3)
        for process in psutil.Process().children(recursive=True):
            if "EngineCore" in process.name():
                process.kill()

    memory: list[int] = []

    def watch() -> None:
        while time.monotonic() < end:
            time.sleep(min(1.0, arguments.seconds / 20))
            memory.append(psutil.Process(os.getpid()).memory_info().rss)

    others = [threading.Thread(target=what) for what in (kill, watch)]
    for other in others:
        other.start()
    begin = time.monotonic()
    with ThreadPoolExecutor(CALLERS + 1) as threads:
        running = [threads.submit(thread, seed) for seed in range(CALLERS)]
        running.append(threads.submit(asyncio.run, tasks()))
        for call in running:
            call.result()
    for other in others:
        other.join()
    elapsed = time.monotonic() - begin
    again = [reranker.score(query, documents) for query, documents in work]
    reranker.close()
    gc.collect()

    lost = counts["started"] - counts["done"] - counts["cancelled"] - counts["engine died"]
    after = max(
        abs(a - b) for mine, first in zip(again, expected, strict=True) for a, b in zip(mine, first, strict=True)
    )
    half = len(memory) // 2
    growth = max(memory[half:]) / max(memory[:half]) - 1
    report = {
        **counts,
        "lost": lost,
        "seconds": round(elapsed, 1),
        "largest_score_difference": max(largest, after),
        "memory_growth_in_the_second_half": round(growth, 3),
    }
    if arguments.json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(f"{name:36} {value}")
    sys.exit(bool(lost or max(largest, after) > TOLERANCE or growth > 0.05 or not counts["engine died"]))


if __name__ == "__main__":
    main()
