"""Around a start of vLLM: one at a time, without the user's script in its processes, and without its chatter."""

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
"""By the user, before this module was imported."""

# What is set for a start is set for the whole process; and a start measures how much memory is free.
_one_at_a_time = ForkSafeLock()


@contextmanager
def starting() -> Iterator[None]:
    """Start vLLM within this, in one thread. Another start waits until it is left."""
    with _one_at_a_time, _without_main_module(), _quiet_start(), _without_interrupts():
        yield


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Let no Ctrl-C reach the processes that this thread starts; they inherit which signals wait.

    A terminal sends it to all of them. Those that still import would print tracebacks; this process ends them.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where there is no vLLM either
        yield
        return
    resource_tracker.ensure_running()  # which lets SIGINT through again when it is started later
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def quieten() -> None:
    """Turn off vLLM's chatter in this process and in those it starts, unless the user asked for it."""
    if not LOGGING_IS_SET_UP:
        os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
        logging.getLogger("vllm").setLevel(logging.ERROR)


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Keep warnings of the libraries that vLLM loads off the user's screen, but for what the user set up."""
    chosen = {"PYTHONWARNINGS": "ignore", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    added = [name for name in chosen if os.environ.setdefault(name, chosen[name]) is chosen[name]]
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Let vLLM spawn its processes without running the user's script again in each.

    `multiprocessing`'s spawn imports `__main__` in the child, so that a script without an `if __name__ == "__main__"`
    guard would
    start itself, and fail with an error that names neither vLLM nor the cure. vLLM's processes need nothing from it.
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
