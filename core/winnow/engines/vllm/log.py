"""Why vLLM failed, from its own log: its error says only "see above", and the log has the cause."""

import json
import multiprocessing
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# vLLM's messages if a setting is the cause, and what to change. They are those of vLLM 0.32: v1/worker/utils.py,
# v1/core/kv_cache_utils.py, config/model.py, and PyTorch's allocator.
_CURES = {
    r"less than desired .*memory utilization": (
        "Lower gpu_memory_utilization in engine_kwargs, or free memory that other programs use."
    ),
    r"[Nn]ot enough memory|out of memory": (
        "Lower {cache} in engine_kwargs, or max_length, or free memory that other programs use."
    ),
    r"No available memory for the cache|KV cache is needed|than the maximum number of tokens that can be stored": (
        "Lower max_length, or raise {cache} in engine_kwargs."
    ),
    r"[Dd]type|float16 is (only|not) supported": "Try another dtype in engine_kwargs.",
    r"CUDA driver|no kernel image|CUDA error: (no|invalid) device": (
        "This build of vLLM does not fit the GPU or its driver: install one that does, or use engine='transformers'."
    ),
}


class VllmLog:
    """The errors that the processes of one engine log, in a file of its own.

    Args:
        record: False if the user has configured vLLM's logging, which is then not changed.
        cache_is_set: Whether kv_cache_memory_bytes sets the size of the cache, instead of gpu_memory_utilization.

    Attributes:
        folder: The folder of the file. If this process is killed, the engine's watcher deletes it.
    """

    def __init__(self, *, record: bool, cache_is_set: bool) -> None:
        self._record = record
        self._cache = "kv_cache_memory_bytes" if cache_is_set else "gpu_memory_utilization"
        self._temporary = tempfile.TemporaryDirectory(prefix="winnow-vllm-")
        self.folder = Path(self._temporary.name)
        self._file = self.folder / "errors.log"
        self._processes: list[multiprocessing.process.BaseProcess] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Processes that are started in this context write to this log."""
        before = set(multiprocessing.active_children())
        config = self.folder / "logging.json"
        config.write_text(json.dumps(_config(self._file)), encoding="utf-8")
        if self._record:
            os.environ["VLLM_LOGGING_CONFIG_PATH"] = str(config)
        try:
            yield
        finally:
            self._processes = [child for child in multiprocessing.active_children() if child not in before]
            if self._record:
                del os.environ["VLLM_LOGGING_CONFIG_PATH"]

    def reason(self) -> str:
        """The cause, from the log or the processes' exit codes, and what to do; "" if it is not known."""
        text = self._file.read_text(encoding="utf-8", errors="replace") if self._file.is_file() else ""
        errors = re.findall(r"^(?!.*EngineDeadError)(?:\w+\.)*\w*(?:Error|Exception): .+", text, re.MULTILINE)
        lines = list(dict.fromkeys(errors))[:3]
        cure = next((cure for pattern, cure in _CURES.items() if re.search(pattern, "\n".join(lines))), "")
        cure = cure.format(cache=self._cache)
        for process in self._processes if not lines else []:  # after an error vLLM kills them itself
            process.join(1)
            if process.exitcode is not None and process.exitcode < 0:
                name = signal.Signals(-process.exitcode).name
                hint = " (most often because memory ran out: see the kernel's log)" if name == "SIGKILL" else ""
                lines.append(f"Its process was killed by {name}{hint}.")
        return "".join(f"\n  {line}" for line in [*lines, *([cure] if cure else [])])

    def close(self) -> None:
        """Delete the folder."""
        self._temporary.cleanup()


def _config(file: Path) -> dict[str, object]:
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"file": {"class": "logging.FileHandler", "filename": str(file), "level": "ERROR", "delay": True}},
        "loggers": {"vllm": {"handlers": ["file"], "level": "ERROR", "propagate": False}},
    }
