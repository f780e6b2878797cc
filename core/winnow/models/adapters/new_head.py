"""The names of a base's tensors in a classifier that the adapter makes of it, with a score head of the adapter's."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from winnow.errors import MissingExtraError, ModelError
from winnow.models.adapters.settings import LoraSettings
from winnow.models.adapters.tensors import AdapterTensors
from winnow.models.weight_files import is_of_head
from winnow.outside_text import shown

# Fields of config.json that are for the base's own architecture only.
_DROPPED = ("auto_map", "classifier_from_token", "method", "is_original_qwen3_reranker")


def makes_classifier(config: Mapping[str, Any], settings: LoraSettings, tensors: AdapterTensors) -> bool:
    """Whether the adapter was trained on the base with a new score head, as `AutoModelForSequenceClassification`."""
    return not is_classifier(config) and (settings.task == "SEQ_CLS" or any(map(is_of_head, tensors.replaced)))


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a model has a score head, by its config.json."""
    return str(next(iter(config.get("architectures") or ()), "")).endswith("ForSequenceClassification")


def config_of_classifier(config: Mapping[str, Any], tensors: AdapterTensors, model: str) -> dict[str, Any]:
    """config.json of the classifier: its class in transformers, and a label for each row of the head.

    Args:
        config: The base's.
        tensors: The adapter's.
        model: The adapter's name or path.

    Raises:
        ModelError: The adapter has no score head, or transformers has no classifier of this kind.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    count = labels_of_head(tensors)
    if count is None:
        raise ModelError(
            f"{model} is an adapter of a classifier (task_type is SEQ_CLS), but neither it nor its base has a score "
            "head: scores would come from random numbers. Train it with the head in modules_to_save, or take the base "
            "that it was trained on: base_model=..."
        )
    architecture = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(str(config.get("model_type")))
    if not isinstance(architecture, str):
        raise ModelError(
            f"{model} is an adapter of a classifier, and transformers has none of the kind "
            f"{shown(repr(config.get('model_type')), 40)}."
        )
    kept = {name: value for name, value in config.items() if name not in _DROPPED}
    return with_labels({**kept, "architectures": [architecture]}, count)


def labels_of_head(tensors: AdapterTensors) -> int | None:
    """How many labels the adapter's score head has; None if it has no head."""
    rows = [one.shape[0] for name, one in tensors.replaced.items() if is_of_head(name) and len(one.shape) == 2]
    return min(rows, default=None)  # a head of two layers has a row for each label in the second


def with_labels(config: Mapping[str, Any], count: int) -> dict[str, Any]:
    """config.json with so many labels, which have no names."""
    names = {str(index): f"LABEL_{index}" for index in range(count)}
    return {**config, "id2label": names, "label2id": {name: int(at) for at, name in names.items()}, "num_labels": count}


def names_in_classifier(folder: Path, names: Collection[str], model: str) -> tuple[dict[str, str], set[str]]:
    """What a classifier calls the tensors of its base.

    transformers finds a base's tensors in a model with a head by the same rule (`base_model_prefix`).

    Args:
        folder: A folder with the classifier's config.json.
        names: The base's names.
        model: The adapter's name or path.

    Returns:
        The classifier's name of each tensor that it has, by the base's name; and the names of those it has besides.

    Raises:
        ModelError: transformers cannot make the classifier.
        MissingExtraError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "transformers") from error
    from transformers import AutoConfig, AutoModelForSequenceClassification

    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            classifier = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    except Exception as error:  # transformers raises errors of every kind for models that it does not know
        raise ModelError(
            f"transformers cannot make the classifier that {model} is an adapter of: {type(error).__name__}: {error}"
        ) from error
    wanted = set(classifier.state_dict())
    prefix = f"{classifier.base_model_prefix}."
    found = {}
    for name in names:
        for candidate in (name, prefix + name, name.removeprefix(prefix)):
            if candidate in wanted and not is_of_head(candidate):
                found[name] = candidate
                break
    return found, wanted.difference(found.values())
