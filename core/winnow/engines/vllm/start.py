"""Start vLLM: one engine at a time, without the user's script in its processes, and without its log messages."""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker, spawn
from typing import Any

from winnow.locks import ForkSafeLock

LOGGING_IS_SET_UP = not os.environ.keys().isdisjoint(("VLLM_LOGGING_LEVEL", "VLLM_LOGGING_CONFIG_PATH"))
"""Whether the user had configured vLLM's logging before this module was imported."""

# One start at a time: it sets things for the whole process, and measures how much memory is free.
_one_at_a_time = ForkSafeLock()


@contextmanager
def starting() -> Iterator[None]:
    """A context in which to start vLLM, in one thread. Other starts wait for its end."""
    with _one_at_a_time, _without_main_module(), _environment(), _without_warnings(), _without_interrupts():
        yield


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Block Ctrl-C in the processes that this thread starts; they inherit the thread's signal mask.

    A terminal sends Ctrl-C to all of them, and those that still import would print tracebacks. This process ends them.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, which vLLM does not support
        yield
        return
    resource_tracker.ensure_running()  # starting it later would unblock SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def quieten() -> None:
    """Turn off vLLM's log messages in this process and in those it starts, unless the user configured them."""
    if not LOGGING_IS_SET_UP:
        os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
        logging.getLogger("vllm").setLevel(logging.ERROR)


@contextmanager
def _environment() -> Iterator[None]:
    """Set what vLLM's processes shall find in their environment, where the user has not set it.

    They are spawned, as `vllm serve` does (`cli_env_setup` in vllm/entrypoints/serve/utils/api_utils.py), also on a
    GPU, where vLLM forks by default. A fork of a process that has looked for a GPU, as `torch.cuda.is_available()`
    does, ends with "CUDA error: initialization error" (seen with vLLM 0.26 on an H100).
    """
    chosen = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", "PYTHONWARNINGS": "ignore", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    added = chosen.keys() - os.environ.keys()
    os.environ.update({name: chosen[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Turn off warnings of the libraries that vLLM loads, unless the user configured warnings."""
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Let vLLM spawn its processes without running the user's script again in each.

    `multiprocessing`'s spawn imports `__main__` in the child. A script without an `if __name__ == "__main__"` guard
    would start itself again, and fail with an error that does not name vLLM. vLLM's processes need nothing from the
    script.
    """
    thread = threading.get_ident()
    original = spawn.get_preparation_data

    def without_main(name: str) -> dict[str, Any]:
        data: dict[str, Any] = original(name)
        if threading.get_ident() == thread:
            data.pop("init_main_from_path", None)
            data.pop("init_main_from_name", None)
        return data

    spawn.get_preparation_data = without_main
    try:
        yield
    finally:
        spawn.get_preparation_data = original
