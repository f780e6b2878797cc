"""A sentence-transformers `CrossEncoder` whose score head is a chain of modules.

It computes as sentence_transformers 6.2 does (`base/modules` and `sentence_transformer/modules` there), which need not
be installed.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from winnow.models import Checkpoint, HeadModule

_SENTENCE = "sentence_embedding"


class ModularCrossEncoder(nn.Module):
    """A transformer and the modules after it. The modules compute in float32, whatever the transformer's data type is.

    Args:
        transformer: The transformer; its output has `last_hidden_state`.
        head: The modules, as the files describe them.
        layers: The layers of each module; empty if it has none.
    """

    def __init__(self, transformer: Any, head: tuple[HeadModule, ...], layers: list[nn.ModuleDict]):
        super().__init__()
        self.transformer = transformer
        self.layers = nn.ModuleList(layers)
        self._steps: list[tuple[HeadModule, Any]] = list(zip(head, layers, strict=True))

    @classmethod
    def load(cls, transformer: Any, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> "ModularCrossEncoder":
        """Put the modules of a checkpoint after its transformer.

        Args:
            transformer: The transformer, loaded.
            checkpoint: The checkpoint.
            settings: Keywords, of which those for the Hub are used (`revision`, `token`, `cache_dir`).
        """
        hub = {name: settings[name] for name in ("revision", "token", "cache_dir") if name in settings}
        return cls(transformer, checkpoint.head, [_loaded(checkpoint.model, module, hub) for module in checkpoint.head])

    @property
    def config(self) -> Any:
        """The transformer's configuration."""
        return self.transformer.config

    @property
    def device(self) -> torch.device:
        """The device of the transformer."""
        device: torch.device = self.transformer.device
        return device

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **inputs: torch.Tensor
    ) -> SequenceClassifierOutput:
        """Score a batch padded on the right.

        Args:
            input_ids: Token ids, shape (batch, length).
            attention_mask: 1 at tokens and 0 at padding, shape (batch, length).
            inputs: `token_type_ids` of the same shape, if the model has token types.

        Returns:
            `logits` of shape (batch, scores).
        """
        states = self.transformer(input_ids=input_ids, attention_mask=attention_mask, **inputs).last_hidden_state
        features = {"token_embeddings": states.float()}
        for module, layers in self._steps:
            source = str(module.config.get("module_input_name") or _SENTENCE)
            target = str(module.config.get("module_output_name") or source)
            match module.kind:
                case "Pooling":
                    pooled = [_POOL[mode](features["token_embeddings"], attention_mask) for mode in module.modes]
                    features[_SENTENCE] = torch.cat(pooled, dim=-1)
                case "Dense":
                    residual: Any = layers["residual"](features[source]) if "residual" in layers else 0.0
                    features[target] = layers["activation"](layers["linear"](features[source])) + residual
                case "LayerNorm":
                    features[_SENTENCE] = layers["norm"](features[_SENTENCE])
                case "Normalize":
                    features[target] = nn.functional.normalize(features[source], p=2, dim=-1)
        return SequenceClassifierOutput(logits=features["scores"])  # a Dropout does nothing here


def _loaded(model: str, module: HeadModule, hub: Mapping[str, Any]) -> nn.ModuleDict:
    """The layers of a module, with its weights."""
    config = module.config
    layers = nn.ModuleDict()
    if module.kind == "LayerNorm":
        layers["norm"] = nn.LayerNorm(config["dimension"])
    elif module.kind == "Dense":
        size, out = config["in_features"], config["out_features"]
        layers["linear"] = nn.Linear(size, out, bias=config.get("bias", True))
        if config.get("use_residual"):
            layers["residual"] = nn.Identity() if size == out else nn.Linear(size, out, bias=False)
    if layers:
        layers.load_state_dict(_weights(model, module.path, hub))
    if module.kind == "Dense":
        activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
        layers["activation"] = getattr(nn, activation.rpartition(".")[2])()
    return layers


def _weights(model: str, path: str, hub: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file
    from transformers.utils.hub import cached_file

    find: Any = cached_file
    if file := find(model, "model.safetensors", subfolder=path, _raise_exceptions_for_missing_entries=False, **hub):
        return load_file(file)
    loaded: dict[str, torch.Tensor] = torch.load(
        find(model, "pytorch_model.bin", subfolder=path, **hub), map_location="cpu", weights_only=True
    )
    return loaded


def _mean(states: torch.Tensor, mask: torch.Tensor, power: float = 1.0) -> torch.Tensor:
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1) ** power


def _weighted_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device))[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


_POOL: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cls": lambda states, mask: states[:, 0],  # noqa: ARG005
    "max": lambda states, mask: states.masked_fill(mask[..., None] == 0, float("-inf")).max(1).values,
    "mean": _mean,
    "mean_sqrt_len_tokens": lambda states, mask: _mean(states, mask, 0.5),
    "weightedmean": _weighted_mean,
    "lasttoken": lambda states, mask: states[torch.arange(len(states), device=states.device), mask.sum(1) - 1],
}
