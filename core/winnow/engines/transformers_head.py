"""A model's head, in float32 and at one position alone: the one that is judged.

transformers applies a head to all positions, in the type of the body. A reranker needs one position, of which bfloat16
keeps too little: logits near 18 come in steps of 0.125 there, and a score is the difference of two of them. vLLM's
heads are float32, too (`ModelConfig.head_dtype`).

What is put in here stands where the model's own head stood, so that the model's own code still does what it does with
logits (softcapping in Gemma 2, scaling in Cohere and Granite).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.errors import EngineLoadError
from winnow.weights import read_index


class JudgedHead(nn.Module):
    """A head that looks at the judged position of each prompt, and answers for all positions.

    A classifier of transformers picks one position of the answer, by looking for padding tokens among the ids.
    Whichever it picks, it gets the answer for the judged one.

    Args:
        layer: The model's own head.
        rows: Which of its outputs are wanted; by default all.

    Attributes:
        judged: The judged position of each prompt of the batch, shape (batch,). It is set before each forward; None
            lets the layer answer for each position by itself, as a model needs that pools the answers (EuroBERT).
    """

    def __init__(self, layer: nn.Module, rows: Sequence[int] | None = None):
        super().__init__()
        self.judged: torch.Tensor | None = None
        self._float32 = type(layer) is nn.Linear  # others (quantised ones) do as they do, and compute all outputs
        self._rows = None if self._float32 else rows
        self.layer = _in_float32(layer, rows) if self._float32 else layer

    @property
    def weight(self) -> torch.Tensor:
        """The layer's weight: some models look at its type (Mamba)."""
        weight: Any = self.layer.weight
        assert isinstance(weight, torch.Tensor)  # noqa: S101 - for mypy
        return weight

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Apply the head.

        Args:
            states: Those of all positions, shape (batch, length, hidden size), or what a model has pooled from them,
                shape (batch, hidden size).

        Returns:
            The wanted outputs, in the shape of `states` but for the last dimension.
        """
        if states.ndim == 2 or self.judged is None:
            return self._apply_to(states)
        at = torch.arange(len(states), device=states.device)
        return self._apply_to(states[at, self.judged])[:, None].expand(-1, states.shape[1], -1)

    def _apply_to(self, states: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layer(states.float() if self._float32 else states)
        return outputs if self._rows is None else outputs[..., list(self._rows)]


def _in_float32(layer: Any, rows: Sequence[int] | None) -> nn.Linear:
    """A linear layer of some rows of another. Where these are all and float32 already, no copy is made."""
    wanted = slice(None) if rows is None else list(rows)
    head = nn.Linear(1, 1, bias=layer.bias is not None, device="meta")
    head.weight = nn.Parameter(layer.weight.detach()[wanted].float(), requires_grad=False)
    if layer.bias is not None:
        head.bias = nn.Parameter(layer.bias.detach()[wanted].float(), requires_grad=False)
    return head


def put_label_head(model: Any, label_ids: Sequence[int]) -> JudgedHead:
    """Let a causal model compute the logits of the labels alone.

    Raises:
        EngineLoadError: It has no output embedding, or the labels are not in it.
    """
    layer = model.get_output_embeddings()
    if layer is None:
        raise EngineLoadError(f"A {type(model).__name__} has no output embedding, so it has no logits of labels.")
    size = getattr(layer, "out_features", None)
    if size is not None and max(label_ids) >= size:
        raise EngineLoadError(
            f"The label tokens {tuple(label_ids)} are not among the {size} rows of the model's output embedding: the "
            "tokenizer does not belong to the model."
        )
    head = JudgedHead(layer, label_ids)
    [name] = [name for name, module in model.named_modules() if module is layer]
    model.set_submodule(name, head)
    return head


def put_score_heads(model: Any, exact: Callable[[str], torch.Tensor | None]) -> list[JudgedHead]:
    """Let a classifier run what stands on its body in float32.

    Args:
        model: The classifier.
        exact: The weight of that name as it is in the files, where loading has rounded it; None if it is not there.

    Returns:
        The linear layers of the head. A model that hands them all positions judges one of these.
    """
    body = getattr(model, "base_model", model)
    if body is model:
        return []
    heads = []
    for name, child in list(model.named_children()):
        if child is body:
            continue
        _make_float32(child, f"{name}.", exact)
        if type(child) is nn.Linear:
            heads.append(JudgedHead(child))
            model.set_submodule(name, heads[-1])
    if isinstance(pooler := getattr(body, "pooler", None), nn.Module):  # of BERT: a part of the head in vLLM, too
        _make_float32(pooler, f"{model.base_model_prefix}.pooler.", exact)
    return heads


def _make_float32(module: nn.Module, prefix: str, exact: Callable[[str], torch.Tensor | None]) -> None:
    rounded = [name for name, weight in module.named_parameters() if weight.dtype in (torch.bfloat16, torch.float16)]
    module.float()
    for name in rounded:
        weight, found = module.get_parameter(name), exact(prefix + name)
        if found is not None and found.shape == weight.shape:
            weight.data.copy_(found)
    module.register_forward_pre_hook(_to_float32)


def _to_float32(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(one.float() if isinstance(one, torch.Tensor) and one.is_floating_point() else one for one in inputs)


def weight_in_files(model: str, hub: Mapping[str, Any], name: str) -> torch.Tensor | None:
    """A weight as it is in a model's safetensors files, which have been loaded; None if it is not there.

    Args:
        model: A folder, or a name on the Hugging Face Hub.
        hub: Keywords with which transformers reads the model's files.
        name: Name of the weight.
    """
    from safetensors import safe_open
    from transformers.utils.hub import cached_file

    def found(file: str) -> str | None:
        find: Any = cached_file
        path: str | None = find(
            model,
            file,
            local_files_only=True,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **{name: value for name, value in hub.items() if name != "trust_remote_code"},
        )
        return path

    file = found("model.safetensors")
    if file is None and (index := found("model.safetensors.index.json")) is not None:
        shard = read_index(Path(index).parent, model).get(name)
        file = shard and found(shard)
    if file is None:
        return None
    with safe_open(file, framework="pt") as weights:
        if name not in weights.keys():  # noqa: SIM118 - not a mapping
            return None
        weight: torch.Tensor = weights.get_tensor(name)
        return weight
