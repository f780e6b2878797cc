"""The reranker: build prompts, score, order, cut."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self, TypeVar, cast

from tqdm.auto import tqdm

from winnow.checkpoint import Checkpoint, bind_template
from winnow.config import RerankerConfig
from winnow.engines.choose import create_engine
from winnow.engines.requests import Requests, Turn
from winnow.engines.settings import resolve
from winnow.engines.shared import Lease, Started, Work
from winnow.errors import DocumentError
from winnow.images import ImageLoader
from winnow.observability import observed
from winnow.ordering import Judged, best_first, hits_of, in_input_order, positions_by_content, readable, text_of
from winnow.prompts import DocumentPrompts, Limits, PromptBuilder
from winnow.score_cache import ScoreCache
from winnow.score_cache import score as score_prompts
from winnow.templates import TemplateLike
from winnow.types import Document, Ranking, RankStats
from winnow.vision import PromptImage

T = TypeVar("T")

Documents = Iterable[str | Document | None]
Query = str | Document
RankRequest = tuple[Query, Documents] | tuple[Query, Documents, str | None]

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

# Stats that are sums over a call's slices.
_COSTS = ("prompt_tokens", "cached_tokens", "reused", "cache_hits")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """One query and its documents, checked."""

    query: Query
    documents: list[str | Document | None]
    instruction: str | None
    top_k: int | None
    score_threshold: float | None
    template: TemplateLike | None
    template_kwargs: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Reranker(RerankerConfig):
    """Scores documents for a query with a reranker model, and orders them.

    Making one loads nothing: the first call, or `start`, does. Rerankers with the same model and engine settings share
    one
    engine in the process. Every method may be called from any thread, the `a…` ones from any event loop; the work of
    all
    callers merges on the GPU. After `close` the next call loads the model again.

    Takes the arguments of `RerankerConfig`.
    """

    _lease: Lease = field(init=False, repr=False)
    _builders: dict[Hashable, PromptBuilder] = field(init=False, repr=False, default_factory=dict)
    _cache: ScoreCache | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "_lease", Lease(self.engine_key, partial(create_engine, self, resolve(self))))
        cache = None if self.score_cache is None else ScoreCache(self.score_cache, self)
        object.__setattr__(self, "_cache", cache)

    # --- scoring ------------------------------------------------------------------------------------------------------

    def rank(
        self,
        query: Query,
        documents: Documents,
        *,
        top_k: int | None = None,
        instruction: str | None = None,
        score_threshold: float | None = None,
        template: TemplateLike | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        deadline: float | None = None,
        progress: bool = False,
    ) -> Ranking:
        """Order documents by relevance to the query, best first; ties keep the input's order.

        Args:
            query: What is searched for: a text, or a `Document` with an image, for models that see.
            documents: Texts, or `Document`s with images. None and blank ones are not scored and rank last.
            top_k: How many to return; None for all.
            instruction: What counts as relevant, instead of the reranker's; "" for the template's default.
            score_threshold: Least score to return (inclusive), applied before `top_k`.
            template: A template for this call.
            template_kwargs: Template variables for this call.
            deadline: Seconds after which the call gives up and withdraws its prompts; None to wait.
            progress: Show a progress bar on stderr.

        Returns:
            The ranking, with what it cost in `stats`.

        Raises:
            ValueError: The query is blank, or `top_k` is below 1.
            DocumentError: A document cannot be scored, and `on_error` is "raise".
            ConfigurationError: The model or the template cannot be used.
            EngineError: The engine failed.
            TimeoutError: The deadline passed.
        """
        call = self._call(query, documents, top_k, instruction, score_threshold, template, template_kwargs)
        return self._wait(partial(self._rank_calls, [call], progress, deadline))[0]

    async def arank(
        self,
        query: Query,
        documents: Documents,
        *,
        top_k: int | None = None,
        instruction: str | None = None,
        score_threshold: float | None = None,
        template: TemplateLike | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        deadline: float | None = None,
        progress: bool = False,
    ) -> Ranking:
        """`rank` for event loops. Cancelling it withdraws its prompts from the engine."""
        call = self._call(query, documents, top_k, instruction, score_threshold, template, template_kwargs)
        return (await self._await(partial(self._rank_calls, [call], progress, deadline)))[0]

    def score(self, query: Query, documents: Documents, *, instruction: str | None = None) -> list[float]:
        """Scores of the documents in input order; arguments and errors as in `rank`."""
        return in_input_order(self.rank(query, documents, instruction=instruction))

    async def ascore(self, query: Query, documents: Documents, *, instruction: str | None = None) -> list[float]:
        """`score` for event loops."""
        return in_input_order(await self.arank(query, documents, instruction=instruction))

    def rank_many(
        self,
        requests: Iterable[RankRequest],
        *,
        top_k: int | None = None,
        score_threshold: float | None = None,
        deadline: float | None = None,
        progress: bool = False,
    ) -> list[Ranking]:
        """Rank the documents of many queries in one pass over the GPU.

        Args:
            requests: `(query, documents)` or `(query, documents, instruction)`; each with as many documents as it
                likes. An iterator is read as the work goes on, so that a million pairs need little memory.
            top_k: As in `rank`, for each query.
            score_threshold: As in `rank`.
            deadline: As in `rank`, for all of it.
            progress: Show a progress bar on stderr.

        Returns:
            One ranking a request, in order.
        """
        return self._wait(partial(self._rank_calls, self._calls(requests, top_k, score_threshold), progress, deadline))

    async def arank_many(
        self,
        requests: Iterable[RankRequest],
        *,
        top_k: int | None = None,
        score_threshold: float | None = None,
        deadline: float | None = None,
        progress: bool = False,
    ) -> list[Ranking]:
        """`rank_many` for event loops."""
        return await self._await(
            partial(self._rank_calls, self._calls(requests, top_k, score_threshold), progress, deadline)
        )

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Load the model now instead of with the first call."""
        self._wait(self._bind)
        return self

    async def astart(self) -> Self:
        """`start` for event loops."""
        await self._await(self._bind)
        return self

    def close(self) -> None:
        """Wait for calls in flight, then free the engine unless another reranker holds it.

        The next call loads it again.
        """
        self._lease.close()
        if self._cache is not None:
            self._cache.retry()

    async def aclose(self) -> None:
        """`close` for event loops."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lease", "_builders", "_cache")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _builders={})
        self.__post_init__()

    # --- inside: async only -------------------------------------------------------------------------------------------

    def _wait(self, work: Work[T]) -> T:
        future = self._lease.submit(work)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            self._lease.interrupt()
            raise

    async def _await(self, work: Work[T]) -> T:
        return await asyncio.wrap_future(self._lease.submit(work))

    async def _bind(self, started: Started) -> None:
        requests = await started()
        await asyncio.to_thread(
            self._builder, requests.engine.checkpoint, self.template, self.template_kwargs, bool(self.instruction)
        )

    def _calls(
        self, requests: Iterable[RankRequest], top_k: int | None, score_threshold: float | None
    ) -> Iterable[_Call]:
        def checked(request: RankRequest) -> _Call:
            query, documents, *rest = request
            return self._call(query, documents, top_k, rest[0] if rest else None, score_threshold)

        calls: Iterator[_Call] = map(checked, requests)
        return list(calls) if isinstance(requests, Sequence) else calls

    def _call(
        self,
        query: Query,
        documents: Documents,
        top_k: int | None,
        instruction: str | None,
        score_threshold: float | None,
        template: TemplateLike | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> _Call:
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be > 0, but got {top_k}")
        image = query.image if isinstance(query, Document) else None
        if not isinstance(text_of(query), str | None) or not (readable(query) or image is not None):
            raise ValueError(f"query must be a text that is not blank, but got {query!r}")
        if isinstance(documents, str | bytes):
            raise TypeError("documents must be several texts, but got a single one: put it into a list")
        return _Call(
            query=query,
            documents=list(documents),
            instruction=self.instruction if instruction is None else instruction,
            top_k=top_k,
            score_threshold=score_threshold,
            template=self.template if template is None else template,
            template_kwargs=self.template_kwargs if template_kwargs is None else template_kwargs,
        )

    async def _rank_calls(
        self, calls: Iterable[_Call], progress: bool, deadline: float | None, started: Started
    ) -> list[Ranking]:
        """Rank calls as they come, a bounded number of them at once."""
        rankings: dict[int, Ranking] = {}
        gate = asyncio.Semaphore(_CALLS_AT_ONCE)
        clock = asyncio.timeout(deadline)
        engine = self.engine if isinstance(self.engine, str) else self.engine.name

        async def rank(number: int, call: _Call) -> None:
            try:
                with observed(str(self.model), engine, clock) as report:
                    rankings[number] = await self._rank_one(call, started, bar)
                    report(rankings[number].stats)
            except DocumentError as error:
                if number:
                    error.add_note(f"It is a document of request {number}.")
                raise
            finally:
                gate.release()

        with tqdm(total=0, desc="reranking", unit="pair", disable=not progress, delay=1) as bar:
            async with clock, _all_or_none() as start:
                number = 0
                async for call in _pulled(calls):
                    await gate.acquire()
                    bar.total = (bar.total or 0) + len(call.documents)
                    start(rank(number, call))
                    number += 1
        return [rankings[at] for at in range(number)]

    async def _rank_one(self, call: _Call, started: Started, bar: "tqdm[Any]") -> Ranking:
        begin = time.perf_counter()
        failed: dict[int, DocumentError] = {}
        positions = positions_by_content(call.documents, failed)
        judged: dict[Hashable, Judged] = {}
        query_image: PromptImage | None = None
        loader = ImageLoader(self.root_path, allow_remote=self.allow_remote_images)
        stats: dict[str, int] = dict.fromkeys(("unique", *_COSTS), 0)
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
                scored = await score_prompts(requests, prompts, turn, self._cache)
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
            if isinstance(call.query, Document) and call.query.image is not None:
                query_image = await loader.load(requests.engine.checkpoint.vision, call.query.image, "The query")
            contents = list(positions)
            size = _SLICE if all(isinstance(content, str) for content in contents) else _SLICE_WITH_IMAGES
            async with _all_or_none() as start:
                for at in range(0, len(contents), size):
                    start(judge(requests, contents[at : at + size]))
        hits = hits_of(self, call.documents, judged, positions, failed)
        return Ranking(
            best_first(hits, call.top_k, call.score_threshold),
            RankStats(
                documents=len(hits),
                truncated=sum(hit.truncated for hit in hits),
                failed=sum(hit.error is not None for hit in hits),
                query_truncated=query_truncated,
                elapsed_ms=(time.perf_counter() - begin) * 1000,
                **stats,
            ),
        )

    def _raise_first(self, failed: Mapping[int, DocumentError]) -> None:
        if failed and self.on_error == "raise":
            raise failed[min(failed)]

    def _build(
        self,
        checkpoint: Checkpoint,
        call: _Call,
        query_image: PromptImage | None,
        positions: Sequence[int],
        images: Sequence[PromptImage | None],
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
        builder = self._builders.get(key)
        if builder is None:
            bound = bind_template(checkpoint, template, template_kwargs, with_instruction=with_instruction)
            limits = Limits(
                max_length=min(self.max_length or checkpoint.max_length, checkpoint.max_length),
                max_query_tokens=self.max_query_tokens,
                max_document_tokens=self.max_document_tokens,
                on_overflow=self.on_overflow,
                window_overlap=self.window_overlap,
            )
            builder = PromptBuilder(checkpoint.tokenizer, bound, limits, checkpoint.vision)
            with _builders_lock:
                self._builders[key] = builder
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
    try:
        async with asyncio.TaskGroup() as group:
            yield group.create_task
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
        raise first from first.__cause__
