"""Rerank what a run found, several queries at a time."""

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import Collection as Ids
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from winnow.errors import DocumentError
from winnow.evaluation.collection import Collection
from winnow.evaluation.runs import Run
from winnow.progress import Bar, progress_bar
from winnow.ranking import Reranker
from winnow.types import Ranking

T = TypeVar("T")

# Pairs that are with the engine at once: more than a GPU takes in one step, so that it never waits; few enough that the
# first queries are done soon, because the score cache keeps what is done.
_PAIRS_AT_ONCE = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryCosts:
    """What happened to the documents of one query.

    Attributes:
        documents: Documents that were reranked.
        truncated: Documents that were cut.
        windowed: Documents that were scored in windows.
        failed: Why documents could not be scored, by their ids. They rank last.
        query_truncated: Whether the query was cut.
        degraded: Whether a fallback ranked.
    """

    documents: int
    truncated: int
    windowed: int
    failed: Mapping[str, str]
    query_truncated: bool
    degraded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What reranking cost.

    Attributes:
        queries: Queries that were reranked.
        documents: Their documents, which are pairs with the query.
        truncated: Documents that were cut.
        windowed: Documents that were scored in windows.
        failed: Documents that could not be scored.
        queries_truncated: Queries that were cut.
        degraded: Queries that a fallback ranked.
        prompt_tokens: Tokens of all prompts except those in the score cache.
        cached_tokens: Of these, tokens that were in the engine's prefix cache.
        cache_hits: Prompts that were not sent, because their score was in the score cache.
        seconds: How long it took; the model was loaded before.
        pairs_per_second: Documents a second; None if a part of the scores was in the score cache.
    """

    queries: int
    documents: int
    truncated: int
    windowed: int
    failed: int
    queries_truncated: int
    degraded: int
    prompt_tokens: int
    cached_tokens: int
    cache_hits: int
    seconds: float
    pairs_per_second: float | None


@dataclass(frozen=True, slots=True)
class Reranked:
    """A run that was reranked.

    Attributes:
        run: The run. Its scores are logits. Where several are equal, they differ in the last place, so that all tools
            read the same order.
        costs: What it cost.
        per_query: The same for each query's id.
    """

    run: Run
    costs: Costs
    per_query: Mapping[str, QueryCosts]


def rerank(
    reranker: Reranker,
    collection: Collection,
    run: Run,
    queries: Ids[str],
    *,
    top_k: int = 100,
    instruction: str | None = None,
    progress: bool = False,
) -> Reranked:
    """Rerank the documents that a run found.

    Args:
        reranker: The reranker.
        collection: Where the texts are.
        run: What a retriever found.
        queries: Ids of the queries; those without documents are passed over.
        top_k: How many documents of each query are reranked. The others follow in their order.
        instruction: What counts as relevant, instead of the reranker's.
        progress: Show a progress bar on stderr.

    Raises:
        DocumentError: A document or a query cannot be scored, and `on_error` of the reranker is "raise".
        WinnowError: As `Reranker.rank`.
    """
    work = _Work(reranker, collection, run, top_k, instruction)
    found = [query for query in queries if run.scores.get(query)]
    with progress_bar(progress) as bar:
        seconds = run_to_end(work.rank_all(found, bar))
    scores = {query: work.scores[query] for query in found}
    name = f"{run.name} + {Path(reranker.config.model).name}"
    return Reranked(Run(name, scores), _total(work, seconds), {query: work.costs[query] for query in found})


class _Work:
    """One run through the queries, with what is done so far."""

    def __init__(
        self, reranker: Reranker, collection: Collection, run: Run, top_k: int, instruction: str | None
    ) -> None:
        self._reranker = reranker
        self._collection = collection
        self._run = run
        self._top_k = top_k
        self._instruction = instruction
        self.scores: dict[str, dict[str, float]] = {}
        self.costs: dict[str, QueryCosts] = {}
        self.tokens: Counter[str] = Counter()

    async def rank_all(self, queries: Sequence[str], bar: Bar) -> float:
        """Rank all queries, and return how many seconds it took."""
        pairs = sum(min(len(self._run.scores[query]), self._top_k) for query in queries)
        bar.total = pairs
        await self._reranker.astart()
        bar.unpause()  # loading is not reranking
        begin = time.perf_counter()
        at_once = max(2, math.ceil(_PAIRS_AT_ONCE * len(queries) / max(pairs, 1)))
        rest = iter(queries)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(self._rank_some(rest, bar))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return time.perf_counter() - begin

    async def _rank_some(self, rest: Iterator[str], bar: Bar) -> None:
        for query in rest:  # all tasks take from the same iterator
            found = self._run.ranked(query)
            documents, below = found[: self._top_k], found[self._top_k :]
            texts = [self._collection.documents[document] for document in documents]
            try:
                ranking = await self._reranker.arank(
                    self._collection.queries[query], texts, instruction=self._instruction
                )
            except DocumentError as error:
                which = "" if error.index is None else f", document {documents[error.index]!r}"
                raise DocumentError(f"Query {query!r}{which}: {error}", error.index) from error
            best = [documents[hit.index] for hit in ranking]
            logits = [hit.logit for hit in ranking] + [-math.inf] * len(below)
            self.scores[query] = dict(zip(best + below, descending(logits), strict=True))
            self.costs[query] = _costs(ranking, documents)
            for name in ("prompt_tokens", "cached_tokens", "cache_hits"):
                self.tokens[name] += getattr(ranking.stats, name)
            bar.update(len(documents))


def _costs(ranking: Ranking, documents: Sequence[str]) -> QueryCosts:
    return QueryCosts(
        documents=len(documents),
        truncated=ranking.stats.truncated,
        windowed=sum(hit.windows > 1 for hit in ranking),
        failed={documents[hit.index]: hit.error for hit in ranking if hit.error is not None},
        query_truncated=ranking.stats.query_truncated,
        degraded=ranking.degraded,
    )


def _total(work: _Work, seconds: float) -> Costs:
    each = work.costs.values()
    documents, cache_hits = sum(one.documents for one in each), work.tokens["cache_hits"]
    return Costs(
        queries=len(each),
        documents=documents,
        truncated=sum(one.truncated for one in each),
        windowed=sum(one.windowed for one in each),
        failed=sum(len(one.failed) for one in each),
        queries_truncated=sum(one.query_truncated for one in each),
        degraded=sum(one.degraded for one in each),
        prompt_tokens=work.tokens["prompt_tokens"],
        cached_tokens=work.tokens["cached_tokens"],
        cache_hits=cache_hits,
        seconds=seconds,
        pairs_per_second=None if cache_hits or not seconds else documents / seconds,
    )


def descending(logits: Sequence[float]) -> list[float]:
    """Finite scores in the same order, of which no two are equal.

    trec_eval reads scores as float32, and orders equal ones by the documents' ids: each score is below the one before
    it in float32, too.

    Args:
        logits: Best first; −inf for what was not scored.
    """
    import numpy

    scores: list[float] = []
    last = numpy.float32(numpy.inf)
    for logit in logits:
        below = last - 1 if scores else 0.0
        wanted = numpy.float32(logit if math.isfinite(logit) else below)
        last = min(wanted, numpy.nextafter(last, numpy.float32(-numpy.inf)))
        scores.append(float(last))
    return scores


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a loop of its own, beside the one that a notebook's thread runs. An interrupt cancels it."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)
    done = threading.Event()

    def run() -> None:
        try:
            loop.run_until_complete(asyncio.wait([task]))
        finally:
            loop.close()
            done.set()

    threading.Thread(target=run, name="winnow-evaluation", daemon=True).start()
    try:
        done.wait()  # in Python 3.11 `Thread.join` cannot be called again after an interrupt
    except BaseException:
        loop.call_soon_threadsafe(task.cancel)
        done.wait()
        raise
    return task.result()
