"""Arguments of calls, checked: refused with what was given and what is wanted, or in the type that the rest takes."""

import math
import operator
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from winnow.config import RerankerConfig
from winnow.judging import Call, Documents, Query
from winnow.templates import TemplateLike
from winnow.text import readable, shows, text_of
from winnow.types import Document


def checked_top_k(top_k: Any, name: str = "top_k") -> int | None:
    """A number of documents, of any integer type (NumPy's too), or None for all.

    Args:
        top_k: What the caller gave.
        name: What the caller calls it.

    Raises:
        TypeError: It is no integer.
        ValueError: It is below 1.
    """
    if top_k is None:
        return None
    if isinstance(top_k, bool) or not hasattr(top_k, "__index__"):
        raise TypeError(f"{name} must be an integer, but got {top_k!r}")
    if (number := operator.index(top_k)) < 1:
        raise ValueError(f"{name} must be > 0, but got {number}")
    return number


def checked_threshold(threshold: Any) -> float | None:
    """A score that others can be compared with, or None.

    Raises:
        ValueError: It is none, or not finite.
    """
    if threshold is None:
        return None
    if not _is_number(threshold) or not math.isfinite(threshold):
        raise ValueError(f"score_threshold must be a finite number, but got {threshold!r}")
    return float(threshold)


def checked_deadline(deadline: Any) -> float | None:
    """Seconds, or None to wait. What is left of a caller's own time may be 0 or less: then the deadline has passed.

    Raises:
        ValueError: It is no number.
    """
    if deadline is None:
        return None
    if not _is_number(deadline) or math.isnan(deadline):
        raise ValueError(f"deadline must be a number of seconds, but got {deadline!r}")
    return float(deadline)


def checked_call(
    config: RerankerConfig,
    query: Query,
    documents: Documents,
    top_k: Any,
    instruction: str | None,
    score_threshold: Any,
    template: TemplateLike | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    *,
    may_fall_back: bool = True,
    where: str = "",
) -> Call:
    """A call of a reranker, with the arguments and the errors of `Reranker.rank`.

    `config` stands for what is None. `may_fall_back` is whether the caller can be told that a ranking is not the
    model's; `where` says in messages which of several calls it is.
    """
    if isinstance(documents, str | bytes | Document):
        raise TypeError(f"documents{where} must be several texts, but got a single one: put it into a list")
    if not isinstance(documents, Iterable) or isinstance(documents, Mapping):  # whose keys would be ranked
        raise TypeError(f"documents{where} must be several texts, as in a list, but got {documents!r}")
    for name, value, kind in (("instruction", instruction, str), ("template_kwargs", template_kwargs, Mapping)):
        if not (value is None or isinstance(value, kind)):
            raise TypeError(f"{name}{where} must be a {'text' if kind is str else 'mapping'}, but got {value!r}")
    found = list(documents)
    if config.text_only:
        query, found = text_of(query) or "", [text_of(document) for document in found]
    problem = None
    if not isinstance(text_of(query), str | None):
        raise ValueError(f"query{where} must be a text that is not blank, but got {query!r}")
    if not (readable(query) or shows(query)):
        problem = f"query{where} must be a text that is not blank, but got {query!r}"
        if not (may_fall_back and (config.on_error == "skip" or config.fallback is not None)):
            raise ValueError(problem)
    return Call(
        query=query,
        documents=found,
        instruction=config.instruction if instruction is None else instruction,
        top_k=checked_top_k(top_k),
        score_threshold=checked_threshold(score_threshold),
        template=config.template if template is None else template,
        template_kwargs=config.template_kwargs if template_kwargs is None else template_kwargs,
        may_fall_back=may_fall_back,
        problem=problem,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
