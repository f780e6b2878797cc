"""What is measured: the device, the speed and the share of its ceiling, and whether all ways give the same logits."""

import contextlib
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gpu.workload import Outcome, Prompts, Size, Work, flops, workload

# Share of the logits' standard deviation by which two bf16 runs of the same ids may differ, on average and at most.
# On a CPU this shape in bf16 was 0.04 from float32 on average and 0.10 at most (4 pairs); two bf16 runs in different
# batches may be that far on either side. A neighbour's logit is 1.2 away on average.
MEAN_TOLERANCE, MAX_TOLERANCE = 0.08, 0.4


class Card:
    """The GPU as NVML reports it; on other machines only a name."""

    def __init__(self) -> None:
        from vllm.platforms import current_platform

        self.is_gpu = current_platform.is_cuda()
        self.name = current_platform.get_device_name() if self.is_gpu else f"cpu {platform.machine()}"
        self.ceiling: float | None = None  # TFLOP/s of a large bf16 matrix product, once it is measured
        self._nvml: Any = None
        if self.is_gpu:
            with contextlib.suppress(Exception):  # a measurement more, nothing that the run needs
                from vllm.third_party import pynvml

                pynvml.nvmlInit()
                visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
                get = pynvml.nvmlDeviceGetHandleByIndex if visible.isdigit() else pynvml.nvmlDeviceGetHandleByUUID
                self._handle = get(int(visible) if visible.isdigit() else visible)
                self._nvml = pynvml

    @contextlib.contextmanager
    def watch(self) -> Iterator[dict[str, float]]:
        """Yields means over the block, filled at its end: share of time with a kernel running, power, clock."""
        means: dict[str, float] = {}
        if self._nvml is None:
            yield means
            return
        nvml, samples, done = self._nvml, [], threading.Event()

        def sample() -> None:
            with contextlib.suppress(nvml.NVMLError):  # not every host may ask for all of it
                while not done.wait(0.1):
                    busy = nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100
                    power = nvml.nvmlDeviceGetPowerUsage(self._handle) / 1000
                    samples.append((busy, power, nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_SM)))

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield means
        finally:
            done.set()
            thread.join()
            columns = zip(("gpu_utilisation", "power_w", "sm_clock_mhz"), zip(*samples, strict=True), strict=False)
            means |= {name: round(statistics.mean(values), 2) for name, values in columns}

    def wait_until_free(self) -> None:
        """Wait for an engine that was closed to give its memory back: vLLM refuses to start without it."""
        end = time.monotonic() + 30
        while self._nvml is not None and time.monotonic() < end:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
            if memory.used < 0.3 * memory.total:
                return
            time.sleep(0.25)


@dataclass
class Bench:
    """One run: the device, the model, and what has been found so far."""

    card: Card
    model: str
    shape: dict[str, Any]
    size: Size
    prompts: Prompts
    end: float
    logits: dict[str, list[float]] = field(default_factory=dict)

    def check_work(self) -> Work:
        """The pairs whose scores are compared."""
        return workload(0, *self.size.check, self.size.words)

    def check(self, name: str, run: Callable[[Work], Outcome]) -> None:
        """Score the compared pairs."""
        self.logits[name] = [logit for query in run(self.check_work()).logits for logit in query]

    def speed(self, name: str, run: Callable[[Work], Outcome], *, rounds: int, seed: int = 1) -> dict[str, Any]:
        """Time rounds of texts that the engine has not seen, after one of a quarter of the size that warms it up."""
        size = self.size
        run(workload(9000 + seed, max(1, size.callers // 4), size.documents, size.words))
        found: list[dict[str, Any]] = []
        for number in range(seed, seed + rounds):
            work = workload(number, size.callers, size.documents, size.words)
            lengths = [len(ids) for query in self.prompts(work) for ids in query]
            with self.card.watch() as means:
                begin = time.perf_counter()
                outcome = run(work)
                seconds = time.perf_counter() - begin
            if outcome.tokens not in (None, 0, sum(lengths)):
                raise AssertionError(f"{name} scored {outcome.tokens} tokens, the prompts have {sum(lengths)}.")
            found.append(self._found(lengths, seconds, outcome.cached) | means)
        # The median; of two rounds, which is all there is time for with `LLM.score`, the better one.
        middle = sorted(found, key=lambda row: row["pairs_per_s"])[len(found) // 2]
        rounds_found = [_short(each["pairs_per_s"]) for each in found]
        return self._printed(name, middle) | {"pairs_per_s_of_rounds": rounds_found}

    def row(self, name: str, lengths: list[int], seconds: float) -> dict[str, Any]:
        """What `speed` returns, for one round that was timed elsewhere."""
        return self._printed(name, self._found(lengths, seconds, 0))

    def _found(self, lengths: list[int], seconds: float, cached: int | None) -> dict[str, Any]:
        share, nominal = (
            flops(self.shape, lengths, tokens) / seconds / (self.card.ceiling * 1e12) if self.card.ceiling else None
            for tokens in (cached or 0, 0)
        )
        return {
            "pairs_per_s": len(lengths) / seconds,
            "tokens_per_s": sum(lengths) / seconds,
            "seconds": seconds,
            "cached_share": None if cached is None else cached / sum(lengths),
            "flop_share_computed": share,
            "flop_share_with_cached": nominal,
        }

    @staticmethod
    def _printed(name: str, found: dict[str, Any]) -> dict[str, Any]:
        row = {"name": name, **{key: _short(value) for key, value in found.items()}}
        share = found["flop_share_computed"]
        print(
            f"{name:36} {row['pairs_per_s']:>8} pairs/s {row['tokens_per_s']:>10} tokens/s"
            + ("" if share is None else f"  {share:.1%} of the ceiling")
            + (f"  GPU busy {row['gpu_utilisation']:.0%}" if "gpu_utilisation" in row else ""),
            flush=True,
        )
        return row

    def compare(self, ids_seen: list[list[int]]) -> dict[str, Any]:
        """Are Winnow's logits those of the others, and could this comparison fail?"""
        mine = self.logits["winnow"]
        scale = statistics.pstdev(mine)
        report: dict[str, Any] = {
            "pairs": len(mine),
            "logit_standard_deviation": _short(scale),
            "tolerance": {"mean": MEAN_TOLERANCE, "max": MAX_TOLERANCE, "unit": "standard deviations of the logits"},
        }
        report["against"] = {
            name: difference(mine[: len(theirs)], theirs, scale)
            for name, theirs in self.logits.items()
            if name != "winnow"
        }
        expected = [ids for query in self.prompts(self.check_work()) for ids in query]
        report["same_ids_as_llm_score"] = ids_seen == expected if any(ids_seen) else None
        # Each document with its neighbour's logit: a mix-up that the tolerance must not let through.
        report["control_shifted_by_one"] = difference(mine, mine[1:] + mine[:1], scale)
        report["passed"] = (
            all(found["within"] for found in report["against"].values())
            and report["same_ids_as_llm_score"] is not False
            and not report["control_shifted_by_one"]["within"]
        )
        return report


def difference(mine: list[float], theirs: list[float], scale: float) -> dict[str, Any]:
    """Mean and largest difference, in standard deviations of the logits."""
    apart = [abs(a - b) / scale for a, b in zip(mine, theirs, strict=True)]
    mean, largest = statistics.mean(apart), max(apart)
    return {
        "mean": _short(mean),
        "max": _short(largest),
        "within": mean <= MEAN_TOLERANCE and largest <= MAX_TOLERANCE,
    }


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) and abs(value) < 1000 else value and round(value)
