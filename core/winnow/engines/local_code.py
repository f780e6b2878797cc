"""Models whose checkpoints have code of their own, which Winnow does not run.

vLLM and transformers have these models, but do not recognise the `model_type` in their config.json, and would need
`trust_remote_code`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    GteConfig,
    GteForSequenceClassification,
    LlamaConfig,
    LlamaModel,
    PreTrainedConfig,
    Qwen2VLConfig,
    Qwen2VLModel,
    Qwen2VLPreTrainedModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

from winnow.errors import ModelError


class LlamaBidirectionalConfig(LlamaConfig):  # type: ignore[no-untyped-call]
    """config.json of nvidia/llama-nemotron-rerank-1b-v2.

    Attributes:
        pooling: How the states of the tokens become one state: "avg", "cls" or "last".
        temperature: The number that divides the logit; `ModelRecipe.temperature` does that for every engine.
    """

    model_type = "llama_bidirec"
    pooling: str = "avg"
    temperature: float = 1.0


class LlamaBidirectionalForSequenceClassification(LlamaPreTrainedModel):  # type: ignore[no-untyped-call]
    """Llama with bidirectional attention and a score head on the pooled states.

    As the model's own `llama_bidirectional_model.py`, without the division by the temperature, and as vLLM's class of
    this name.
    """

    config_class = LlamaBidirectionalConfig

    def __init__(self, config: LlamaBidirectionalConfig):
        config.is_causal = False  # for the attention mask; below for attention without a mask
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
    """config.json of Alibaba-NLP/gte-multilingual-reranker-base. vLLM needs this name of the class."""

    model_type = "new"
    position_embedding_type: str = "rope"


def _gte_config(config: Mapping[str, Any]) -> GteConfig:
    """The configuration as transformers' own class for this model.

    transformers does not have the "ntk" rope of this model. It is a "linear" rope with another base and factor (vLLM,
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


class XLMRobertaFlashConfig(XLMRobertaConfig):  # type: ignore[no-untyped-call]
    """config.json of jinaai/jina-reranker-v2-base-multilingual, which has no `model_type`, or XLM-RoBERTa's.

    The model is XLM-RoBERTa. Its code, jinaai/xlm-roberta-flash-implementation, adds FlashAttention and renames weights
    (convert_roberta_weights_to_flash.py there; vLLM, models/roberta.py, knows the names).
    """

    model_type = "xlm_roberta_flash"


register_checkpoint_conversion_mapping(
    XLMRobertaFlashConfig.model_type,
    [
        WeightRenaming("emb_ln", "embeddings.LayerNorm"),
        WeightRenaming("encoder.layers", "encoder.layer"),
        WeightRenaming("mixer.out_proj", "attention.output.dense"),
        WeightRenaming("norm1", "attention.output.LayerNorm"),
        WeightRenaming("norm2", "output.LayerNorm"),
        WeightRenaming("mlp.fc1", "intermediate.dense"),
        WeightRenaming("mlp.fc2", "output.dense"),
        WeightConverter(
            "mixer.Wqkv",
            ["attention.self.query", "attention.self.key", "attention.self.value"],
            operations=[Chunk(dim=0)],
        ),
    ],
    overwrite=True,
)


class JinaVLForRanking(Qwen2VLPreTrainedModel):  # type: ignore[no-untyped-call]
    """jinaai/jina-reranker-m0: Qwen2-VL with a head of two layers on the state of the last token.

    As the model's own `modeling.py`, without its subtraction from the logit and its sigmoid.
    """

    def __init__(self, config: Qwen2VLConfig):
        super().__init__(config)
        size = config.get_text_config().hidden_size
        self.model = Qwen2VLModel(config)
        self.score = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 1))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **images: torch.Tensor
    ) -> SequenceClassifierOutput:
        """Score a batch padded on the right.

        Args:
            input_ids: Token ids, shape (batch, length).
            attention_mask: 1 at tokens and 0 at padding, shape (batch, length).
            images: The outputs of the image processor, if there are images.

        Returns:
            `logits` of shape (batch, 1).
        """
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **images)[0]
        last = states[torch.arange(len(states)), attention_mask.sum(1) - 1]
        return SequenceClassifierOutput(logits=self.score(last))


register_checkpoint_conversion_mapping(
    JinaVLForRanking.__name__,
    [
        WeightRenaming(r"^visual", "model.visual"),
        WeightRenaming(r"^model(?!\.(language_model|visual))", "model.language_model"),
    ],
    overwrite=True,
)

_CONFIGS: dict[str | None, type[PreTrainedConfig]] = {
    None: XLMRobertaFlashConfig,
    XLMRobertaConfig.model_type: XLMRobertaFlashConfig,
    **{kind.model_type: kind for kind in (LlamaBidirectionalConfig, NewConfig, Qwen2VLConfig)},
}


def own_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    """The contents of such a config.json, read as the checkpoint's own code would read them.

    Raises:
        ModelError: config.json is of another model.
    """
    model_type = config.get("model_type") or None
    if model_type not in _CONFIGS:
        raise ModelError(
            f"config.json has model_type {model_type!r}, which does not belong to the recipe; of models that bring "
            f"code of their own, Winnow reads {', '.join(filter(None, _CONFIGS))}."
        )
    fields = {name: value for name, value in config.items() if name not in ("auto_map", "model_type")}
    return _CONFIGS[model_type].from_dict(fields)


def class_and_config(config: Mapping[str, Any]) -> tuple[Any, PreTrainedConfig]:
    """The class that runs such a model in transformers, and its configuration, from the contents of config.json."""
    match own_config(config):
        case LlamaBidirectionalConfig() as own:
            return LlamaBidirectionalForSequenceClassification, own
        case Qwen2VLConfig() as own:
            return JinaVLForRanking, own
        case XLMRobertaFlashConfig() as own:
            return XLMRobertaForSequenceClassification, own
    return GteForSequenceClassification, _gte_config(config)
