"""Which tensors of a causal model a classifier keeps, and the score head that is made of the output embedding."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from winnow.errors import ModelError
from winnow.models import Checkpoint, Shards


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The names of tensors in a causal model and in its classifier.

    Attributes:
        heads: Name of the output embedding in the files, of shape (vocabulary, hidden); two names if it is tied to the
            input embedding and saved twice.
        dropped: Tensors of the files that are left out: those that the classifier does not have, and an old score head.
        classifier: Class of the classifier in transformers.
    """

    heads: tuple[str, ...]
    dropped: frozenset[str]
    classifier: str


def layout_of(shards: Shards, model: str) -> Layout:
    """The layout, found by building both models in transformers without memory for weights.

    Raises:
        ModelError: transformers has no such classifier, or the files do not match the model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    try:
        config = AutoConfig.from_pretrained(shards.folder, num_labels=1)
        with torch.device("meta"):
            causal = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
            classifier = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    except Exception as error:  # transformers raises errors of every kind for models that it does not know
        raise ModelError(
            f"transformers has no sequence classifier for {model}: {type(error).__name__}: {error}\nWinnow scores it "
            "as it is."
        ) from error
    output = causal.get_output_embeddings()
    tied = output.weight is causal.get_input_embeddings().weight
    names = {id(module): name for name, module in causal.named_modules()}
    head, twin = (
        f"{names[id(module)]}.weight" for module in (causal.get_input_embeddings() if tied else output, output)
    )
    dropped = causal.state_dict().keys() - classifier.state_dict().keys() | {"score.weight"}
    if classifier.state_dict().keys() - causal.state_dict().keys() != {"score.weight"} or (
        getattr(output, "bias", None) is not None
    ):
        raise ModelError(
            f"{model} cannot be converted: a {type(classifier).__name__} has no plain score head, or the output "
            "embedding of the causal model has a bias. Score it as it is."
        )
    expected = {name: weight for name, weight in classifier.named_parameters() if name != "score.weight"}
    expected[head] = output.weight
    if missing := sorted(expected.keys() - shards.file_of.keys()):
        raise ModelError(
            f"The weights of {model} are not those of a {type(causal).__name__}: {', '.join(missing[:5])}"
            f"{', …' if len(missing) > 5 else ''} {'is' if len(missing) == 1 else 'are'} not in "
            f"{', '.join(shards.files)}. Download it again; if config.json and weights are of different models, take "
            "both from the same one (is tie_word_embeddings right?)."
        )
    for name, weight in expected.items():
        if shards.shapes[name] != tuple(weight.shape):
            raise ModelError(
                f"config.json of {model} gives {name} the shape {tuple(weight.shape)}, but in {shards.file_of[name]} "
                f"it has {shards.shapes[name]}: config.json and weights are of different models. Download it again."
            )
    heads = (head, twin) if twin != head and twin in shards.file_of else (head,)
    return Layout(heads=heads, dropped=frozenset(dropped), classifier=type(classifier).__name__)


def score_head(shards: Shards, layout: Layout, checkpoint: Checkpoint) -> npt.NDArray[np.float32]:
    """The weight of the score head, of shape (1, hidden).

    Raises:
        ModelError: A label is not in the output embedding, or the embedding is damaged, or it is saved twice with
            different values: transformers and vLLM would give different scores.
    """
    first, *others = (_rows(shards, name, checkpoint) for name in layout.heads)
    if any(not np.array_equal(first, other) for other in others):
        raise ModelError(
            f"{' and '.join(layout.heads)} of {checkpoint.model} differ, but tie_word_embeddings in config.json says "
            "that they are the same. Set it to false if the model was trained so."
        )
    weight = first[1:] - first[:1] if len(first) == 2 else first
    found: npt.NDArray[np.float32] = weight / np.float32(checkpoint.recipe.temperature)
    if not np.isfinite(found).all():
        raise ModelError(
            f"{layout.heads[0]} of {checkpoint.model} is not finite for {checkpoint.recipe.labels}. Download it again."
        )
    return found


def _rows(shards: Shards, name: str, checkpoint: Checkpoint) -> npt.NDArray[np.float32]:
    """The rows of the labels, of shape (labels, hidden)."""
    import torch
    from safetensors import safe_open

    file = shards.folder / shards.file_of[name]
    with safe_open(file, framework="pt") as tensors:
        embedding = tensors.get_slice(name)  # reads only the rows that are used
        size = embedding.get_shape()[0]
        rows = []
        for label, index in zip(checkpoint.recipe.labels, checkpoint.label_ids, strict=True):
            if index >= size:
                raise ModelError(
                    f"The label {label!r} is token {index}, but {name} in {file} has {size} rows. The tokenizer "
                    "does not belong to the model."
                )
            rows.append(embedding[index : index + 1].to(torch.float32))
    found: npt.NDArray[np.float32] = torch.cat(rows).numpy()
    return found
