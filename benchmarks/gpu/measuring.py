"""What is measured: the device, the speed and the share of its ceiling, and whether all ways give the same logits."""

import contextlib
import os
import platform
import statistics
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gpu.workload import flops

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
        self.memory = current_platform.get_device_total_memory() if self.is_gpu else 0
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


@dataclass(frozen=True, kw_only=True)
class Round:
    """What a way did in one round.

    Attributes:
        number: The round's. Its texts have the same lengths for every engine.
        lengths: Tokens of each prompt.
        seconds: How long it took.
        cached: Tokens that came from the prefix cache, all prompts together; None where the way does not say.
        device: What `Card.watch` saw.
    """

    number: int
    lengths: list[int]
    seconds: float
    cached: int | None = None
    device: dict[str, float] = field(default_factory=dict)

    @property
    def pairs_per_s(self) -> float:
        """The speed."""
        return len(self.lengths) / self.seconds


def row(
    rounds: list[Round],
    baseline: list[Round],
    calls_ms: dict[str, list[float]],
    shape: dict[str, Any],
    ceiling: float | None,
) -> dict[str, Any]:
    """A way's numbers: those of its median round, and its speed beside that of Winnow's same rounds.

    Args:
        rounds: The way's.
        baseline: Winnow's.
        calls_ms: How long calls took, one after another, by what was measured.
        shape: The model's config.
        ceiling: TFLOP/s of a large matrix product on this device, where that is known.
    """
    middle = sorted(rounds, key=lambda one: one.pairs_per_s)[len(rounds) // 2]
    tokens = sum(middle.lengths)
    computed, nominal = (
        flops(shape, middle.lengths, cached) / middle.seconds / (ceiling * 1e12) if ceiling else None
        for cached in (middle.cached or 0, 0)
    )
    of_winnow = {one.number: one.pairs_per_s for one in baseline}
    ratios = [of_winnow[one.number] / one.pairs_per_s for one in rounds if one.number in of_winnow]
    found = {
        "pairs_per_s": middle.pairs_per_s,
        "winnow_beside_it": statistics.median(ratios) if ratios else None,
        "tokens_per_s": tokens / middle.seconds,
        "cached_share": None if middle.cached is None else middle.cached / tokens,
        "flop_share_computed": computed,
        "flop_share_with_cached": nominal,
        **{f"{name}_p50_ms": statistics.median(times) for name, times in calls_ms.items() if times},
        **{f"{name}_slowest_ms": max(times) for name, times in calls_ms.items() if times},
        **middle.device,
    }
    return {name: short(value) for name, value in found.items()} | {
        "pairs_per_s_of_rounds": [short(one.pairs_per_s) for one in rounds]
    }


def compare(logits: dict[str, list[float]], reference: str) -> dict[str, Any]:
    """Are the logits of one way those of all others, and could this comparison fail?

    Args:
        logits: By way. One may have only the first few.
        reference: The way that all others are compared with.
    """
    mine = logits[reference]
    scale = statistics.pstdev(mine)
    against = {
        name: difference(mine[: len(theirs)], theirs, scale) for name, theirs in logits.items() if name != reference
    }
    # Each document with its neighbour's logit: a mix-up that the tolerance must not let through.
    control = difference(mine, mine[1:] + mine[:1], scale)
    return {
        "pairs": len(mine),
        "logit_standard_deviation": short(scale),
        "tolerance": {"mean": MEAN_TOLERANCE, "max": MAX_TOLERANCE, "unit": "standard deviations of the logits"},
        "against": against,
        "control_shifted_by_one": control,
        "passed": all(found["within"] for found in against.values()) and not control["within"],
    }


def difference(mine: list[float], theirs: list[float], scale: float) -> dict[str, Any]:
    """Mean and largest difference, in standard deviations of the logits."""
    apart = [abs(a - b) / scale for a, b in zip(mine, theirs, strict=True)]
    mean, largest = statistics.mean(apart), max(apart)
    return {
        "mean": short(mean),
        "max": short(largest),
        "within": mean <= MEAN_TOLERANCE and largest <= MAX_TOLERANCE,
    }


def short(value: Any) -> Any:
    """A number with four digits."""
    return float(f"{value:.4g}") if isinstance(value, float) and abs(value) < 1000 else value and round(value)
