"""The engines that come with Winnow, and how to add another one."""

from typing import Any

from winnow.engines.base import Engine
from winnow.engines.fake import FakeEngine
from winnow.engines.registry import AUTO, EngineRecord, EngineSettings, add_record
from winnow.engines.vllm.fields import field_names
from winnow.errors import ConfigurationError
from winnow.models import Checkpoint
from winnow.types import RETRIEVAL_ORDER

# Settings of the model's files, and the length of prompts.
_OF_MODEL = (
    *("revision", "trust_remote_code", "hf_token", "cache_dir"),
    *("hf_overrides", "mm_processor_kwargs", "max_model_len"),
)


def _vllm(checkpoint: Checkpoint, settings: EngineSettings) -> Engine:
    from winnow.engines.vllm.engine import VllmEngine

    return VllmEngine(checkpoint, checkpoint.max_length, settings.given)


def _vllm_device(_: Any) -> str:
    from vllm.platforms import current_platform

    return f"{current_platform.device_type} {current_platform.get_device_name()}"


VLLM = EngineRecord(
    name="vllm",
    make=_vllm,
    settings=(
        *_OF_MODEL,
        *("dtype", "quantization", "gpu_memory_utilization", "kv_cache_memory_bytes", "tensor_parallel_size"),
        *("max_num_batched_tokens", "max_num_seqs", "enable_prefix_caching", "enable_sleep_mode", "enforce_eager"),
        *("attention_backend", "stall_timeout", "runner", "convert", "device", "served_model_name"),
    ),
    packages=("vllm", "torch"),
    device_name=_vllm_device,
    more_settings=field_names,
    not_in_scores=("disable_log_stats", "use_tqdm_on_load", "download_dir"),
)


def _server(checkpoint: Checkpoint, settings: EngineSettings) -> Engine:
    from winnow.engines.server.engine import ServerEngine

    return ServerEngine(checkpoint, settings.url, settings.api_key, settings.given, max_length=checkpoint.max_length)


SERVER = EngineRecord(
    name="server",
    make=_server,
    settings=(*_OF_MODEL, "timeout", "max_retries", "chunk_size", "concurrency", "served_model_name"),
    needs_url=True,
)


def _transformers(checkpoint: Checkpoint, settings: EngineSettings) -> Engine:
    from winnow.engines.transformers.engine import TransformersEngine

    return TransformersEngine(checkpoint, settings.given)


def _torch_device(chosen: Any) -> str:
    from winnow.engines.transformers.devices import device_name

    return device_name(chosen)


TRANSFORMERS = EngineRecord(
    name="transformers",
    make=_transformers,
    settings=(*_OF_MODEL, "dtype", "device", "batch_tokens", "attn_implementation"),
    packages=("transformers", "torch"),
    device_name=_torch_device,
)

FAKE = EngineRecord(
    name="fake",
    make=lambda _, settings: FakeEngine(**settings.given),
    settings=("max_length", "delay"),
    reads_model=False,
)

_OWN = (VLLM, SERVER, TRANSFORMERS, FAKE)
for _record in _OWN:
    add_record(_record)


def register_engine(record: EngineRecord) -> None:
    """Add an engine, which then has a name in rerankers, fallbacks and all integrations of this process.

    A record that is registered again replaces the one of the same name; engines that run go on.

    Args:
        record: What Winnow needs to know of it.

    Raises:
        ConfigurationError: The name is one of Winnow's own, or a setting is one that another engine has.
    """
    if record.name in (AUTO, RETRIEVAL_ORDER, *(own.name for own in _OWN)):
        raise ConfigurationError(f"the engine's name {record.name!r} is one of Winnow's own: choose another")
    add_record(record)
