"""Rerank files into a folder, part by part, so that it can be continued."""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from winnow.bulk.jsonl_source import JsonlSource
from winnow.bulk.made_by import made_by, with_whole_paths
from winnow.bulk.output_folder import ERRORS, OutputFolder
from winnow.bulk.packages import needed
from winnow.bulk.parquet_source import ParquetSource
from winnow.bulk.part_worker import Job
from winnow.bulk.parts import Scan, Source
from winnow.bulk.pool import cluster, done_parts, environment_of_actors, pool_of
from winnow.bulk.row_ranker import bulk_config
from winnow.bulk.rows import BulkCosts, Columns
from winnow.bulk.run_source import RunSource
from winnow.errors import ConfigurationError, DocumentError
from winnow.evaluation import place_of
from winnow.progress import progress_bar
from winnow.ranking import checked_top_k

logger = logging.getLogger(__name__)

Files = str | PathLike[str] | Sequence[str | PathLike[str]]

# The formats, by what names of files end with.
_JSONL = (".jsonl", ".ndjson")
_PARQUET = (".parquet", ".pq")
_RUN = (".trec", ".run", ".txt", ".res", ".tsv")


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkReport:
    """What a run did.

    Attributes:
        parts: Parts of the input.
        parts_before: Parts that were done before this run.
        errors: Rows and documents that could not be ranked, in all runs; `_errors.jsonl` has the reasons.
        costs: What it cost, in all runs.
        seconds: How long this run took, with loading the model.
        pairs_per_second: Pairs a second of this run; None if nothing was left to do.
    """

    parts: int
    parts_before: int
    errors: int
    costs: BulkCosts
    seconds: float
    pairs_per_second: float | None

    def as_dict(self) -> dict[str, Any]:
        """Its fields, as plain data."""
        return asdict(self)


def rerank_files(
    inputs: Files,
    output: str | PathLike[str],
    *,
    model: str,
    query_column: str = "query",
    documents_column: str = "documents",
    instruction_column: str | None = None,
    collection: str | PathLike[str] | None = None,
    corpus: str | PathLike[str] | None = None,
    queries: str | PathLike[str] | None = None,
    drop: Sequence[str] = (),
    top_k: int | None = None,
    concurrency: int | None = None,
    num_cpus: float = 1,
    num_gpus: float | None = None,
    part_rows: int = 256,
    max_errors: int = 100,
    progress: bool = False,
    **settings: Any,
) -> BulkReport:
    """Rerank files on a pool of Ray actors, each with an engine of its own, into a folder of parts.

    A run that ended early, however it did, is continued by the same call: parts that are done stay as they are. All
    machines of the cluster must see the files under the same paths.

    Args:
        inputs: Files, or folders of files, all of one format: Parquet (`.parquet`) or JSONL (`.jsonl`) with a row for
            each query; or TREC's runs (`.trec`, `.run`, `.txt`, `.res`, `.tsv`), not compressed, in which the lines of
            a query are together.
        output: The folder. It gets a file for each part, with the rows in input order: the row's own columns,
            `ranking` (positions of the documents, best first) and `scores`; or for runs, a run.
        model: As for `Reranker`.
        query_column: The column of the query, a text.
        documents_column: The column of the documents, a list of texts.
        instruction_column: The column of an instruction for each row, a text or nothing; None if there is none.
        collection: For runs: the folder of `corpus.jsonl` and `queries.jsonl`, as in BEIR.
        corpus: For runs: the documents, instead of those of `collection`: JSONL with `_id`, `title` and `text`.
        queries: For runs: the queries, instead of those of `collection`: JSONL with `_id` and `text`.
        drop: Columns that are left out of the output.
        top_k: How many documents of each row are kept; None for all.
        concurrency: How many actors; None for one for each GPU of the cluster, or for one if it has none.
        num_cpus: Processors of each actor.
        num_gpus: GPUs of each actor; None for as many as the engine uses, if the cluster has any.
        part_rows: Rows of a part: what is done again at most, by each actor, after an interruption.
        max_errors: How many rows and documents may fail; with one more the run stops.
        progress: Show a progress bar on stderr.
        **settings: Any other setting of `Reranker`, but `on_error` and `deadline`.

    Raises:
        ConfigurationError: A setting is wrong, a column is missing, or the folder holds another run's output.
        DocumentError: More than `max_errors` rows and documents failed.
        ValueError: A file is damaged.
        OSError: A file cannot be read or written.
        MissingExtraError: Ray is not installed.
        EngineError: The engine or Ray failed.
    """
    needed("ray")  # before long work
    config = with_whole_paths(bulk_config(model, settings))
    top_k = checked_top_k(top_k)
    for name, value, least in (("part_rows", part_rows, 1), ("max_errors", max_errors, 0)):
        if type(value) is not int or value < least:
            raise ConfigurationError(f"{name} must be a whole number from {least}, but got {value!r}")
    files = _files_of(inputs)
    columns = Columns(query_column, documents_column, instruction_column)
    source = _source_of(files, columns, tuple(drop), (collection, corpus, queries))
    scan = source.scan(part_rows)
    if not scan.parts:
        raise ConfigurationError(f"{files[0]}{' and the other files' * (len(files) > 1)}: there are no rows.")
    told: dict[str, Any] = {"part_rows": part_rows, "top_k": top_k, "drop": list(drop), "digests": scan.digests}
    told["files"] = [file.name for file in files]
    if not isinstance(source, RunSource):
        told["columns"] = asdict(columns)
    begin = time.perf_counter()
    with OutputFolder(Path(output), {"settings": made_by(config), **told}, len(scan.parts)) as folder:
        before = len(folder.done)
        pairs_before = _total(folder).pairs
        job = Job(
            source=source,
            folder=Path(output).resolve(),
            digits=max(5, len(str(len(scan.parts) - 1))),
            config=config,
            top_k=top_k,
            environment=environment_of_actors(),
        )
        try:
            _check_errors(folder, max_errors)
            _do_rest(folder, job, scan, max_errors, progress, (concurrency, num_cpus, num_gpus))
        finally:
            folder.finish()
        seconds = time.perf_counter() - begin
        costs = _total(folder)
        return BulkReport(
            parts=len(scan.parts),
            parts_before=before,
            errors=folder.errors,
            costs=costs,
            seconds=seconds,
            pairs_per_second=(costs.pairs - pairs_before) / seconds if len(folder.done) > before else None,
        )


