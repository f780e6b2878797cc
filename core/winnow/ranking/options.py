"""What a caller asks for: the arguments of a call, in values that the code passes on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from winnow.templates import TemplateLike
from winnow.types import Document

Documents = Iterable[str | Document | None]
Query = str | Document
RankRequest = tuple[Query, Documents] | tuple[Query, Documents, str | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class CallOptions:
    """How to rank, the same for all requests of a call. The sentences are those of `Reranker.rank`.

    `checked_options` puts the reranker's settings in the place of None.

    Attributes:
        top_k: How many documents to return.
        score_threshold: Least score to return.
        template: A template.
        template_kwargs: Template variables.
        deadline: Seconds for all requests together.
        progress: Whether to show a progress bar.
        may_fall_back: Whether a fallback may rank. False if the caller gets plain scores, which cannot say that a
            fallback made them.
    """

    top_k: int | None = None
    score_threshold: float | None = None
    template: TemplateLike | None = None
    template_kwargs: Mapping[str, Any] | None = None
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
