"""What the benchmarks share: a tiny model, servers, texts that no round has seen, and how numbers are printed."""

import contextlib
import gc
import os
import platform
import shlex
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from tiny_model import build_tiny_reranker, read_passages
from winnow.engines.server import serve_command
from winnow.models import open_checkpoint
from winnow.templates import built_in

# Most tokens of a prompt.
MAX_LENGTH = 1024
# Characters of a document: prompts then have 170 to 190 tokens.
CHARACTERS = 340
# What changes scores or costs is set alike for vLLM with and without Winnow; the rest is vLLM's default, as for
# everybody who starts it. On a CPU these are Winnow's own choices; on a GPU up to three engines share the memory.
CPU_SETTINGS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "block_size": 32,
    "gpu_memory_utilization": 0.2,
}
GPU_SETTINGS: dict[str, Any] = {"dtype": "bfloat16", "gpu_memory_utilization": 0.25}

Calls = list[tuple[str, list[str]]]
"""Queries, each with its documents."""
Score = Callable[[str, list[str]], Sequence[float]]
"""Scores the documents of a query."""


class Round(NamedTuple):
    """What one contender did in one round."""

    pairs_per_s: float
    cpu_us_per_pair: float


def nano_model(positions: int = MAX_LENGTH) -> str:
    """The folder of a model so small that only the way to it counts; it reads prompts of `positions` tokens.

    Its tokenizer has learnt the template's words, as a real model's has: else they were most of a prompt's tokens.

    vLLM's worker computes it with one thread. Several would wait for each other without a pause after each operation,
    and keep the processors from the way to the model.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path(tempfile.mkdtemp()) / "qwen3-reranker-nano"
    template = str(built_in("qwen3_reranker").source)
    return str(
        build_tiny_reranker(folder, vocabulary=2000, texts=[template] * 2, layers=1, width=32, positions=positions)
    )


def on_gpu() -> bool:
    """Whether vLLM runs on a GPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cuda())


def device() -> str:
    """What vLLM runs on."""
    from vllm.platforms import current_platform

    return f"{current_platform.get_device_name()}, {machine()}" if on_gpu() else machine()


def winnow_settings() -> dict[str, Any]:
    """Arguments of the vLLM in Winnow, which chooses them itself on a CPU."""
    return GPU_SETTINGS if on_gpu() else {}


def plain_settings() -> dict[str, Any]:
    """Arguments of a vLLM without Winnow."""
    return GPU_SETTINGS if on_gpu() else CPU_SETTINGS


def tolerance() -> float:
    """How far scores of the same pairs may be apart: it is bfloat16 on a GPU, float32 on a CPU."""
    return 0.02 if on_gpu() else 1e-4


def plain_llm(model: str, max_length: int, settings: Mapping[str, Any] = CPU_SETTINGS) -> Any:
    """VLLM's `LLM` of a model of Qwen3-Reranker's family."""
    from vllm import LLM

    return LLM(
        model=model,
        runner="pooling",
        max_model_len=max_length,
        hf_overrides={**open_checkpoint(model, recipe="qwen3-reranker").vllm_overrides},
        disable_log_stats=True,
        **settings,
    )


def calls_of(seed: str, calls: int, pairs: int) -> Calls:
    """Queries and as many different passages for each, `pairs` together; `seed` keeps them apart from all others.

    All queries have about the same number of tokens, so that the beginning which a query's prompts share ends in the
    same of vLLM's blocks: else vLLM would compute more or less. Any number of calls has the same passages.
    """
    text = " ".join(passage["text"] for passage in read_passages())
    passages = [
        f"{seed}.{number:05} {text[61 * number % (len(text) - CHARACTERS) :][:CHARACTERS]}" for number in range(pairs)
    ]
    each = pairs // calls
    return [
        (f"{seed}: question {call:03} about {text[:60]}", passages[each * call : each * (call + 1)])
        for call in range(calls)
    ]


def behind_a_lock(score: Score) -> Score:
    """How frameworks' rerankers call a model that one thread at a time may use: in sorted batches, no text twice."""
    lock = threading.Lock()

    def locked(query: str, documents: list[str]) -> list[float]:
        known: dict[str, float] = {}
        order = sorted(dict.fromkeys(documents), key=len)
        for batch in (order[start : start + 64] for start in range(0, len(order), 64)):
            with lock:
                scores = score(query, batch)
            known |= zip(batch, scores, strict=True)
        return [known[document] for document in documents]

    return locked


def stock_command(model: str, max_length: int, settings: Mapping[str, Any] = CPU_SETTINGS) -> list[str]:
    """What `server` runs to serve a model with vLLM's own server, with the prompts of Qwen3-Reranker."""
    template = Path(tempfile.mkdtemp()) / "score.jinja"
    template.write_text(str(built_in("qwen3_reranker").source), encoding="utf-8")
    _, _, _, *overrides = shlex.split(serve_command(open_checkpoint(model, recipe="qwen3-reranker"), max_length))
    options = [*overrides, *options_of(settings), "--chat-template", str(template)]
    # vllm-cpu's `vllm` command looks for a distribution of another name; this is what it runs.
    return ["vllm.entrypoints.openai.api_server", "--model", model, *options]


def winnow_command(model: str, max_length: int) -> list[str]:
    """What `server` runs to serve a model with `winnow serve`."""
    arguments = [f"--engine-arg={name}={value}" for name, value in winnow_settings().items()]
    return ["winnow_command", "serve", model, "--max-length", str(max_length), *arguments]


def options_of(settings: Mapping[str, Any]) -> list[str]:
    """Settings on vLLM's command line."""
    options = [
        [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])] for name, value in settings.items()
    ]
    return [part for option in options for part in option]


@contextlib.contextmanager
def server(command: Sequence[str]) -> Iterator[tuple[str, psutil.Process]]:
    """A server's address and process. It runs until it is left; its output is shown if it does not start."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = psutil.Popen([sys.executable, "-m", *command, "--port", str(port)], stdout=log, stderr=log)
        try:
            while not answers(url + ("/ready" if command[0] == "winnow_command" else "/health")):
                if process.poll() is not None:
                    log.seek(0)
                    sys.exit(f"{command[0]} ended:\n{log.read().decode()[-5000:]}")
                time.sleep(0.5)
            yield url, process
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
            process.wait(60)


def answers(url: str) -> bool:
    """Whether a server is ready."""
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.TransportError:
        return False


def largest_difference(found: Sequence[Sequence[Sequence[float]]]) -> float:
    """How far the scores of the same calls are apart, which several contenders gave."""
    first, *others = ([score for call in scores for score in call] for scores in found)
    return max(abs(a - b) for other in others for a, b in zip(first, other, strict=True))


def settle() -> None:
    """Wait until nothing that ran before costs the next contender anything.

    vLLM's workers look for work without a pause for a second after their last step (`SpinCondition` in
    vllm/distributed/device_communicators/shm_broadcast.py). And now and then a collection of Python's walks the whole
    heap (winnow/engines/vllm/heap.py), which must not fall to the contender whose turn it happens to be.
    """
    gc.collect()
    time.sleep(1.2)


def machine() -> str:
    """What the numbers were measured on."""
    return f"{os.cpu_count()} CPUs ({processor()}), Python {platform.python_version()}"


def processor() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def spread(values: Sequence[float], digits: int = 0) -> str:
    """A median, with the least and the most."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
