"""Which token of a prompt a model takes the score from, if engines differ in it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from winnow.models.families import RECIPES, ModelRecipe


def padding_of(config: Mapping[str, Any], recipe: ModelRecipe) -> int | None:
    """Id of the padding token that a classifier ignores at the end of a prompt; None if it ignores none.

    In transformers, the classifiers of causal models score at the last token that is not the padding token
    (`GenericForSequenceClassification` in modeling_layers.py), even if the template itself ends with padding tokens.
    vLLM scores at the last token. The logit of a causal model does not depend on later tokens, so Winnow's prompts for
    both engines leave these padding tokens out.

    Args:
        config: The contents of config.json.
        recipe: The model's recipe.
    """
    if not is_causal_classifier(recipe):
        return None
    text_config = config.get("text_config") or config
    if "pad_token_id" in text_config:
        padding = text_config["pad_token_id"]
    else:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        kind = str(text_config.get("model_type"))
        padding = getattr(CONFIG_MAPPING[kind], "pad_token_id", None) if kind in CONFIG_MAPPING else None
    return None if padding is None else int(padding)


def pooling_of(recipe: ModelRecipe, modules: Sequence[Mapping[str, Any]]) -> Literal["CLS", "LAST"] | None:
    """The pooling that vLLM must be told; None if it finds the right one.

    If modules.json of an embedder lies beside a classifier that was made of it, vLLM takes the embedder's pooling
    instead of the classifier's (`ModelConfig.__post_init__` in vllm/config/model.py), and the scores are others.

    Args:
        recipe: The model's recipe.
        modules: The contents of modules.json, if its modules are not the model's score head.
    """
    if not any(str(module.get("type")).endswith("Pooling") for module in modules):
        return None
    return "LAST" if _encoders().isdisjoint(recipe.architectures) else "CLS"


def is_causal_classifier(recipe: ModelRecipe) -> bool:
    """Whether a model is a causal one with a score head on the last token, as transformers and vLLM have them."""
    return (
        not recipe.labels
        and not recipe.local_code
        and any(name.endswith("ForSequenceClassification") for name in recipe.architectures)
        and _encoders().isdisjoint(recipe.architectures)
    )


def judges_last_token(recipe: ModelRecipe, *, with_template: bool) -> bool:
    """Whether the score comes from the last token of a prompt alone.

    Args:
        recipe: The model's recipe.
        with_template: Whether a template makes its prompts.
    """
    return bool(recipe.labels) or (with_template and is_causal_classifier(recipe))


def _encoders() -> set[str]:
    return {name for row in RECIPES if row.template is None for name in row.architectures}
