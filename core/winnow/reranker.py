"""The reranker: build prompts, score, order, cut."""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from operator import attrgetter, itemgetter
from statistics import fmean
from typing import Any, Self, TypeVar

from tqdm.auto import tqdm

from winnow.checkpoint import Checkpoint, bind_template
from winnow.config import RerankerConfig
from winnow.engines.base import Engine, EngineScore
from winnow.engines.choose import create_engine
from winnow.engines.shared import Lease, Started, Work
from winnow.errors import DocumentError, EngineError
from winnow.prompts import DocumentPrompts, Limits, Prompt, PromptBuilder
from winnow.templates import TemplateLike
from winnow.types import Document, RankedDocument, Ranking, RankStats

logger = logging.getLogger(__name__)

T = TypeVar("T")

Documents = Iterable[str | Document | None]
RankRequest = tuple[str, Documents] | tuple[str, Documents, str | None]

# Bound templates that a reranker keeps.
_BUILDERS = 32
_builders_lock = threading.Lock()

# Prompts an engine is given at once. All chunks of a call are in flight together; a finished one moves the progress
# bar.
_CHUNK = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """One query and its documents, checked."""

    query: str
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

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "_lease", Lease(self.engine_key, partial(create_engine, self)))

    # --- scoring ------------------------------------------------------------------------------------------------------

    def rank(
        self,
        query: str,
        documents: Documents,
        *,
        top_k: int | None = None,
        instruction: str | None = None,
        score_threshold: float | None = None,
        template: TemplateLike | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        progress: bool = False,
    ) -> Ranking:
        """Order documents by relevance to the query, best first; ties keep the input's order.

        Args:
            query: What is searched for.
            documents: Texts. None and blank ones are not scored and rank last.
            top_k: How many to return; None for all.
            instruction: What counts as relevant, instead of the reranker's; "" for the template's default.
            score_threshold: Least score to return (inclusive), applied before `top_k`.
            template: A template for this call.
            template_kwargs: Template variables for this call.
            progress: Show a progress bar on stderr.

        Returns:
            The ranking, with what it cost in `stats`.

        Raises:
            ValueError: The query is blank, or `top_k` is below 1.
            DocumentError: A document cannot be scored, and `on_error` is "raise".
            ConfigurationError: The model or the template cannot be used.
            EngineError: The engine failed.
        """
        call = self._call(query, documents, top_k, instruction, score_threshold, template, template_kwargs)
        return self._wait(partial(self._rank_calls, [call], progress))[0]

    async def arank(
        self,
        query: str,
        documents: Documents,
        *,
        top_k: int | None = None,
        instruction: str | None = None,
        score_threshold: float | None = None,
        template: TemplateLike | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        progress: bool = False,
    ) -> Ranking:
        """`rank` for event loops. Cancelling it withdraws its prompts from the engine."""
        call = self._call(query, documents, top_k, instruction, score_threshold, template, template_kwargs)
        return (await self._await(partial(self._rank_calls, [call], progress)))[0]

    def score(self, query: str, documents: Documents, *, instruction: str | None = None) -> list[float]:
        """Scores of the documents in input order; arguments and errors as in `rank`."""
        return _in_input_order(self.rank(query, documents, instruction=instruction))

    async def ascore(self, query: str, documents: Documents, *, instruction: str | None = None) -> list[float]:
        """`score` for event loops."""
        return _in_input_order(await self.arank(query, documents, instruction=instruction))

    def rank_many(
        self,
        requests: Iterable[RankRequest],
        *,
        top_k: int | None = None,
        score_threshold: float | None = None,
        progress: bool = False,
    ) -> list[Ranking]:
        """Rank the documents of many queries in one pass over the GPU.

        Args:
            requests: `(query, documents)` or `(query, documents, instruction)`; each with as many documents as it
                likes.
            top_k: As in `rank`, for each query.
            score_threshold: As in `rank`.
            progress: Show a progress bar on stderr.

        Returns:
            One ranking a request, in order.
        """
        return self._wait(partial(self._rank_calls, self._calls(requests, top_k, score_threshold), progress))

    async def arank_many(
        self,
        requests: Iterable[RankRequest],
        *,
        top_k: int | None = None,
        score_threshold: float | None = None,
        progress: bool = False,
    ) -> list[Ranking]:
        """`rank_many` for event loops."""
        return await self._await(partial(self._rank_calls, self._calls(requests, top_k, score_threshold), progress))

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
        return {name: value for name, value in self.__dict__.items() if name not in ("_lease", "_builders")}

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
        engine = await started()
        await asyncio.to_thread(
            self._builder, engine.checkpoint, self.template, self.template_kwargs, bool(self.instruction)
        )

    def _calls(self, requests: Iterable[RankRequest], top_k: int | None, score_threshold: float | None) -> list[_Call]:
        return [
            self._call(query, documents, top_k, rest[0] if rest else None, score_threshold)
            for query, documents, *rest in requests
        ]

    def _call(
        self,
        query: str,
        documents: Documents,
        top_k: int | None,
        instruction: str | None,
        score_threshold: float | None,
        template: TemplateLike | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> _Call:
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be > 0, but got {top_k}")
        if not isinstance(query, str) or not query.strip():
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

    async def _rank_calls(self, calls: Sequence[_Call], progress: bool, started: Started) -> list[Ranking]:
        pairs = sum(len(call.documents) for call in calls)
        with tqdm(total=pairs, desc="reranking", unit="pair", disable=not progress, delay=1) as bar:
            return await asyncio.gather(*(self._rank_one(call, started, bar) for call in calls))

    async def _rank_one(self, call: _Call, started: Started, bar: "tqdm[Any]") -> Ranking:
        begin = time.perf_counter()
        failed: dict[int, DocumentError] = {}
        positions = _positions_by_text(call.documents, failed)
        built: list[DocumentPrompts] = []
        scores: list[EngineScore] = []
        if positions:
            engine = await started()
            bar.unpause()  # loading is not reranking
            built = await asyncio.to_thread(self._build, engine.checkpoint, call, positions, failed)
            if failed and self.on_error == "raise":
                raise failed[min(failed)]
            scores = await self._score(engine, [prompt for document in built for prompt in document.prompts], bar)
        hits = self._hits(call.documents, positions, built, [score.logit for score in scores], failed)
        ranked = sorted(hits, key=lambda hit: -hit.logit)  # stable: ties keep the input's order
        if call.score_threshold is not None:
            ranked = [hit for hit in ranked if hit.score >= call.score_threshold]
        stats = RankStats(
            documents=len(hits),
            unique=sum(bool(document.prompts) for document in built),
            truncated=sum(hit.truncated for hit in hits),
            failed=sum(hit.error is not None for hit in hits),
            prompt_tokens=sum(len(prompt.ids) for document in built for prompt in document.prompts),
            cached_tokens=sum(score.cached_tokens for score in scores),
            elapsed_ms=(time.perf_counter() - begin) * 1000,
        )
        return Ranking(tuple(ranked[: call.top_k]), stats)

    def _build(
        self, checkpoint: Checkpoint, call: _Call, positions: Mapping[str, list[int]], failed: dict[int, DocumentError]
    ) -> list[DocumentPrompts]:
        instruction = (call.instruction or "").strip() and call.instruction
        builder = self._builder(checkpoint, call.template, call.template_kwargs, bool(instruction))
        first = [where[0] for where in positions.values()]
        return builder.build(call.query, list(positions), instruction, positions=first, errors=failed)

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
            builder = PromptBuilder(checkpoint.tokenizer, bound, limits)
            with _builders_lock:
                self._builders[key] = builder
                if len(self._builders) > _BUILDERS:  # the oldest goes: templates may come with each call
                    del self._builders[next(iter(self._builders))]
        return builder

    async def _score(self, engine: Engine, prompts: Sequence[Prompt], bar: "tqdm[Any]") -> list[EngineScore]:
        async def score(chunk: Sequence[Prompt]) -> list[EngineScore]:
            scores = await engine.score(chunk)
            if len(scores) != len(chunk):
                raise EngineError(f"The engine {engine.name} returned {len(scores)} scores for {len(chunk)} prompts.")
            bar.update(len(chunk))
            return scores

        chunks = [prompts[at : at + _CHUNK] for at in range(0, len(prompts), _CHUNK)]
        scores = [score for chunk in await asyncio.gather(*map(score, chunks)) for score in chunk]
        for found in scores:
            if not math.isfinite(found.logit):
                raise EngineError(
                    f"The engine {engine.name} returned the logit {found.logit}. On a GPU this is usually an overflow: "
                    "try dtype='bfloat16' or "
                    "'float32' in engine_kwargs; it may also be a damaged checkpoint."
                )
        return scores

    def _hits(
        self,
        documents: Sequence[str | Document | None],
        positions: Mapping[str, list[int]],
        built: Sequence[DocumentPrompts],
        logits: Sequence[float],
        failed: Mapping[int, DocumentError],
    ) -> list[RankedDocument]:
        """One hit a document, in input order."""
        hits = [
            RankedDocument(
                index=at,
                score=self._to_score(-math.inf),
                logit=-math.inf,
                text=_text_of(document),
                windows=0,
                error=str(failed[at]) if at in failed else None,
            )
            for at, document in enumerate(documents)
        ]
        remaining = iter(logits)
        for prompts, where in zip(built, positions.values(), strict=True):
            windows = list(islice(remaining, len(prompts.prompts)))
            for at in where:
                if not windows:
                    hits[at] = replace(hits[at], error=str(failed[where[0]]))
                    continue
                logit = _LOGIT_OF_WINDOWS[self.window_score](windows)
                hits[at] = replace(
                    hits[at],
                    score=self._to_score(logit),
                    logit=logit,
                    truncated=prompts.truncated,
                    document_tokens=prompts.document_tokens,
                    windows=len(windows),
                    best_window=windows.index(max(windows)),
                )
        return hits

    def _to_score(self, logit: float) -> float:
        if self.raw_scores:
            return logit
        return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0  # exp overflows beyond


_LOGIT_OF_WINDOWS: dict[str, Callable[[list[float]], float]] = {"max": max, "mean": fmean, "first": itemgetter(0)}


def _positions_by_text(
    documents: Sequence[str | Document | None], failed: dict[int, DocumentError]
) -> dict[str, list[int]]:
    """Where each different text stands, blank ones left out: the same text is scored once."""
    positions: dict[str, list[int]] = {}
    for at, document in enumerate(documents):
        text = _text_of(document)
        if isinstance(document, Document) and document.image is not None:
            failed[at] = DocumentError(f"Document {at} has an image, but the model only reads text.", at)
        elif text is not None and not isinstance(text, str):
            failed[at] = DocumentError(f"Document {at} is of type {type(text).__name__}, not a text.", at)
        elif text and not text.isspace():
            positions.setdefault(text, []).append(at)
    return positions


def _text_of(document: str | Document | None) -> str | None:
    return document.text if isinstance(document, Document) else document


def _in_input_order(ranking: Ranking) -> list[float]:
    return [hit.score for hit in sorted(ranking, key=attrgetter("index"))]
