"""The parts of `gpu_engine.py`. A bare checkout on a GPU host will do: they find Winnow beside them."""

import os
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(_ROOT / "examples"))
sys.path += [str(_ROOT / "core"), str(_ROOT / "templates")]
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # this process has threads and an NVML handle
os.environ.setdefault("HF_HUB_OFFLINE", "1")
