"""Which engine a configuration asks for; with `engine="auto"`, which one can run here."""

import importlib.util
import logging

from winnow.checkpoint import Checkpoint, open_checkpoint
from winnow.config import RerankerConfig
from winnow.engines.base import Engine, FakeEngine
from winnow.errors import MissingExtraError

logger = logging.getLogger(__name__)


def create_engine(config: RerankerConfig) -> Engine:
    """Make, but do not start, the engine that a configuration asks for.

    Raises:
        ConfigurationError: An engine keyword is unknown.
        ModelError: The model cannot be used.
        MissingExtraError: The engine's packages are not installed.
    """
    if not isinstance(config.engine, str):
        return config.engine
    if config.engine == "fake":
        return FakeEngine(**config.engine_kwargs)
    kwargs = config.engine_kwargs
    checkpoint = open_checkpoint(
        config.model,
        recipe=config.recipe,
        hf_overrides=kwargs.get("hf_overrides"),
        revision=kwargs.get("revision"),
        trust_remote_code=bool(kwargs.get("trust_remote_code")),
    )
    name = _choose(checkpoint) if config.engine == "auto" else config.engine
    if name == "server":
        from winnow.engines.server import ServerEngine

        return ServerEngine(checkpoint, config.url, config.api_key, kwargs, max_length=config.max_length)
    if name == "vllm":
        from winnow.engines.vllm import VllmEngine

        return VllmEngine(checkpoint, config.max_length or checkpoint.max_length, kwargs)
    from winnow.engines.transformers import TransformersEngine

    return TransformersEngine(checkpoint, kwargs)


def _choose(checkpoint: Checkpoint) -> str:
    """VLLM where it can run, else transformers."""
    if importlib.util.find_spec("vllm") is None:
        name, why = "transformers", "vLLM is not installed"
    else:
        from winnow.engines.vllm import why_not

        reason = why_not(checkpoint)
        name, why = ("vllm", "it is installed and runs here") if reason is None else ("transformers", reason)
    if name == "transformers" and importlib.util.find_spec("torch") is None:
        raise MissingExtraError("Neither vllm nor torch", "vllm")
    logger.info("engine='auto' takes %s for %s: %s", name, checkpoint.model, why)
    return name
