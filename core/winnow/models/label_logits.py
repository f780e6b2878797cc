"""Whether vLLM computes the logits of a causal model's labels as the model does."""

from collections.abc import Mapping
from typing import Any

from winnow.errors import ModelError
from winnow.models.checkpoint import Checkpoint
from winnow.models.config_class import config_class, ties_embeddings
from winnow.models.weight_files import shapes_of

# Fields of config.json that change the logits after the output embedding, and the value with which they do not.
_FIELDS = {"final_logit_softcapping": None, "logit_scale": 1, "logits_scaling": 1, "lm_head_multiplier": 1}


def change_of_logits(config: Mapping[str, Any]) -> str | None:
    """How a model changes its logits after the output embedding, as the field of its config.json; None if it does not.

    Args:
        config: The contents of config.json.
    """
    text = config.get("text_config") or config
    kind = config_class(text)
    own = None if kind is None else kind()
    for name, neutral in _FIELDS.items():
        value = text.get(name, getattr(own, name, None))
        if value not in (None, neutral):
            return f"{name} = {value} in config.json"
    return None


def why_not_on_vllm(checkpoint: Checkpoint) -> str | None:
    """Why vLLM would give the labels other logits than the model does; None if it would not.

    vLLM makes a classifier from the labels' rows of `lm_head`, or of `embed_tokens` if the two are tied
    (`load_weights_using_from_2_way_softmax` in vllm/model_executor/models/adapters.py). If the model has another name
    for them, the classifier's weights are uninitialised memory.

    Args:
        checkpoint: The model. The names of its weights are checked, too, if its folder has the weights.
    """
    if not checkpoint.recipe.labels:
        return None
    if (change := change_of_logits(checkpoint.config)) is not None:
        return f"vLLM does not change the logits of labels as {checkpoint.model} does ({change})"
    names = [name.split(".") for name in shapes_of(checkpoint.folder, checkpoint.model)]
    if any(name[-2:] == ["lm_head", "bias"] for name in names):
        return f"vLLM leaves out the bias of the output embedding of {checkpoint.model}"
    tied = ties_embeddings(checkpoint.config)
    wanted = "embed_tokens" if tied else "lm_head"
    if names and tied is not None and not any(wanted in name for name in names):
        return f"vLLM looks for the labels in {wanted}, which {checkpoint.model} has under another name"
    return None


def check_labels_on_vllm(checkpoint: Checkpoint) -> None:
    """Refuse a model if vLLM would give its labels other logits than the model does.

    Raises:
        ModelError: The message says why, and what to do.
    """
    if (reason := why_not_on_vllm(checkpoint)) is not None:
        raise ModelError(f'{reason}: scores would be wrong. Use engine="transformers".')
