"""Settings of the engines: their names, their values, and the environment variables that set them.

`winnow.engines.settings` reads these variables.
"""

import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from winnow.errors import ConfigurationError
from winnow.types import RETRIEVAL_ORDER

ENGINES = ("auto", "vllm", "server", "transformers", "fake")
FALLBACKS = (*ENGINES[1:], RETRIEVAL_ORDER)
PREFIX = "WINNOW_"


@dataclass(frozen=True, slots=True)
class Values:
    """The values that a setting takes.

    Attributes:
        text: A description that completes "must be".
        accepts: Whether a Python value is one of them.
        parse: Reads a value from the text of an environment variable or the command line; a `ValueError` if it cannot.
    """

    text: str
    accepts: Callable[[Any], bool]
    parse: Callable[[str], Any] = str


def _choice(*names: str) -> Values:
    return Values(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


def _whole(least: int) -> Values:
    return Values(f"a whole number from {least}", lambda value: type(value) is int and value >= least, int)


def _number(text: str, within: Callable[[float], bool]) -> Values:
    def accepts(value: Any) -> bool:
        return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value) and within(value)

    return Values(text, accepts, float)


def _parse_flag(text: str) -> bool:
    return {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}[
        text.lower()
    ]


_FLAG = Values("true or false", lambda value: type(value) is bool, _parse_flag)
_TEXT = Values("a text that is not blank", lambda value: isinstance(value, str) and bool(value.strip()))
_MAPPING = Values("a mapping (as text: a JSON object)", lambda value: isinstance(value, Mapping), json.loads)


def _is_device(value: Any) -> bool:
    return (isinstance(value, str) and bool(value.strip())) or type(value) is int


