"""Prompts that begin alike, as one sequence for a causal model: their common beginning is computed once.

A model of transformers runs it with `attn_implementation="winnow-packed-training"` and the argument `packing`.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

NAME = "winnow-packed-training"  # Winnow's own is "winnow-packed"


class Packing:
    """Prompts with the same beginning as one sequence: that beginning once, then the rest of each prompt.

    The rest of a prompt attends to the beginning and to itself, at the positions that it has in its own prompt. So each
    token's state is the one that it has in its own prompt.

    Args:
        prompts: The token ids of the prompts.
        device: Where the tensors go.
        dtype: The data type of the model.

    Attributes:
        ids: Token ids of the sequence, shape (tokens,).
        positions: Their positions, shape (tokens,).
        ends: Where each prompt's last token is.
        shared: Number of tokens at the beginning.
        rows: Where the rests are, shape (prompts, longest rest); a shorter rest repeats its last token.
        columns: What each rest attends to: the beginning, then itself.
        used: Where the tokens of the rests are among the flattened rows.
        mask: Zero where a token attends, and very small elsewhere.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], device: torch.device, dtype: torch.dtype):
        columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
        shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
        rests = [prompt[shared:] for prompt in prompts]
        lengths = torch.tensor([len(rest) for rest in rests])
        ends = shared + lengths.cumsum(0) - 1
        longest = int(lengths.max())
        offsets = torch.arange(longest)
        self.shared = shared
        self.ids = torch.tensor([*prompts[0][:shared], *(index for rest in rests for index in rest)], device=device)
        positions = [torch.arange(shared), *(torch.arange(shared, shared + len(rest)) for rest in rests)]
        self.positions = torch.cat(positions).to(device)
        self.ends = ends.to(device)
        self.rows = torch.minimum((ends - lengths + 1)[:, None] + offsets, ends[:, None]).to(device)
        beginning = torch.arange(shared, device=device).expand(len(rests), -1)
        self.columns = torch.cat([beginning, self.rows], 1)
        self.used = (offsets < lengths[:, None]).flatten().nonzero()[:, 0].to(device)
        self.mask = torch.zeros(longest, shared + longest, dtype=dtype, device=device)
        self.mask[:, shared:] = self.causal(longest)

    def causal(self, length: int) -> torch.Tensor:
        """The mask of a text that attends to itself."""
        full = torch.full((length, length), torch.finfo(self.mask.dtype).min, dtype=self.mask.dtype)
        return full.triu(1).to(self.mask.device)


def packed_attention(
    module: nn.Module,  # noqa: ARG001
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001
    scaling: float,
    packing: Packing,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The attention of a packed sequence, as transformers calls it: shapes (1, heads, tokens, head size)."""
    keys, values = key[0], value[0]
    queries = query[0].unflatten(0, (len(keys), -1))  # (heads of keys, queries for each, tokens, size)
    end = packing.shared
    head = _attend(queries[None, :, :, :end], keys[None, :, :end], values[None, :, :end], packing.causal(end), scaling)
    rests = _attend(
        queries[:, :, packing.rows].movedim(2, 0),
        keys[:, packing.columns].movedim(1, 0),
        values[:, packing.columns].movedim(1, 0),
        packing.mask,
        scaling,
    )
    return torch.cat([head, rests[packing.used]])[None], None


def _attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Attention of texts, shape (texts * tokens, heads, size). All queries of a key's head go in one product."""
    scores = (queries.flatten(2, 3) @ keys.transpose(-1, -2)).unflatten(2, queries.shape[2:4]) * scaling + mask
    weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
    mixed: torch.Tensor = (weights.flatten(2, 3) @ values).unflatten(2, queries.shape[2:4])
    return mixed.permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1)


AttentionInterface.register(NAME, packed_attention)
