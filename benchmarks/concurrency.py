"""What a lock around vLLM costs: 16 queries × 32 documents on a tiny model, Winnow against the common pattern.

The common pattern is `LLM.score` behind a lock (`LLM` is not thread-safe), each caller's documents sorted by length in
batches of 64. Winnow runs the same queries one caller after another, and 16 at once. All in one run, in turn.

    python benchmarks/concurrency.py [--json]
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shared import Calls, Score, behind_a_lock, largest_difference

from tiny_model import build_tiny_reranker, read_passages
from winnow import Reranker
from winnow.templates import built_in

QUERIES, DOCUMENTS, ROUNDS = 16, 32, 5


def workload(round_number: int) -> Calls:
    """Queries and passages that no earlier round has seen."""
    passages = [passage["text"] for passage in read_passages()]
    return [
        (
            f"Round {round_number}: question {query} about {passages[query % len(passages)][:40]}",
            [
                f"{round_number}.{query}.{number} {passages[(query + number) % len(passages)]}"
                for number in range(DOCUMENTS)
            ],
        )
        for query in range(QUERIES)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    arguments = parser.parse_args()
    model = str(build_tiny_reranker(Path(tempfile.mkdtemp()) / "qwen3-reranker-tiny"))

    from vllm import LLM

    reranker = Reranker(model, engine="vllm").start()
    overrides = {
        "architectures": ["Qwen3ForSequenceClassification"],
        "classifier_from_token": ["no", "yes"],
        "is_original_qwen3_reranker": True,
    }
    llm = LLM(
        model=model,
        runner="pooling",
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        gpu_memory_utilization=0.3,
        hf_overrides=overrides,
    )
    template = str(built_in("qwen3_reranker").source)
    locked = behind_a_lock(
        lambda *call: [one.outputs.score for one in llm.score(*call, chat_template=template, use_tqdm=False)]
    )

    def one_after_another(work: Calls) -> list[list[float]]:
        return [reranker.score(query, documents) for query, documents in work]

    def all_at_once(score: Score) -> Callable[..., list[list[float]]]:
        def run(work: Calls) -> list[list[float]]:
            with ThreadPoolExecutor(QUERIES) as threads:
                return list(threads.map(lambda pair: score(*pair), work))

        return run

    ways = {
        "LLM.score behind a lock, 16 callers": all_at_once(locked),
        "Winnow, one caller after another": one_after_another,
        "Winnow, 16 callers": all_at_once(reranker.score),
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    scores: dict[str, list[list[float]]] = {}
    for number in range(-1, ROUNDS):  # the first round warms up
        for at, (name, run) in enumerate(ways.items()):
            work = workload(1000 * at + number) if number >= 0 else workload(-1)
            begin = time.perf_counter()
            found = run(work)
            elapsed = time.perf_counter() - begin
            if number < 0:
                scores[name] = found
            else:
                speeds[name].append(QUERIES * DOCUMENTS / elapsed)
    reranker.close()
    llm.llm_engine.engine_core.shutdown()

    base = next(iter(ways))
    difference = largest_difference(list(scores.values()))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    ratio = medians["Winnow, 16 callers"] / medians[base]
    if arguments.json:
        print(json.dumps({"pairs_per_s": medians, "ratio": ratio, "largest_score_difference": difference}))
        return
    for name, speed in medians.items():
        low, high = min(speeds[name]), max(speeds[name])
        print(f"{name:40} {speed:7.0f} pairs/s  ({low:.0f} to {high:.0f}, {ROUNDS} rounds)")
    print(f"ratio, 16 callers to the lock: {ratio:.2f}; largest difference of a score: {difference:.1e}")


if __name__ == "__main__":
    main()
