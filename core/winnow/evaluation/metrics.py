"""Metrics of runs, computed by ir_measures (https://ir-measur.es), and whether a difference is more than luck."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from winnow.errors import ConfigurationError
from winnow.evaluation.packages import needed
from winnow.evaluation.runs import Run

# As usual for a randomisation test. Where that many queries have fewer sign flips, all of them are counted.
_RESAMPLES = 10_000
_RESAMPLES_IN_MEMORY = 1_000


@dataclass(frozen=True, slots=True)
class Measured:
    """The metrics of a run.

    Attributes:
        means: The value of each metric over all queries, by the metric's name.
        per_query: For each metric's name its value for each query's id. A query without documents counts as 0.
    """

    means: Mapping[str, float]
    per_query: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A run against another, by one metric.

    Attributes:
        metric: The metric.
        against: Name of the other run.
        before: The metric of the other run.
        after: The metric of the run.
        difference: Mean over the queries of the run's value less the other's.
        p_value: How probable a difference as large as this is, or larger, if the two were equally good: two-sided
            paired randomisation test over the queries (`scipy.stats.permutation_test`), which assumes nothing of how
            the values are distributed. None for fewer than two queries.
        queries: How many queries were compared.
        better: For how many the run is better.
        worse: For how many it is worse.
    """

    metric: str
    against: str
    before: float
    after: float
    difference: float
    p_value: float | None
    queries: int
    better: int
    worse: int


def parse_metrics(names: str | Sequence[str]) -> list[Any]:
    """Metrics of ir_measures from their names.

    Args:
        names: Names as ir_measures has them, such as "nDCG@10 RR@10 R@100", with spaces between them or as a list.

    Raises:
        ConfigurationError: A name is no metric, there is none, or one needs a package that is not installed.
        MissingExtraError: ir_measures is not installed.
    """
    ir_measures = needed("ir_measures")
    words = names.split() if isinstance(names, str) else [word for name in names for word in name.split()]
    found: list[Any] = []
    for word in words:
        try:
            metric = ir_measures.parse_measure(word)
        except (ValueError, NameError, TypeError, KeyError) as error:
            raise ConfigurationError(
                f"{word!r} is no metric of ir_measures ({error}). Metrics look like nDCG@10, RR@10 (MRR), AP (MAP), "
                "R@100, P@5, Success@1: https://ir-measur.es/en/latest/measures.html"
            ) from None
        try:
            ir_measures.evaluator([metric], {"a query": {"a document": 1}})
        except (ValueError, RuntimeError) as error:
            raise ConfigurationError(f"ir_measures cannot compute {word}: {error}") from None
        if metric not in found:
            found.append(metric)
    if not found:
        raise ConfigurationError("metrics must name at least one metric, such as nDCG@10.")
    return found


def measure(metrics: Sequence[Any], qrels: Mapping[str, Mapping[str, int]], run: Run) -> Measured:
    """The metrics of a run over all queries that have judgements.

    Args:
        metrics: From `parse_metrics`.
        qrels: The judgements.
        run: The run.
    """
    # ir_measures tells a dict of dicts by its type.
    judged = {query: dict(judgements) for query, judgements in qrels.items()}
    scores = {query: dict(run.scores[query]) for query in judged if run.scores.get(query)}
    found = needed("ir_measures").calc(metrics, judged, scores)
    per_query: dict[str, dict[str, float]] = {str(metric): dict.fromkeys(judged, 0.0) for metric in metrics}
    for one in found.per_query:
        per_query[str(one.measure)][one.query_id] = float(one.value)
    return Measured({str(metric): float(found.aggregated[metric]) for metric in metrics}, per_query)


def compare(metric: str, run: Measured, other: Measured, against: str) -> Comparison:
    """Compare two runs by a metric, query by query.

    Args:
        metric: Its name.
        run: The run's metrics.
        other: The other's metrics, for the same queries.
        against: The other's name.
    """
    values, others = run.per_query[metric], other.per_query[metric]
    differences = [values[query] - others[query] for query in others]
    return Comparison(
        metric=metric,
        against=against,
        before=other.means[metric],
        after=run.means[metric],
        difference=fmean(differences),
        p_value=_p_value(differences),
        queries=len(differences),
        better=sum(one > 0 for one in differences),
        worse=sum(one < 0 for one in differences),
    )


def _p_value(differences: Sequence[float]) -> float | None:
    """See `Comparison.p_value`. Equal differences have equal values: the random signs are the same each time."""
    if len(differences) < 2:
        return None
    numpy, stats = needed("numpy"), needed("scipy.stats")
    test = stats.permutation_test(
        (numpy.asarray(differences),),  # of one sample, the test changes the signs
        numpy.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=_RESAMPLES_IN_MEMORY,
        rng=0,
    )
    return float(test.pvalue)
