"""Which tensors the merged model has, in which file, and how each is made. Only headers are read here."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from winnow.errors import ModelError
from winnow.models.adapters.arithmetic import Source, as_tensor
from winnow.models.adapters.new_head import names_in_classifier
from winnow.models.adapters.settings import LoraSettings, not_merged
from winnow.models.adapters.tensors import FLOATS, AdapterTensors, LowRank, is_output
from winnow.models.shards import Shards, Tensor, tensors_of
from winnow.models.weight_files import is_embedding, is_of_head
from winnow.outside_text import shown

# Models of which transformers has layers with weights of the shape (in, out): `Conv1D`.
_TRANSPOSED = ("gpt2", "openai-gpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """An adapter, and what it is merged into.

    Attributes:
        model: The adapter's name or path.
        settings: What it says of itself.
        tensors: What its file holds.
        base: The base's name or path.
        base_config: The contents of its config.json.
        is_tied: Whether the base has one tensor for input and output embedding.
        is_untied: Whether the merged model has two tensors in its place.
        has_new_head: Whether the adapter makes a classifier of the base, with a score head of its own.
    """

    model: str
    settings: LoraSettings
    tensors: AdapterTensors
    base: str
    base_config: Mapping[str, Any]
    is_tied: bool
    is_untied: bool
    has_new_head: bool


def plan(merge: Merge, shards: Shards, folder: Path) -> dict[str, list[Tensor]]:
    """The tensors of the merged model, by the name of the file that they go into.

    Args:
        merge: What is merged.
        shards: The base's weights.
        folder: A folder with the merged model's config.json.

    Raises:
        ModelError: The adapter does not fit the base. The message names the tensor.
    """
    new_names, others = {name: name for name in shards.file_of}, None
    if merge.has_new_head:
        new_names, others = names_in_classifier(folder, shards.file_of, merge.model)
    sources: dict[str, Source] = {}
    file_of: dict[str, str] = {}
    for file in shards.files:
        for one in tensors_of(shards.folder / file, merge.base):
            if (name := new_names.get(one.name)) is not None:
                sources[name] = Source(stored=one, file=shards.folder / file, dtype=one.dtype)
                file_of[name] = file
    left_out = _settle_tie(merge, sources, file_of)
    added = [name for name in merge.tensors.replaced if _is_new_head(name, sources, others)]
    matched = _matched(merge, sources, {*left_out, *added})
    for name in added:
        stored = merge.tensors.replaced[name]
        sources[name] = Source(stored=stored, file=merge.tensors.file, dtype=stored.dtype)
        file_of[name] = shards.files[-1]
    for theirs, ours in matched.items():
        if theirs in merge.tensors.replaced:
            sources[ours] = _replaced(merge, ours, merge.tensors.replaced[theirs], sources[ours])
    for theirs, ours in matched.items():
        if theirs in merge.tensors.low_rank:
            sources[ours] = _changed(merge, ours, merge.tensors.low_rank[theirs], sources[ours])
    _check_rows(merge, sources)
    if others is not None and (missing := sorted(others.difference(sources))):
        raise ModelError(
            f"{merge.base} with the score head of {merge.model} is no complete model: {', '.join(missing[:5])} "
            f"{'is' if len(missing) == 1 else 'are'} in neither. Give the base that the adapter was trained on, "
            "base_model=..."
        )
    planned: dict[str, list[Tensor]] = {}
    for name, source in sources.items():
        planned.setdefault(file_of[name], []).append(as_tensor(name, source, merge.tensors.file))
    return planned


def _is_new_head(name: str, sources: Collection[str], others: Collection[str] | None) -> bool:
    return others is not None and name in others and is_of_head(name) and name not in sources


def _settle_tie(merge: Merge, sources: dict[str, Source], file_of: dict[str, str]) -> set[str]:
    """Make two tensors of a tied embedding, or one of two copies.

    Returns:
        Names of the adapter that are not needed, because they are the other embedding's.
    """
    if not merge.is_tied:
        return set()
    first = next(filter(is_embedding, sources), None)
    theirs = merge.tensors.output_embedding()
    last = next(filter(is_output, sources), theirs or "lm_head.weight")
    if merge.is_untied:
        if first is None:
            raise not_merged(merge.model, merge.settings.task, f"{merge.base} has no input embedding that Winnow knows")
        sources[last], file_of[last] = sources[first], file_of.get(last, file_of[first])
        return set()
    if merge.tensors.input_embedding() is not None:
        sources.pop(last, None)
        file_of.pop(last, None)
    return {theirs} if theirs is not None else set()


def _matched(merge: Merge, sources: Collection[str], without: Collection[str]) -> dict[str, str]:
    """The merged model's name for each name of the adapter.

    A model that was trained inside another class has one prefix more or less: "model.layers…" for "layers…".

    Raises:
        ModelError: A name matches no tensor, or several, or two names match the same.
    """
    found: dict[str, str] = {}
    for name in dict.fromkeys((*merge.tensors.replaced, *merge.tensors.low_rank)):
        if name in without:
            continue
        shorter = name.partition(".")[2]
        longer = [one for one in sources if one.endswith(f".{name}")]
        candidates = [name] if name in sources else [*longer, *([shorter] if shorter in sources else [])]
        if len(candidates) != 1 or candidates[0] in found.values():
            raise ModelError(
                f"{merge.model} changes {shown(repr(name), 120)}, which {merge.base} does not have"
                f"{' just once' if candidates else ''}: the adapter was trained on another base. Give that one, "
                "base_model=..."
            )
        found[name] = candidates[0]
    return found


def _replaced(merge: Merge, name: str, new: Tensor, old: Source) -> Source:
    """A whole tensor in place of the base's. Embeddings may have other tokens, heads other labels."""
    resizable = is_embedding(name) or is_output(name) or is_of_head(name)
    if new.shape != old.stored.shape and not (resizable and new.shape[1:] == old.stored.shape[1:]):
        raise _misfit(merge, name, new.shape, old.stored.shape)
    return replace(old, stored=new, file=merge.tensors.file, dtype=_float_type(merge, name, old))


