"""The fields that Winnow reads of a model's JSON files, and the values that they may have.

These files come with the checkpoint and are not trusted. They are checked when they are read, so that later code may
rely on them. A wrong type is an error that names file and field, not a `TypeError` of other code.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from winnow.errors import ModelError
from winnow.outside_text import shown
from winnow.plain import is_finite


class Kind(NamedTuple):
    """The values that a field may have besides null.

    Attributes:
        words: It in words, after "must be".
        fits: Whether a value is of it.
    """

    words: str
    fits: Callable[[Any], bool]


Fields = Mapping[str, Kind]


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


_TEXT = Kind("a text", lambda value: isinstance(value, str))
_TEXTS = Kind("a list of texts", _are_texts)
_FLAG = Kind("true or false", lambda value: isinstance(value, bool))
_OBJECT = Kind("an object", lambda value: isinstance(value, dict))
_OBJECTS = Kind("a list of objects", lambda value: isinstance(value, list) and all(map(_OBJECT.fits, value)))
_NUMBER = Kind("a number", is_finite)
_WHOLE = Kind("a whole number of 0 or more", lambda value: _is_whole(value, 0))
_COUNT = Kind("a whole number above 0", lambda value: _is_whole(value, 1))
_SIZE = Kind("a whole number from 0 to 10000", lambda value: _is_whole(value, 0) and value <= 10_000)
_TOKEN = Kind("the id of a token", lambda value: _is_whole(value, -1))  # some write -1 for none
_NAMES = Kind(
    "an object with a name for each number",  # transformers takes numbers as names, too
    lambda value: (
        _OBJECT.fits(value)
        and all(key.isdecimal() and len(key) < 20 and isinstance(one, str | int) for key, one in value.items())
    ),
)


def _are_all(value: Any, kind: Kind) -> bool:
    return _OBJECT.fits(value) and all(map(kind.fits, value.values()))


def _left_out(reason: str) -> Kind:
    return Kind(f"left out, since {reason}", lambda value: False)  # noqa: ARG005


CONFIG: Fields = {
    "architectures": _TEXTS,
    "model_type": _TEXT,
    "text_config": _OBJECT,
    "vision_config": _OBJECT,
    "quantization_config": _OBJECT,
    "auto_map": _OBJECT,
    "id2label": _NAMES,
    # transformers makes a text of each label, and a module of each layer and expert, while it reads the file.
    **dict.fromkeys(("num_labels", "num_hidden_layers", "num_layers", "n_layer"), _SIZE),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "depth"), _SIZE),
    "vocab_size": _COUNT,
    "max_position_embeddings": _WHOLE,
    "n_positions": _WHOLE,
    "pad_token_id": _TOKEN,
    "tie_word_embeddings": _FLAG,
    "is_encoder_decoder": _FLAG,
    "temperature": _NUMBER,
    "winnow_family": _TEXT,
    "_name_or_path": _TEXT,
    "configuration_files": _left_out("transformers would read one of these files in place of config.json"),
    "transformers_weights": _left_out("transformers would load other weights than other engines"),
    "speculators_config": _left_out("vLLM would load the model that it names in place of this one"),
}
"""config.json, and `text_config` and `vision_config` in it."""

TOKENIZER_CONFIG: Fields = {
    "chat_template": Kind("a text, or a list of objects", lambda value: _TEXT.fits(value) or _OBJECTS.fits(value)),
    "model_input_names": _TEXTS,
    "model_max_length": _NUMBER,
    "pad_token": Kind("a text or an object", lambda value: isinstance(value, str | dict)),
    "fast_tokenizer_files": _left_out("transformers would read one of these files in place of tokenizer.json"),
    "gguf_file": _left_out("transformers would read this file in place of tokenizer.json"),
}
"""tokenizer_config.json"""

SENTENCE_TRANSFORMERS: Fields = {
    "model_type": _TEXT,
    "prompts": Kind("an object of texts", lambda value: _OBJECT.fits(value) and _are_texts(list(value.values()))),
    "default_prompt_name": _TEXT,
}
"""config_sentence_transformers.json"""

TRANSFORMER: Fields = {
    "processing_kwargs": _OBJECT,
    "modality_config": _OBJECT,
    "transformer_task": _TEXT,
    "max_seq_length": _NUMBER,
}
"""sentence_bert_config.json"""

PROCESSING: Fields = {"chat_template": _OBJECT}
"""`processing_kwargs` in sentence_bert_config.json."""

MODULE: Fields = {"type": _TEXT, "path": _TEXT}
"""An entry of modules.json."""

MODULE_CONFIG: Fields = {
    "in_features": _COUNT,
    "out_features": _COUNT,
    "dimension": _COUNT,
    "bias": _FLAG,
    "use_residual": _FLAG,
    "activation_function": _TEXT,
    "module_input_name": _TEXT,
    "module_output_name": _TEXT,
    "pooling_mode": Kind("a text, or a list of texts", lambda value: _TEXT.fits(value) or _TEXTS.fits(value)),
    "false_token_id": _TOKEN,
    "true_token_id": _TOKEN,
}
"""config.json in the folder of a module."""

ADAPTER: Fields = {
    **dict.fromkeys(("base_model_name_or_path", "revision", "peft_type", "task_type", "bias"), _TEXT),
    **dict.fromkeys(("use_rslora", "fan_in_fan_out", "ensure_weight_tying"), _FLAG),
    "r": _COUNT,
    "lora_alpha": _NUMBER,
    "rank_pattern": Kind("an object of whole numbers above 0", lambda value: _are_all(value, _COUNT)),
    "alpha_pattern": Kind("an object of numbers", lambda value: _are_all(value, _NUMBER)),
    "init_lora_weights": Kind("a text, or true or false", lambda value: isinstance(value, str | bool)),
}
"""adapter_config.json"""

IMAGES: Fields = {"size": _OBJECT}
"""preprocessor_config.json"""

INDEX_FIELDS: Fields = {"weight_map": _OBJECT}
"""model.safetensors.index.json"""


def check_fields(content: Mapping[str, Any], fields: Fields, source: str) -> None:
    """Check the fields that Winnow reads of a file. Null counts as absent.

    Args:
        content: What the file holds.
        fields: What its fields may hold.
        source: The file, for the error.

    Raises:
        ModelError: A field holds something else. The message names both.
    """
    for name, kind in fields.items():
        value = content.get(name)
        if value is not None and not kind.fits(value):
            raise ModelError(f"{source}: {name} must be {kind.words}, but is {shown(repr(value), 80)}.")


def check_config(content: Mapping[str, Any], source: str) -> None:
    """`check_fields` for config.json and the configurations in it of models that have several parts."""
    check_fields(content, CONFIG, source)
    for part in ("text_config", "vision_config"):
        check_fields(content.get(part) or {}, CONFIG, f"{source}: {part}")
