"""The packages of the extra `bulk`, loaded when they are first needed."""

import importlib
from typing import Any

from winnow.errors import MissingExtraError


def needed(module: str) -> Any:
    """A module of such a package.

    Raises:
        MissingExtraError: The package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(module.partition(".")[0], "bulk") from error
