"""Prompts of a causal model as one sequence without padding, whose common beginning is computed once.

In a causal model a token's state depends on the tokens before it alone. So prompts that begin alike, as a query's
prompts do, share the keys and values of that beginning. The rest of each prompt attends to them and to itself, at the
positions that it has in its own prompt. Everything else in a model computes each token by itself.

That holds for full attention alone. Other models are run prompt beside prompt in a padded batch.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer

from winnow.engines.transformers.head import JudgedHead

NAME = "winnow-packed"
# Fewer shared tokens are not worth a forward of their own.
_FEWEST_SHARED = 16
# Most tokens whose keys and values are kept: for each a model of 0.6 billion parameters takes 0.2 MB in float32.
_MOST_SHARED = 2048
# Largest mask of one prompt. Beyond it a CPU is faster at computing what the mask hides, and that takes no memory.
_LARGEST_MASK = 1 << 20
# Arguments of an attention that do not change what it computes here.
_WITHOUT_EFFECT = {"dropout", "position_ids", "use_cache", "output_attentions", "output_hidden_states", "return_dict"}
# Rotary embeddings whose angles depend on the position alone. Those of others ("dynamic", "longrope") depend on the
# length, too.
_ROTARY = {"default", "linear", "llama3", "yarn", "proportional"}

_Layers = dict[int, tuple[torch.Tensor, torch.Tensor]]


class NotPackableError(Exception):
    """The model's attention is not one that packing computes."""


class _Packing:
    """What the attention of each layer needs to know of a packed sequence.

    Args:
        lengths: Tokens of each text.
        shared: Tokens before each of them.
        layers: Keys and values of those, by layer, each of shape (1, heads, tokens, size).
        device: Where masks go.
        keep: Whether to keep the keys and values of the sequence.

    Attributes:
        kept: These keys and values, by layer, if `keep`.
    """

    def __init__(self, lengths: list[int], shared: int, layers: _Layers, device: torch.device, *, keep: bool = False):
        self.lengths = lengths
        self.shared = shared
        self.kept: _Layers = {}
        self._layers = layers
        self._keep = keep
        masked = [length for length in lengths if shared and length * (shared + length) <= _LARGEST_MASK]
        size = max(masked, default=0)
        self._mask = torch.ones(size, shared + size, dtype=torch.bool, device=device).tril(shared)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """The attention of one layer.

        Args:
            layer: The layer's number.
            query: Shape (1, heads, tokens, size).
            key: Shape (1, heads of keys, tokens, size).
            value: Likewise.
            scaling: What products are multiplied with.

        Returns:
            Shape (1, tokens, heads, size).
        """
        if self._keep:
            self.kept[layer] = key, value
        options: dict[str, Any] = {"scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
        mixed = []
        for texts in zip(*(torch.split(states, self.lengths, 2) for states in (query, key, value)), strict=True):
            queries, keys, values = texts
            length = queries.shape[2]
            if self.shared:
                before = (states[:, :, : self.shared] for states in self._layers[layer])
                keys, values = (torch.cat(both, 2) for both in zip(before, (keys, values), strict=True))
            if not self.shared:
                found = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, **options)
            elif length * (self.shared + length) <= _LARGEST_MASK:
                mask = self._mask[:length, : self.shared + length]
                found = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, **options)
            else:  # with queries for the beginning, too, it is plainly causal
                queries = torch.cat([queries.new_zeros(*queries.shape[:2], self.shared, queries.shape[3]), queries], 2)
                found = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, **options)
                found = found[:, :, self.shared :]
            mixed.append(found)
        return torch.cat(mixed, 2).transpose(1, 2).contiguous()


