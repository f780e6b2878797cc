"""Evaluate a reranker on a judged collection."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import cast

from winnow.evaluation.collection import Collection, check_run
from winnow.evaluation.metrics import compare, measure, parse_metrics
from winnow.evaluation.reranking import Costs, Reranked, rerank
from winnow.evaluation.results import Evaluation, MeasuredRun
from winnow.evaluation.runs import Run, as_run
from winnow.ranking import Reranker

logger = logging.getLogger(__name__)

AnyRun = Run | Mapping[str, Mapping[str, float]] | str | PathLike[str]
Other = AnyRun | Reranker | Evaluation
METRICS = "nDCG@10 RR@10"
TOP_K = 100


def evaluate(
    reranker: Reranker,
    collection: Collection,
    run: AnyRun,
    *,
    against: Other | Sequence[Other] = (),
    metrics: str | Sequence[str] = METRICS,
    top_k: int = TOP_K,
    instruction: str | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> Evaluation:
    """Rerank what a retriever found for each query, and measure whether that is better than its own order.

    Queries with judgements are evaluated. One for which the run has no documents counts as 0, before and after.

    Args:
        reranker: The reranker. With `score_cache` set to a folder, an evaluation that was interrupted goes on where it
            was. `on_error="skip"` puts documents that cannot be scored last, and counts them.
        collection: The judged collection: see `read_collection`.
        run: What a retriever found: a `Run`, the file of one (see `read_run`), or the scores of documents by the ids of
            queries and documents, as ir_measures and BEIR have them.
        against: What the reranked run is compared with besides the run's own order, one or several: another run of the
            same queries, an evaluation of another reranker, or that reranker, which then reranks the same documents.
        metrics: Metrics of ir_measures (https://ir-measur.es), such as "nDCG@10 RR@10 R@100".
        top_k: How many documents of each query are reranked. The others follow in their order.
        instruction: What counts as relevant, instead of the reranker's.
        limit: Evaluate only so many queries, the first ones of the collection; None for all.
        progress: Show a progress bar on stderr.

    Returns:
        The metrics of all runs, how they differ and whether that is more than luck, each query, and what it cost.

    Raises:
        MissingExtraError: ir_measures is not installed.
        ConfigurationError: A metric is unknown, or the model cannot be used.
        ValueError: The run does not belong to the collection, or `top_k` or `limit` is below 1.
        DocumentError: A document cannot be scored, and `on_error` of the reranker is "raise".
        EngineError: The engine failed.
    """
    parsed = parse_metrics(metrics)  # before hours of work, not after
    for name, value in (("top_k", top_k), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be > 0, but got {value}")
    first = as_run(run)
    check_run(first, collection, top_k)
    given = cast("Sequence[Other]", against if isinstance(against, list | tuple) else [against])
    others = [one if isinstance(one, Reranker | Evaluation) else as_run(one, "other run") for one in given]
    for other in others:
        if isinstance(other, Run):
            check_run(other, collection, top_k=0)  # its documents need no texts
    queries = _judged(collection, first, limit)
    qrels = {query: collection.qrels[query] for query in queries}

    def reranked_by(one: Reranker) -> Reranked:
        return rerank(one, collection, first, queries, top_k=top_k, instruction=instruction, progress=progress)

    def measured(one: Run, costs: Costs | None = None) -> MeasuredRun:
        return MeasuredRun(one, measure(parsed, qrels, one), costs)

    done = reranked_by(reranker)
    runs = [measured(first)]
    for other in others:
        if isinstance(other, Reranker):
            by_other = reranked_by(other)
            runs.append(measured(by_other.run, by_other.costs))
        else:
            runs.append(measured(other.run, other.costs) if isinstance(other, Evaluation) else measured(other))
    *compared, after = _with_own_names([*runs, measured(done.run, done.costs)])
    return Evaluation(
        collection=collection.name,
        model=reranker.config.model,
        instruction=reranker.config.instruction if instruction is None else instruction,
        top_k=top_k,
        queries=queries,
        reranked=after,
        others=compared,
        per_query=done.per_query,
        comparisons=[
            compare(name, after.metrics, one.metrics, one.run.name) for one in compared for name in after.metrics.means
        ],
    )


def _judged(collection: Collection, run: Run, limit: int | None) -> dict[str, str]:
    """The first queries that have judgements, with their texts."""
    judged = [query for query in collection.queries if query in collection.qrels][:limit]
    missing = [query for query in judged if not run.scores.get(query)]
    if missing:
        logger.warning(
            "The run %s has no documents for %d of %d queries with judgements, such as %r: they count as 0.",
            run.name,
            len(missing),
            len(judged),
            missing[0],
        )
    return {query: collection.queries[query] for query in judged}


def _with_own_names(runs: Sequence[MeasuredRun]) -> list[MeasuredRun]:
    """The runs, with a number behind names that others have, too."""
    seen: Counter[str] = Counter()
    found = []
    for one in runs:
        name = one.run.name
        seen[name] += 1
        apart = one.run if seen[name] == 1 else replace(one.run, name=f"{name} ({seen[name]})")
        found.append(replace(one, run=apart))
    return found
