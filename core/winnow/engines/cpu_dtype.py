"""The data type in which an engine computes on a CPU, if the user does not choose one."""

from functools import cache
from pathlib import Path

from winnow.models import Checkpoint

# What Linux calls instructions that multiply bfloat16 on x86 (AVX512-BF16, AMX) and on ARM.
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}


def dtype_on_cpu(checkpoint: Checkpoint) -> str:
    """The checkpoint's type, as vLLM takes it, if this CPU is fast with it; else float32.

    So bfloat16 for a checkpoint in bfloat16 where the CPU multiplies it; elsewhere that is emulated, and slower than
    float32. A float32 checkpoint stays float32, of which vLLM would make float16, and so does float16, which hardly any
    CPU multiplies.
    """
    configs = (checkpoint.config, checkpoint.config.get("text_config") or {})
    types = [config[name] for config in configs for name in ("dtype", "torch_dtype") if config.get(name)]
    return "bfloat16" if types[:1] == ["bfloat16"] and multiplies_bfloat16() else "float32"


@cache
def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for it. Known of Linux only."""
    try:
        return not _BFLOAT16.isdisjoint(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return False
