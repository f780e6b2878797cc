"""What an evaluation found out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

from winnow.evaluation.metrics import Comparison, Measured
from winnow.evaluation.packages import needed
from winnow.evaluation.reranking import Costs, QueryCosts
from winnow.evaluation.runs import Run

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """A run and how good it is.

    Attributes:
        run: The run.
        metrics: Its metrics.
        costs: What reranking it cost; None for a run that was given.
    """

    run: Run
    metrics: Measured
    costs: Costs | None = None


@dataclass(frozen=True, slots=True)
class QueryChange:
    """How a query's metric changed.

    Attributes:
        query: The query's id.
        text: Its text.
        before: The metric before.
        after: The metric after reranking.
    """

    query: str
    text: str
    before: float
    after: float

    @property
    def difference(self) -> float:
        """`after` less `before`."""
        return self.after - self.before


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A reranked run, measured, and compared with others.

    Attributes:
        collection: Name of the collection.
        model: The model that reranked.
        instruction: What counts as relevant, as it was given; None for the template's default.
        top_k: How many documents of each query were reranked at most.
        queries: Texts of the queries, by their ids.
        reranked: The reranked run.
        others: What it is compared with: the run's own order first, then those of `against`.
        per_query: What happened to the documents of each query, by its id.
        comparisons: The reranked run against each other one, by each metric.
    """

    collection: str
    model: str
    instruction: str | None
    top_k: int
    queries: Mapping[str, str]
    reranked: MeasuredRun
    others: Sequence[MeasuredRun]
    per_query: Mapping[str, QueryCosts]
    comparisons: Sequence[Comparison]

    @property
    def run(self) -> Run:
        """The reranked run; `evaluation.run.write(file)` writes it for trec_eval."""
        return self.reranked.run

    @property
    def costs(self) -> Costs:
        """What reranking cost."""
        return cast("Costs", self.reranked.costs)

    @property
    def measured(self) -> Sequence[MeasuredRun]:
        """All runs: the run's own order, those of `against`, and the reranked one last."""
        return [*self.others, self.reranked]

    @property
    def metrics(self) -> Sequence[str]:
        """Names of the metrics."""
        return list(self.reranked.metrics.means)

    @property
    def summary(self) -> dict[str, dict[str, float]]:
        """For each metric its value for each run, by the run's name."""
        return {name: {one.run.name: one.metrics.means[name] for one in self.measured} for name in self.metrics}

    def changes(self, metric: str | None = None, against: str | None = None) -> list[QueryChange]:
        """How each query changed, from the one that lost most to the one that won most.

        Args:
            metric: A metric of this evaluation; None for the first one.
            against: Name of the run that it is compared with; None for the run's own order.

        Raises:
            ValueError: There is no such metric, or no such run.
        """
        others = {one.run.name: one for one in self.others}
        name = _one_of(self.metrics, metric, "metric")
        other = others[_one_of(list(others), against, "against")]
        before, after = other.metrics.per_query[name], self.reranked.metrics.per_query[name]
        changes = [QueryChange(query, text, before[query], after[query]) for query, text in self.queries.items()]
        return sorted(changes, key=lambda change: change.difference)

    def winners(self, count: int = 5, metric: str | None = None, against: str | None = None) -> list[QueryChange]:
        """The queries that won most, the best first; see `changes`."""
        return [one for one in reversed(self.changes(metric, against)) if one.difference > 0][:count]

    def losers(self, count: int = 5, metric: str | None = None, against: str | None = None) -> list[QueryChange]:
        """The queries that lost most, the worst first; see `changes`."""
        return [one for one in self.changes(metric, against) if one.difference < 0][:count]

    def to_dataframe(self) -> "pandas.DataFrame":
        """A row for each query, by its id: its text, each metric of each run, and what happened to its documents.

        The columns of metrics are named "nDCG@10" for the reranked run and "nDCG@10 of NAME" for the others.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        columns: dict[str, list[Any]] = {"query": list(self.queries.values())}
        for name in self.metrics:
            for one in reversed(self.measured):
                column = name if one is self.reranked else f"{name} of {one.run.name}"
                columns[column] = [one.metrics.per_query[name][query] for query in self.queries]
        rows = [self._counts(query) for query in self.queries]
        columns |= {name: [row[name] for row in rows] for name in ("documents", "truncated", "windowed", "failed")}
        pandas = needed("pandas")
        return pandas.DataFrame(columns, index=pandas.Index(list(self.queries), name="query_id"))

    def as_dict(self) -> dict[str, Any]:
        """Everything but the runs as plain data for JSON."""
        return {
            "collection": self.collection,
            "model": self.model,
            "instruction": self.instruction,
            "top_k": self.top_k,
            "run": self.others[0].run.name,
            "reranked": self.run.name,
            "metrics": self.summary,
            "comparisons": [asdict(one) for one in self.comparisons],
            "costs": {one.run.name: asdict(one.costs) for one in self.measured if one.costs is not None},
            "per_query": [
                {
                    "query_id": query,
                    "query": text,
                    "metrics": {
                        name: {one.run.name: one.metrics.per_query[name][query] for one in self.measured}
                        for name in self.metrics
                    },
                    **self._counts(query),
                    "errors": dict(self.per_query[query].failed) if query in self.per_query else {},
                }
                for query, text in self.queries.items()
            ],
        }

    def _counts(self, query: str) -> dict[str, int]:
        costs = self.per_query.get(query)
        if costs is None:  # the run has no documents for it
            return dict.fromkeys(("documents", "truncated", "windowed", "failed"), 0)
        return {
            "documents": costs.documents,
            "truncated": costs.truncated,
            "windowed": costs.windowed,
            "failed": len(costs.failed),
        }


def _one_of(names: Sequence[str], name: str | None, what: str) -> str:
    """The name, or the first one for None."""
    if name is not None and name not in names:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, names))}, but got {name!r}")
    return names[0] if name is None else name
