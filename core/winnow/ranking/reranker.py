"""The reranker, which users call. `life` beside it has its settings and its engine, `calls` runs the calls."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from winnow.engines import Work
from winnow.ranking.arguments import are_in_memory, checked_calls, checked_options
from winnow.ranking.hints import taking
from winnow.ranking.life import RerankerLife
from winnow.ranking.options import CallLimits, CallOptions, Documents, Query, RankRequest
from winnow.ranking.results import in_input_order
from winnow.templates import TemplateLike
from winnow.types import Ranking


@dataclass(frozen=True, slots=True)
class _Call:
    """What a call asks for. A method and its twin for event loops take the arguments of one of the functions below."""

    requests: Iterable[RankRequest]
    options: CallOptions


def _rank(
    query: Query,
    documents: Documents,
    *,
    top_k: int | None = None,
    instruction: str | None = None,
    score_threshold: float | None = None,
    template: TemplateLike | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    limits: CallLimits | None = None,
    raw_scores: bool | None = None,
    priority: int = 0,
    deadline: float | None = None,
    progress: bool = False,
) -> _Call:
    options = CallOptions(
        top_k=top_k,
        score_threshold=score_threshold,
        template=template,
        template_kwargs=template_kwargs,
        limits=limits or CallLimits(),
        raw_scores=raw_scores,
        priority=priority,
        deadline=deadline,
        progress=progress,
    )
    return _Call([(query, documents, instruction)], options)


def _rank_many(
    requests: Iterable[RankRequest],
    *,
    top_k: int | None = None,
    score_threshold: float | None = None,
    template: TemplateLike | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    limits: CallLimits | None = None,
    raw_scores: bool | None = None,
    priority: int = 0,
    deadline: float | None = None,
    progress: bool = False,
) -> _Call:
    options = CallOptions(
        top_k=top_k,
        score_threshold=score_threshold,
        template=template,
        template_kwargs=template_kwargs,
        limits=limits or CallLimits(),
        raw_scores=raw_scores,
        priority=priority,
        deadline=deadline,
        progress=progress,
    )
    return _Call(requests, options)


def _score(
    query: Query, documents: Documents, *, instruction: str | None = None, deadline: float | None = None
) -> _Call:
    return _Call([(query, documents, instruction)], CallOptions(deadline=deadline, may_fall_back=False))


class Reranker(RerankerLife):
    """Scores documents for a query with a reranker model, and orders them.

    The first call, or `start`, loads the model. Rerankers with the same model and engine settings share one engine in
    the process. Every method may be called from any thread, the `a…` methods from any event loop; the GPU runs the
    prompts of all callers in common batches. After `close` the next call loads the model again. If all rerankers of an
    engine are garbage-collected without `close`, the engine closes some seconds later.

    It takes the arguments of `RerankerConfig`, and has them as `config`. Each can also be read from the reranker,
    as `reranker.model`, but not changed. An unknown argument is a `TypeError` that says the right name. Rerankers with
    equal settings are equal.
    """

    __slots__ = ()

    @taking(_rank)
    def rank(self, call: _Call) -> Ranking:  # noqa: D417 - the arguments are those of `_rank`
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
            limits: How long the prompts of this call may be.
            raw_scores: Whether scores are logits, instead of the reranker's.
            priority: How many tokens of other calls' prompts may be scored before this call's fair turn comes; with a
                negative number, how many have to wait for it.
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
        return self._wait(self._work(call))[0]

    @taking(_rank)
    async def arank(self, call: _Call) -> Ranking:
        """`rank` for event loops. Cancelling it withdraws its prompts from the engine.

        An iterator of documents is read in a thread of its own, so that the loop goes on.
        """
        return (await self._await(self._work(call, in_loop=True)))[0]

    @taking(_score)
    def score(self, call: _Call) -> list[float]:
        """Scores of the documents in input order; arguments and errors as in `rank`.

        `fallback` is not used, and a blank query is an error, because plain scores cannot say what made them.
        """
        return in_input_order(self._wait(self._work(call))[0])

    @taking(_score)
    async def ascore(self, call: _Call) -> list[float]:
        """`score` for event loops."""
        return in_input_order((await self._await(self._work(call, in_loop=True)))[0])

    @taking(_rank_many)
    def rank_many(self, call: _Call) -> list[Ranking]:  # noqa: D417 - the arguments are those of `_rank_many`
        """Rank the documents of many queries in one pass over the GPU.

        Args:
            requests: `(query, documents)` or `(query, documents, instruction)`, each with any number of documents. An
                iterator is read in a thread of its own, and only as fast as its queries are ranked, so that a million
                pairs need little memory. Its errors are raised here. A generator is closed if the call ends early.
            top_k: As in `rank`, for each query.
            score_threshold: As in `rank`.
            template: As in `rank`.
            template_kwargs: As in `rank`.
            limits: As in `rank`.
            raw_scores: As in `rank`.
            priority: As in `rank`, for each query.
            deadline: As in `rank`, for all queries together.
            progress: Show a progress bar on stderr.

        Returns:
            One ranking for each request, in order.
        """
        return self._wait(self._work(call, numbered=True))

    @taking(_rank_many)
    async def arank_many(self, call: _Call) -> list[Ranking]:
        """`rank_many` for event loops."""
        return await self._await(self._work(call, in_loop=True, numbered=True))

    # --- inside ---

    def _work(self, call: _Call, *, in_loop: bool = False, numbered: bool = False) -> Work[list[Ranking]]:
        """The work of a call.

        Requests and documents in memory are read here. So are iterators of documents: in the caller's own thread they
        can be interrupted, and have its thread-local state. But if the call has a deadline, which must be able to end
        it, or if this thread runs an event loop, iterators are read in another thread.

        Args:
            call: What to rank, and how.
            in_loop: Whether this thread runs an event loop.
            numbered: Whether messages say which request it is.
        """
        requests, options = call.requests, checked_options(self._config, call.options)
        calls = checked_calls(self._config, requests, options, numbered=numbered)
        here = are_in_memory(requests) or (
            isinstance(requests, Collection) and options.deadline is None and not in_loop
        )
        return partial(
            self._calls.run,
            [one for one in calls if one is not None] if here else calls,
            options.progress,
            options.deadline,
        )
