"""The numbers of a merged tensor, computed in float32 a few rows at a time, and rounded once to the base's type."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.errors import ModelError
from winnow.models.adapters.tensors import LowRank
from winnow.models.shards import CHUNK, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the numbers of a tensor come from.

    Attributes:
        stored: The tensor as it is in a file.
        file: The file.
        dtype: Its type in the merged model.
        change: What is added to it.
        is_transposed: Whether that is added as scale · (B A)ᵀ.
    """

    stored: Tensor
    file: Path
    dtype: str
    change: LowRank | None = None
    is_transposed: bool = False


def as_tensor(name: str, source: Source, adapter: Path) -> Tensor:
    """The tensor, whose numbers are computed when it is written.

    Args:
        name: Its name in the merged model.
        source: Where its numbers come from.
        adapter: The adapter's file.
    """
    stored = source.stored
    chunks = stored.chunks
    if source.change is not None or source.dtype != stored.dtype:

        def chunks() -> Iterator[bytes]:
            return _computed(name, source, adapter)

    return Tensor(name=name, dtype=source.dtype, shape=stored.shape, chunks=chunks)


def _computed(name: str, source: Source, adapter: Path) -> Iterator[bytes]:
    import torch
    from safetensors import safe_open

    kind = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[source.dtype]
    change, shape = source.change, source.stored.shape
    with safe_open(source.file, framework="pt") as file:
        weight = file.get_slice(source.stored.name)
        if change is not None:
            left, right = _factors(change, source.is_transposed, adapter)
        rows = max(1, CHUNK // (4 * max(1, shape[1]))) if len(shape) > 1 else shape[0] if shape else 1
        for begin in range(0, shape[0] if shape else 1, rows):
            part = weight[begin : begin + rows] if shape else file.get_tensor(source.stored.name)
            exact = part.to(torch.float32)
            if change is not None:
                exact = exact + (left[begin : begin + rows] @ right) * change.scale
            rounded = exact.to(kind)
            if not torch.isfinite(rounded).all():
                raise ModelError(
                    f"{name} is not finite with what {adapter} adds to it, in the base's type {source.dtype}: the "
                    "adapter is damaged, or was trained with a type of a larger range. Download it again, or take a "
                    "base in bfloat16 or float32."
                )
            yield rounded.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _factors(change: LowRank, is_transposed: bool, adapter: Path) -> tuple[Any, Any]:
    """The two matrices in float32, of shapes (rows, rank) and (rank, columns) of the weight."""
    import torch
    from safetensors import safe_open

    with safe_open(adapter, framework="pt") as file:
        first, second = (file.get_tensor(name).to(torch.float32) for name in (change.a, change.b))
    return (first.T, second.T) if is_transposed else (second, first)
