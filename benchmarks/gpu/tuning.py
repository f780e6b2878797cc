"""What vLLM's settings change: the gain of each, predicted before the run, and observed."""

import time
from collections.abc import Iterator
from typing import Any

from gpu.measuring import Bench
from gpu.systems import async_engine, engine_settings

# Host work of one scheduler step that the GPU waits for: the assumption behind the predictions.
STEP_SECONDS = 0.003


class TimeLimitError(BaseException):
    """The time is up. Not an Exception: nothing on the way may catch it."""


def tuning_rows(smoke: bool) -> list[dict[str, Any]]:
    """Settings to try: one at a time first, then the rest of the matrix, for as long as there is time."""
    if smoke:
        return [{"max_num_batched_tokens": 4096}, {"no_such_field_of_vllm": 1}]
    rows: list[dict[str, Any]] = [
        {"async_scheduling": True},
        {"block_size": 64},  # vLLM's work on the host grows with the number of blocks
        {"max_num_batched_tokens": 32768},
        {"max_num_batched_tokens": 8192},
        {"enforce_eager": True},
        {"max_num_seqs": 256},
        {"kv_cache_memory_bytes": 4 << 30},
    ]
    matrix = [
        {"max_num_batched_tokens": tokens, "max_num_seqs": seqs, "enforce_eager": eager}
        for eager in (False, True)
        for tokens in (8192, 16384, 32768)
        for seqs in (256, 1024)
    ]
    return rows + matrix


def predicted_gain(row: dict[str, Any], effective: dict[str, Any], baseline: dict[str, Any], pairs: int) -> float:
    """Speed against the default's, minus 1, from the default's own time and one assumption, `STEP_SECONDS`.

    A step holds as many tokens as both limits allow, and costs the host a fixed time. Graphs cover steps of up to 512
    tokens, which a full queue never has; without the compiler, norms and activations stay vLLM's own fused kernels:
    2%. KV memory: a prompt leaves with the step that ends it, so a few steps' worth is enough. Asynchronous
    scheduling: vLLM leaves it off for pooling, where it "negatively impacts performance" (config/vllm.py): 3%.
    """
    chosen = {**effective, **row}
    tokens = baseline["tokens_per_s"] * baseline["seconds"]

    def step(settings: dict[str, Any]) -> float:
        seqs = settings["max_num_seqs"] * tokens / pairs
        return float(min(settings["max_num_batched_tokens"], seqs, tokens))

    device = max(baseline["seconds"] - STEP_SECONDS * tokens / step(effective), 0.0)
    seconds = device + STEP_SECONDS * tokens / step(chosen)
    compiler = 0.98 if chosen["enforce_eager"] and not effective["enforce_eager"] else 1.0
    ahead = 0.97 if chosen["async_scheduling"] and not effective["async_scheduling"] else 1.0
    return compiler * ahead * baseline["seconds"] / seconds - 1


def tune(
    bench: Bench, effective: dict[str, Any], baseline: dict[str, Any], longest: float, smoke: bool
) -> Iterator[dict[str, Any]]:
    """Each setting's gain over the default, predicted and observed; rows that time does not allow say so.

    `longest` is how many seconds one row may take, to begin with.
    """
    pairs = bench.size.callers * bench.size.documents
    for settings in tuning_rows(smoke):
        begin = time.monotonic()
        predicted = predicted_gain(settings, effective, baseline, pairs)
        row: dict[str, Any] = {"settings": settings, "predicted_gain": round(predicted, 3)}
        if begin + 1.2 * longest > bench.end:
            yield row | {"skipped": "no time left"}
            continue
        words = ", ".join(f"{name}={value}" for name, value in settings.items())
        print(f"\n{words}: predicted {predicted:+.1%}", flush=True)
        try:
            bench.card.wait_until_free()
            tuned = async_engine(bench.model, {**engine_settings(bench.card), **settings}, bench.prompts)
            with tuned as (winnow, _):
                found = bench.speed("  observed", winnow, rounds=bench.size.rounds)
            gain = found["pairs_per_s"] / baseline["pairs_per_s"] - 1
            print(f"  observed {gain:+.1%}", flush=True)
            yield row | {"observed_gain": round(gain, 3), **found, "name": words}
        except TimeLimitError:
            raise
        except Exception as error:  # noqa: BLE001 - one setting that vLLM refuses must not end the run
            print(f"  refused: {str(error).splitlines()[0][:200]}", flush=True)
            yield row | {"refused": f"{type(error).__name__}: {str(error)[:500]}"}
        longest = max(longest, time.monotonic() - begin)
