"""The reranker, which users call. `arguments` beside it checks the arguments of calls, `calls` runs the calls."""

import asyncio
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Self, TypeVar

from winnow.engines import EngineLife, EngineSettings, Lease, Work, create_engine, resolve
from winnow.ranking.arguments import are_in_memory, checked_calls, checked_deadline
from winnow.ranking.calibration import loaded
from winnow.ranking.calls import CallRunner
from winnow.ranking.config import RerankerConfig
from winnow.ranking.fallback import Fallback, settings_of_fallback
from winnow.ranking.hints import hinting, hinting_call
from winnow.ranking.judging import Call, Documents, Query, RankRequest
from winnow.ranking.pulling import IteratorFailedError
from winnow.ranking.results import in_input_order
from winnow.templates import TemplateLike
from winnow.threads import OwnThread
from winnow.types import Ranking

T = TypeVar("T")

# Attributes that a copy makes again from the settings.
_MADE = ("_engine_settings", "_lease", "_calls", "_stand_in")


@hinting
@dataclass(frozen=True, kw_only=True, eq=False)
class Reranker(RerankerConfig):
    """Scores documents for a query with a reranker model, and orders them.

    The first call, or `start`, loads the model. Rerankers with the same model and engine settings share one engine in
    the process. Every method may be called from any thread, the `a…` methods from any event loop; the GPU runs the
    prompts of all callers in common batches. After `close` the next call loads the model again. If all rerankers of an
    engine are garbage-collected without `close`, the engine closes some seconds later.

    It takes the arguments of `RerankerConfig`. An unknown argument is a `TypeError` that says the right name.
    """

    _engine_settings: EngineSettings = field(init=False, repr=False)
    _lease: Lease = field(init=False, repr=False)
    _calls: CallRunner = field(init=False, repr=False)
    _stand_in: "Reranker | None" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        # The engine and the calls in flight refer to these settings. They must not refer to the reranker, which
        # releases the engine when it is garbage-collected.
        settings = {field.name: getattr(self, field.name) for field in fields(RerankerConfig)}
        config = RerankerConfig(**settings | {"calibration": loaded(self.calibration)})
        # The environment is read here, once: what changes in it later is for rerankers made later.
        engine_settings = resolve(config)
        object.__setattr__(self, "_engine_settings", engine_settings)
        make = partial(create_engine, config, engine_settings)
        object.__setattr__(self, "_lease", Lease(self.engine_key, make, self.max_restarts))
        other = settings_of_fallback(self)
        stand_in = None if other is None else Reranker(**other)
        rank_instead = None if stand_in is None else stand_in._rank_instead
        fallback = None if self.fallback is None else Fallback(config, rank_instead)
        object.__setattr__(self, "_stand_in", stand_in)
        object.__setattr__(self, "_calls", CallRunner(config, engine_settings, fallback))

    @property
    def engine_key(self) -> Hashable:
        """Equal for two rerankers that share an engine."""
        return (self.model, self.recipe, self._engine_settings.key)

    # --- scoring ------------------------------------------------------------------------------------------------------

    @hinting_call
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
            query: What is searched for: a text, or for multimodal models a `Document` with an image or a video.
            documents: Texts, or `Document`s with images or videos. None and blank ones are not scored and rank last.
                With a deadline, an iterator is read in a thread of its own, so that the call can end before it.
            top_k: How many to return; None for all.
            instruction: What counts as relevant, instead of the reranker's; "" for the template's default.
            score_threshold: Least score to return (inclusive), applied before `top_k`.
            template: A template for this call.
            template_kwargs: Template variables for this call.
            deadline: Seconds after which the call gives up and withdraws its prompts, instead of the reranker's.
            progress: Show a progress bar on stderr.

        Returns:
            The ranking, with what it cost in `stats`.

        Raises:
            ValueError: The query is blank, and there is neither `on_error="skip"` nor a `fallback`; `top_k` is below 1,
                or `score_threshold` not finite.
            TypeError: `top_k` is not an integer, `instruction` is not a text, or `documents` is not several documents.
            DocumentError: A document cannot be scored, and `on_error` is "raise".
            ConfigurationError: The model or the template cannot be used.
            EngineError: The engine failed, and there is no `fallback`.
            TimeoutError: The deadline passed, and `fallback` is not "retrieval order".
        """
        options = {"template": template, "template_kwargs": template_kwargs, "numbered": False}
        requests = [(query, documents, instruction)]
        return self._wait(self._work(requests, deadline, progress, False, top_k, score_threshold, **options))[0]

    @hinting_call
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
        """`rank` for event loops. Cancelling it withdraws its prompts from the engine.

        An iterator of documents is read in a thread of its own, so that the loop goes on.
        """
        options = {"template": template, "template_kwargs": template_kwargs, "numbered": False}
        requests = [(query, documents, instruction)]
        return (await self._await(self._work(requests, deadline, progress, True, top_k, score_threshold, **options)))[0]

    @hinting_call
    def score(
        self,
        query: Query,
        documents: Documents,
        *,
        instruction: str | None = None,
        deadline: float | None = None,
    ) -> list[float]:
        """Scores of the documents in input order; arguments and errors as in `rank`.

        `fallback` is not used, and a blank query is an error, because plain scores cannot say what made them.
        """
        options = {"may_fall_back": False, "numbered": False}
        work = self._work([(query, documents, instruction)], deadline, False, False, **options)
        return in_input_order(self._wait(work)[0])

    @hinting_call
    async def ascore(
        self,
        query: Query,
        documents: Documents,
        *,
        instruction: str | None = None,
        deadline: float | None = None,
    ) -> list[float]:
        """`score` for event loops."""
        options = {"may_fall_back": False, "numbered": False}
        work = self._work([(query, documents, instruction)], deadline, False, True, **options)
        return in_input_order((await self._await(work))[0])

    @hinting_call
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
            requests: `(query, documents)` or `(query, documents, instruction)`, each with any number of documents. An
                iterator is read in a thread of its own, and only as fast as its queries are ranked, so that a million
                pairs need little memory. Its errors are raised here. A generator is closed if the call ends early.
            top_k: As in `rank`, for each query.
            score_threshold: As in `rank`.
            deadline: As in `rank`, for all queries together.
            progress: Show a progress bar on stderr.

        Returns:
            One ranking for each request, in order.
        """
        return self._wait(self._work(requests, deadline, progress, False, top_k, score_threshold))

    @hinting_call
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
        return await self._await(self._work(requests, deadline, progress, True, top_k, score_threshold))

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Load the model now instead of with the first call.

        With a `fallback`, an engine that does not start is only a warning in the log. So is an engine that does not
        start within the reranker's `deadline`; it goes on loading.
        """
        self._wait(self._calls.bind)
        return self

    async def astart(self) -> Self:
        """`start` for event loops."""
        await self._await(self._calls.bind)
        return self

    def sleep(self) -> None:
        """Wait for calls in flight, then free the GPU's memory: the weights move to main memory.

        The next call, or `wake`, moves them back, which is much faster than loading the model. All rerankers that share
        the engine sleep; the engine of a `fallback` does not. Before the engine is loaded, nothing happens.

        Raises:
            ConfigurationError: The engine cannot sleep; `close` frees its memory, too. vLLM needs `enable_sleep_mode`
                in `engine_kwargs`, and a GPU.
        """
        if (done := self._lease.request(EngineLife.sleep)) is not None:
            done.result()

    async def async_sleep(self) -> None:
        """`sleep` for event loops."""
        if (done := self._lease.request(EngineLife.sleep)) is not None:
            await asyncio.wrap_future(done)

    def wake(self) -> None:
        """Wake a sleeping engine now instead of with the next call."""
        if (done := self._lease.request(EngineLife.wake)) is not None:
            done.result()

    async def async_wake(self) -> None:
        """`wake` for event loops."""
        if (done := self._lease.request(EngineLife.wake)) is not None:
            await asyncio.wrap_future(done)

    def close(self) -> None:
        """Wait for calls in flight, then free the engine, unless another reranker uses it.

        The next call loads it again.
        """
        self._lease.close()
        self._calls.retry()
        if self._stand_in is not None:
            self._stand_in.close()

    async def aclose(self) -> None:
        """`close` for event loops."""
        thread = OwnThread("winnow-close")  # which the end of the event loop does not wait for
        try:
            await thread.do(self.close)
        finally:
            thread.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _MADE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    # --- inside: async only -------------------------------------------------------------------------------------------

    def _wait(self, work: Work[T]) -> T:
        future = self._lease.submit(work)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            for reranker in (self, self._stand_in):
                if reranker is not None:
                    reranker._lease.interrupt()
            raise
        except IteratorFailedError as failed:
            error = failed.error
        finally:
            del future  # its error refers to this frame: a reference cycle, which would keep the reranker alive
        try:
            raise error
        finally:
            del error  # likewise

    async def _await(self, work: Work[T]) -> T:
        try:
            return await asyncio.wrap_future(self._lease.submit(work))
        except IteratorFailedError as failed:
            error = failed.error
        try:
            raise error
        finally:
            del error

    async def _rank_instead(self, call: Call) -> Ranking:
        """Rank a call of the reranker that has this one as its fallback."""
        return (await self._await(partial(self._calls.run, [call], False, self.deadline)))[0]

    def _work(
        self,
        requests: Iterable[RankRequest],
        deadline: float | None,
        progress: bool,
        in_loop: bool,
        *arguments: Any,
        **options: Any,
    ) -> Work[list[Ranking]]:
        """The work of a call.

        Requests and documents in memory are read here. So are iterators of documents: in the caller's own thread they
        can be interrupted, and have its thread-local state. But if the call has a deadline, which must be able to end
        it, or if this thread runs an event loop, iterators are read in another thread.
        """
        limit = checked_deadline(deadline)
        limit = self.deadline if limit is None else limit
        calls = checked_calls(self._calls.config, requests, *arguments, **options)
        here = are_in_memory(requests) or (isinstance(requests, Collection) and limit is None and not in_loop)
        return partial(
            self._calls.run, [call for call in calls if call is not None] if here else calls, progress, limit
        )
