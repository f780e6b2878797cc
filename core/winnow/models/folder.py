"""The folder of a model's small files: found, or fetched from a hub, and read."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from winnow.errors import ModelError
from winnow.models.hub import download, uses_modelscope
from winnow.models.json_fields import (
    MODULE,
    MODULE_CONFIG,
    PROCESSING,
    SENTENCE_TRANSFORMERS,
    TOKENIZER_CONFIG,
    TRANSFORMER,
    Fields,
    check_config,
    check_fields,
)
from winnow.models.named_files import path_inside

SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py"]
WEIGHT_FILES = ["model*.safetensors", "*/model.safetensors", "LICENSE*"]  # in folders: modules of modules.json
_OLD_WEIGHT_FILES = ["pytorch_model*.bin"]
_DEEPEST = 100  # levels of JSON


def folder_of(model: str, revision: str | None, token: str | None = None, cache_dir: str | None = None) -> Path:
    """The local folder of a model, its small files downloaded if it is on a hub.

    Raises:
        ModelError: There is no such folder or repository, there is no network, or it holds GGUF files.
    """
    if str(model).lower().endswith(".gguf"):
        raise _gguf(model)
    folder = _found(model, revision, token, cache_dir)
    if _has_only_gguf(folder, model):
        raise _gguf(model)
    return folder


def _found(model: str, revision: str | None, token: str | None, cache_dir: str | None) -> Path:
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ModelError(f"The model folder {model} does not exist.")
    return download(model, SMALL_FILES, revision=revision, token=token, cache_dir=cache_dir)


def folder_with_weights(
    model: str, revision: str | None, token: str | None = None, cache_dir: str | None = None
) -> Path:
    """The local folder of a model with its weights, downloaded if it is on a hub.

    Raises:
        ModelError: They cannot be downloaded.
    """
    folder = folder_of(model, revision, token, cache_dir)
    if not Path(model).expanduser().is_dir():
        # The name of a folder from the Hugging Face Hub is the commit of the small files that were downloaded.
        commit = revision if uses_modelscope() else folder.name
        for patterns in (WEIGHT_FILES, _OLD_WEIGHT_FILES):
            download(model, patterns, revision=commit, token=token, cache_dir=cache_dir)
            if any(folder.glob("*.safetensors")):
                break
    return folder


def _has_only_gguf(folder: Path, model: str) -> bool:
    others = any(file for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern))
    named = "gguf" in str(model).lower() and not (folder / "config.json").is_file()  # on the Hub
    return not others and (named or any(folder.glob("*.gguf")))


def _gguf(model: str) -> ModelError:
    return ModelError(
        f"{model} is in llama.cpp's format GGUF, which Winnow does not run: give the model that it was made from "
        "(base_model on its page on the Hub), with engine_kwargs={'quantization': 'fp8'} if memory is short."
    )


def read_config(folder: Path, model: str) -> dict[str, Any]:
    """The contents of config.json.

    Raises:
        ModelError: The file is missing or damaged, or holds what it must not.
    """
    path = folder / "config.json"
    content = read_json(path, model, {})
    check_config(content, f"{path} of {model}")
    return content


def read_tokenizer_config(folder: Path, model: str) -> dict[str, Any]:
    """The contents of tokenizer_config.json; empty where there is none.

    Raises:
        ModelError: The file is damaged, or holds what it must not.
    """
    path = folder / "tokenizer_config.json"
    return read_json(path, model, TOKENIZER_CONFIG) if path.is_file() else {}


def read_json(path: Path, model: str, fields: Fields) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: The file.
        model: Name or path of the model, as the user gave it.
        fields: What fields may hold (`winnow.models.json_fields`).

    Raises:
        ModelError: The file is missing or damaged, or a field holds something else. The message names it.
    """
    content = _parsed(path, model)
    if not isinstance(content, dict):
        raise ModelError(f"{path} of {model} is damaged: it should hold a JSON object. Download it again.")
    check_fields(content, fields, f"{path} of {model}")
    return content


