"""A model's head, computed in float32 and only at the position that gives the score.

transformers applies a head to all positions, in the data type of the body. A reranker needs one position. bfloat16 is
not exact enough for it: near 18 its logits have steps of 0.125, and a score is the difference of two of them. vLLM's
heads are float32, too (`ModelConfig.head_dtype`).

The new head takes the place of the model's own head in the model, so that the model's own code still changes the logits
afterwards (softcapping in Gemma 2, scaling in Cohere and Granite).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.errors import EngineLoadError
from winnow.models import read_index


class JudgedHead(nn.Module):
    """A head that computes the output of one position of each prompt, and returns it for all positions.

    A classifier of transformers chooses a position by looking for padding tokens among the ids. Whichever it chooses,
    it gets the output of the judged position.

    Args:
        layer: The model's own head.
        rows: The outputs that are needed; by default all.

    Attributes:
        judged: The position of each prompt of the batch, shape (batch,). It is set before each forward. With None each
            position gets its own output, as models need that pool the outputs (EuroBERT).
    """

    def __init__(self, layer: nn.Module, rows: Sequence[int] | None = None):
        super().__init__()
        self.judged: torch.Tensor | None = None
        self._float32 = (
            type(layer) is nn.Linear
        )  # other layers (quantised ones) are not changed, and compute all outputs
        self._rows = None if self._float32 else rows
        self.layer = _in_float32(layer, rows) if self._float32 else layer

    @property
    def weight(self) -> torch.Tensor:
        """The layer's weight; some models (Mamba) read its data type."""
        weight: Any = self.layer.weight
        assert isinstance(weight, torch.Tensor)  # noqa: S101 - for mypy
        return weight

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Apply the head.

        Args:
            states: The states of all positions, shape (batch, length, hidden size), or pooled states, shape (batch,
                hidden size).

        Returns:
            The outputs, in the shape of `states` except for the last dimension.
        """
        if states.ndim == 2 or self.judged is None:
            return self._apply_to(states)
        at = torch.arange(len(states), device=states.device)
        return self._apply_to(states[at, self.judged])[:, None].expand(-1, states.shape[1], -1)

    def _apply_to(self, states: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layer(states.float() if self._float32 else states)
        return outputs if self._rows is None else outputs[..., list(self._rows)]


def _in_float32(layer: Any, rows: Sequence[int] | None) -> nn.Linear:
    """A linear layer with some rows of another one. All rows in float32 are not copied."""
    wanted = slice(None) if rows is None else list(rows)
    head = nn.Linear(1, 1, bias=layer.bias is not None, device="meta")
    head.weight = nn.Parameter(layer.weight.detach()[wanted].float(), requires_grad=False)
    if layer.bias is not None:
        head.bias = nn.Parameter(layer.bias.detach()[wanted].float(), requires_grad=False)
    return head


def put_label_head(model: Any, label_ids: Sequence[int]) -> JudgedHead:
    """Make a causal model compute only the logits of the labels.

    Raises:
        EngineLoadError: The model has no output embedding, or the labels are not in it.
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
    """Make a classifier compute the layers after its body in float32.

    Args:
        model: The classifier.
        exact: Returns the weight of a name as it is in the files, because loading may have rounded it; None if the
            files do not have it.

    Returns:
        The linear layers of the head. They compute one position, if the model gives them the states of all positions.
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
    """A weight as it is in a model's safetensors files, which are local by now; None if they do not have it.

    Args:
        model: A folder, or a name on the Hugging Face Hub.
        hub: Keywords for transformers to read the model's files.
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
