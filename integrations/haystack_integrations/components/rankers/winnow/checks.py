"""Arguments of the Haystack door: refused with what was given and what is wanted, or as basic types."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from haystack import Document
from haystack.utils import Secret


def checked_top_k(top_k: int | None) -> int | None:
    """`top_k`, if it is None or a number of documents."""
    if top_k is None:
        return None
    if not isinstance(top_k, int) or isinstance(top_k, bool):
        raise TypeError(f"top_k must be an integer, but got {top_k!r}")
    if top_k < 1:
        raise ValueError(f"top_k must be > 0, but got {top_k}")
    return top_k


def checked_threshold(threshold: float | None) -> float | None:
    """`score_threshold`, if scores can be compared with it."""
    if threshold is not None and not math.isfinite(threshold):
        raise ValueError(f"score_threshold must be a finite number, but got {threshold}")
    return threshold


def checked_fields(names: Sequence[str] | None) -> list[str]:
    """`meta_fields_to_embed`, if it is several names."""
    if isinstance(names, str):
        raise TypeError(f"meta_fields_to_embed must be a list of names, but got the text {names!r}")
    return list(names or ())


def checked_secret(name: str, secret: Secret | None) -> Secret | None:
    """`api_key` or `token`, if it is a secret: a text would be written into saved pipelines."""
    if secret is not None and not isinstance(secret, Secret):
        raise TypeError(f"{name} must be a Secret: use Secret.from_env_var or Secret.from_token")
    return secret


def basic(value: Any) -> Any:
    """The value as a basic type that YAML holds, and that the caller cannot change any more."""
    match value:
        case os.PathLike():
            return os.fspath(value)
        case Mapping():
            return dict(value)
        case list() | tuple():
            return list(value)
        case _:
            return value


def check_documents(documents: Any) -> None:
    """Refuse what is no list of documents.

    Raises:
        TypeError: The message says what was given, and where.
    """
    if not isinstance(documents, Sequence) or isinstance(documents, str):
        raise TypeError(f"documents must be a list of Document, but got a {type(documents).__name__}")
    for at, document in enumerate(documents):
        if not isinstance(document, Document):
            raise TypeError(f"documents[{at}] must be a Document, but got a {type(document).__name__}")
