"""Scores the documents of one call: slices of them become prompts, and prompts become scores."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Iterator, Sequence
from functools import partial
from typing import Any

from winnow.engines import Requests, Turn, is_logit
from winnow.errors import DocumentError, EngineError
from winnow.media import MediaLoader
from winnow.models import Checkpoint
from winnow.progress import Bar
from winnow.prompts import CHARACTERS_PER_TOKEN, DocumentPrompts, PromptBuilder, QueryPart, Source
from winnow.ranking.config import RerankerConfig
from winnow.ranking.options import Call
from winnow.ranking.results import Contents, HitMaker, Outcome, raise_first
from winnow.ranking.score_cache import ScoreCache, Scored
from winnow.ranking.score_cache import score as score_prompts
from winnow.text import readable, text_of

BuilderOf = Callable[[Checkpoint, Call], PromptBuilder]

# A call's documents are tokenised and scored in slices: while one is on the GPU the next is tokenised, and no more
# prompts than these slices hold are in memory. The work between two awaits is that of one slice, for which a small
# call waits: with slices of 256 its latency beside a large call was half as much again, and no call was faster.
_SLICE = 64
_SLICE_WITH_MEDIA = 8
_SLICE_CHARACTERS = 1_000_000
_FIRST_SLICE_CHARACTERS = 16_000  # few, so that the engine begins while the rest is tokenised
_REST = 1 / 4  # the last documents, if they are not more of a slice than this, stay with those before them
_SLICES_AT_ONCE = 6


class Judging:
    """Scores the documents of one call, once.

    Args:
        config: The reranker's settings.
        call: The call, without the images and videos that the model does not take.
        contents: Its different documents.
        requests: The running engine's queue.
        builder_of: The prompt builder of a call; it runs in a thread.
        cache: The score cache, if the reranker has one.
        bar: The progress bar.
    """

    def __init__(
        self,
        config: RerankerConfig,
        call: Call,
        contents: Contents,
        requests: Requests,
        builder_of: BuilderOf,
        cache: ScoreCache | None,
        bar: Bar,
    ):
        self._config = config
        self._call = call
        self._positions = contents.positions
        self._requests = requests
        self._checkpoint = requests.engine.checkpoint
        self._builder_of = builder_of
        self._cache = cache
        self._bar = bar
        self._loader = MediaLoader(config.root_path, allow_remote=config.allow_remote_images)
        self._gate = asyncio.Semaphore(_SLICES_AT_ONCE)
        self._turn = Turn(offset=call.options.priority)
        self._maker = HitMaker(config, call)
        self._outcome = Outcome()
        self._query_part: QueryPart | None = None
        self._own_turn = asyncio.Lock()

    async def run(self) -> Outcome:
        """What scoring the documents found.

        Raises:
            DocumentError: A document cannot be scored, and `on_error` is "raise"; or the query cannot.
            EngineError: The engine failed, or scored nothing.
        """
        call = self._call
        medium = await self._loader.of(self._checkpoint.vision, call.query, "The query")
        query = Source(readable(call.query), medium)
        async with all_or_none() as start:
            for contents in self._slices():
                start(self._run_slice(query, contents))
        self._raise_if_nothing_is_finite()
        return self._outcome

    def _slices(self) -> Iterator[list[Hashable]]:
        most = _SLICE if all(isinstance(content, str) for content in self._positions) else _SLICE_WITH_MEDIA
        lengths = list(map(self._characters_read, self._positions))
        left, left_characters = len(lengths), sum(lengths)  # of what is in no slice yet
        contents: list[Hashable] = []
        characters, most_characters = 0, _FIRST_SLICE_CHARACTERS
        for content, length in zip(self._positions, lengths, strict=True):
            is_full = len(contents) >= most or characters + length > most_characters
            is_rest = left <= _REST * most and left_characters <= _REST * most_characters
            if contents and is_full and not is_rest:
                yield contents
                contents, characters, most_characters = [], 0, _SLICE_CHARACTERS
            contents.append(content)
            characters += length
            left, left_characters = left - 1, left_characters - length
        if contents:
            yield contents

    def _characters_read(self, content: Hashable) -> int:
        """How many characters of a document are tokenised at most."""
        length = len(text_of(self._call.documents[self._positions[content][0]]) or "")
        limits = self._call.options.limits
        if limits.on_overflow == "window":
            return length
        return min(length, CHARACTERS_PER_TOKEN * (limits.max_length or self._checkpoint.max_length))

    async def _run_slice(self, query: Source, contents: Sequence[Hashable]) -> None:
        async with self._gate:
            self._outcome.add(await self._judged(query, contents))
            if self._config.on_error == "raise":
                self._raise_if_nothing_is_finite()
                raise_first(self._outcome.failed)
            self._bar.update(sum(len(self._positions[content]) for content in contents))

    async def _judged(self, query: Source, contents: Sequence[Hashable]) -> Outcome:
        """What scoring some of the documents found."""
        built = await self._built(query, contents)
        prompts = [prompt for document in built for prompt in document.prompts]
        scored = await score_prompts(self._requests, prompts, self._turn, self._cache)
        return self._outcome_of(contents, built, scored)

    async def _built(self, query: Source, contents: Sequence[Hashable]) -> list[DocumentPrompts]:
        """The prompts of documents.

        Raises:
            DocumentError: A document has none, and `on_error` is "raise"; or the query cannot be used.
        """
        first = [self._positions[content][0] for content in contents]
        documents = [self._call.documents[at] for at in first]
        media = await self._loader.of_documents(self._checkpoint.vision, documents, first)
        sources: list[Source] = []
        for document, at, medium in zip(documents, first, media, strict=True):
            if not isinstance(medium, DocumentError):
                sources.append(Source(readable(document), medium, at))
            elif self._config.on_error == "raise":
                raise medium
        over = threading.Event()
        try:
            # A call's slices are tokenised one after another: it never has more than its share of the threads, and only
            # the first slice makes the query's part.
            async with self._own_turn:
                built = iter(await self._requests.tokenize(partial(self._build, query, sources, over.is_set)))
        finally:
            over.set()
        return [DocumentPrompts(error=medium) if isinstance(medium, DocumentError) else next(built) for medium in media]

    def _build(self, query: Source, documents: Sequence[Source], is_over: Callable[[], bool]) -> list[DocumentPrompts]:
        builder = self._builder_of(self._checkpoint, self._call)
        if self._query_part is None:
            self._query_part = builder.query_part(query, readable(self._call.instruction))
        return builder.build(self._query_part, documents, on_error=self._config.on_error, is_over=is_over)

    def _outcome_of(self, contents: Sequence[Hashable], built: Sequence[DocumentPrompts], scored: Scored) -> Outcome:
        outcome = Outcome(costs=scored.costs, query_truncated=any(document.query_truncated for document in built))
        end = 0
        for content, document in zip(contents, built, strict=True):
            at = self._positions[content][0]
            begin, end = end, end + len(document.prompts)
            own = scored.scores[begin:end]
            # A document has no score if one of its windows has none.
            bad = next(iter([one for one in own if one.error is not None or not is_logit(one.logit)]), None)
            if document.error is not None:
                outcome.failed[at] = document.error
            elif bad is not None:
                why = bad.error
                if why is None:
                    why = outcome.not_finite = _not_finite(self._requests.engine.name, bad.logit)
                outcome.failed[at] = DocumentError(f"Document {at} cannot be scored: {why}", at)
            else:
                outcome.hits |= self._maker.hits(
                    self._positions[content],
                    [one.logit for one in own],
                    truncated=document.truncated,
                    document_tokens=document.document_tokens,
                )
                outcome.unique += 1
                tokens = sum([len(prompt.ids) for prompt in document.prompts])
                outcome.usage_tokens += tokens * len(self._positions[content])
        return outcome

    def _raise_if_nothing_is_finite(self) -> None:
        """If no document has a finite score, the engine has failed, not the documents, and a fallback may rank."""
        why = self._outcome.not_finite
        if why is not None and not self._outcome.hits:
            raise EngineError(why[0].upper() + why[1:])


def _not_finite(engine: str, logit: float) -> str:
    """Why a logit is no score."""
    return (
        f"the engine {engine} returned the logit {logit}. On a GPU this is usually an overflow: try dtype='bfloat16' "
        "or 'float32' in engine_kwargs; it may also be a damaged checkpoint."
    )


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
