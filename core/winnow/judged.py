"""Which token of a prompt a model judges, where that is not for the model's own code alone to say."""

from collections.abc import Mapping
from typing import Any

from winnow.recipes import RECIPES, ModelRecipe


def padding_of(config: Mapping[str, Any], recipe: ModelRecipe) -> int | None:
    """Id of the token that a classifier passes over at the end of a prompt; None where it passes over none.

    The classifiers of causal models in transformers judge the last token that is not the padding token
    (`GenericForSequenceClassification` in modeling_layers.py), be it that the template itself ends in one. vLLM judges
    the last token. A causal model's judgement does not depend on what stands after the judged token, so prompts for
    both leave it out.

    Args:
        config: The contents of config.json.
        recipe: The model's.
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


def is_causal_classifier(recipe: ModelRecipe) -> bool:
    """Whether a model is a causal one with a score head on the last token, as transformers and vLLM have them."""
    encoders = {name for row in RECIPES if row.template is None for name in row.architectures}
    return (
        not recipe.labels
        and not recipe.local_code
        and any(name.endswith("ForSequenceClassification") for name in recipe.architectures)
        and encoders.isdisjoint(recipe.architectures)
    )
