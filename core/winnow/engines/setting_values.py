"""The values that settings take: what they are called, which Python values they are, how they are read from text."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from winnow.plain import is_finite


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


def choice(*names: str) -> Values:
    """One of these texts."""
    return Values(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


def whole(least: int) -> Values:
    """A whole number from `least`."""
    return Values(f"a whole number from {least}", lambda value: type(value) is int and value >= least, int)


def number(text: str, within: Callable[[float], bool]) -> Values:
    """A finite number; `text` says which, `within` tests it."""
    return Values(text, lambda value: is_finite(value) and within(value), float)


def _parse_flag(text: str) -> bool:
    return {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}[
        text.lower()
    ]


FLAG = Values("true or false", lambda value: type(value) is bool, _parse_flag)
TEXT = Values("a text that is not blank", lambda value: isinstance(value, str) and bool(value.strip()))
MAPPING = Values("a mapping (as text: a JSON object)", lambda value: isinstance(value, Mapping), json.loads)


def _is_device(value: Any) -> bool:
    return (isinstance(value, str) and bool(value.strip())) or type(value) is int


DEVICE = Values("a PyTorch device, such as cuda:1", _is_device)
DTYPE = choice("auto", "half", "float16", "bfloat16", "float", "float32")
