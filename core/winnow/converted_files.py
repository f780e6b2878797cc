"""The files of a converted checkpoint: weights, config and tokenizer, all or none."""

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from winnow.checkpoint import Checkpoint
from winnow.errors import ConfigurationError, ModelError
from winnow.model_folder import read_tokenizer_config
from winnow.score_head import Layout
from winnow.shards import INDEX, Shards, copy_shard
from winnow.tokenizer_files import read_tokenizer

# What of a model's folder goes with the weights. config.json, the index and templates are written anew.
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
# Fields of config.json that speak of the causal model: another template, its own code, and conversion at load time.
_DROPPED_FIELDS = ("score_template", "auto_map", "classifier_from_token", "method", "is_original_qwen3_reranker")


@contextmanager
def whole_or_nothing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name at the end, or is removed if anything goes wrong, Ctrl-C included."""
    part = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.mkdir(parents=True)
        yield part
        part.replace(out)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError | UnicodeEncodeError):  # the latter for halves of a character in JSON
            raise ConfigurationError(f"{out} cannot be written: {error}") from error
        raise


def check_disk(out: Path, shards: Shards) -> None:
    """Check that there is room for the weights.

    Raises:
        ConfigurationError: There is not.
    """
    existing = next(parent for parent in out.parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < shards.bytes:
        raise ConfigurationError(
            f"{out} needs {shards.bytes / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free there. Make room, or name "
            "another folder."
        )


def write_weights(part: Path, shards: Shards, layout: Layout, head: npt.NDArray[np.float32], progress: bool) -> int:
    """Copy the weights file by file, without the output embedding and with the score head.

    Args:
        part: The new folder.
        shards: The original's weights.
        layout: What is dropped, and where the head was.
        head: The score head, (1, hidden size).
        progress: Show a progress bar on stderr.

    Returns:
        How many bytes they have.
    """
    size = 0
    weight_map = {name: file for name, file in shards.file_of.items() if name not in layout.dropped}
    weight_map["score.weight"] = shards.file_of[layout.heads[0]]
    with tqdm(total=shards.bytes, desc="converting", unit="B", unit_scale=True, disable=not progress, delay=1) as bar:
        for file in shards.files:
            added = {"score.weight": head} if file == weight_map["score.weight"] else {}
            size += copy_shard(
                shards.folder / file, part / file, without=layout.dropped, added=added, progress=bar.update
            )
    if shards.indexed:
        _write_json(part / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))})
    return size


def write_config(part: Path, checkpoint: Checkpoint, layout: Layout, pad: int | None) -> None:
    """Write config.json: the original's, with one label, and without what speaks of a causal model.

    Args:
        part: The new folder.
        checkpoint: The original.
        layout: Tells the new architecture.
        pad: Id of the padding token.
    """
    config = {name: value for name, value in checkpoint.config.items() if name not in _DROPPED_FIELDS}
    label = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "num_labels": 1}
    _write_json(
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
    """Copy the tokenizer, licences beside it, and give it a padding token if it has none.

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
    if not config.get("pad_token"):  # it may be null
        config["pad_token"] = pad
    # A causal model and absolute positions, if it has them, are not changed by what comes after the prompt.
    config["padding_side"] = "right"
    _write_json(part / _TOKENIZER_CONFIG, config)


def settle_tokenizer(part: Path, model: str) -> None:
    """Name another class in tokenizer_config.json if transformers makes another tokenizer than tokenizer.json of this.

    The result is for all who load it with `AutoTokenizer`, who would get other prompts than the original was made for.

    Args:
        part: The new folder, with config.json, which `AutoTokenizer` reads as well.
        model: The original's name, for errors.

    Raises:
        ModelError: transformers makes another tokenizer under any class.
    """
    if not read_tokenizer(part, model).strays:
        return
    config = read_tokenizer_config(part, model)
    _write_json(part / _TOKENIZER_CONFIG, {**config, "tokenizer_class": "PreTrainedTokenizerFast"})
    if strays := read_tokenizer(part, model).strays:
        raise ModelError(
            f"transformers does not take the tokenizer.json of {model} as it is, whatever its class is called: texts "
            f"such as {strays[0]!r} get other ids, so that the converted model would score otherwise there. Score "
            f"{model} with Winnow as it is."
        )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
