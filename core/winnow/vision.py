"""How a model sees: the size in which it takes an image, and how many tokens that is. Needs no Pillow by itself."""

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from winnow.errors import ConfigurationError, ModelError
from winnow.model_folder import read_json
from winnow.recipes import ModelRecipe
from winnow.tokenization import PromptTokenizer

# Values of `model_type` in config.json.
_MODEL_TYPES = ("qwen3_vl",)
# Longest side over shortest (qwen_vl_utils, vision_process.py, MAX_RATIO; also transformers' smart_resize).
_MAX_RATIO = 200


@dataclass(frozen=True, slots=True)
class PromptImage:
    """An image in a prompt, in the size in which the model takes it.

    Attributes:
        pixels: A `PIL.Image.Image`, RGB.
        tokens: How many tokens stand for it in the prompt, the marks at its two ends not counted.
        key: What tells it from other images: 16 bytes made from the pixels.
    """

    pixels: Any = field(compare=False, repr=False)
    tokens: int
    key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Vision:
    """How a model sees.

    Attributes:
        side: Pixels on a side of the square that one token stands for.
        min_pixels: Smaller images are enlarged to this many pixels.
        max_pixels: Larger images are reduced to this many pixels.
        placeholder: The template's text for an image: the mark before it, one token for the image, the mark after it.
        token_id: Id of that token, which stands in the prompt as often as the image has tokens.
    """

    side: int
    min_pixels: int
    max_pixels: int
    placeholder: str
    token_id: int

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in which the model takes an image, in pixels; both are multiples of `side`.

        `smart_resize` of qwen_vl_utils, which the model card's code calls. Once more where its result is still too
        large, as transformers and vLLM would do: only long strips beside a small `max_pixels` are.

        Raises:
            ValueError: It is too long a strip.
        """
        if max(width, height) > _MAX_RATIO * min(width, height):
            raise ValueError(
                f"it measures {width} x {height} pixels, and models take no strip that is more than {_MAX_RATIO} times "
                "as long as wide: cut it into pieces"
            )
        wide, high = (max(self.side, round(length / self.side) * self.side) for length in (width, height))
        while wide * high > self.max_pixels and max(wide, high) > self.side:
            shrink = math.sqrt(width * height / self.max_pixels)
            wide, high = (
                max(self.side, math.floor(length / shrink / self.side) * self.side) for length in (width, height)
            )
            width, height = wide, high
        if wide * high < self.min_pixels:
            stretch = math.sqrt(self.min_pixels / (width * height))
            wide, high = (math.ceil(length * stretch / self.side) * self.side for length in (width, height))
        return wide, high

    def prepared(self, image: Any) -> PromptImage:
        """An image as it goes into a prompt.

        Resized here, so that all engines see the same pixels, whichever library their processors resize with.

        Args:
            image: A `PIL.Image.Image`, RGB.

        Raises:
            ValueError: It is too long a strip.
        """
        wide, high = self.size(*image.size)
        pixels = image.resize((wide, high))  # bicubic, Pillow's default and the model card's
        digest = hashlib.blake2b(f"{wide}x{high}".encode(), digest_size=16)
        digest.update(pixels.tobytes())
        return PromptImage(pixels, wide * high // self.side**2, digest.digest())

    def expanded(self, ids: Sequence[int], images: Sequence[PromptImage]) -> list[int]:
        """`ids` with as many tokens for each image as it has, as transformers wants them."""
        counts = (image.tokens for image in images)
        pieces = ([index] * next(counts, 1) if index == self.token_id else [index] for index in ids)
        return list(itertools.chain.from_iterable(pieces))

    def collapsed(self, ids: Sequence[int]) -> list[int]:
        """`ids` with one token for each image, as vLLM wants them."""
        return [
            index
            for index, before in zip(ids, [None, *ids[:-1]], strict=True)
            if index != self.token_id or before != self.token_id
        ]


def vision_of(
    folder: Path,
    model: str,
    config: Mapping[str, Any],
    recipe: ModelRecipe,
    tokenizer: PromptTokenizer,
    processor_kwargs: Mapping[str, Any] | None = None,
) -> Vision | None:
    """How a model sees, or None if it only reads.

    Args:
        folder: Its small files.
        model: Its name, for errors.
        config: Its config.json.
        recipe: Its recipe.
        tokenizer: Its tokenizer.
        processor_kwargs: The user's `min_pixels` and `max_pixels`.

    Raises:
        ConfigurationError: `processor_kwargs` holds something else, or numbers that cannot be.
        ModelError: The model's files do not tell.
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
        shape = config["vision_config"]
        side = int(shape["patch_size"]) * int(shape["spatial_merge_size"])
        marks = [int(config[f"{name}_token_id"]) for name in ("vision_start", "image", "vision_end")]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"config.json of {model} does not say how the model sees: {error!r} is missing.") from error
    if recipe.pixels is None:
        size = read_json(folder / "preprocessor_config.json", model).get("size") or {}
        least, most = size.get("shortest_edge", side**2), size.get("longest_edge", 1280 * side**2)
    else:
        least, most = recipe.pixels
    least, most = given.get("min_pixels", min(least, given.get("max_pixels", least))), given.get("max_pixels", most)
    if not side**2 <= most or not 1 <= least <= most:
        raise ConfigurationError(
            f"min_pixels={least} and max_pixels={most} leave no size for an image: {model} takes images of at least "
            f"{side**2} pixels ({side} x {side}), and the second must not be below the first"
        )
    return Vision(
        side=side,
        min_pixels=int(least),
        max_pixels=int(most),
        placeholder="".join(map(tokenizer.token, marks)),
        token_id=marks[1],
    )
