"""What transformers' classes say where config.json is silent."""

from collections.abc import Mapping
from typing import Any


def ties_embeddings(config: Mapping[str, Any]) -> bool | None:
    """Whether input and output embedding are tied; None if that is not known.

    Args:
        config: The contents of config.json.
    """
    parts = [config, config.get("text_config") or {}]
    said = [part["tie_word_embeddings"] for part in parts if part.get("tie_word_embeddings") is not None]
    if said:
        return all(said)
    kind = config_class(config)
    found: bool | None = None if kind is None else getattr(kind(), "tie_word_embeddings", None)
    return found


def config_class(config: Mapping[str, Any]) -> Any:
    """The configuration class of transformers; None for a model that only its own code knows.

    Args:
        config: The contents of config.json.
    """
    from transformers import CONFIG_MAPPING

    model_type = str(config.get("model_type"))
    # Not `get`, which asks the empty dictionary below this lazy one.
    return CONFIG_MAPPING[model_type] if model_type in CONFIG_MAPPING else None  # noqa: SIM401
