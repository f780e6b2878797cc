"""Packages of the extras, loaded when they are first needed."""

import importlib
from typing import Any

from winnow.errors import MissingExtraError


def import_from_extra(extra: str, module: str) -> Any:
    """A module of a package that an extra of this distribution installs.

    Raises:
        MissingExtraError: The package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(module.partition(".")[0], extra) from error
