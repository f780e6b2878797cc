"""What a call to the reranker takes and returns: plain data, which the integrations convert."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, overload

from winnow.errors import MissingExtraError
from winnow.notebook import html_of_ranking

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, slots=True)
class Document:
    """A document or a query that has an image or a video.

    Attributes:
        text: Its text, or None.
        image: Its image, for multimodal models: a local path (below `root_path`), an http(s) address (with
            `allow_remote_images`), a data URI, the bytes of an image file, or a `PIL.Image.Image`.
        video: Its video, for multimodal models: a video file, given in one of these ways, or a list of frames, two a
            second, each given as an image is. A document has an image or a video, not both.
    """

    text: str | None = None
    image: Any = None
    video: Any = None


RETRIEVAL_ORDER = "retrieval order"
"""The fallback that keeps the documents in the caller's order, without scores."""


def finite(score: float) -> float:
    """A score for formats that cannot hold infinities: −inf (no logit) becomes the least float32."""
    return max(score, -3.4028234663852886e38)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedDocument:
    """One document of a ranking.

    Attributes:
        index: Position of the document in the caller's list.
        score: sigmoid(logit), between 0 and 1, or the probability that a `calibration` makes of the logit, or with
            `raw_scores=True` the logit itself. 0.0 (−inf with `raw_scores`) for a document that was not scored.
        logit: The model's raw relevance logit in fp32; its formula is `ModelRecipe.formula`. −inf for a document that
            was not scored.
        text: The document's text as the caller gave it, or None.
        truncated: True if the text was cut, so that the model did not read all of it.
        document_tokens: How many tokens of the document the model read.
        windows: How many windows the document was scored in; 1 unless `on_overflow="window"` split it, 0 if not scored.
        best_window: Which window, from 0, had the highest logit.
        error: Why the document was not scored, with `on_error="skip"` or `fallback="retrieval order"`; else None.
    """

    index: int
    score: float
    logit: float
    text: str | None
    truncated: bool = False
    document_tokens: int = 0
    windows: int = 1
    best_window: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStats:
    """What one call cost.

    Attributes:
        documents: Documents the caller gave.
        unique: Different documents that were scored, by the engine or from the score cache. Blank and failed documents
            do not count.
        truncated: Documents that were cut.
        failed: Documents that have an `error`.
        prompt_tokens: Tokens of all prompts except those in the score cache, template included.
        cached_tokens: Of these, tokens that were in the engine's prefix cache.
        reused: Prompts that were not sent, because another call waited for the same prompt.
        cache_hits: Prompts that were not sent, because their score was in the score cache.
        usage_tokens: Tokens of the prompts of all documents, as if nothing were shared or cached: what vLLM and hosted
            rerankers count as usage.
        query_truncated: True if the query was cut.
        elapsed_ms: Wall time of the call in milliseconds, loading the model included.
        fallback: What ranked when the engine failed: an engine's name, or "retrieval order". None if the engine ranked.
        error: Why the engine did not rank; None if it did.
    """

    documents: int = 0
    unique: int = 0
    truncated: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    reused: int = 0
    cache_hits: int = 0
    usage_tokens: int = 0
    query_truncated: bool = False
    elapsed_ms: float = 0.0
    fallback: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Ranking(Sequence[RankedDocument]):
    """Documents in order of relevance, best first; ties keep the order of the input.

    A sequence: iterate over it, index it, take its length.

    Attributes:
        hits: The ranked documents.
        stats: What the call cost.
    """

    hits: tuple[RankedDocument, ...] = ()
    stats: RankStats = RankStats()

    @property
    def degraded(self) -> bool:
        """Whether a fallback ranked the documents: `stats.fallback` says which, `stats.error` why."""
        return self.stats.fallback is not None

    def as_dict(self) -> dict[str, Any]:
        """The ranking without its texts, as plain data for JSON: the fields of `stats`, and `hits`, best first."""
        hits = [
            {name: getattr(hit, name) for name in RankedDocument.__slots__ if name != "text"}
            | {"score": finite(hit.score), "logit": finite(hit.logit)}
            for hit in self.hits
        ]
        return {**asdict(self.stats), "hits": hits}

    def to_dataframe(self) -> "pandas.DataFrame":
        """The ranking as a `pandas.DataFrame`: a row for each hit, best first, with the fields of `RankedDocument`.

        The row's label is the rank, from 1. A field that is None becomes pandas' own missing value.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingExtraError("pandas", "pandas") from error
        columns = {name: [getattr(hit, name) for hit in self.hits] for name in RankedDocument.__slots__}
        return pandas.DataFrame(columns, index=pandas.RangeIndex(1, len(self.hits) + 1, name="rank"))

    def _repr_html_(self) -> str:
        """What notebooks show; https://ipython.readthedocs.io, "Rich display"."""
        return html_of_ranking(self.as_dict(), [hit.text for hit in self.hits])

    @overload
    def __getitem__(self, index: int) -> RankedDocument: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[RankedDocument, ...]: ...
    def __getitem__(self, index: int | slice) -> RankedDocument | tuple[RankedDocument, ...]:
        return self.hits[index]

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[RankedDocument]:
        return iter(self.hits)
