"""What vLLM's `AsyncEngineArgs` takes, checked before vLLM starts: its own errors come late, and from deep inside."""

import dataclasses
import difflib
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from winnow.engines.base import check_keywords
from winnow.engines.known_settings import SETTINGS
from winnow.errors import ConfigurationError

_PLAIN = (bool, int, float, str, type(None))


def check_fields(engine_kwargs: Mapping[str, Any]) -> None:
    """Refuse what vLLM would refuse, or not understand.

    Types that are more than numbers, texts and choices among them are left to vLLM.

    Args:
        engine_kwargs: Fields of `AsyncEngineArgs`.

    Raises:
        ConfigurationError: A field is unknown, or its value of the wrong type. The message names the nearest.
    """
    from pydantic import TypeAdapter, ValidationError
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    annotations = {field.name: field.type for field in dataclasses.fields(AsyncEngineArgs)}
    check_keywords("engine_kwargs", engine_kwargs, [*annotations])
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
