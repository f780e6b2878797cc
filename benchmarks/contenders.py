"""Winnow beside every other way to score the same pairs: one run, one machine, one data type, all ways in turn.

What is scored is in `WORKLOADS`. The ways are:

    Winnow                          `Reranker.score`, vLLM in this process, as many threads as the workload has callers
    Winnow, 1 caller                the same from one thread
    Winnow, engine="server"         `Reranker.score`, vLLM's own server does the work
    VLLMRanker on vLLM's server     the same server's `/rerank`, asked by Haystack's component
    LLM.score, 1 caller             vLLM's `LLM`, which one thread at a time may use
    LLM.score behind a lock         the same shared by all threads, as frameworks' rerankers do: sorted batches of 64
    sentence-transformers, by hand  without vLLM, in batches of 16 of like length, one caller

Each takes texts that no other and no earlier round has seen, of the same lengths. On a sample of every workload all
scores have to agree to 1e-4 before a time counts. All compute in float32.

The model "nano" is so small that only the way to it counts. "demo" is a real one, SmolLM2-135M-Instruct with the
adapter of examples/models/winnow-demo-reranker, for which a CPU is slow: there is one small workload for it.

    python benchmarks/contenders.py [--workload NAME ...] [--model nano|demo] [--rounds 5] [--json FILE]
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from shared import (
    Calls,
    Score,
    largest_difference,
    machine,
    nano_model,
    settle,
    spread,
)
from ways import Ways, mean_tokens
from workloads import Texts, Workload

from demo_model import MODELS, language_model
from tiny_model import read_passages
from winnow.models import whole_model

TOLERANCE = 1e-4
# Fewer calls have no 99th percentile.
LEAST_CALLS_FOR_P99 = 50

WINNOW, WINNOW_ONE, WINNOW_SERVER = "Winnow", "Winnow, 1 caller", 'Winnow, engine="server"'
VLLM_RANKER = "VLLMRanker on vLLM's server"
LLM_SCORE, LOCKED = "LLM.score, 1 caller", "LLM.score behind a lock"
CROSS_ENCODER, BY_HAND = "sentence-transformers' CrossEncoder", "transformers by hand"

# By model: the most tokens of a prompt, and what is scored. Large workloads have fewer rounds.
WORKLOADS: dict[str, tuple[int, list[Workload]]] = {
    "nano": (
        33 * 1024,
        [
            Workload("latency", 10, 100, (WINNOW, WINNOW_SERVER, VLLM_RANKER, LLM_SCORE, CROSS_ENCODER, BY_HAND)),
            Workload("callers", 64, 100, (WINNOW, WINNOW_SERVER, VLLM_RANKER, LOCKED), callers=64, rounds=2),
            Workload("offline", 32, 625, (WINNOW, WINNOW_ONE, LOCKED, LLM_SCORE), callers=16, rounds=1),
            Workload("instruction", 5, 100, (WINNOW, VLLM_RANKER, LLM_SCORE, BY_HAND), instruction_tokens=300),
            Workload("duplicates", 16, 50, (WINNOW, VLLM_RANKER, LOCKED), callers=16, duplicates=0.3),
            Workload("long", 1, 2, (WINNOW, VLLM_RANKER, LLM_SCORE), rounds=2, median=32_000, sigma=0),
        ],
    ),
    "demo": (4096, [Workload("latency", 1, 16, (WINNOW, VLLM_RANKER, LLM_SCORE, BY_HAND))]),
}


class Contender(NamedTuple):
    """A way, and whether all callers of a workload may use it at once; else there is one caller."""

    way: Callable[[Ways, str | None], Score]
    for_all: bool


CONTENDERS = {
    WINNOW: Contender(Ways.winnow, True),
    WINNOW_ONE: Contender(Ways.winnow, False),
    WINNOW_SERVER: Contender(Ways.winnow_server, True),
    VLLM_RANKER: Contender(Ways.vllm_ranker, True),
    LOCKED: Contender(Ways.locked, True),
    LLM_SCORE: Contender(Ways.llm_score, False),
    CROSS_ENCODER: Contender(Ways.cross_encoder, False),
    BY_HAND: Contender(Ways.by_hand, False),
}


class Round(NamedTuple):
    """What one contender did in one round: pairs a second, and how long each call took."""

    pairs_per_s: float
    call_ms: list[float]


def measured(score: Score, calls: Calls, callers: int) -> Round:
    """One round of one contender."""

    def one(call: tuple[str, list[str]]) -> float:
        begin = time.perf_counter()
        score(*call)
        return (time.perf_counter() - begin) * 1000

    settle()
    begin = time.perf_counter()
    with ThreadPoolExecutor(callers) as threads:
        times = list(threads.map(one, calls))
    seconds = time.perf_counter() - begin
    return Round(sum(len(documents) for _, documents in calls) / seconds, times)


def differences(scores: Mapping[str, Score], calls: Calls) -> dict[str, float]:
    """How far each contender's scores of the same pairs are from Winnow's."""
    found = {name: [score(*call) for call in calls] for name, score in scores.items()}
    return {name: largest_difference([found[WINNOW], one]) for name, one in found.items()}


def measure(ways: Ways, workload: Workload, texts: Texts, rounds: int) -> dict[str, Any]:
    """All rounds of a workload, if the contenders' scores agree; else this ends the program."""
    scores = {name: CONTENDERS[name].way(ways, texts.instruction(workload)) for name in workload.contenders}
    apart = differences(scores, texts.calls(workload.sample(), 0, "check"))
    if wrong := {name: f"{value:.1e}" for name, value in apart.items() if not value <= TOLERANCE}:
        sys.exit(f"{workload.name}: scores differ from Winnow's, so that times cannot be compared: {wrong}")
    found: dict[str, list[Round]] = {name: [] for name in scores}
    for number in range(min(rounds, workload.rounds)):
        for at, (name, score) in enumerate(scores.items()):
            calls = texts.calls(workload, number, f"{workload.name} {number}.{at}")
            found[name].append(measured(score, calls, workload.callers if CONTENDERS[name].for_all else 1))
            print(f"{workload.name} {number}: {name:32} {found[name][-1].pairs_per_s:.4g} pairs/s", file=sys.stderr)
    return {
        "workload": workload._asdict(),
        "score_differences": apart,
        "load": os.getloadavg(),
        "rounds": {name: [one._asdict() for one in rounds] for name, rounds in found.items()},
        "contenders": {name: summary(rounds, found[WINNOW]) for name, rounds in found.items()},
    }


