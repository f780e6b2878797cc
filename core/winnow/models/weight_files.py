"""The safetensors files of a folder: which there are, and the names, types and shapes of the tensors in them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from winnow.errors import ModelError
from winnow.models.folder import read_json
from winnow.models.json_fields import INDEX_FIELDS
from winnow.models.named_files import file_in

INDEX = "model.safetensors.index.json"
# What models call their input embedding: the module before "weight".
_EMBEDDINGS = ("embed_tokens", "word_embeddings", "tok_embeddings", "wte", "embed_in")
# What they call their score head (`*ForSequenceClassification` in transformers): a module of any depth.
_HEADS = {"score", "classifier", "classification_head", "logits_proj", "sequence_summary"}

Shapes = Mapping[str, tuple[int, ...] | None]
"""Shapes of tensors by name; None where only the index is there."""


def check_folder(folder: Path, model: str) -> None:
    """Check that the weight files of a folder are whole: headers and lengths.

    Args:
        folder: The folder.
        model: Name or path, as the user gave it.

    Raises:
        ModelError: A file is missing or damaged. The message names it.
    """
    files = {*folder.glob("*.safetensors"), *(folder / name for name in read_index(folder, model).values())}
    if not files and not any(folder.glob("*.bin")):
        raise ModelError(f"{model} has no weights: there is no model.safetensors in {folder}. Download it again.")
    for file in sorted(files):
        if not file.is_file():
            raise ModelError(f"{file} is missing, though {INDEX} names it. Download the model again.")
        read_header(file, model)


def read_index(folder: Path, model: str, name: str = INDEX) -> dict[str, str]:
    """The file of each tensor, by the tensor's name, as the index of the weights says; empty if there is no index.

    Args:
        folder: The folder.
        model: Name or path, as the user gave it.
        name: Name of the index.

    Raises:
        ModelError: The index is damaged, or names what is no file of weights in the folder.
    """
    path = folder / name
    if not path.is_file():
        return {}
    named: dict[str, str] = read_json(path, model, INDEX_FIELDS).get("weight_map") or {}
    if not named:
        raise ModelError(f"{path} of {model}: weight_map names no files. Download it again.")
    source = f"{path} of {model}: weight_map"
    for file in named.values():
        if name == INDEX and file_in(folder, file, source).suffix != ".safetensors":
            raise ModelError(f"{source} names {file!r}, which is no safetensors file. Download it again.")
        file_in(folder, file, source)
    return named


def is_embedding(name: str) -> bool:
    """Whether a tensor is the input embedding, by its name."""
    *_, module, last = ["", *name.split(".")]
    return last == "weight" and module in _EMBEDDINGS


def is_of_head(name: str) -> bool:
    """Whether a tensor is part of a score head, by its name."""
    return not _HEADS.isdisjoint(name.split("."))


def shapes_of(folder: Path, model: str) -> Shapes:
    """The tensors of the safetensors files in a folder, as far as they or their index are there.

    Args:
        folder: The folder.
        model: Name or path, as the user gave it.
    """
    whole = folder / "model.safetensors"
    named = read_index(folder, model)
    if whole.is_file():  # transformers takes that file first
        return shapes_in(whole, model)
    shapes: dict[str, tuple[int, ...] | None] = dict.fromkeys(named)
    for file in sorted(set(named.values())):
        if (folder / file).is_file():
            shapes |= shapes_in(folder / file, model)
    return shapes


def shapes_in(file: Path, model: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a safetensors file, by name.

    Raises:
        ModelError: The file is damaged.
    """
    header, _ = read_header(file, model)
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def read_header(file: Path, model: str) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where the tensors' bytes begin.

    Raises:
        ModelError: The file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):  # checks all of the header, and that the tensors fill the file
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} of {model} is damaged or cut short: {error}. Download it again.") from error
    with file.open("rb") as reader:
        length = int.from_bytes(reader.read(8), "little")
        return json.loads(reader.read(length)), 8 + length
