"""How cost grows with pairs, with tokens of a document, with callers and with windows: each alone, the rest fixed.

There is no model, only its tokenizer and its template, so what is measured is Winnow. Every point runs in a process of
its own, which has loaded the tokenizer before; counted are its processor time, which a busy machine distorts least, and
the memory that it takes at its peak beyond what it had. Needs Linux, which tells a process its peak.

Pairs come from a generator, in queries of 100 documents of which `rank_many` returns the 10 best.

The exponent is the slope of log(time) over log(size) at the last three sizes, where fixed costs are small: 1 is linear.
The command fails if one is above the limit, or if the last step of the pairs takes much more memory.

    python benchmarks/growth.py [--quick] [--only AXIS] [--json FILE] [--plot FILE.svg]
"""

import argparse
import gc
import json
import math
import multiprocessing
import os
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from shared import machine
from tokenizers import Tokenizer

from tiny_model import build_tokenizer, read_passages
from winnow import EngineScore, FakeEngine, Prompt, Reranker
from winnow.templates import built_in
from winnow.tokenizer import PromptTokenizer

LIMIT, QUICK_LIMIT = 1.15, 1.5  # of the exponents; at small sizes other work on the machine shows
MOST_MB = 96  # that the last step of the pairs may take: its results take half of it, and its texts would take 180
LONG_ENOUGH = 0.3  # seconds of processor time; a point that takes less is measured again, and its least time counts
WORDS = 40_000  # of the text that documents are cut from; each has a token or more
DOCUMENT = 30  # tokens of a document, where nothing else is said
DOCUMENTS, BEST = 100, 10  # of a query
WINDOW, OVERLAP = 500, 0.1  # tokens of a window, and the share of it that the next one repeats


class Text:
    """A long text of shuffled words, from which documents are cut."""

    def __init__(self, tokenizer: PromptTokenizer):
        words = " ".join(passage["text"] for passage in read_passages()).split()
        self._text = " ".join(random.Random(0).choices(words, k=WORDS))  # noqa: S311
        [encoded] = tokenizer.encode_with_offsets([self._text])
        self._ends = [end for _, end in encoded.offsets]

    def documents(self, count: int, tokens: int = DOCUMENT, *, first: int = 0) -> list[str]:
        """Different documents of about so many tokens, numbered from `first`."""
        starts = (61 * number % (len(self._ends) - tokens) for number in range(first, first + count))
        pieces = (self._text[self._ends[start] : self._ends[start + tokens - 1]] for start in starts)
        return [f"{number}{piece}" for number, piece in enumerate(pieces, first)]


Request = tuple[str, list[str]]


def pairs(text: Text, size: int) -> Iterable[Request]:
    return ((f"question {at}", text.documents(DOCUMENTS, first=at)) for at in range(0, size, DOCUMENTS))


def tokens(text: Text, size: int) -> Iterable[Request]:
    return [("question", text.documents(64, size))]


def callers(text: Text, size: int) -> Iterable[Request]:
    return list(pairs(text, size * DOCUMENTS))


