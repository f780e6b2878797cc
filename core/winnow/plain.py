"""Settings as plain data, which JSON and YAML can hold, and which is equal when it is loaded again."""

import os
import sys
from collections.abc import Mapping
from enum import Enum
from typing import Any


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