def _do_rest(
    folder: OutputFolder,
    job: Job,
    scan: Scan,
    max_errors: int,
    progress: bool,
    workers: tuple[int | None, float, float | None],
) -> None:
    """Do the parts that are not done."""
    rest = [part for part in scan.parts if part.number not in folder.done]
    if not rest:
        return
    with cluster(), progress_bar(progress, "row") as bar:
        bar.total = sum(part.rows for part in scan.parts)
        bar.update(bar.total - sum(part.rows for part in rest))
        bar.unpause()
        for done in done_parts(job, rest, pool_of(job.config, *workers)):
            folder.add(done)
            bar.update(scan.parts[done.part].rows)
            _check_errors(folder, max_errors)


def _check_errors(folder: OutputFolder, max_errors: int) -> None:
    if folder.errors > max_errors:
        first = next(error for number in sorted(folder.done) for error in folder.done[number].errors)
        raise DocumentError(
            f"{folder.errors} rows or documents could not be ranked, and max_errors is {max_errors}. One of them is "
            f"{first.where}: {first.reason} All are in {folder.path / ERRORS}. Correct the input, or allow more errors."
        )


def _total(folder: OutputFolder) -> BulkCosts:
    return sum((part.costs for part in folder.done.values()), BulkCosts())


def _files_of(inputs: Files) -> list[Path]:
    """The files of the input, in order; those of a folder by their names."""
    given = [inputs] if isinstance(inputs, str | PathLike) else list(inputs)
    found: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            inside = sorted(one for one in path.iterdir() if one.is_file() and one.name[0] not in "._")
            if not inside:
                raise ConfigurationError(f"{path} is a folder without files.")
            found += inside
        else:
            found.append(path)
    names = [path.name for path in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigurationError(f"Two files of the input are called {sorted(twice)[0]!r}: rename one.")
    if not found:
        raise ConfigurationError("There is no input: name a file or a folder.")
    return [path.resolve() for path in found]


def _source_of(
    files: Sequence[Path],
    columns: Columns,
    drop: Sequence[str],
    texts: tuple[str | PathLike[str] | None, str | PathLike[str] | None, str | PathLike[str] | None],
) -> Source:
    """What reads the files, by their names."""
    kinds = {_kind(file) for file in files}
    if len(kinds) > 1:
        raise ConfigurationError("The files of the input have several formats: give those of one format at a time.")
    [kind] = kinds
    collection, corpus, queries = texts
    if kind != _RUN:
        if any(part is not None for part in texts):
            raise ConfigurationError(
                f"collection, corpus and queries belong to a run, but {files[0].name} has its texts in its columns."
            )
        return ParquetSource(files, columns, drop) if kind == _PARQUET else JsonlSource(files, columns, drop)
    if drop:
        raise ConfigurationError("drop names columns of Parquet and JSONL: a run has none to leave out.")
    if collection is None and (corpus is None or queries is None):
        raise ConfigurationError(
            f"{files[0].name} is a run, which has no texts: name the collection, a folder with corpus.jsonl and "
            "queries.jsonl, or both files."
        )
    return RunSource(
        files,
        place_of("corpus", corpus, collection).resolve(),
        place_of("queries", queries, collection).resolve(),
    )


def _kind(file: Path) -> Iterable[str]:
    for kind in (_JSONL, _PARQUET, _RUN):
        if file.suffix in kind:
            return kind
    if file.suffix == ".gz":
        raise ConfigurationError(
            f"{file} is compressed as a whole, so that no part can be read alone. Unpack it, or write Parquet, which "
            "is compressed inside."
        )
    raise ConfigurationError(
        f"{file}: what the name ends with says the format, and must be one of {', '.join((*_PARQUET, *_JSONL, *_RUN))}."
    )
