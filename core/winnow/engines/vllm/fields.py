"""Check the fields of vLLM's `AsyncEngineArgs` before vLLM starts, because its own errors come late and are unclear."""

import ast
import dataclasses
import difflib
import functools
import importlib.util
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from winnow.engines.setting_table import SETTINGS, check_keywords
from winnow.errors import ConfigurationError

_PLAIN = (bool, int, float, str, type(None))


@functools.cache
def field_names() -> tuple[str, ...]:
    """Names of the fields of `AsyncEngineArgs`, read from vLLM's source: importing it takes seconds.

    Returns:
        The names; none if vLLM is not installed, or if its source has another layout.
    """
    package = importlib.util.find_spec("vllm")
    for folder in (package and package.submodule_search_locations) or ():
        source = Path(folder, "engine", "arg_utils.py")
        if source.is_file():
            classes = [node for node in ast.parse(source.read_text("utf-8")).body if isinstance(node, ast.ClassDef)]
            parts = [part for one in classes if one.name in ("EngineArgs", "AsyncEngineArgs") for part in one.body]
            return tuple(
                part.target.id
                for part in parts
                if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
            )
    return ()


def as_fields(engine_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under vLLM's names.

    Raises:
        ConfigurationError: vLLM does not run on the `device`, or `cache_dir` and `download_dir` differ.
    """
    named = dict(engine_kwargs)
    device = named.pop("device", None)
    if (reason := other_platform(device)) is not None:
        raise ConfigurationError(f"device={device!r}: {reason}. Use engine='transformers'.")
    if (number := _parts_of(device)[1]) not in ("", "0"):
        raise ConfigurationError(
            f"device={device!r}: vLLM takes the GPUs that CUDA_VISIBLE_DEVICES leaves. Leave device out, and set "
            f"CUDA_VISIBLE_DEVICES={number} before Python starts; or use engine='transformers'."
        )
    folder = named.pop("cache_dir", None)
    if folder is not None:
        if named.get("download_dir") not in (None, folder):
            raise ConfigurationError(
                f"cache_dir={folder!r} and engine_kwargs download_dir {named['download_dir']!r} are two names of one "
                "setting and differ: give cache_dir alone"
            )
        named["download_dir"] = folder
    return named


def other_platform(device: str | int | None) -> str | None:
    """Why vLLM does not run on a device, if it was built for another kind. None if it runs there."""
    from vllm.platforms import current_platform

    own, (kind, _) = current_platform.device_type, _parts_of(device)
    return None if kind in ("", own) else f"this vLLM was built for {own!r}, not for {kind!r}"


def _parts_of(device: str | int | None) -> tuple[str, str]:
    """Kind and number of a device, as texts. As in PyTorch, a number alone is that of a GPU."""
    if isinstance(device, int):
        return "cuda", str(device)
    kind, _, number = (device or "").partition(":")
    return kind, number


def check_fields(engine_kwargs: Mapping[str, Any]) -> None:
    """Refuse fields and values that vLLM would refuse.

    Fields of other types than numbers, texts and choices are checked by vLLM.

    Args:
        engine_kwargs: Fields of `AsyncEngineArgs`.

    Raises:
        ConfigurationError: A field is unknown, or its value has the wrong type. The message suggests the most similar.
    """
    from pydantic import TypeAdapter, ValidationError
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    annotations = {field.name: field.type for field in dataclasses.fields(AsyncEngineArgs)}
    check_keywords("engine_kwargs", engine_kwargs, [*annotations])
    if engine_kwargs.get("enable_lora"):
        raise ConfigurationError(
            "enable_lora: vLLM would score without an adapter. Name the adapter as the model, and Winnow merges it "
            "into its base (docs/models.md#adapters)."
        )
    for name, value in engine_kwargs.items():
        annotation: Any = annotations[name]
        if name in SETTINGS or value is None or not _is_plain(annotation):
            continue
        try:
            TypeAdapter(annotation).validate_python(value, strict=True)
        except ValidationError:
            raise ConfigurationError(f"engine_kwargs {name} must be {_words(annotation)}, but got {value!r}") from None
    _check_choice("attention_backend", engine_kwargs, AttentionBackendEnum.__members__, str.upper)
    _check_choice("quantization", engine_kwargs, QUANTIZATION_METHODS, str)


def _check_choice(
    name: str, engine_kwargs: Mapping[str, Any], known: Iterable[str], normal: Callable[[str], str]
) -> None:
    value = engine_kwargs.get(name)
    if isinstance(value, str) and normal(value) not in known:
        near = difflib.get_close_matches(normal(value), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"this vLLM has: {', '.join(known)}"
        raise ConfigurationError(f"engine_kwargs {name} {value!r} is unknown; {hint}")


def _is_plain(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, types.UnionType):
        return all(map(_is_plain, get_args(annotation)))
    return annotation in _PLAIN or get_origin(annotation) is Literal


def _words(annotation: Any) -> str:
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_words(part) for part in get_args(annotation))
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "None"}
    return names[annotation]