def summary(rounds: list[Round], of_winnow: list[Round]) -> dict[str, Any]:
    """The numbers of a contender's row."""
    times = sorted(time for one in rounds for time in one.call_ms)
    return {
        "pairs_per_s": statistics.median(one.pairs_per_s for one in rounds),
        "winnow_beside_it": statistics.median(
            ours.pairs_per_s / one.pairs_per_s for ours, one in zip(of_winnow, rounds, strict=True)
        ),
        "p50_ms": statistics.median(times),
        "p99_ms": statistics.quantiles(times, n=100, method="inclusive")[98]
        if len(times) >= LEAST_CALLS_FOR_P99
        else None,
    }


def table(report: Mapping[str, Any]) -> str:
    """A workload's table."""
    workload = Workload(**report["workload"])
    head = (
        f"\n**{workload.name}**: queries × documents of a round {workload.calls} × {workload.documents}, "
        f"{workload.callers} at once; prompts of {report['tokens_per_prompt']:.0f} tokens, medians of "
        f"{len(report['rounds'][WINNOW])} rounds; scores differ by {max(report['score_differences'].values()):.0e} at "
        f"most; load {report['load'][0]:.1f}\n"
    )
    columns = ["", "pairs/s (least to most)", "Winnow's, compared with it", "a query's p50, ms", "p99, ms"]
    rows = [head, f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, row in report["contenders"].items():
        p99 = "" if row["p99_ms"] is None else f"{row['p99_ms']:.0f}"
        speed = spread([one["pairs_per_s"] for one in report["rounds"][name]], 0 if row["pairs_per_s"] > 100 else 2)
        rows.append(f"| {name} | {speed} | {row['winnow_beside_it']:.2f} | {row['p50_ms']:.0f} | {p99} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", nargs="+", metavar="NAME", help="only these (default: all of the model)")
    parser.add_argument("--model", choices=WORKLOADS, default="nano", help="what is asked (default: nano)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds at most; large workloads have fewer (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to this file")
    arguments = parser.parse_args()
    max_length, workloads = WORKLOADS[arguments.model]
    if unknown := set(arguments.workload or ()) - {one.name for one in workloads}:
        parser.error(f"no workload {', '.join(unknown)}; there are {', '.join(one.name for one in workloads)}")

    from transformers import AutoTokenizer

    if arguments.model == "nano":
        model = nano_model(max_length)
    else:
        model = whole_model(str(MODELS / "winnow-demo-reranker"), base_model=str(language_model()))
    tokenizer = AutoTokenizer.from_pretrained(model)
    words = " ".join(passage["text"] for passage in read_passages()).split()
    texts = Texts(words, len(tokenizer(" ".join(words))["input_ids"]) / len(words))
    report: dict[str, Any] = {"machine": machine(), "model": arguments.model, "dtype": "float32", "workloads": {}}
    print(f"{report['machine']}; model {arguments.model}, float32")
    with Ways(model, max_length) as ways:
        for workload in workloads:
            if arguments.workload and workload.name not in arguments.workload:
                continue
            found = measure(ways, workload, texts, arguments.rounds)
            [call, *_] = texts.calls(workload, 0, "tokens")
            found["tokens_per_prompt"] = mean_tokens(tokenizer, *call, texts.instruction(workload))
            print(table(found), flush=True)
            report["workloads"][workload.name] = found
            if arguments.json:  # after each, so that a run that is stopped keeps what it has
                arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
