"""Find the safetensors files of a model, and copy them without some tensors and with new ones.

The file format (safetensors' README, "Format"): eight bytes with the length of the header, little endian; the header in
JSON, with type, shape and place of each tensor; the tensors' bytes without gaps. The bytes are copied as they are, so
types do not change, and one chunk at a time, so large files need no more memory.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from winnow.errors import ModelError
from winnow.models import INDEX as INDEX
from winnow.models import check_folder, read_header, read_index, shapes_in

_CHUNK = 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """The weight files of a model.

    Attributes:
        folder: Where they are.
        files: Names of the files, sorted.
        file_of: The file that holds a tensor, by the tensor's name.
        shapes: Shapes of the tensors, by name.
        indexed: Whether there is an index, which says which file holds a tensor.
        bytes: Size of all files.
    """

    folder: Path
    files: tuple[str, ...]
    file_of: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    indexed: bool
    bytes: int


def find_shards(folder: Path, model: str) -> Shards:
    """The safetensors files that transformers and vLLM load from a folder.

    Raises:
        ModelError: There are none, or one is missing or damaged, or does not match the index.
    """
    index = folder / INDEX
    if not index.is_file() and not (folder / "model.safetensors").is_file():
        if any(folder.glob("pytorch_model*.bin")):
            raise ModelError(
                f"{model} has its weights in pytorch_model.bin, which is a pickle: Winnow converts safetensors only. "
                "Save it again, and the tokenizer, too: "
                f"AutoModelForCausalLM.from_pretrained({model!r}, dtype='auto').save_pretrained(FOLDER)."
            )
        raise ModelError(f"{model} has no weights: there is no model.safetensors in {folder}. Download it again.")
    check_folder(folder, model)
    indexed = not (folder / "model.safetensors").is_file()  # transformers takes that file first
    named = read_index(folder, model) if indexed else {}
    files = tuple(sorted(set(named.values()))) or ("model.safetensors",)
    shapes_of = {file: shapes_in(folder / file, model) for file in files}
    file_of = {name: file for file, shapes in shapes_of.items() for name in shapes}
    shapes = {name: shape for shapes in shapes_of.values() for name, shape in shapes.items()}
    wrong = [name for name, file in named.items() if file_of.get(name) != file]
    if wrong:
        raise ModelError(f"{index} says that {wrong[0]} is in {named[wrong[0]]}, but it is not. Download it again.")
    size = sum((folder / file).stat().st_size for file in files)
    return Shards(folder=folder, files=files, file_of=file_of, shapes=shapes, indexed=indexed, bytes=size)


def copy_shard(
    source: Path,
    target: Path,
    *,
    without: Collection[str] = (),
    added: Mapping[str, npt.NDArray[np.float32]] | None = None,
    progress: Callable[[int], object],
) -> int:
    """Copy one safetensors file.

    Args:
        source: The file.
        target: The new file.
        without: Names of tensors that are left out.
        added: Tensors that are added, by name.
        progress: Called after each chunk with its number of bytes.

    Returns:
        Bytes of the tensors in the new file.

    Raises:
        ModelError: The file is damaged.
    """
    old, start = read_header(source, str(source.parent))
    header: dict[str, Any] = {"__metadata__": old.pop("__metadata__", None) or {"format": "pt"}}
    kept = [(name, entry) for name, entry in old.items() if name not in without]
    kept.sort(key=lambda item: item[1]["data_offsets"])
    size = 0
    # New tensors first: at the start of the data float32 is always aligned.
    tensors = {name: tensor.astype("<f4") for name, tensor in (added or {}).items()}
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [size, size + tensor.nbytes]}
        size += tensor.nbytes
    for name, entry in kept:
        begin, end = entry["data_offsets"]
        header[name] = {**entry, "data_offsets": [size, size + end - begin]}
        size += end - begin
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with source.open("rb") as reader, target.open("wb") as writer:
        writer.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            writer.write(tensor.tobytes())
        for _, entry in kept:
            begin, end = entry["data_offsets"]
            reader.seek(start + begin)
            while begin < end:
                chunk = reader.read(min(_CHUNK, end - begin))
                if not chunk:
                    raise ModelError(f"{source} is cut short. Download it again.")
                writer.write(chunk)
                begin += len(chunk)
                progress(len(chunk))
    return size
