"""What a caller asks for: the arguments of a call, in values that the code passes on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from winnow.errors import ConfigurationError
from winnow.prompts import Keep, Overflow
from winnow.templates import TemplateLike
from winnow.types import Document


def check_count(name: str, value: Any) -> None:
    """Refuse a number of tokens that is none.

    Raises:
        ConfigurationError: It is neither None nor a whole number above 0.
    """
    if value is not None and (type(value) is not int or value < 1):
        raise ConfigurationError(f"{name} must be a whole number > 0, but got {value!r}")


Documents = Iterable[str | Document | None]
Query = str | Document
RankRequest = tuple[Query, Documents] | tuple[Query, Documents, str | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class CallLimits:
    """How long the prompts of one call may be; None where the reranker's own setting counts.

    Attributes:
        max_length: As in `RerankerConfig`, but not more than the reranker's.
        max_query_tokens: As in `RerankerConfig`.
        max_document_tokens: As in `RerankerConfig`.
        on_overflow: As in `RerankerConfig`.
        keep: Which end of a document the model reads if it is cut: "start" or "end".

    Raises:
        ConfigurationError: A value is out of range.
    """

    max_length: int | None = None
    max_query_tokens: int | None = None
    max_document_tokens: int | None = None
    on_overflow: Overflow | None = None
    keep: Keep = "start"

    def __post_init__(self) -> None:
        for name in ("max_length", "max_query_tokens", "max_document_tokens"):
            check_count(name, getattr(self, name))
        for name, value, allowed in (
            ("on_overflow", self.on_overflow, (None, *get_args(Overflow))),
            ("keep", self.keep, get_args(Keep)),
        ):
            if value not in allowed:
                words = ", ".join(repr(one) for one in allowed if one is not None)
                raise ConfigurationError(f"{name} must be one of {words}, but got {value!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CallOptions:
    """How to rank, the same for all requests of a call. The sentences are those of `Reranker.rank`.

    `checked_options` puts the reranker's settings in the place of None.

    Attributes:
        top_k: How many documents to return.
        score_threshold: Least score to return.
        template: A template.
        template_kwargs: Template variables.
        limits: How long prompts may be.
        raw_scores: Whether scores are logits.
        priority: Tokens of other calls' prompts that may go first; with a negative number, that wait.
        deadline: Seconds for all requests together.
        progress: Whether to show a progress bar.
        may_fall_back: Whether a fallback may rank. False if the caller gets plain scores, which cannot say that a
            fallback made them.
    """

    top_k: int | None = None
    score_threshold: float | None = None
    template: TemplateLike | None = None
    template_kwargs: Mapping[str, Any] | None = None
    limits: CallLimits = CallLimits()
    raw_scores: bool | None = None
    priority: int = 0
    deadline: float | None = None
    progress: bool = False
    may_fall_back: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One query and its documents, checked.

    Attributes:
        query: The query.
        documents: The documents.
        instruction: The instruction; None if neither the caller nor the reranker has one.
        options: How to rank them.
        problem: Why the call cannot be ranked, if that is not an error; the documents then keep their order.
    """

    query: Query
    documents: list[str | Document | None]
    instruction: str | None
    options: CallOptions
    problem: str | None = None