def _packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    packing: _Packing | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The attention of a packed sequence, as transformers calls it."""
    changed = [name for name, value in others.items() if value is not None and name not in _WITHOUT_EFFECT]
    if packing is None or attention_mask is not None or changed or not getattr(module, "is_causal", False):
        raise NotPackableError
    layer: Any = module.layer_idx
    return packing.attend(layer, query, key, value, scaling), None


AttentionInterface.register(NAME, _packed_attention)


class PackedForward:
    """Runs packed prompts through a model. Not thread-safe.

    Args:
        model: A causal model for which `may_pack` is true.
        head: Its head.
        labelled: Whether the head computes labels' logits, which the model's own code may change afterwards.
    """

    def __init__(self, model: Any, head: JudgedHead, *, labelled: bool):
        self._model = model
        self._head = head
        self._labelled = labelled
        self._plain: str = model.config._attn_implementation
        self._begin: list[int] = []  # the beginning that is kept
        self._layers: _Layers = {}

    def __call__(self, prompts: Sequence[Sequence[int]], shared: int) -> tuple[torch.Tensor, list[int]]:
        """Compute the head's outputs for prompts.

        Args:
            prompts: Token ids of the prompts.
            shared: How many tokens these and more prompts begin with in common.

        Returns:
            The outputs, shape (prompts, outputs), and how many tokens of each prompt were not computed.
        """
        self._model.set_attn_implementation(NAME)
        try:
            with torch.inference_mode():
                return self._outputs(prompts, shared)
        finally:
            self._model.set_attn_implementation(self._plain)

    def forget(self) -> None:
        """Free the beginning that is kept."""
        self._begin, self._layers = [], {}

    def _outputs(self, prompts: Sequence[Sequence[int]], shared: int) -> tuple[torch.Tensor, list[int]]:
        known = common_beginning([self._begin, *(prompt[:-1] for prompt in prompts)])
        shared = min(shared, _MOST_SHARED)
        begin = known
        if shared - known >= _FEWEST_SHARED:
            self._keep(prompts[0][:shared], known)
            begin = shared
        elif known < _FEWEST_SHARED:
            known = begin = 0
        rests = [prompt[begin:] for prompt in prompts]
        lengths = list(map(len, rests))
        inputs = self._inputs(rests, begin)
        self._head.judged = torch.tensor(lengths, device=self._model.device).cumsum(0) - 1
        if self._labelled:
            outputs = self._model(**inputs).logits
        else:  # the classifier itself would return one output for one sequence
            outputs = self._head(self._model.base_model(**inputs).last_hidden_state)
        return outputs[:, -1], [known, *[begin] * (len(prompts) - 1)]

    def _keep(self, ids: Sequence[int], known: int) -> None:
        """Keep the keys and values of a beginning, of whose tokens the first `known` are kept already."""
        inputs = self._inputs([ids[known:]], known, keep=True)
        self._model.base_model(**inputs)
        new: _Layers = inputs["packing"].kept
        if known:
            for layer, (keys, values) in self._layers.items():
                pairs = zip((keys, values), new[layer], strict=True)
                new[layer] = tuple(torch.cat([old[:, :, :known], more], 2) for old, more in pairs)  # type: ignore[assignment]
        self._begin, self._layers = list(ids), new

    def _inputs(self, texts: Sequence[Sequence[int]], shared: int, *, keep: bool = False) -> dict[str, Any]:
        """The model's inputs for texts that have `shared` kept tokens before them."""
        device = self._model.device
        lengths = list(map(len, texts))
        ids = torch.tensor([*itertools.chain.from_iterable(texts)], device=device)
        positions = torch.cat([torch.arange(shared, shared + length) for length in lengths]).to(device)
        packing = _Packing(lengths, shared, self._layers, device, keep=keep)
        return {"input_ids": ids[None], "position_ids": positions[None], "packing": packing, "use_cache": False}


def may_pack(model: Any) -> bool:
    """Whether a model's configuration is one of full causal attention through transformers' interface.

    A first comparison with the plain way tells the rest: an attention of the model's own, or one that is not causal.
    """
    config = model.config.get_text_config()
    rotary = (getattr(module, "rope_type", "default") for module in model.modules())
    takes_another = getattr(model, "_can_set_attn_implementation", lambda: False)
    return (
        getattr(model.config, "_attn_implementation", None) == "sdpa"  # another one is the user's choice
        and takes_another()  # asked first, because transformers warns of a model that does not
        and all(isinstance(kind, str) and kind in _ROTARY for kind in rotary)
        and all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
    )


def common_beginning(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with in common."""
    columns = zip(*prompts, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
