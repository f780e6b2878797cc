"""Runs one call: slices of its documents become prompts, prompts become scores, and scores a ranking."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from winnow.engines import EngineScore, Requests, Started, Turn, is_logit
from winnow.errors import DocumentError, EngineError
from winnow.media import ImageLoader, Shown
from winnow.models import Checkpoint
from winnow.progress import Bar
from winnow.prompts import CHARACTERS_PER_TOKEN, DocumentPrompts
from winnow.ranking.config import RerankerConfig
from winnow.ranking.results import Judged, best_first, hits_of, positions_by_content
from winnow.ranking.score_cache import ScoreCache
from winnow.ranking.score_cache import score as score_prompts
from winnow.templates import TemplateLike
from winnow.text import text_of
from winnow.types import Document, Ranking, RankStats

Documents = Iterable[str | Document | None]
Query = str | Document
RankRequest = tuple[Query, Documents] | tuple[Query, Documents, str | None]

# A call's documents are tokenised and scored in slices: while one is on the GPU the next is tokenised, and no more
# prompts than these slices hold are in memory.
_SLICE = 256
_SLICE_WITH_MEDIA = 16
_SLICE_CHARACTERS = 2_000_000
_SLICES_AT_ONCE = 3

# Stats that are sums over a call's slices.
_COSTS = ("prompt_tokens", "cached_tokens", "reused", "cache_hits")


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One query and its documents, checked.

    Attributes:
        may_fall_back: Whether a fallback may rank it.
        problem: Why the call cannot be ranked, if that is not an error; the documents then keep their order.
    """

    query: Query
    documents: list[str | Document | None]
    instruction: str | None
    top_k: int | None
    score_threshold: float | None
    template: TemplateLike | None
    template_kwargs: Mapping[str, Any] | None
    may_fall_back: bool = True
    problem: str | None = None


Build = Callable[
    [
        Checkpoint,
        Call,
        Shown | None,
        Sequence[int],
        Sequence[Shown | None],
        dict[int, DocumentError],
        Callable[[], bool],
    ],
    list[DocumentPrompts],
]


