"""Winnow without vLLM, beside sentence-transformers and a loop by hand: a real language model on this machine's CPU.

The model is SmolLM2-135M-Instruct (examples/demo_model.py), the prompt Qwen3-Reranker's, about 300 tokens long. Each
round has a query that no other has seen, with as many documents of natural lengths, and all contenders score it in
turn. Scores have to agree before a time counts. Counted are pairs per second, and the CPU time of this process, which
is what a busy machine distorts least.

    python benchmarks/without_gpu.py [--rounds 5] [--pairs 32] [--dtype float32] [--json FILE]
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

from shared import Score, largest_difference, machine, spread
from ways import ByHand, SentenceTransformers, mean_tokens

from demo_model import language_model
from tiny_model import read_passages
from winnow import Reranker

# Tokens of a document: the rest of a prompt has 95.
MEDIAN, SIGMA = 190, 0.4
WINNOW, CROSS_ENCODER, BY_HAND = "Winnow, engine='transformers'", "sentence-transformers CrossEncoder", "by hand"


class Round(NamedTuple):
    """What one contender did in one round."""

    pairs_per_s: float
    cpu_ms_per_pair: float


def pairs_of(seed: int, pairs: int) -> tuple[str, list[str]]:
    """A query and its documents, of which no other seed has one."""
    words = " ".join(passage["text"] for passage in read_passages()).split()
    lengths = random.Random(seed)  # noqa: S311 - the same in every run
    documents = []
    for number in range(pairs):
        length = int(lengths.lognormvariate(0, SIGMA) * MEDIAN / 1.2)  # a word has 1.2 tokens
        begin = lengths.randrange(len(words) - 1)
        documents.append(f"{number}. " + " ".join((words[begin:] + words * 2)[:length]))
    return f"{seed}: why does the water at the coast come and go?", documents


class Bench:
    """The model in each contender, in one data type."""

    def __init__(self, dtype: str):
        folder = str(language_model())
        self.reranker = Reranker(
            folder,
            engine="transformers",
            recipe="qwen3-reranker",
            raw_scores=True,
            device="cpu",
            engine_kwargs={"dtype": dtype},
        ).start()
        self._cross_encoder = SentenceTransformers(folder, dtype)
        self.by_hand = ByHand(folder, dtype)

    def winnow(self, query: str, documents: list[str]) -> list[float]:
        """`Reranker.score`."""
        return self.reranker.score(query, documents)

    def contenders(self) -> dict[str, Score]:
        """What is compared, by its name in the table."""
        return {WINNOW: self.winnow, CROSS_ENCODER: self._cross_encoder.logits, BY_HAND: self.by_hand.logits}


def measured(score: Score, query: str, documents: list[str]) -> Round:
    """One round of one contender."""
    begin, cpu = time.perf_counter(), time.process_time()
    done = len(score(query, documents))
    cpu, elapsed = time.process_time() - cpu, time.perf_counter() - begin
    return Round(done / elapsed, cpu / done * 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender runs (default: 5)")
    parser.add_argument("--pairs", type=int, default=32, help="pairs of a round (default: 32)")
    parser.add_argument("--dtype", default="float32", help="data type of all contenders (default: float32)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to this file")
    arguments = parser.parse_args()

    bench = Bench(arguments.dtype)
    contenders = bench.contenders()
    # This warms them up, too.
    difference = largest_difference([[score(*pairs_of(0, arguments.pairs // 2))] for score in contenders.values()])
    if difference > (1e-4 if arguments.dtype == "float32" else 0.5):
        sys.exit(f"The contenders' logits differ by {difference:.1e}: their times cannot be compared.")
    rows: dict[str, list[Round]] = {name: [] for name in contenders}
    for number in range(arguments.rounds):
        query, documents = pairs_of(number + 1, arguments.pairs)
        for name, score in contenders.items():
            rows[name].append(measured(score, query, documents))
            print(f"round {number}: {name:40} {rows[name][-1]}", file=sys.stderr, flush=True)
    tokens = mean_tokens(bench.by_hand.tokenizer, *pairs_of(1, arguments.pairs))
    ratios = {
        name: {
            field: statistics.median(
                getattr(a, field) / getattr(b, field) for a, b in zip(rows[WINNOW], one, strict=True)
            )
            for field in Round._fields
        }
        for name, one in rows.items()
        if name != WINNOW
    }
    report = {
        "machine": machine(),
        "load": os.getloadavg(),
        "dtype": arguments.dtype,
        "tokens_per_prompt": tokens,
        "largest_logit_difference": difference,
        "rounds": {name: [one._asdict() for one in rounds] for name, rounds in rows.items()},
        "ratios": ratios,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(
        f"{machine()}, load {os.getloadavg()[0]:.1f}; {arguments.dtype}, prompts of {tokens:.0f} tokens, "
        f"{arguments.pairs} pairs a round, medians of {arguments.rounds}; logits differ by {difference:.0e} at most\n"
    )
    print("| | pairs/s (least to most) | CPU, ms a pair |\n|---|---|---|")
    for name, rounds in rows.items():
        speed, cpu = ([getattr(one, field) for one in rounds] for field in Round._fields)
        print(f"| {name} | {spread(speed, 2)} | {spread(cpu)} |")
    print("\n| Winnow beside it, medians of paired ratios | pairs/s | CPU |\n|---|---|---|")
    for name, ratio in ratios.items():
        print(f"| {name} | {ratio['pairs_per_s']:.2f} | {ratio['cpu_ms_per_pair']:.2f} |")


if __name__ == "__main__":
    main()
