"""A call on its way: prompts in slices, scores, a ranking. `winnow.reranker` checks what is asked; here it is done."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar, cast

from tqdm.auto import tqdm

from winnow.checkpoint import Checkpoint, bind_template
from winnow.config import RerankerConfig
from winnow.engines.base import name_of
from winnow.engines.life import Started
from winnow.engines.requests import Requests, Turn
from winnow.errors import DocumentError
from winnow.fallback import Fallback
from winnow.images import ImageLoader, as_read
from winnow.observability import observed
from winnow.ordering import Judged, as_they_came, best_first, hits_of, positions_by_content, readable
from winnow.prompts import DocumentPrompts, Limits, PromptBuilder
from winnow.score_cache import ScoreCache
from winnow.score_cache import score as score_prompts
from winnow.templates import TemplateLike
from winnow.types import Document, Ranking, RankStats
from winnow.vision import Shown

logger = logging.getLogger(__name__)

T = TypeVar("T")

Documents = Iterable[str | Document | None]
Query = str | Document

# Bound templates that a reranker keeps.
_BUILDERS = 32
_builders_lock = threading.Lock()

# A call's documents are tokenised and scored in slices: while one is on the GPU the next is tokenised, and no more
# prompts than these slices hold are in memory.
_SLICE = 256
_SLICE_WITH_IMAGES = 16
_SLICES_AT_ONCE = 3

# Queries of a `rank_many` that are under way at once.
_CALLS_AT_ONCE = 64

_LATE = "The deadline passed."

# Stats that are sums over a call's slices.
_COSTS = ("prompt_tokens", "cached_tokens", "reused", "cache_hits")


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One query and its documents, checked.

    Attributes:
        may_fall_back: Whether a fallback may rank it.
        problem: Why there is nothing to rank by, where that is no error; the documents then stay as they came.
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


class CallRunner:
    """Runs the calls of one reranker, on the event loop of its engine.

    Args:
        config: The reranker's settings.
        fallback: What ranks where the engine fails.

    Attributes:
        cache: Scores that are kept, if the reranker keeps any.
    """

    def __init__(self, config: RerankerConfig, fallback: Fallback | None = None):
        self._config = config
        self._fallback = fallback
        self._left_out = False  # whether it was said that images or videos are left out
        self._builders: dict[Hashable, tuple[Checkpoint, PromptBuilder]] = {}
        self.cache = None if config.score_cache is None else ScoreCache(config.score_cache, config)

    async def bind(self, started: Started) -> None:
        """Load the model, and bind the reranker's own template to it."""
        if self._fallback is None:
            await self._bind(started)
        else:
            await self._fallback.start(partial(self._bind, started))

    async def _bind(self, started: Started) -> None:
        requests = await started()
        config = self._config
        await asyncio.to_thread(
            self._builder, requests.engine.checkpoint, config.template, config.template_kwargs, bool(config.instruction)
        )

    async def run(
        self, calls: Iterable[Call], progress: bool, deadline: float | None, started: Started
    ) -> list[Ranking]:
        """Rank calls as they come, a bounded number of them at once."""
        rankings: dict[int, Ranking] = {}
        gate = asyncio.Semaphore(_CALLS_AT_ONCE)
        clock = asyncio.timeout(deadline)
        engine = name_of(self._config.engine)

        async def keep(number: int, ranked: Awaitable[Ranking]) -> None:
            begin = time.perf_counter()
            with observed(str(self._config.model), engine, clock) as report:
                ranking = await ranked
                stats = replace(ranking.stats, elapsed_ms=(time.perf_counter() - begin) * 1000)
                rankings[number] = replace(ranking, stats=stats)
                report(stats)

        async def rank(number: int, call: Call) -> None:
            try:
                await keep(number, self._ranked(call, started, bar, clock))
            except DocumentError as error:
                if number:
                    error.add_note(f"It is a document of request {number}.")
                raise
            finally:
                gate.release()

        with tqdm(total=0, desc="reranking", unit="pair", disable=not progress, delay=1) as bar:
            try:
                async with clock, _all_or_none() as start:
                    number = 0
                    async for call in _pulled(calls):
                        await gate.acquire()
                        bar.total = (bar.total or 0) + len(call.documents)
                        start(rank(number, call))
                        number += 1
            except TimeoutError:
                # Calls that had begun have a ranking by now. How many are left in an iterator nobody knows.
                fallback = self._fallback
                if fallback is None or not (clock.expired() and fallback.ranks_at_once and isinstance(calls, Sequence)):
                    raise
                for number, call in enumerate(calls):
                    if number not in rankings:
                        if not call.may_fall_back:
                            raise
                        await keep(number, fallback.instead(call, TimeoutError(_LATE)))
        return [rankings[number] for number in range(len(rankings))]

    async def _ranked(self, call: Call, started: Started, bar: "tqdm[Any]", clock: asyncio.Timeout) -> Ranking:
        if call.problem is not None:
            logger.warning("%d documents stay as they came: %s", len(call.documents), call.problem)
            return as_they_came(self._config, call.documents, call.top_k, call.problem)
        fallback = self._fallback if call.may_fall_back else None
        if fallback is None:
            return await self._run_one(call, started, bar)
        try:
            return await fallback.rank(lambda: self._run_one(call, started, bar), call)
        except asyncio.CancelledError:
            if clock.expired() and fallback.ranks_at_once:
                return await fallback.instead(call, TimeoutError(_LATE))
            raise

    async def _run_one(self, call: Call, started: Started, bar: "tqdm[Any]") -> Ranking:
        failed: dict[int, DocumentError] = {}
        positions = positions_by_content(call.documents, failed)
        judged: dict[Hashable, Judged] = {}
        query_image: Shown | None = None
        loader = ImageLoader(self._config.root_path, allow_remote=self._config.allow_remote_images)
        stats: dict[str, Any] = dict.fromkeys(("unique", *_COSTS), 0)
        query_truncated = False
        gate = asyncio.Semaphore(_SLICES_AT_ONCE)
        turn = Turn()

        async def judge(requests: Requests, contents: Sequence[Hashable]) -> None:
            nonlocal query_truncated
            async with gate:
                self._raise_first(failed)
                first = [positions[content][0] for content in contents]
                checkpoint = requests.engine.checkpoint
                documents = [call.documents[at] for at in first]
                images = await loader.of_documents(checkpoint.vision, documents, first, failed)
                self._raise_first(failed)
                built = await asyncio.to_thread(self._build, checkpoint, call, query_image, first, images, failed)
                self._raise_first(failed)
                prompts = [prompt for document in built for prompt in document.prompts]
                scored = await score_prompts(requests, prompts, turn, self.cache)
                for name in _COSTS:
                    stats[name] += getattr(scored, name)
                logits = iter(scored.logits)
                for content, document in zip(contents, built, strict=True):
                    judged[content] = _judged(document, [next(logits) for _ in document.prompts])
                    query_truncated |= document.query_truncated
                    stats["unique"] += bool(document.prompts)
                bar.update(sum(len(positions[content]) for content in contents))

        self._raise_first(failed)
        if positions:
            requests = await started()
            bar.unpause()  # loading is not reranking
            call = self._as_read_by(requests.engine.checkpoint, call)
            positions = positions_by_content(call.documents, failed)
            query_image = await loader.of(requests.engine.checkpoint.vision, call.query, "The query")
            contents = list(positions)
            size = _SLICE if all(isinstance(content, str) for content in contents) else _SLICE_WITH_IMAGES
            async with _all_or_none() as start:
                for at in range(0, len(contents), size):
                    start(judge(requests, contents[at : at + size]))
        hits = hits_of(self._config, call.documents, judged, positions, failed)
        return Ranking(
            best_first(hits, call.top_k, call.score_threshold),
            RankStats(
                documents=len(hits),
                truncated=sum(hit.truncated for hit in hits),
                failed=sum(hit.error is not None for hit in hits),
                query_truncated=query_truncated,
                **stats,
            ),
        )

    def _as_read_by(self, checkpoint: Checkpoint, call: Call) -> Call:
        """The call without the images and videos that the model cannot take, where there is a text besides."""
        query, *documents = (as_read(checkpoint.vision, one) for one in (call.query, *call.documents))
        left_out = sum(read is not given for read, given in zip(documents, call.documents, strict=True))
        if (left_out or query is not call.query) and not self._left_out:
            self._left_out = True
            logger.warning(
                "%s does not take the images or videos of %d documents: it reads their texts. text_only=True says that "
                "this is meant; it is logged once.",
                checkpoint.model,
                left_out,
            )
        return replace(call, query=cast("Query", query), documents=documents)

    def _raise_first(self, failed: Mapping[int, DocumentError]) -> None:
        if failed and self._config.on_error == "raise":
            raise failed[min(failed)]

    def _build(
        self,
        checkpoint: Checkpoint,
        call: Call,
        query_image: Shown | None,
        positions: Sequence[int],
        images: Sequence[Shown | None],
        failed: dict[int, DocumentError],
    ) -> list[DocumentPrompts]:
        instruction = (call.instruction or "").strip() and call.instruction
        builder = self._builder(checkpoint, call.template, call.template_kwargs, bool(instruction))
        return builder.build(
            readable(call.query),
            [readable(call.documents[at]) for at in positions],
            instruction,
            query_image=query_image,
            images=images,
            positions=positions,
            errors=failed,
        )

    def _builder(
        self,
        checkpoint: Checkpoint,
        template: TemplateLike | None,
        template_kwargs: Mapping[str, Any] | None,
        with_instruction: bool,
    ) -> PromptBuilder:
        """The prompt builder of a template; templates are bound to the model once."""
        key = (id(checkpoint), repr(template), repr(template_kwargs), with_instruction)
        if (kept := self._builders.get(key)) is not None:
            return kept[1]
        bound = bind_template(checkpoint, template, template_kwargs, with_instruction=with_instruction)
        limits = Limits(
            max_length=min(self._config.max_length or checkpoint.max_length, checkpoint.max_length),
            max_query_tokens=self._config.max_query_tokens,
            max_document_tokens=self._config.max_document_tokens,
            on_overflow=self._config.on_overflow,
            window_overlap=self._config.window_overlap,
        )
        builder = PromptBuilder(checkpoint.tokenizer, bound, limits, checkpoint.vision)
        with _builders_lock:
            self._builders[key] = (checkpoint, builder)  # with the checkpoint, whose id is then nobody else's
            if len(self._builders) > _BUILDERS:  # the oldest goes: templates may come with each call
                del self._builders[next(iter(self._builders))]
        return builder


def _judged(document: DocumentPrompts, logits: list[float]) -> Judged:
    return Judged(
        logits=logits,
        truncated=document.truncated,
        document_tokens=document.document_tokens,
    )


async def _pulled(items: Iterable[T]) -> AsyncIterator[T]:
    """The items one by one. What is no sequence may block or read files: it is pulled in another thread."""
    if isinstance(items, Sequence):
        for item in items:
            yield item
        return
    iterator, end = iter(items), object()
    while (item := await asyncio.to_thread(cast("Callable[..., T]", next), iterator, end)) is not end:
        yield item


@contextlib.asynccontextmanager
async def _all_or_none() -> AsyncIterator[Callable[[Coroutine[Any, Any, None]], object]]:
    """Yields what starts work; waits for all of it. The first failure cancels the rest, and is raised as it is."""
    first: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            yield group.create_task
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
        failures.__traceback__ = None  # it refers to frames that refer to the group: garbage that stays for long
    if first is not None:
        try:
            raise first
        finally:
            del first  # likewise
