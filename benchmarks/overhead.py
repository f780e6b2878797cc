"""What Winnow costs beside vLLM itself: a model so small that only the way to it counts, and every way there is.

One process has one vLLM engine, which Winnow and bare `AsyncLLM.encode` share, and one `LLM`. All contenders score the
same number of pairs in turn; each round has texts that no other has seen. Counted are pairs per second, and the CPU
time of this process (vLLM's engine runs in another), which is what a busy machine distorts least.

    python benchmarks/overhead.py [--rounds 5] [--pairs 3200] [--json FILE]
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from overhead_ways import Bench
from shared import Round, calls_of, device, largest_difference, nano_model, settle, spread, tolerance

CALLERS, QUERIES = 16, 32


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
# With more queries vLLM has a little more to compute, because fewer prompts share their beginning.
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
            # This is in each text, in the same number of tokens for all contenders and rounds.
            texts = f"{number + 1:02}.{CONTENDERS.index(contender):02}"
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
