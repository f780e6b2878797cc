"""Architectures whose checkpoints bring code of their own, without running it.

vLLM and transformers know these models, but not by the `model_type` in their config.json, and would ask for
`trust_remote_code`. Importing this module registers the types with transformers: import it for such a model only.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, GteConfig, GteForSequenceClassification, LlamaConfig, LlamaModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel


class LlamaBidirectionalConfig(LlamaConfig):  # type: ignore[no-untyped-call]
    """config.json of nvidia/llama-nemotron-rerank-1b-v2.

    Attributes:
        pooling: How token states make the text's: "avg", "cls" or "last".
        temperature: What the logit is divided by; `ModelRecipe.temperature` does that for every engine.
    """

    model_type = "llama_bidirec"
    pooling: str = "avg"
    temperature: float = 1.0


class LlamaBidirectionalForSequenceClassification(LlamaPreTrainedModel):  # type: ignore[no-untyped-call]
    """Llama in which every token sees every other, with a score head on the pooled states.

    The model's own `llama_bidirectional_model.py`, less its division by the temperature; the same as vLLM's class of
    this name.
    """

    config_class = LlamaBidirectionalConfig

    def __init__(self, config: LlamaBidirectionalConfig):
        config.is_causal = False  # for the mask; below for attention without one
        super().__init__(config)
        self.model = LlamaModel(config)
        for layer in self.model.layers:
            layer.self_attn.is_causal = False
        self.score = nn.Linear(config.hidden_size, config.num_labels or 1, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SequenceClassifierOutput:
        """Score a batch padded on the right.

        Args:
            input_ids: Token ids, shape (batch, length).
            attention_mask: 1 at tokens and 0 at padding, shape (batch, length).

        Returns:
            `logits` of shape (batch, labels).
        """
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
        match self.config.pooling:
            case "avg":
                weights = attention_mask[..., None].to(states.dtype)
                pooled = (states * weights).sum(1) / weights.sum(1)
            case "cls":
                pooled = states[:, 0]
            case "last":
                pooled = states[torch.arange(len(states)), attention_mask.sum(1) - 1]
            case other:
                raise ValueError(f"config.json has pooling={other!r}; known are 'avg', 'cls' and 'last'")
        return SequenceClassifierOutput(logits=self.score(pooled))


class NewConfig(GteConfig):  # type: ignore[no-untyped-call]
    """config.json of Alibaba-NLP/gte-multilingual-reranker-base. vLLM insists on the name of the class."""

    model_type = "new"
    position_embedding_type: str = "rope"


def _gte_config(config: Mapping[str, Any]) -> GteConfig:
    """The same model under the name that transformers has for it.

    Its "ntk" rope is not one of transformers', but is a "linear" one with another base and factor (vLLM,
    layers/rotary_embedding/ntk_scaling_rope.py).
    """
    fields = {name: value for name, value in config.items() if name not in ("model_type", "auto_map")}
    rope = {**(fields.pop("rope_scaling", None) or {}), **(fields.get("rope_parameters") or {})}
    theta = fields.pop("rope_theta", None) or rope.get("rope_theta")
    if (rope.get("rope_type") or rope.get("type")) == "ntk":
        size = fields["hidden_size"] // fields["num_attention_heads"]
        fields["rope_parameters"] = {
            "rope_type": "linear",
            "rope_theta": theta * rope["factor"],
            "factor": rope["factor"] ** (2 / size),
        }
    elif theta is not None:
        fields["rope_parameters"] = {"rope_type": "default", **rope, "rope_theta": theta}
    return GteConfig.from_dict(fields)


# vLLM's processes import this module with the configuration they are sent, so it is registered there too.
AutoConfig.register(LlamaBidirectionalConfig.model_type, LlamaBidirectionalConfig, exist_ok=True)
AutoConfig.register(NewConfig.model_type, NewConfig, exist_ok=True)


def class_and_config(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The class that runs such a model in transformers, and its configuration, from the contents of config.json."""
    if config["model_type"] == LlamaBidirectionalConfig.model_type:
        return LlamaBidirectionalForSequenceClassification, LlamaBidirectionalConfig.from_dict(dict(config))
    return GteForSequenceClassification, _gte_config(config)