def windows(text: Text, size: int) -> Iterable[Request]:
    step = round(WINDOW * (1 - OVERLAP))
    return [("question", text.documents(8, WINDOW // 2 + step * (size - 1)))]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What grows.

    Attributes:
        label: What it counts, and what is fixed.
        sizes: Where it is measured.
        quick: Where it is measured with `--quick`.
        requests: Makes the queries, each with its documents; what it makes before it returns does not count.
        in_threads: Whether each request comes from a thread of its own, instead of all from one `rank_many`.
        settings: Settings of the reranker.
    """

    label: str
    sizes: Sequence[int]
    quick: Sequence[int]
    requests: Callable[[Text, int], Iterable[Request]]
    in_threads: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def run(self, reranker: Reranker, requests: Iterable[Request]) -> object:
        """Do the work; what it returns is in memory at the end, as it is for a user."""
        if not self.in_threads:
            return reranker.rank_many(requests, top_k=BEST)
        waiting = list(requests)
        with ThreadPoolExecutor(len(waiting)) as threads:
            return list(threads.map(lambda request: reranker.rank(*request, top_k=BEST), waiting))


AXES = {
    "pairs": Axis(
        label="pairs, from a generator",
        sizes=(100, 1000, 10_000, 100_000, 1_000_000),
        quick=(400, 4000),
        requests=pairs,
    ),
    "tokens": Axis(
        label="tokens of a document (64 documents)",
        sizes=(100, 320, 1000, 3200, 10_000, 32_000),
        quick=(400, 4000),
        requests=tokens,
    ),
    "callers": Axis(
        label=f"callers, each with {DOCUMENTS} pairs",
        sizes=(1, 4, 16, 64, 256),
        quick=(2, 16),
        requests=callers,
        in_threads=True,
    ),
    "windows": Axis(
        label=f"windows of {WINDOW} tokens of a document (8 documents)",
        sizes=(1, 2, 5, 10, 20, 50),
        quick=(5, 20),
        requests=windows,
        settings={"on_overflow": "window", "window_overlap": OVERLAP, "max_document_tokens": WINDOW},
    ),
}


class Point(NamedTuple):
    """What one size costs: seconds of processor time, seconds, and megabytes at the peak."""

    size: int
    cpu_s: float
    wall_s: float
    peak_mb: float


class NoModel(FakeEngine):
    """A real tokenizer and template without a model: a score is made of the prompt's ids in no time."""

    def __init__(self, tokenizer: str):
        super().__init__()
        self.checkpoint = replace(
            self.checkpoint,
            tokenizer=PromptTokenizer(Tokenizer.from_str(tokenizer)),
            template=built_in("qwen3_reranker"),
            max_length=max(AXES["tokens"].sizes) + 2000,
        )

    async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:  # noqa: ARG002
        """A number made of the ids."""
        return [EngineScore(sum(prompt.ids) % 1000 / 500 - 1) for prompt in prompts]


def peak_mb() -> float:
    """The most memory that this process has had; `resource.getrusage` would count the one that started it, too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) / 1024


def measured(name: str, size: int, tokenizer: str) -> Point:
    """One point, in a process of its own."""
    axis = AXES[name]
    engine = NoModel(tokenizer)
    text = Text(engine.checkpoint.tokenizer)
    times: list[tuple[float, float]] = []
    with Reranker("no model", engine=engine, **axis.settings) as reranker:
        axis.run(reranker, [("warm", ["up"])])
        while sum(cpu for cpu, _ in times) < LONG_ENOUGH:
            requests = axis.requests(text, size)
            gc.collect()
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is what it has now
            before, begin, cpu = peak_mb(), time.perf_counter(), time.process_time()
            kept = axis.run(reranker, requests)
            times.append((time.process_time() - cpu, time.perf_counter() - begin))
            if len(times) == 1:
                peak = peak_mb() - before
            del kept
    return Point(size, *min(times), peak)


def exponent(points: Sequence[Point]) -> float:
    """The slope of log(processor time) over log(size) at the last three sizes."""
    last = points[-3:]
    return statistics.linear_regression(
        [math.log(point.size) for point in last], [math.log(point.cpu_s) for point in last]
    ).slope


def faults(found: Mapping[str, Sequence[Point]], limit: float) -> list[str]:
    """What grows faster than it may."""
    said = [
        f"{name}: processor time grows with exponent {exponent(points):.2f}, and may with {limit}."
        for name, points in found.items()
        if exponent(points) > limit
    ]
    if "pairs" in found:
        *_, less, more = found["pairs"]
        if more.peak_mb - less.peak_mb > MOST_MB:
            said.append(
                f"{more.size:,} pairs from a generator take {more.peak_mb:.0f} MB, and {less.size:,} take "
                f"{less.peak_mb:.0f} MB: they are kept."
            )
    return said


def plot(found: Mapping[str, Sequence[Point]], file: Path) -> None:
    """Draw time and memory of each axis, beside a line of linear growth."""
    from matplotlib.figure import Figure  # here, because only this needs matplotlib

    from pictures import BLUE, GREY, ORANGE, save

    figure = Figure(layout="constrained", figsize=(9, 0.3 + 2.3 * len(found)))
    panels = figure.subplots(len(found), 2, squeeze=False)
    costs = (("processor time, s", "cpu_s", BLUE, 0.001), ("peak memory, MB", "peak_mb", ORANGE, 0.1))
    for row, (name, points) in zip(panels, found.items(), strict=True):
        for axes, (label, cost, colour, least) in zip(row, costs, strict=True):
            sizes = [point.size for point in points]
            values = [max(getattr(point, cost), least) for point in points]
            axes.plot(
                sizes, [values[-1] * size / sizes[-1] for size in sizes], color=GREY, linewidth=0.8, label="linear"
            )
            axes.plot(sizes, values, color=colour, marker="o", markersize=4, linewidth=1.6)
            axes.set(xscale="log", yscale="log", xlabel=AXES[name].label, ylabel=label)
            axes.set_ylim(min(values) / 2, max(values) * 2)
            axes.minorticks_off()
            axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].legend(frameon=False)
    save(figure, file, machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that nothing is grossly wrong")
    parser.add_argument("--only", choices=AXES, metavar="AXIS", help=f"measure one of {', '.join(AXES)}")
    parser.add_argument("--limit", type=float, help=f"largest exponent (default: {LIMIT}; quick: {QUICK_LIMIT})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them: .svg, .png or .pdf")
    arguments = parser.parse_args()

    tokenizer, load = build_tokenizer().to_str(), os.getloadavg()[0]
    found: dict[str, list[Point]] = {}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        for name in [arguments.only] if arguments.only else AXES:
            found[name] = []
            for size in AXES[name].quick if arguments.quick else AXES[name].sizes:
                found[name].append(processes.submit(measured, name, size, tokenizer).result())
                print(f"{name}: {found[name][-1]}", file=sys.stderr, flush=True)
    if arguments.json:
        whole = {
            "machine": machine(),
            "load": [load, os.getloadavg()[0]],
            "points": {name: [point._asdict() for point in points] for name, points in found.items()},
            "exponents": {name: exponent(points) for name, points in found.items()},
        }
        arguments.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        plot(found, arguments.plot)
    print(f"{machine()}, load {load:.1f} to {os.getloadavg()[0]:.1f}\n")
    print(
        "| what grows | from … to | processor time, s | peak memory, MB | exponent of the time |\n|---|---|---|---|---|"
    )
    for name, points in found.items():
        first, last = points[0], points[-1]
        print(
            f"| {AXES[name].label} | {first.size:,} … {last.size:,} | {first.cpu_s:.3f} … {last.cpu_s:.1f} "
            f"| {first.peak_mb:.1f} … {last.peak_mb:.0f} | {exponent(points):.2f} |"
        )
    limit = arguments.limit or (QUICK_LIMIT if arguments.quick else LIMIT)
    if said := faults(found, limit):
        sys.exit("\n".join(said))


if __name__ == "__main__":
    main()
