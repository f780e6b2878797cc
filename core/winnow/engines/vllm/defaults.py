"""Winnow's defaults for vLLM's settings."""

import logging
from collections.abc import Mapping
from typing import Any

from winnow.engines.cpu_dtype import dtype_on_cpu
from winnow.models import Checkpoint

logger = logging.getLogger(__name__)


def platform_defaults(checkpoint: Checkpoint, engine_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Winnow's values of `AsyncEngineArgs`; on a machine without a GPU, those with which vLLM's CPU build runs."""
    from vllm.platforms import current_platform

    chosen: dict[str, Any] = {
        "runner": "pooling",
        "scheduling_policy": "priority",  # so that callers take turns, see engines/request_queue.py
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if current_platform.is_cpu():
        # On a CPU, gpu_memory_utilization is the share of main memory that must be free at the start.
        # Blocks of 32 tokens, the least that vLLM's CPU attention takes, instead of 128: prompts share only whole
        # blocks, and the shared beginning of a reranker's prompts is short.
        # The cache takes 1 GiB. The user's VLLM_CPU_KVCACHE_SPACE takes precedence in vLLM.
        chosen |= {
            "enforce_eager": True,
            "gpu_memory_utilization": 0.3,
            "block_size": 32,
            "kv_cache_memory_bytes": 1 << 30,
        }
        if not checkpoint.quantized and not engine_kwargs.get("quantization"):  # quantised kernels have their own type
            chosen["dtype"] = dtype_on_cpu(checkpoint)
    elif current_platform.is_cuda():
        chosen |= attention_for(current_platform.get_device_capability(), engine_kwargs)
    return chosen


def config_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Settings for checkpoints that have code of their own: Winnow reads their config.json."""
    if not checkpoint.recipe.local_code:
        return {}
    from winnow.engines.vllm.config_format import CONFIG_FORMAT

    return {"config_format": CONFIG_FORMAT}


def pooling_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The pooling, if vLLM would take a wrong one from modules.json."""
    if checkpoint.pooling is None:
        return {}
    from vllm.config import PoolerConfig

    return {"pooler_config": PoolerConfig(seq_pooling_type=checkpoint.pooling)}


def attention_for(capability: tuple[int, int] | None, engine_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The attention backend for a GPU: vLLM's own choice, but on older GPUs one that runs there.

    Args:
        capability: The GPU's compute capability, (major, minor).
        engine_kwargs: The user's settings; a backend in them is not changed.
    """
    if capability is None or capability >= (8, 0) or {"attention_backend", "attention_config"} & engine_kwargs.keys():
        return {}
    logger.info(
        "This GPU has compute capability %d.%d. FlashAttention needs 8.0, so Winnow takes "
        "attention_backend='TRITON_ATTN'; engine_kwargs={'attention_backend': ...} overrides it.",
        *capability[:2],
    )
    return {"attention_backend": "TRITON_ATTN"}
