"""How each model family is loaded, prompted and scored: a table, one row a family."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from winnow.errors import ConfigurationError, ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe:
    """What Winnow must know of a reranker.

    Attributes:
        family: Name of the row; also accepted as `Reranker(recipe=...)`.
        architectures: Values of `architectures` in config.json that the family is published with.
        names: Regular expression that a model's name or path matches, whatever the case. Several families share an
            architecture.
        template: Name of the built-in template, or None for the tokenizer's pair encoding.
        labels: Tokens whose logits make the score: (negative, positive), or (positive,) alone; empty for a score head.
        max_length: Prompt length of the family's reference code, in tokens; None for the model's own limit.
    """

    family: str
    architectures: tuple[str, ...] = ()
    names: str = ""
    template: str | None = None
    labels: tuple[str, ...] = ()
    max_length: int | None = None

    @property
    def formula(self) -> str:
        """The raw logit, in words."""
        match self.labels:
            case (negative, positive):
                return f"logit[{positive!r}] − logit[{negative!r}]"
            case (positive,):
                return f"logit[{positive!r}]"
            case _:
                return "output of the score head"

    @property
    def vllm_overrides(self) -> dict[str, Any]:
        """`hf_overrides` that make vLLM load a causal model as a classifier (vLLM `models/adapters.py`)."""
        if not self.labels:
            return {}
        return {
            "architectures": [_classifier_of(name) for name in self.architectures],
            "classifier_from_token": list(self.labels),
            "method": "from_2_way_softmax" if len(self.labels) == 2 else "no_post_processing",
        }


RECIPES: tuple[ModelRecipe, ...] = (
    # Qwen/Qwen3-Reranker-0.6B, -4B, -8B and their conversions: model card, "Transformers Usage" (max_length = 8192).
    ModelRecipe(
        family="qwen3-reranker",
        architectures=("Qwen3ForCausalLM",),
        names=r"qwen3-reranker",
        template="qwen3_reranker",
        labels=("no", "yes"),
        max_length=8192,
    ),
)


def recipe_for(model: str, config: Mapping[str, Any], recipe: str | ModelRecipe | None = None) -> ModelRecipe:
    """The recipe of a model.

    Args:
        model: Its name or path, as the user gave it.
        config: Its config.json.
        recipe: A recipe, or the family name of one, that the user gave; then nothing is guessed.

    Raises:
        ConfigurationError: No family has that name.
        ModelError: The model is not one Winnow knows as a reranker.
    """
    architectures: Sequence[str] = config.get("architectures") or ()
    if isinstance(recipe, ModelRecipe):
        return recipe
    if recipe is not None:
        try:
            row = next(row for row in RECIPES if row.family == recipe)
        except StopIteration:
            raise ConfigurationError(f"recipe={recipe!r} is not a family; there are: {_families(RECIPES)}.") from None
    else:
        row = _guess(model, config, architectures)
    converted = architectures and architectures[0] in {_classifier_of(name) for name in row.architectures}
    return replace(row, labels=(), architectures=tuple(architectures)) if converted else row


def _guess(model: str, config: Mapping[str, Any], architectures: Sequence[str]) -> ModelRecipe:
    kin = [
        row
        for row in RECIPES
        for name in row.architectures
        if architectures and architectures[0] in (name, _classifier_of(name))
    ]
    names = (model, str(config.get("_name_or_path", "")))
    for row in kin:
        if any(re.search(row.names, name, re.IGNORECASE) for name in names):
            return row
    is_a = f"{model} is a {architectures[0]}" if architectures else f"config.json of {model} names no architecture"
    if kin:
        raise ModelError(
            f"{is_a}, and its name does not tell which reranker it is. If it is one, say so with recipe=..., one of: "
            f"{_families(kin)}. "
            "For a judge of your own pass recipe=ModelRecipe(family=..., architectures=..., template=..., "
            "labels=(negative, positive))."
        )
    raise ModelError(
        f"{is_a}, which is not a reranker that Winnow knows ({_families(RECIPES)}). Check the name, or pass "
        "recipe=ModelRecipe(...)."
    )


def _classifier_of(architecture: str) -> str:
    return re.sub(r"For(CausalLM|ConditionalGeneration)$", "ForSequenceClassification", architecture)


def _families(rows: Sequence[ModelRecipe]) -> str:
    return ", ".join(dict.fromkeys(row.family for row in rows))
