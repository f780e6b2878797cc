"""Load a checkpoint as a PyTorch model of transformers."""

from collections.abc import Mapping
from typing import Any

from winnow.errors import EngineLoadError, WinnowError
from winnow.models import Checkpoint, check_weights, untied_without_head


def load_model(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Any:
    """Load a model, in evaluation mode.

    Args:
        checkpoint: Its small files.
        settings: Keywords of transformers' `from_pretrained`: `dtype`, `attn_implementation`, and those for the Hub
            (`revision`, `token`, `trust_remote_code`).

    Raises:
        ModelError: A weight file is missing or damaged, or disagrees with config.json.
        EngineLoadError: transformers cannot load it. The message says why.
    """
    import transformers

    check_weights(checkpoint)
    progress = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        return _loaded(checkpoint, settings).eval()
    except WinnowError:
        raise
    except Exception as error:  # transformers fails to load with errors of every kind
        raise EngineLoadError(
            f"transformers could not load {checkpoint.model} ({', '.join(checkpoint.recipe.architectures)}): "
            f"{type(error).__name__}: {error}\nIf the model brings code of its own, and you trust it, pass "
            "engine_kwargs={'trust_remote_code': True}; if it is newer than your transformers "
            f"({transformers.__version__}), upgrade."
        ) from error
    finally:
        if progress:
            transformers.utils.logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _loaded(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Any:
    kind, config = _class_and_config(checkpoint, settings)
    own = {} if config is None else {"config": config}
    model, loading = kind.from_pretrained(checkpoint.model, output_loading_info=True, **own, **settings)
    # sentence-transformers' modules do not use an encoder's pooler, and often it is not saved.
    missing = sorted(name for name in loading["missing_keys"] if not (checkpoint.head and name.startswith("pooler.")))
    if missing:  # transformers fills these with random numbers, and goes on
        hint = (
            "Check that it is a reranker; if it brings code of its own, and you trust it, pass "
            "engine_kwargs={'trust_remote_code': True}."
        )
        if checkpoint.recipe.labels and any("lm_head" in name for name in missing):
            hint = untied_without_head(checkpoint.model)
        raise EngineLoadError(
            f"The weights of {checkpoint.model} are not those of a {type(model).__name__}: "
            f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''} are missing. {hint}"
        )
    if not checkpoint.head:
        return model
    from winnow.engines.transformers.modular import ModularCrossEncoder

    return ModularCrossEncoder.load(model, checkpoint, settings)


def _class_and_config(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """The class of transformers for the model, and its configuration; None if the class reads config.json itself."""
    import transformers

    recipe = checkpoint.recipe
    if recipe.local_code:
        from winnow.engines.local_code import class_and_config

        return class_and_config(checkpoint.config)
    kind: Any = transformers.AutoModelForCausalLM
    if checkpoint.head:
        kind = transformers.AutoModel
    elif not recipe.labels:
        kind = transformers.AutoModelForSequenceClassification
    elif any(name.endswith("ForConditionalGeneration") for name in recipe.architectures):
        kind = transformers.AutoModelForImageTextToText
    return kind, _overridden_config(checkpoint, settings) if checkpoint.user_overrides else None


def _overridden_config(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Any:
    """The configuration of config.json, changed by `hf_overrides`."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    content = dict(checkpoint.config)
    own_code = settings.get("trust_remote_code") and "AutoConfig" in (content.get("auto_map") or {})
    if content.get("model_type") in CONFIG_MAPPING and not own_code:
        return CONFIG_MAPPING[content["model_type"]].from_dict(content)
    hub = {name: settings[name] for name in ("revision", "token", "cache_dir", "trust_remote_code") if name in settings}
    loaded: Any = AutoConfig.from_pretrained(checkpoint.model, **hub)
    return type(loaded).from_dict({**loaded.to_dict(), **content, "auto_map": getattr(loaded, "auto_map", None)})
