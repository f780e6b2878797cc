"""The tensors of an adapter: low-rank matrices of modules, and whole tensors that replace the base's."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from winnow.errors import ModelError
from winnow.models.adapters.settings import LoraSettings, not_merged
from winnow.models.shards import Tensor, tensors_of
from winnow.models.weight_files import is_embedding
from winnow.outside_text import shown

WEIGHTS = "adapter_model.safetensors"
FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of weights that can be computed with."""

_PREFIX = "base_model.model."  # peft puts it before every name
_OUTPUTS = ("lm_head.weight", "embed_out.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """What is added to a weight: scale · B A, or its transpose.

    Attributes:
        a: Name of A in the adapter's file, of shape (rank, in).
        b: Name of B, of shape (out, rank).
        shape: (out, in).
        scale: The factor.
        is_embedding: Whether the weight is an embedding, of shape (in, out).
    """

    a: str
    b: str
    shape: tuple[int, int]
    scale: float
    is_embedding: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterTensors:
    """What an adapter's file holds.

    Attributes:
        file: The file.
        low_rank: Changes of weights, by the weight's name in the model that was trained.
        replaced: Whole tensors, likewise by name, each as the adapter has it.
    """

    file: Path
    low_rank: Mapping[str, LowRank]
    replaced: Mapping[str, Tensor]

    def input_embedding(self) -> str | None:
        """Name of the input embedding, if the adapter changes it."""
        return next((name for name in (*self.low_rank, *self.replaced) if is_embedding(name)), None)

    def output_embedding(self) -> str | None:
        """Name of the output embedding, if the adapter has it."""
        return next((name for name in (*self.low_rank, *self.replaced) if is_output(name)), None)

    def unties(self, settings: LoraSettings) -> bool:
        """Whether input and output embedding, which are one tensor in the base, become two.

        An adapter that was trained without `ensure_weight_tying` changes one of them and leaves the other, as the
        model computes while it is trained. (peft's `merge_and_unload` adds low-rank matrices to both.)
        """
        first, last = self.input_embedding(), self.output_embedding()
        if settings.keeps_tie or (first is None and last is None):
            return False
        changed = any(name in self.low_rank for name in (first, last))
        one, other = (None if name is None else self.replaced.get(name) for name in (first, last))
        if one is not None and other is not None and one.shape == other.shape and one.dtype == other.dtype:
            return changed or any(left != right for left, right in zip(one.chunks(), other.chunks(), strict=True))
        return True


def is_output(name: str) -> bool:
    """Whether a tensor is an output embedding, by its name."""
    return name.endswith(_OUTPUTS)


def read_tensors(folder: Path, model: str, settings: LoraSettings) -> AdapterTensors:
    """Read what the adapter's file holds: names and shapes, no numbers.

    Args:
        folder: The adapter's folder.
        model: Its name or path, as the user gave it.
        settings: What it says of itself.

    Raises:
        ModelError: The file is missing, damaged or a pickle, or holds what Winnow does not merge.
    """
    file = folder / WEIGHTS
    if not file.is_file():
        pickled = folder / "adapter_model.bin"
        raise ModelError(
            f"{model} is an adapter without {WEIGHTS}. "
            + (
                f"Its {pickled.name} is a pickle, which may run code and which Winnow does not read. If you trust it: "
                f"safetensors.torch.save_file(torch.load({str(pickled)!r}, weights_only=True), {str(file)!r})"
                if pickled.is_file()
                else "Download it again; an adapter_model.bin is a pickle, which Winnow does not read."
            )
        )
    pairs: dict[tuple[str, bool], dict[str, Tensor]] = {}
    replaced: dict[str, Tensor] = {}
    for tensor in tensors_of(file, model):
        if tensor.dtype not in FLOATS:
            raise not_merged(model, settings.task, f"its {_quoted(tensor.name)} has the type {tensor.dtype}")
        if not tensor.name.startswith(_PREFIX):
            raise not_merged(model, settings.task, f"its {_quoted(tensor.name)} is no name of peft's ({_PREFIX}…)")
        name = tensor.name.removeprefix(_PREFIX)
        module, _, kind = name.partition(".lora_")
        if kind in ("A.weight", "B.weight", "embedding_A", "embedding_B"):
            of_embedding = kind.startswith("embedding")
            pairs.setdefault((f"{module}.weight", of_embedding), {})["A" if "A" in kind else "B"] = tensor
        elif kind or "lora_" in name or f"{name.replace('.base_layer.', '.')}" in replaced:
            raise not_merged(model, settings.task, f"it holds {_quoted(tensor.name)}")
        else:
            replaced[name.replace(".base_layer.", ".")] = tensor
    low_rank = dict(_low_rank(pairs, model, settings))
    if len(low_rank) < len(pairs) or not (low_rank or replaced):
        raise not_merged(model, settings.task, "it changes one weight in two ways, or none at all")
    return AdapterTensors(file=file, low_rank=low_rank, replaced=replaced)


def _low_rank(
    pairs: Mapping[tuple[str, bool], Mapping[str, Tensor]], model: str, settings: LoraSettings
) -> Iterator[tuple[str, LowRank]]:
    for (name, of_embedding), pair in pairs.items():
        if len(pair) < 2:
            raise ModelError(f"{model} holds half of the matrices for {_quoted(name)}. Download it again.")
        first, second = pair["A"], pair["B"]
        module = name.removesuffix(".weight")
        rank = settings.rank_of(module)
        if len(first.shape) != 2 or len(second.shape) != 2:
            raise not_merged(model, settings.task, f"{_quoted(module)} is no linear layer and no embedding")
        if first.shape[0] != rank or second.shape[1] != rank:
            raise ModelError(
                f"The matrices of {model} for {_quoted(module)} have the shapes {first.shape} and {second.shape}, but "
                f"adapter_config.json says that their rank is {rank}: the two files are of different adapters. "
                "Download it again."
            )
        yield (
            name,
            LowRank(
                a=first.name,
                b=second.name,
                shape=(second.shape[0], first.shape[1]),
                scale=settings.scale_of(module),
                is_embedding=of_embedding,
            ),
        )


def _quoted(name: str) -> str:
    return shown(repr(name), 120)
