"""Check the arguments of calls. An error says what was given and what is wanted."""

import contextlib
import operator
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from winnow.plain import is_finite, is_seconds
from winnow.ranking.config import RerankerConfig
from winnow.ranking.options import Call, CallLimits, CallOptions, Documents, Query, RankRequest
from winnow.text import readable, shows, text_of
from winnow.types import Document

T = TypeVar("T")


def checked_top_k(top_k: Any, name: str = "top_k") -> int | None:
    """A number of documents, of any integer type (NumPy's too), or None for all.

    Args:
        top_k: The caller's argument.
        name: The argument's name.

    Raises:
        TypeError: It is not an integer.
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
        ValueError: It is not a finite number.
    """
    if threshold is None:
        return None
    if not is_finite(threshold):
        raise ValueError(f"score_threshold must be a finite number, but got {threshold!r}")
    return float(threshold)


def checked_deadline(deadline: Any) -> float | None:
    """Seconds, or None to wait. 0 or less is allowed: then the deadline has passed already.

    Raises:
        ValueError: It is not a number.
    """
    if deadline is None:
        return None
    if not is_seconds(deadline):
        raise ValueError(f"deadline must be a number of seconds, but got {deadline!r}")
    return float(deadline)


def checked_options(config: RerankerConfig, options: CallOptions) -> CallOptions:
    """The options of a call, with the errors of `Reranker.rank`.

    Args:
        config: The reranker's settings, which stand in for what is None.
        options: What the caller gave.
    """
    if not isinstance(options.template_kwargs, Mapping | None):
        raise TypeError(f"template_kwargs must be a mapping, but got {options.template_kwargs!r}")
    if not isinstance(options.raw_scores, bool | None):
        raise TypeError(f"raw_scores must be True or False, but got {options.raw_scores!r}")
    if type(options.priority) is not int:
        raise TypeError(f"priority must be a whole number of tokens, but got {options.priority!r}")
    deadline = checked_deadline(options.deadline)
    return replace(
        options,
        top_k=checked_top_k(options.top_k),
        score_threshold=checked_threshold(options.score_threshold),
        template=config.template if options.template is None else options.template,
        template_kwargs=config.template_kwargs if options.template_kwargs is None else options.template_kwargs,
        limits=_limits(config, options.limits),
        raw_scores=config.raw_scores if options.raw_scores is None else options.raw_scores,
        deadline=config.deadline if deadline is None else deadline,
    )


def _limits(config: RerankerConfig, limits: CallLimits) -> CallLimits:
    """The limits of a call, with the reranker's in the place of None."""
    lengths = [length for length in (config.max_length, limits.max_length) if length is not None]
    return CallLimits(
        max_length=min(lengths, default=None),
        max_query_tokens=_first(limits.max_query_tokens, config.max_query_tokens),
        max_document_tokens=_first(limits.max_document_tokens, config.max_document_tokens),
        on_overflow=_first(limits.on_overflow, config.on_overflow),
        keep=limits.keep,
    )


def _first(given: T | None, configured: T) -> T:
    return configured if given is None else given


def checked_calls(
    config: RerankerConfig, requests: Iterable[RankRequest], options: CallOptions, *, numbered: bool
) -> Generator[Call | None]:
    """The calls of `Reranker.rank_many`, with its errors.

    Documents that are not a `Collection` are read one by one, because they may wait: the generator yields None after
    each of them. A user's generator is closed if it is not read to its end.

    Args:
        config: The reranker's settings.
        requests: `(query, documents)` or `(query, documents, instruction)`.
        options: How to rank them, checked.
        numbered: Whether messages say which request it is.
    """
    with _closing(requests):
        for number, request in enumerate(requests):
            if not isinstance(request, tuple | list) or len(request) not in (2, 3):
                raise TypeError(f"request {number} must be (query, documents) or (query, documents, instruction)")
            query, documents, *rest = request
            if isinstance(documents, Iterable) and not isinstance(documents, Collection):
                found = []
                with _closing(documents):
                    for document in documents:
                        found.append(document)
                        yield None
                documents = found
            where = f" of request {number}" if numbered else ""
            yield _checked_call(config, query, documents, rest[0] if rest else None, options, where)


def are_in_memory(requests: Iterable[RankRequest]) -> bool:
    """Whether all requests and documents are in memory, so that reading them does not wait."""
    return isinstance(requests, Collection) and all(
        isinstance(documents, Collection) or not isinstance(documents, Iterable)
        for request in requests
        if isinstance(request, tuple | list)
        for documents in request[1:2]
    )


@contextlib.contextmanager
def _closing(items: Iterable[object]) -> Iterator[None]:
    try:
        yield
    finally:
        if isinstance(items, Generator):
            items.close()


def _checked_call(
    config: RerankerConfig,
    query: Query,
    documents: Documents,
    instruction: str | None,
    options: CallOptions,
    where: str,
) -> Call:
    """A call. `where` says in messages which of several it is."""
    if isinstance(documents, str | bytes | Document):
        raise TypeError(f"documents{where} must be several texts, but got a single one: put it into a list")
    if not isinstance(documents, Iterable) or isinstance(documents, Mapping):  # whose keys would be ranked
        raise TypeError(f"documents{where} must be several texts, as in a list, but got {documents!r}")
    if not isinstance(instruction, str | None):
        raise TypeError(f"instruction{where} must be a text, but got {instruction!r}")
    found = list(documents)
    if config.text_only:
        query, found = text_of(query) or "", [text_of(document) for document in found]
    problem = None
    if not isinstance(text_of(query), str | None):
        raise ValueError(f"query{where} must be a text that is not blank, but got {query!r}")
    if not (readable(query) or shows(query)):
        problem = f"query{where} must be a text that is not blank, but got {query!r}"
        if not (options.may_fall_back and (config.on_error == "skip" or config.fallback is not None)):
            raise ValueError(problem)
    return Call(
        query=query,
        documents=found,
        instruction=config.instruction if instruction is None else instruction,
        options=options,
        problem=problem,
    )
