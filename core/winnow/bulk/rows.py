"""A row of the input, checked, and what ranking it gave."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from winnow.text import readable

Request = tuple[str, list[str | None], str | None]
"""The query, the documents and the instruction of a row."""


class BadRowError(ValueError):
    """A row cannot be ranked."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns that are read.

    Attributes:
        query: Its values are texts.
        documents: Its values are lists of texts.
        instruction: Its values are texts, or None for the reranker's own instruction. None if there is no such column.
    """

    query: str = "query"
    documents: str = "documents"
    instruction: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(name for name in (self.query, self.documents, self.instruction) if name is not None)

    def request(self, query: Any, documents: Any, instruction: Any = None) -> Request:
        """What is ranked for a row.

        Raises:
            BadRowError: A value is of a wrong type, the query is blank, or there are no documents.
        """
        if not isinstance(query, str) or not readable(query):
            raise BadRowError(f"{self.query!r} must be a text that is not blank, but is {_kind(query)}.")
        if not isinstance(documents, list):
            raise BadRowError(f"{self.documents!r} must be a list of texts, but is {_kind(documents)}.")
        if not documents:
            raise BadRowError(f"{self.documents!r} is an empty list: there is nothing to rank.")
        for at, document in enumerate(documents):
            if not isinstance(document, str | None):
                raise BadRowError(f"{self.documents!r} must hold texts, but document {at} is {_kind(document)}.")
        if not isinstance(instruction, str | None):
            raise BadRowError(f"{self.instruction!r} must be a text, but is {_kind(instruction)}.")
        return query, documents, instruction


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the input.

    Attributes:
        where: Its file and place, for errors.
        content: What its format keeps of it, to write it again.
        request: What is ranked; None if it cannot be.
        problem: Why it cannot be ranked.
    """

    where: str
    content: Any = None
    request: Request | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkCosts:
    """What reranking rows cost.

    Attributes:
        rows: Rows that were ranked; those with an error are not among them.
        pairs: Their documents, each a pair with the row's query.
        prompt_tokens: Tokens of all prompts except those in the score cache.
        cached_tokens: Of these, tokens in the engine's prefix cache.
        cache_hits: Prompts that were not sent, because their score was in the score cache.
        truncated: Documents that were cut.
        failed: Documents that could not be scored. They rank last.
    """

    rows: int = 0
    pairs: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    cache_hits: int = 0
    truncated: int = 0
    failed: int = 0

    def __add__(self, other: "BulkCosts") -> "BulkCosts":
        return BulkCosts(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)})

    def as_dict(self) -> dict[str, int]:
        """Its fields, as plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedRow:
    """What ranking a row gave.

    Attributes:
        ranking: Positions of the documents in the row's list, best first; at most `top_k`.
        scores: Their scores, in the same order.
        failed: Why documents were not scored, by their positions.
        costs: What it cost.
        problem: Why nothing was ranked; None if it was.
    """

    ranking: Sequence[int] = ()
    scores: Sequence[float] = ()
    failed: dict[int, str] = field(default_factory=dict)
    costs: BulkCosts = BulkCosts()
    problem: str | None = None


def _kind(value: Any) -> str:
    """What a wrong value is, in a word that JSON and Parquet have, too."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return "a text" if readable(value) else "blank"
    return {"dict": "an object", "list": "a list"}.get(type(value).__name__, f"of the type {type(value).__name__}")
