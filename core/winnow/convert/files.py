"""The files of a converted checkpoint: weights, config and tokenizer, all or none."""

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from winnow.convert.score_head import Layout
from winnow.errors import ModelError
from winnow.models import (
    INDEX,
    Checkpoint,
    Shards,
    Tensor,
    read_tokenizer,
    read_tokenizer_config,
    tensors_of,
    write_json,
    write_tensors,
)

# Files of the model's folder that are copied. The weights, config.json, the index and templates are written.
_COPIED = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "LICENSE*",
    "NOTICE*",
)
_TOKENIZER_CONFIG = "tokenizer_config.json"
# Fields of config.json for the causal model only: another template, its own code, and conversion at load time.
_DROPPED_FIELDS = ("score_template", "auto_map", "classifier_from_token", "method", "is_original_qwen3_reranker")


def write_weights(part: Path, shards: Shards, layout: Layout, head: npt.NDArray[np.float32], progress: bool) -> int:
    """Copy the weights file by file, without the output embedding and with the score head.

    Args:
        part: The new folder.
        shards: The original's weights.
        layout: The tensors that are left out, and the output embedding's name.
        head: The score head, (1, hidden size).
        progress: Show a progress bar on stderr.

    Returns:
        The size of the new weights in bytes.
    """
    size = 0
    weight_map = {name: file for name, file in shards.file_of.items() if name not in layout.dropped}
    weight_map["score.weight"] = shards.file_of[layout.heads[0]]
    with tqdm(total=shards.bytes, desc="converting", unit="B", unit_scale=True, disable=not progress, delay=1) as bar:
        for file in shards.files:
            kept = [one for one in tensors_of(shards.folder / file, shards.model) if one.name not in layout.dropped]
            added = [_as_tensor("score.weight", head)] if file == weight_map["score.weight"] else []
            size += write_tensors(part / file, [*added, *kept], bar.update)
    if shards.indexed:
        write_json(part / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))})
    return size


def _as_tensor(name: str, values: npt.NDArray[np.float32]) -> Tensor:
    return Tensor(name=name, dtype="F32", shape=values.shape, chunks=lambda: iter([values.astype("<f4").tobytes()]))


def write_config(part: Path, checkpoint: Checkpoint, layout: Layout, pad: int | None) -> None:
    """Write config.json: the original's, with one label, and without the fields for a causal model.

    Args:
        part: The new folder.
        checkpoint: The original.
        layout: The names of the new model; its class becomes the architecture.
        pad: Id of the padding token.
    """
    config = {name: value for name, value in checkpoint.config.items() if name not in _DROPPED_FIELDS}
    label = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "num_labels": 1}
    write_json(
        part / "config.json",
        {
            **config,
            **label,
            "architectures": [layout.classifier],
            "pad_token_id": pad,
            # `recipe_for` reads it: the folder may have any name. Labels and temperature are in the head.
            "winnow_family": checkpoint.recipe.family,
        },
    )


def write_tokenizer(folder: Path, part: Path, pad: str) -> None:
    """Copy the tokenizer and the licences, and set a padding token if there is none.

    Args:
        folder: The original's folder.
        part: The new folder.
        pad: The padding token.
    """
    for pattern in _COPIED:
        for file in folder.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, part / file.name)
    config = read_tokenizer_config(folder, str(folder))
    for name in ("chat_template", "score_template"):  # both are files of the new folder
        config.pop(name, None)
    if not config.get("pad_token"):  # missing or null
        config["pad_token"] = pad
    # Padding on the right changes neither a causal model's states before it nor absolute positions.
    config["padding_side"] = "right"
    write_json(part / _TOKENIZER_CONFIG, config)


def settle_tokenizer(part: Path, model: str) -> None:
    """Name another class in tokenizer_config.json, if with this one transformers would not follow tokenizer.json.

    Other tools load the folder with `AutoTokenizer`, and would get other token ids than the original.

    Args:
        part: The new folder, with config.json, which `AutoTokenizer` reads, too.
        model: The original's name, for errors.

    Raises:
        ModelError: transformers follows tokenizer.json with no class.
    """
    if not read_tokenizer(part, model).strays:
        return
    config = read_tokenizer_config(part, model)
    write_json(part / _TOKENIZER_CONFIG, {**config, "tokenizer_class": "PreTrainedTokenizerFast"})
    if strays := read_tokenizer(part, model).strays:
        raise ModelError(
            f"transformers does not take the tokenizer.json of {model} as it is, whatever its class is called: texts "
            f"such as {strays[0]!r} get other ids, so the converted model would give other scores there. Score {model} "
            "with Winnow as it is."
        )