class Judging:
    """Runs one call, once.

    Args:
        config: The reranker's settings.
        call: The call.
        as_read_by: Removes the images and videos that a model does not take from a call.
        build: Makes the prompts of a call's documents; it runs in a thread.
        cache: The score cache, if the reranker has one.
        bar: The progress bar.
    """

    def __init__(
        self,
        config: RerankerConfig,
        call: Call,
        as_read_by: Callable[[Checkpoint, Call], Call],
        build: Build,
        cache: ScoreCache | None,
        bar: Bar,
    ):
        self._config = config
        self._call = call
        self._as_read_by = as_read_by
        self._build = build
        self._cache = cache
        self._bar = bar
        self._loader = ImageLoader(config.root_path, allow_remote=config.allow_remote_images)
        self._query_medium: Shown | None = None
        self._failed: dict[int, DocumentError] = {}
        self._positions: dict[Hashable, list[int]] = {}
        self._judged: dict[Hashable, Judged] = {}
        self._costs: dict[str, Any] = dict.fromkeys(_COSTS, 0)
        self._query_truncated = False
        self._not_finite: str | None = None  # the message about a logit that is not a finite number
        self._gate = asyncio.Semaphore(_SLICES_AT_ONCE)
        self._turn = Turn()

    async def run(self, started: Started) -> Ranking:
        """Rank the call. The engine is not used if there is nothing to score.

        Raises:
            DocumentError: A document cannot be scored, and `on_error` is "raise"; or the query cannot.
            EngineError: The engine failed, or scored nothing.
        """
        self._positions = positions_by_content(self._call.documents, self._failed)
        self._raise_first()
        if self._positions:
            requests = await started()
            self._bar.unpause()  # loading is not reranking
            checkpoint = requests.engine.checkpoint
            self._call = self._as_read_by(checkpoint, self._call)
            self._positions = positions_by_content(self._call.documents, self._failed)
            self._query_medium = await self._loader.of(checkpoint.vision, self._call.query, "The query")
            async with all_or_none() as start:
                for contents in self._slices(checkpoint):
                    start(self._slice(requests, contents))
            self._raise_if_nothing_is_finite()
        hits = hits_of(self._config, self._call.documents, self._judged, self._positions, self._failed)
        return Ranking(
            best_first(hits, self._call.top_k, self._call.score_threshold),
            RankStats(
                documents=len(hits),
                unique=len(self._judged),
                truncated=sum(hit.truncated for hit in hits),
                failed=sum(hit.error is not None for hit in hits),
                query_truncated=self._query_truncated,
                **self._costs,
            ),
        )

    def _slices(self, checkpoint: Checkpoint) -> Iterator[list[Hashable]]:
        most = _SLICE if all(isinstance(content, str) for content in self._positions) else _SLICE_WITH_MEDIA
        reach = CHARACTERS_PER_TOKEN * (self._config.max_length or checkpoint.max_length)
        contents: list[Hashable] = []
        characters = 0
        for content, (at, *_) in self._positions.items():
            length = len(text_of(self._call.documents[at]) or "")
            if self._config.on_overflow != "window":
                length = min(length, reach)  # the rest is not tokenised
            if contents and (len(contents) == most or characters + length > _SLICE_CHARACTERS):
                yield contents
                contents, characters = [], 0
            contents.append(content)
            characters += length
        if contents:
            yield contents

    async def _slice(self, requests: Requests, contents: Sequence[Hashable]) -> None:
        async with self._gate:
            self._raise_first()
            first = [self._positions[content][0] for content in contents]
            checkpoint = requests.engine.checkpoint
            documents = [self._call.documents[at] for at in first]
            media = await self._loader.of_documents(checkpoint.vision, documents, first, self._failed)
            self._raise_first()
            over = threading.Event()
            try:
                built = await asyncio.to_thread(
                    self._build, checkpoint, self._call, self._query_medium, first, media, self._failed, over.is_set
                )
            finally:
                over.set()
            self._raise_first()
            prompts = [prompt for document in built for prompt in document.prompts]
            scored = await score_prompts(requests, prompts, self._turn, self._cache)
            for name in _COSTS:
                self._costs[name] += getattr(scored, name)
            scores = iter(scored.scores)
            for content, at, document in zip(contents, first, built, strict=True):
                own = [next(scores) for _ in document.prompts]
                self._query_truncated |= document.query_truncated
                if own and (why := self._why_not(own, requests.engine.name)) is not None:
                    self._failed[at] = DocumentError(f"Document {at} cannot be scored: {why}", at)
                elif own:
                    self._judged[content] = Judged(
                        logits=[one.logit for one in own],
                        truncated=document.truncated,
                        document_tokens=document.document_tokens,
                    )
            if self._config.on_error == "raise":
                self._raise_if_nothing_is_finite()
                self._raise_first()
            self._bar.update(sum(len(self._positions[content]) for content in contents))

    def _why_not(self, scores: Sequence[EngineScore], engine: str) -> str | None:
        """Why a document has no score, although its prompts were sent: at least one of its windows failed."""
        for one in scores:
            if one.error is not None:
                return one.error
            if not is_logit(one.logit):
                self._not_finite = (
                    f"the engine {engine} returned the logit {one.logit}. On a GPU this is usually an overflow: try "
                    "dtype='bfloat16' or 'float32' in engine_kwargs; it may also be a damaged checkpoint."
                )
                return self._not_finite
        return None

    def _raise_if_nothing_is_finite(self) -> None:
        """If no document has a finite score, the engine has failed, not the documents, and a fallback may rank."""
        if self._not_finite is not None and not self._judged:
            raise EngineError(self._not_finite[0].upper() + self._not_finite[1:])

    def _raise_first(self) -> None:
        if self._failed and self._config.on_error == "raise":
            raise self._failed[min(self._failed)]


@contextlib.asynccontextmanager
async def all_or_none() -> AsyncIterator[Callable[[Coroutine[Any, Any, None]], object]]:
    """Yields a function that starts coroutines, and waits for them. The first error cancels the rest, and is raised.

    A coroutine that ends with a `CancelledError` though nobody cancelled it is an error, too: a `TaskGroup` ignores it,
    and its documents would have no scores.
    """
    first: BaseException | None = None
    given_up = False

    def note(task: asyncio.Task[None]) -> None:
        nonlocal given_up
        given_up |= task.cancelled()

    def start(work: Coroutine[Any, Any, None]) -> None:
        group.create_task(work).add_done_callback(note)

    try:
        async with asyncio.TaskGroup() as group:
            yield start
        if given_up:
            first = EngineError("A part of the work was cancelled, though its call goes on.")
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
        failures.__traceback__ = None  # its frames refer to the group: a reference cycle, which would live for long
    if first is not None:
        try:
            raise first
        finally:
            del first  # likewise