_DTYPE = _choice("auto", "half", "float16", "bfloat16", "float", "float32")


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of an engine.

    Attributes:
        name: Its name in `engine_kwargs`.
        engines: The engines that take it.
        values: The values that it takes; None means the engine's default.
        secret: True if messages must not show its value.
    """

    name: str
    engines: tuple[str, ...]
    values: Values
    secret: bool = False

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return PREFIX + self.name.upper()

    def check(self, value: Any, source: str) -> None:
        """Refuse a value that the setting does not take.

        Args:
            value: The value.
            source: Where it comes from, for the error.

        Raises:
            ConfigurationError: It is of the wrong type or out of range.
        """
        if value is not None and not self.values.accepts(value):
            raise self._error(value, source)

    def parse(self, text: str, source: str) -> Any:
        """Read a value from text.

        Args:
            text: The text.
            source: Where it comes from, for the error.

        Raises:
            ConfigurationError: It is malformed or out of range.
        """
        try:
            value = self.values.parse(text.strip())
        except (ValueError, KeyError):
            raise self._error(text, source) from None
        self.check(value, source)
        return value

    def _error(self, value: Any, source: str) -> ConfigurationError:
        shown = "something else" if self.secret else repr(value)
        return ConfigurationError(f"{source} must be {self.values.text}, but got {shown}")


_ALL = ("vllm", "server", "transformers")
_VLLM = ("vllm",)

SETTINGS: Mapping[str, Setting] = {
    setting.name: setting
    for setting in (
        # The model's files.
        Setting("revision", _ALL, _TEXT),
        Setting("trust_remote_code", _ALL, _FLAG),
        Setting("hf_token", _ALL, _TEXT, secret=True),
        Setting("cache_dir", _ALL, _TEXT),
        Setting("hf_overrides", _ALL, _MAPPING),
        Setting("mm_processor_kwargs", _ALL, _MAPPING),
        # Numbers and memory.
        Setting("dtype", ("vllm", "transformers"), _DTYPE),
        Setting("quantization", _VLLM, _TEXT),
        Setting("max_model_len", _ALL, _whole(1)),
        Setting("gpu_memory_utilization", _VLLM, _number("a number above 0, at most 1", lambda value: 0 < value <= 1)),
        Setting("kv_cache_memory_bytes", _VLLM, _whole(1)),
        Setting("tensor_parallel_size", _VLLM, _whole(1)),
        Setting("max_num_batched_tokens", _VLLM, _whole(1)),
        Setting("max_num_seqs", _VLLM, _whole(1)),
        Setting("enable_prefix_caching", _VLLM, _FLAG),
        Setting("enable_sleep_mode", _VLLM, _FLAG),
        Setting("enforce_eager", _VLLM, _FLAG),
        Setting("attention_backend", _VLLM, _TEXT),
        Setting("stall_timeout", _VLLM, _number("a number of seconds from 1", lambda value: value >= 1)),
        # vLLM's other values give no scores.
        Setting("runner", _VLLM, _choice("auto", "pooling")),
        Setting("convert", _VLLM, _choice("auto", "none", "classify")),
        # PyTorch.
        Setting("device", ("vllm", "transformers"), Values("a PyTorch device, such as cuda:1", _is_device)),
        Setting("batch_tokens", ("transformers",), _whole(1)),
        Setting("attn_implementation", ("transformers",), _TEXT),
        # HTTP.
        Setting("timeout", ("server",), _number("a number of seconds from 0.001", lambda value: value >= 0.001)),
        Setting("max_retries", ("server",), _whole(0)),
        Setting("chunk_size", ("server",), _whole(1)),
        Setting("concurrency", ("server",), _whole(1)),
        Setting("served_model_name", ("vllm", "server"), _TEXT),
    )
}
"""The settings that Winnow knows; `engine_kwargs` of vLLM takes any other field of `AsyncEngineArgs`, too."""

RERANKER_SETTINGS: Mapping[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("engine", _ALL, _choice(*ENGINES)),
        Setting("url", ("server",), _TEXT),
        Setting("api_key", ("server",), _TEXT, secret=True),
        Setting("max_length", _ALL, _whole(1)),
    )
}
"""Arguments of a reranker that are not in `engine_kwargs`, but have environment variables."""

_NOT_OF_AN_ENGINE = {"model", *RERANKER_SETTINGS}


def settings_of(engine: str) -> list[str]:
    """Names of the settings that an engine takes; with "auto", those that any engine takes."""
    if engine == "fake":
        return ["max_length", "delay"]
    return [name for name, setting in SETTINGS.items() if engine in setting.engines or engine == "auto"]


def check_keywords(what: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Refuse unknown keywords.

    Raises:
        ConfigurationError: A keyword is unknown; the message suggests the most similar one.
    """
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
            raise ConfigurationError(f"{what} has no {name!r}; {hint}")


def check_values(engine_kwargs: Mapping[str, Any], max_length: int | None) -> int | None:
    """Check the value of each setting that Winnow knows.

    Args:
        engine_kwargs: The user's settings.
        max_length: The user's length.

    Returns:
        `max_length`, or `max_model_len`, which is vLLM's name for it.

    Raises:
        ConfigurationError: A value is of the wrong type or out of range, or the two lengths differ.
    """
    for name, value in engine_kwargs.items():
        if name in _NOT_OF_AN_ENGINE:
            raise ConfigurationError(
                f"engine_kwargs holds {name!r}, which is an argument of the reranker: give it there"
            )
        if name in SETTINGS:
            SETTINGS[name].check(value, f"engine_kwargs {name}")
    length = engine_kwargs.get("max_model_len")
    if None not in (length, max_length) and length != max_length:
        raise ConfigurationError(
            f"max_length={max_length} and engine_kwargs max_model_len={length} are two names of one setting and "
            "differ: give max_length alone"
        )
    return max_length if length is None else length


def parse_argument(text: str) -> tuple[str, Any]:
    """Read one of `engine_kwargs` from the text `name=value`, as on the command line.

    The value of a setting that Winnow does not know is read as JSON if it is JSON, else as text.

    Raises:
        ConfigurationError: It is malformed.
    """
    name, equals, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not name:
        raise ConfigurationError(f"an engine setting looks like dtype=float16, but got {text!r}")
    if name in SETTINGS:
        return name, SETTINGS[name].parse(value, name)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
