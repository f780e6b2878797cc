"""Settings as plain data, which JSON and YAML can hold, and which is equal when it is loaded again."""

import math
import os
import sys
from collections.abc import Mapping
from enum import Enum
from numbers import Real
from typing import Any


def is_number(value: Any) -> bool:
    """Whether a value is a number of any real type, NumPy's too. True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether a value is a number that a float can hold: a whole number of Python's may be larger than any float."""
    try:
        return is_number(value) and math.isfinite(value)
    except OverflowError:
        return False


def is_seconds(value: Any) -> bool:
    """Whether a value is a number of seconds; infinity is one."""
    return is_finite(value) or (is_number(value) and abs(value) == math.inf)


def is_deeper(value: Any, levels: int) -> bool:
    """Whether mappings and lists are nested in `value` more than `levels` deep. It needs no recursion."""
    level = [value]
    for _ in range(levels):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, Mapping) else outer)
            if isinstance(inner, Mapping | list)
        ]
        if not level:
            return False
    return True


def plain(value: Any) -> Any:
    """A setting as plain data, at any depth. A value without a plain form is returned as it is.

    Paths, `torch.dtype` ("bfloat16") and `torch.device` ("cuda:1") become texts, NumPy's numbers become Python's,
    mappings become dicts, and tuples lists. PyTorch and NumPy are not imported for this.
    """
    kind = type(value)
    if isinstance(value, Mapping):
        return {plain(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, str) and kind is not str:  # also a StrEnum
        return str.__str__(value.value if isinstance(value, Enum) else value)
    if kind.__module__ == "torch" and kind.__name__ in ("dtype", "device"):
        return str(value).removeprefix("torch.")
    if (numpy := sys.modules.get("numpy")) is not None and isinstance(value, numpy.generic):
        return value.item()
    return value
