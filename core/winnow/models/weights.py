"""Check weight files before an engine loads them: whether they are complete, and match config.json.

Only headers are read (names and shapes), in milliseconds. The engines' own errors do not name the file. vLLM has no
error for a missing output embedding: it scores with uninitialised memory (vLLM, models/adapters.py).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from winnow.errors import ModelError
from winnow.models.checkpoint import Checkpoint
from winnow.models.config_class import config_class, ties_embeddings
from winnow.models.families import label_count
from winnow.models.weight_files import Shapes, check_folder, is_embedding, is_of_head, read_index, shapes_of

_OLD_INDEX = "pytorch_model.bin.index.json"


def check_weights(checkpoint: Checkpoint, *, required: bool = True) -> None:
    """Check that a model's weight files are complete, and match config.json.

    Files of a model on the Hub are checked if they were downloaded before.

    Args:
        checkpoint: The model.
        required: Whether there must be weights; they may be on another machine.

    Raises:
        ModelError: A file is missing or damaged, or disagrees with config.json. The message names it.
    """
    check_files(checkpoint, required=required)
    if faults := faults_of(checkpoint):
        raise ModelError("\n".join(faults))


def check_files(checkpoint: Checkpoint, *, required: bool = True) -> None:
    """The part of `check_weights` that looks at lengths and headers of the files in a local folder."""
    read_index(checkpoint.folder, checkpoint.model, _OLD_INDEX)  # transformers opens what it names
    is_local = Path(checkpoint.model).expanduser().is_dir()
    if is_local and (required or any(checkpoint.folder.glob("*.safetensors"))):
        check_folder(checkpoint.folder, checkpoint.model)


def faults_of(checkpoint: Checkpoint, ids: Iterable[int] = ()) -> list[str]:
    """How config.json, recipe and tokenizer disagree with the weights; empty if there are no local weights.

    Args:
        checkpoint: The model.
        ids: Token ids of a prompt, which are checked in addition to the largest id that a caller's text can have.
    """
    shapes = shapes_of(checkpoint.folder, checkpoint.model)
    embeddings = {name: shape for name, shape in shapes.items() if is_embedding(name)}
    if not embeddings:
        return []
    for name, shape in shapes.items():
        if (name in embeddings or name.endswith("lm_head.weight")) and shape is not None and len(shape) != 2:
            return [f"{name} of {checkpoint.model} has the shape {shape}, which is no embedding's. Download it again."]
    return [
        *(_faults_of_labels(checkpoint, shapes, embeddings) if checkpoint.recipe.labels else ()),
        *(_faults_of_head(checkpoint, shapes) if not checkpoint.recipe.labels else ()),
        *_faults_of_rows(checkpoint, embeddings, max([checkpoint.tokenizer.largest_id, *ids])),
    ]


def untied_without_head(model: str) -> str:
    """The error message for a model whose config.json names an output embedding that is not in the weights."""
    return (
        f"config.json of {model} says that the output embedding differs from the input embedding "
        "(tie_word_embeddings is false), but there is no lm_head in the weights: scores would come from random "
        "numbers. If the model was trained with one embedding for both, set tie_word_embeddings to true in config.json "
        "(or pass engine_kwargs={'hf_overrides': {'tie_word_embeddings': True}}); otherwise download it again."
    )


def _faults_of_labels(checkpoint: Checkpoint, shapes: Shapes, embeddings: Shapes) -> Iterator[str]:
    """The output embedding, of shape (vocabulary, hidden), must be there, with a row for each label."""
    heads = {name: shape for name, shape in shapes.items() if "lm_head" in name.split(".")}
    is_like_llama = any("embed_tokens" in name for name in embeddings)  # others have other names for lm_head
    if not heads and is_like_llama and ties_embeddings(checkpoint.config) is False:
        yield untied_without_head(checkpoint.model)
        return
    for name, shape in (heads or embeddings).items():
        if not name.endswith(".weight") or shape is None:
            continue
        for label, index in zip(checkpoint.recipe.labels, checkpoint.label_ids, strict=True):
            if index >= shape[0]:
                yield (
                    f"The label {label!r} is token {index}, but {name} of {checkpoint.model} has {shape[0]} rows. The "
                    "tokenizer does not belong to the model."
                )


def _faults_of_head(checkpoint: Checkpoint, shapes: Shapes) -> Iterator[str]:
    """The score head must be there, with a row for each label of config.json."""
    architecture = next(iter(checkpoint.config.get("architectures") or ()), "")
    if not architecture.endswith("ForSequenceClassification") or (
        config_class(checkpoint.config) is None and not checkpoint.recipe.local_code
    ):
        return  # a model with code of its own may call its head anything
    heads = {name: shape for name, shape in shapes.items() if is_of_head(name)}
    if not heads:
        yield (
            f"config.json of {checkpoint.model} says {architecture}, but there is no score head in the weights: scores "
            "would come from random numbers. They are those of a base model: check the name, or download it again."
        )
    rows = {name: shape[0] for name, shape in heads.items() if shape is not None and len(shape) == 2}
    labels = label_count(checkpoint.config)
    if rows and labels not in rows.values():
        name, size = next(reversed(rows.items()))
        yield (
            f"config.json of {checkpoint.model} says that it has {labels} label{'s' if labels != 1 else ''}, but "
            f"{name} has {size} rows: config.json and weights are of different models. Download it again."
        )


def _faults_of_rows(checkpoint: Checkpoint, embeddings: Shapes, largest: int) -> Iterator[str]:
    """The input embedding, of shape (vocabulary, hidden), must have a row for each token."""
    rows = {name: shape[0] for name, shape in embeddings.items() if shape is not None}
    if not rows:
        return
    name = max(rows, key=rows.__getitem__)
    expected = (checkpoint.config.get("text_config") or checkpoint.config).get("vocab_size")
    if expected is not None and expected not in rows.values():
        yield (
            f"config.json of {checkpoint.model} says that its vocabulary has {expected} tokens, but {name} has "
            f"{rows[name]} rows: config.json and weights are of different models. Download it again."
        )
    elif largest >= rows[name]:
        yield (
            f"A prompt can hold token {largest} of the tokenizer of {checkpoint.model}, but {name} has {rows[name]} "
            "rows: the tokenizer does not belong to the model. Take the one that it was trained with."
        )
