"""What Ray costs: the same work on one process, on a pool of one actor, and on a pool of two.

Each processes the same parts of the same file. Loading is counted apart: what is compared is the time and the processor
time from the first part that is done to the last, of all processes together. The three take turns, so that a machine
with other work slows all of them.

    python benchmarks/bulk.py [--pairs 100000] [--rounds 1] [--demo] [--json]

With --driver it measures the driver alone: what a part costs it, and how its memory grows. Its work depends on the
number of parts, not on what is in them, so that most documents of a row are equal, and are scored once.

    python benchmarks/bulk.py --driver --pairs 10000000
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as Ray sets it for an actor with one processor
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import psutil

from demo_model import settings_of
from tiny_model import read_passages
from winnow.bulk import rerank_files
from winnow.bulk.files_run import cluster
from winnow.bulk.jsonl_source import JsonlSource
from winnow.bulk.output_folder import DonePart
from winnow.bulk.part_worker import Job, PartWorker
from winnow.bulk.parts import Part
from winnow.bulk.pool import Pool, done_parts
from winnow.bulk.row_ranker import bulk_config
from winnow.bulk.rows import Columns

DOCUMENTS, PART_ROWS, LEAST_PARTS = 50, 20, 20


@dataclass
class Measured:
    """One way to do the work.

    Attributes:
        first: Seconds until the first part was done, with loading.
        seconds: Seconds from there to the last part.
        cpu: Seconds of processors in that time, of all processes.
        pairs: Pairs in that time.
    """

    first: float
    seconds: float
    cpu: float
    pairs: int


def write_input(file: Path, pairs: int) -> None:
    passages, chance = [passage["text"] for passage in read_passages()], random.Random(0)  # noqa: S311
    with file.open("w", encoding="utf-8") as out:
        for row in range(pairs // DOCUMENTS):
            documents = [f"{row}.{number} {chance.choice(passages)}" for number in range(DOCUMENTS)]
            query = " ".join(chance.sample(chance.choice(passages).split(), 5))
            out.write(json.dumps({"query": query, "documents": documents}) + "\n")


def cpu_of_all() -> float:
    """Processor time of this process and of all below it, also of those that have ended."""
    this = psutil.Process()
    seconds = 0.0
    for process in [this, *this.children(recursive=True)]:
        try:
            seconds += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return seconds


def wait_for_earlier_actors() -> None:
    """Wait until the actors of the pool before are gone: they end after its last part, and not at once."""
    while any("PartActor" in name_of(child) for child in psutil.Process().children(recursive=True)):
        time.sleep(0.1)


def name_of(process: psutil.Process) -> str:
    """What a process calls itself, as Ray's workers do; nothing if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def measured(done: Iterator[DonePart]) -> Measured:
    wait_for_earlier_actors()
    begin = time.perf_counter()
    next(done)
    first, cpu = time.perf_counter(), cpu_of_all()
    pairs, last, cpu_then = 0, first, cpu
    for part in done:
        pairs += part.costs.pairs
        last, cpu_then = time.perf_counter(), cpu_of_all()
    return Measured(first - begin, last - first, cpu_then - cpu, pairs)


def alone(job: Job, parts: list[Part]) -> Iterator[DonePart]:
    worker = PartWorker(job)
    for part in parts:
        yield worker.do(part)


def measure_driver(pairs: int) -> None:
    """A whole run with two actors, in parts of 10,000 pairs, seen from its driver."""
    folder = Path(tempfile.mkdtemp())
    with (folder / "in.jsonl").open("w", encoding="utf-8") as out:
        for row in range(pairs // 100):
            documents = [f"capital {number % 4} of row {row % 7}" for number in range(100)]
            out.write(json.dumps({"query": f"capital of row {row}", "documents": documents}) + "\n")
    this = psutil.Process()
    with cluster():
        memory, cpu, begin = this.memory_info().rss, sum(this.cpu_times()[:2]), time.perf_counter()
        report = rerank_files(
            folder / "in.jsonl", folder / "out", model="any", engine="fake", part_rows=100, concurrency=2, top_k=10
        )
        seconds = time.perf_counter() - begin
        used, grown = sum(this.cpu_times()[:2]) - cpu, this.memory_info().rss - memory
    print(
        f"{report.costs.pairs} pairs, {report.costs.rows} rows, {report.parts} parts in {seconds:.0f} s "
        f"(load {os.getloadavg()[1]:.1f}): {report.costs.rows / seconds:.0f} rows/s\n"
        f"the driver: {used:.1f} s of a processor, {used / report.parts * 1000:.1f} ms a part; "
        f"memory {memory / 1e6:.0f} MB before, {grown / 1e6:+.0f} MB after"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--demo", action="store_true", help="score with the demo's cross encoder, not the fake engine")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--driver", action="store_true", help="measure the driver alone")
    arguments = parser.parse_args()
    if arguments.driver:
        measure_driver(arguments.pairs)
        return

    demo = settings_of("winnow-demo-cross-encoder") if arguments.demo else {"model": "any"}
    engine = "transformers" if arguments.demo else "fake"
    config = bulk_config(demo.pop("model"), {"engine": engine, **demo})
    folder = Path(tempfile.mkdtemp())
    write_input(folder / "in.jsonl", arguments.pairs)
    source = JsonlSource([folder / "in.jsonl"], Columns(), ("documents",))
    rows = arguments.pairs // DOCUMENTS
    parts = source.scan(min(PART_ROWS, max(rows // LEAST_PARTS, 1))).parts
    job = Job(
        source=source,
        folder=folder,
        digits=5,
        config=config,
        top_k=10,
        environment={},
    )
    found: dict[str, list[Measured]] = {"one process": [], "1 actor": [], "2 actors": []}
    with cluster():
        for _ in range(arguments.rounds):
            found["one process"].append(measured(alone(job, parts)))
            for actors in (1, 2):
                pool = Pool(concurrency=actors, num_cpus=1, num_gpus=0)
                name = "1 actor" if actors == 1 else f"{actors} actors"
                found[name].append(measured(done_parts(job, parts, pool)))
    load = os.getloadavg()[1]
    if arguments.json:
        print(json.dumps({"load": load, **{name: list(map(asdict, all_)) for name, all_ in found.items()}}, indent=2))
        return
    print(f"{arguments.pairs} pairs in {len(parts)} parts, engine {engine}, {os.cpu_count()} processors,")
    print(f"{arguments.rounds} rounds, load {load:.1f} (how many processes wanted a processor, in the last 5 minutes)")
    base = found["one process"]
    for name, each in found.items():
        rate = statistics.median(one.pairs / one.seconds for one in each)
        cpu = statistics.median(one.cpu / one.pairs * 1e6 for one in each)
        more = statistics.median(
            (one.cpu / one.pairs) / (own.cpu / own.pairs) for one, own in zip(each, base, strict=True)
        )
        faster = statistics.median(
            (one.pairs / one.seconds) / (own.pairs / own.seconds) for one, own in zip(each, base, strict=True)
        )
        print(
            f"{name:12} {rate:9.0f} pairs/s ({faster:.2f} ×)  {cpu:8.0f} µs of processors a pair ({more - 1:+.1%})  "
            f"first part after {statistics.median(one.first for one in each):.1f} s"
        )


if __name__ == "__main__":
    main()