def _changed(merge: Merge, name: str, change: LowRank, old: Source) -> Source:
    shape = old.stored.shape
    transposed = change.shape[::-1]
    is_square_transposed = merge.settings.is_transposed or merge.base_config.get("model_type") in _TRANSPOSED
    if change.is_embedding:
        fits, is_transposed = shape == transposed, True
    elif change.shape == transposed:
        fits, is_transposed = shape == change.shape, is_square_transposed and not is_output(name)
    else:
        fits, is_transposed = shape in (change.shape, transposed), shape == transposed
    if not fits:
        raise _misfit(merge, name, transposed if change.is_embedding else change.shape, shape)
    return replace(old, dtype=_float_type(merge, name, old), change=change, is_transposed=is_transposed)


def _check_rows(merge: Merge, sources: Mapping[str, Source]) -> None:
    rows = {name: one.stored.shape[0] for name, one in sources.items() if is_embedding(name) or is_output(name)}
    resized = [name for name in rows if sources[name].file == merge.tensors.file]
    if resized and len({rows[name] for name in rows if is_output(name) or name in resized}) > 1:
        raise ModelError(
            f"{merge.model} changes the number of tokens in {resized[0]} alone: "
            f"{', '.join(f'{name} has {count} rows' for name, count in rows.items())}. Save both embeddings with the "
            "adapter: model.save_pretrained(FOLDER, save_embedding_layers=True)."
        )


def _float_type(merge: Merge, name: str, old: Source) -> str:
    if old.dtype not in FLOATS:
        raise not_merged(merge.model, merge.settings.task, f"{name} of its base {merge.base} has the type {old.dtype}")
    return old.dtype


def _misfit(merge: Merge, name: str, theirs: tuple[int, ...], ours: tuple[int, ...]) -> ModelError:
    return ModelError(
        f"{merge.model} changes {shown(name, 120)} with the shape {theirs}, but in {merge.base} it has the shape "
        f"{ours}: the adapter was trained on another base. Give that one, base_model=..."
    )
