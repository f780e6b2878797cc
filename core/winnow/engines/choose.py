"""Make the engine of a configuration. With `engine="auto"`, choose one that runs here."""

import importlib.util
import logging
from dataclasses import replace

from winnow.engines.base import Engine
from winnow.engines.records import TRANSFORMERS, VLLM
from winnow.engines.registry import EngineRecord, EngineSettings, record_of
from winnow.engines.settings import EngineConfig, resolve, warn_about_variables
from winnow.errors import MissingExtraError
from winnow.locks import import_lock
from winnow.models import Checkpoint, open_checkpoint, with_merged_weights

logger = logging.getLogger(__name__)


def create_engine(config: EngineConfig, settings: EngineSettings | None = None) -> Engine:
    """Make the engine that a configuration and the environment name, without starting it.

    Args:
        config: The user's settings.
        settings: The engine's settings, with those from the environment; by default they are resolved now.

    Raises:
        ConfigurationError: A setting is unknown, of another engine, or wrong, in `config` or in the environment.
        ModelError: The model cannot be used.
        TemplateError: Its template cannot be used.
        MissingExtraError: The engine's packages are not installed.
    """
    settings = settings or resolve(config)
    if not isinstance(settings.engine, str):
        return settings.engine
    record = record_of(settings.engine)
    if record is not None and not record.reads_model:
        return record.make(None, settings)
    checkpoint = configured_checkpoint(config, settings)
    if record is None or not record.needs_url:  # a server has its weights already
        checkpoint = with_merged_weights(checkpoint)
    with import_lock:
        return _engine_for(checkpoint, settings, record)


def configured_checkpoint(config: EngineConfig, settings: EngineSettings) -> Checkpoint:
    """The small files of a configuration's model, with the settings for them and the length of its prompts.

    Args:
        config: The user's settings.
        settings: The engine's settings, with those from the environment.

    Raises:
        ModelError: As for `open_checkpoint`.
        TemplateError: Likewise.
    """
    warn_about_variables()
    checkpoint = open_checkpoint(config.model, recipe=config.recipe, **settings.of_checkpoint())
    if settings.max_length is None:
        return checkpoint
    return replace(checkpoint, max_length=_length(checkpoint, settings.max_length))


def _engine_for(checkpoint: Checkpoint, settings: EngineSettings, record: EngineRecord | None) -> Engine:
    if record is None:
        record = _choose(checkpoint, settings.device)
        if settings.url_is_unused:
            logger.warning("WINNOW_URL is not used: engine='auto' takes no server. Set WINNOW_ENGINE=server, too.")
    return record.make(checkpoint, replace(settings, given=settings.for_engine(record.name), found={}))


def _length(checkpoint: Checkpoint, wanted: int) -> int:
    """The wanted length, or the model's limit if that is less. The family's own length is only a default."""
    if checkpoint.longest is not None and wanted > checkpoint.longest:
        logger.warning(
            "max_length=%d becomes %d: %s reads no longer prompts, by max_position_embeddings in its config.json and "
            "model_max_length in its tokenizer_config.json.",
            wanted,
            checkpoint.longest,
            checkpoint.model,
        )
        wanted = checkpoint.longest
    if wanted > (usual := checkpoint.recipe.max_length or wanted):
        logger.warning(
            "Prompts of %s may have %d tokens, as max_length says. The reference code of %s stops at %d: how well it "
            "judges longer ones is not known.",
            checkpoint.model,
            wanted,
            checkpoint.recipe.family,
            usual,
        )
    return wanted


def _choose(checkpoint: Checkpoint, device: str | int | None) -> EngineRecord:
    """The engine: vLLM if it runs here and on that device, else transformers."""
    if importlib.util.find_spec("vllm") is None:
        record, why = TRANSFORMERS, "vLLM is not installed"
    else:
        from winnow.engines.vllm.engine import why_not
        from winnow.engines.vllm.fields import other_platform

        reason = why_not(checkpoint) or other_platform(device)
        record, why = (VLLM, "it is installed and runs here") if reason is None else (TRANSFORMERS, reason)
    if record is TRANSFORMERS and importlib.util.find_spec("torch") is None:
        raise MissingExtraError("Neither vllm nor torch", "vllm")
    logger.info("engine='auto' takes %s for %s: %s", record.name, checkpoint.model, why)
    return record
