"""How a model takes images and videos, read from its small files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from winnow.errors import ConfigurationError, ModelError
from winnow.media import Vision
from winnow.models.families import ModelRecipe
from winnow.models.folder import read_json
from winnow.models.json_fields import IMAGES
from winnow.tokenizer import PromptTokenizer

# Values of `model_type` in config.json.
_MODEL_TYPES = ("qwen2_vl", "qwen3_vl")
# Values that config.json leaves out if they are transformers' defaults (models/qwen2_vl/configuration_qwen2_vl.py).
_DEFAULTS: dict[str, dict[str, int]] = {"qwen2_vl": {"patch_size": 14, "spatial_merge_size": 2}}
# Tokens for images and videos; config.json leaves out their ids, too, if they are the defaults.
_TOKENS = {
    "vision_start": "<|vision_start|>",
    "image": "<|image_pad|>",
    "vision_end": "<|vision_end|>",
    "video": "<|video_pad|>",
}


def vision_of(
    folder: Path,
    model: str,
    config: Mapping[str, Any],
    recipe: ModelRecipe,
    tokenizer: PromptTokenizer,
    processor_kwargs: Mapping[str, Any] | None = None,
) -> Vision | None:
    """How a model takes images and videos, or None for a text model.

    Args:
        folder: Its small files.
        model: Its name, for errors.
        config: Its config.json.
        recipe: Its recipe.
        tokenizer: Its tokenizer.
        processor_kwargs: The user's `min_pixels` and `max_pixels`.

    Raises:
        ConfigurationError: `processor_kwargs` holds other keys, or numbers that leave no size.
        ModelError: The model's files do not say.
    """
    if config.get("model_type") not in _MODEL_TYPES:
        return None
    given = dict(processor_kwargs or {})
    if unknown := given.keys() - {"min_pixels", "max_pixels"}:
        raise ConfigurationError(
            f"mm_processor_kwargs has no {min(unknown)!r}; it takes min_pixels and max_pixels, between which images "
            "are resized"
        )
    try:
        shape = {**_DEFAULTS.get(config["model_type"], {}), **config["vision_config"]}
        side = int(shape["patch_size"]) * int(shape["spatial_merge_size"])
        marks = [int(config.get(f"{name}_token_id", tokenizer.token_id(_TOKENS[name]))) for name in _TOKENS]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"config.json of {model} does not say how it takes images: {error!r} is missing.") from error
    if recipe.pixels is None:
        size = read_json(folder / "preprocessor_config.json", model, IMAGES).get("size") or {}
        least, most = size.get("shortest_edge", side**2), size.get("longest_edge", 1280 * side**2)
    else:
        least, most = recipe.pixels
    least, most = given.get("min_pixels", min(least, given.get("max_pixels", least))), given.get("max_pixels", most)
    if not side**2 <= most or not 1 <= least <= most:
        raise ConfigurationError(
            f"min_pixels={least} and max_pixels={most} leave no size for an image: {model} takes images of at least "
            f"{side**2} pixels ({side} x {side}), and max_pixels must not be below min_pixels"
        )
    return Vision(
        side=side,
        min_pixels=int(least),
        max_pixels=int(most),
        placeholder="".join(map(tokenizer.token, marks[:3])),
        token_id=marks[1],
        marks=(marks[0], marks[2]),
        video_id=marks[3] if config["model_type"] == "qwen3_vl" else -1,
        tokenizer=tokenizer,
    )
