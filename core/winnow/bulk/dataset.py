"""Rerank a dataset of Ray Data."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from winnow.bulk.made_by import with_whole_paths
from winnow.bulk.packages import needed
from winnow.bulk.parquet_source import check_schema, rows_of, with_results
from winnow.bulk.pool import environment_of_actors, pool_of
from winnow.bulk.row_ranker import RowRanker, bulk_config
from winnow.bulk.rows import Columns, RankedRow
from winnow.errors import ConfigurationError
from winnow.ranking import RerankerConfig, checked_top_k

if TYPE_CHECKING:
    from ray.data import Dataset

ERROR = "error"
"""The column that says why a row was not ranked."""


def rerank_dataset(
    ds: "Dataset",
    *,
    model: str,
    query_column: str,
    documents_column: str,
    instruction_column: str | None = None,
    top_k: int | None = None,
    concurrency: int | None = None,
    num_cpus: float = 1,
    num_gpus: float | None = None,
    batch_rows: int = 64,
    **settings: Any,
) -> "Dataset":
    """Rerank the rows of a dataset of Ray Data on a pool of actors, each with an engine of its own.

    Nothing runs before the result is read or written; then rows stream through, so that memory is bounded. Read and
    write with whatever Ray Data has: `ray.data.read_parquet`, `write_json`, a bucket, a database.

    Args:
        ds: A row for each query.
        model: As for `Reranker`.
        query_column: The column of the query, a text.
        documents_column: The column of the documents, a list of texts.
        instruction_column: The column of an instruction for each row, a text or nothing; None if there is none.
        top_k: How many documents of each row are kept; None for all.
        concurrency: How many actors; None for one for each GPU of the cluster, or for one if it has none.
        num_cpus: Processors of each actor.
        num_gpus: GPUs of each actor; None for as many as the engine uses, if the cluster has any.
        batch_rows: Rows that an actor ranks at once: enough that the engine never waits.
        **settings: Any other setting of `Reranker`, but `on_error` and `deadline`.

    Returns:
        The dataset with three more columns: `ranking` (positions of the documents, best first), `scores` (in the same
        order), and `error`: why the row was not ranked, or some of its documents were not scored and rank last; None
        if all is well.

    Raises:
        ConfigurationError: A setting is wrong, or a column is missing or of a wrong type.
        MissingExtraError: Ray is not installed.
    """
    data = needed("ray.data")
    if not isinstance(ds, data.Dataset):
        raise TypeError(f"ds must be a ray.data.Dataset, but got {type(ds).__name__}: see ray.data.from_items")
    config = with_whole_paths(bulk_config(model, settings))
    top_k = checked_top_k(top_k)
    columns = Columns(query_column, documents_column, instruction_column)
    if (schema := ds.schema()) is not None:  # None if it has no rows
        pyarrow = needed("pyarrow")
        # Blocks of pandas have columns of Python's objects, whose type shows in each row.
        kinds = [kind if isinstance(kind, pyarrow.DataType) else pyarrow.null() for kind in schema.types]
        check_schema("The dataset", pyarrow.schema(zip(schema.names, kinds, strict=True)), columns)
        if ERROR in schema.names:
            raise ConfigurationError(f"The dataset has a column {ERROR!r} already: rename it.")
    result: Dataset = ds.map_batches(
        BatchActor,
        fn_constructor_args=(config, columns, top_k, environment_of_actors()),
        batch_size=batch_rows,
        batch_format="pyarrow",
        **pool_of(config, concurrency, num_cpus, num_gpus).resources(),
    )
    return result


class BatchActor:
    """What Ray makes an actor of: it ranks batches of rows with one reranker.

    Args:
        config: The reranker's settings.
        columns: The columns that are read.
        top_k: How many documents of each row are kept; None for all.
        environment: What `environment_of_actors` gave in the driver.
    """

    def __init__(self, config: RerankerConfig, columns: Columns, top_k: int | None, environment: Mapping[str, str]):
        os.environ.update(environment)
        self._columns = columns
        self._ranker = RowRanker(config, top_k)

    def __call__(self, table: Any) -> Any:
        """The table with the columns of the results."""
        pyarrow = needed("pyarrow")
        rows = rows_of(table, self._columns, "row ")
        ranked = self._ranker.rank_rows(rows)
        errors = [_error_of(row) for row in ranked]
        return with_results(table, ranked).append_column(ERROR, pyarrow.array(errors, pyarrow.string()))


def _error_of(ranked: RankedRow) -> str | None:
    if ranked.problem is not None or not ranked.failed:
        return ranked.problem
    return " ".join(f"Document {at}: {reason}" for at, reason in sorted(ranked.failed.items()))