def read_modules(folder: Path, model: str) -> list[dict[str, Any]]:
    """The modules that sentence-transformers lists in modules.json, whose `path` is inside the folder.

    Raises:
        ModelError: The file is damaged, or names a folder outside.
    """
    path = folder / "modules.json"
    modules = _parsed(path, model) if path.is_file() else []
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelError(f"{path} of {model} is damaged: it should hold a list of JSON objects. Download it again.")
    for module in modules:
        check_fields(module, MODULE, f"{path} of {model}")
        module["path"] = path_inside(module.get("path") or "", f"{path} of {model}: path")
    return modules


def _parsed(path: Path, model: str) -> Any:
    if not path.is_file():
        raise ModelError(
            f"{model} has no {path.name} ({path}): it is not a model folder, or the download is incomplete."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} of {model} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise ModelError(f"{path} of {model} is damaged: {error}. Download it again.") from error
    level = [content]
    for _ in range(_DEEPEST):  # what is nested deeper is more than Python copies or writes
        level = [inner for one in level for inner in _inside(one)]
    if level:
        raise ModelError(f"{path} of {model} is damaged: it is nested more than {_DEEPEST} deep. Download it again.")
    return content


def _inside(value: Any) -> Collection[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossEncoderFiles:
    """What sentence-transformers (6.2) writes beside a `CrossEncoder`.

    Attributes:
        reads_messages: Whether the chat template renders the pair, as messages with the roles query and document.
        prompt: The prompt that is added when the caller names none: a system message, or a prefix of the query if there
            is no chat template.
        template_kwargs: Variables for the chat template.
        label_ids: Token ids whose logits make the score, (negative, positive) or (positive,); empty for a score head.
    """

    reads_messages: bool = False
    prompt: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    label_ids: tuple[int, ...] = ()


# Keys of `processing_kwargs["chat_template"]` that concern the output and are not passed to the template.
_NOT_FOR_TEMPLATE = {"padding", "truncation", "max_length", "return_tensors", "restore_suffix"}


def read_cross_encoder_files(folder: Path) -> CrossEncoderFiles | None:
    """What sentence-transformers wrote into a folder, or None if it saved no `CrossEncoder` there.

    Read from config_sentence_transformers.json (`model_type`, `prompts`, `default_prompt_name`),
    sentence_bert_config.json (`modality_config`, `processing_kwargs`), and the `LogitScore` module of modules.json.

    Raises:
        ModelError: A file is damaged.
    """
    main = folder / "config_sentence_transformers.json"
    if not main.is_file():
        return None
    config = read_json(main, str(folder), SENTENCE_TRANSFORMERS)
    if config.get("model_type") != "CrossEncoder":
        return None
    transformer = folder / "sentence_bert_config.json"
    settings = read_json(transformer, str(folder), TRANSFORMER) if transformer.is_file() else {}
    processing = settings.get("processing_kwargs") or {}
    check_fields(processing, PROCESSING, f"{transformer}: processing_kwargs")
    template_kwargs = processing.get("chat_template") or {}
    return CrossEncoderFiles(
        reads_messages="message" in (settings.get("modality_config") or {}),
        prompt=(config.get("prompts") or {}).get(config.get("default_prompt_name")) or None,
        template_kwargs={name: value for name, value in template_kwargs.items() if name not in _NOT_FOR_TEMPLATE},
        label_ids=_label_ids(folder),
    )


def _label_ids(folder: Path) -> tuple[int, ...]:
    for module in read_modules(folder, str(folder)):
        if str(module.get("type")).endswith(".LogitScore"):
            score = read_json(folder / module["path"] / "config.json", str(folder), MODULE_CONFIG)
            ids = (score.get("false_token_id"), score.get("true_token_id"))
            return tuple(int(index) for index in ids if index is not None)
    return ()
