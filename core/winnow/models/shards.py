"""Find the safetensors files of a model, and write new ones of their tensors and of others.

The file format (safetensors' README, "Format"): eight bytes with the length of the header, little endian; the header in
JSON, with type, shape and place of each tensor; the tensors' bytes without gaps. The bytes are copied as they are, so
types do not change, and one chunk at a time, so large files need no more memory.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from winnow.errors import ModelError
from winnow.models.weight_files import INDEX, check_folder, read_header, read_index, shapes_in
from winnow.outside_text import shown

CHUNK = 2**24
"""Bytes that are read, computed and written at once."""

# Bits of a number, by the name of its type in safetensors.
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """The weight files of a model.

    Attributes:
        model: Name or path of the model, for errors.
        folder: Where they are.
        files: Names of the files, sorted.
        file_of: The file that holds a tensor, by the tensor's name.
        shapes: Shapes of the tensors, by name.
        indexed: Whether there is an index, which says which file holds a tensor.
        bytes: Size of all files.
    """

    model: str
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
                f"{model} has its weights in pytorch_model.bin, which is a pickle: Winnow converts and merges "
                "safetensors only. Save it again, and the tokenizer, too: "
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
    return Shards(model=model, folder=folder, files=files, file_of=file_of, shapes=shapes, indexed=indexed, bytes=size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor for a new file.

    Attributes:
        name: Its name.
        dtype: Its type, as safetensors names it: "BF16", "F32", ...
        shape: Its shape.
        chunks: Makes its bytes, in order, a few megabytes at a time.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[bytes]]

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * _BITS[self.dtype] // 8


def tensors_of(file: Path, model: str) -> list[Tensor]:
    """The tensors of a file as they are, in the order of their bytes.

    Raises:
        ModelError: The file is damaged, or a type is unknown.
    """
    header, start = read_header(file, model)
    header.pop("__metadata__", None)
    found = []
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in _BITS:
            raise ModelError(f"{name} in {file} of {model} has the type {shown(entry['dtype'])}, which is not copied.")
        place = (start + entry["data_offsets"][0], start + entry["data_offsets"][1])
        chunks = partial(_copied, file, *place)
        found.append(Tensor(name=name, dtype=entry["dtype"], shape=tuple(entry["shape"]), chunks=chunks))
    return found


def _copied(file: Path, begin: int, end: int) -> Iterator[bytes]:
    with file.open("rb") as reader:
        reader.seek(begin)
        while begin < end:
            chunk = reader.read(min(CHUNK, end - begin))
            if not chunk:
                raise ModelError(f"{file} is cut short. Download it again.")
            yield chunk
            begin += len(chunk)


def write_tensors(file: Path, tensors: Iterable[Tensor], progress: Callable[[int], object]) -> int:
    """Write a safetensors file.

    Args:
        file: The new file.
        tensors: What goes into it.
        progress: Called after each chunk with its number of bytes.

    Returns:
        Bytes of the tensors.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    size = 0
    # Larger types first, as in safetensors: so each tensor is aligned.
    ordered = sorted(tensors, key=lambda tensor: -_BITS[tensor.dtype])
    for tensor in ordered:
        offsets = [size, size + tensor.bytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        size += tensor.bytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as writer:
        writer.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            for chunk in tensor.chunks():
                writer.write(chunk)
                progress(len(chunk))
    return size
