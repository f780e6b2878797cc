"""Runs: what a retriever or a reranker found for each query, in the format of trec_eval."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

from winnow.evaluation.files import run_lines, values_by_query

# What file names of runs end with, and what is no part of the run's name.
_ENDINGS = (".gz", ".txt", ".tsv", ".trec", ".run", ".res")


@dataclass(frozen=True, slots=True)
class Run:
    """What a retriever or a reranker found.

    Attributes:
        name: Its name, in tables and plots.
        scores: For each query's id the scores of documents, by their ids.
        file: The file that it was read from.
    """

    name: str
    scores: Mapping[str, Mapping[str, float]]
    file: Path | None = None

    def ranked(self, query: str) -> list[str]:
        """The ids of a query's documents, best first; equal scores as trec_eval orders them, by id from z to a."""
        scores = self.scores.get(query, {})
        return sorted(scores, key=lambda document: (scores[document], document), reverse=True)

    def documents(self, top_k: int | None = None) -> set[str]:
        """The ids of the documents that it found.

        Args:
            top_k: Only the best ones of each query; None for all.
        """
        return {document for query in self.scores for document in self.ranked(query)[:top_k]}

    def write(self, file: str | PathLike[str]) -> None:
        """Write it in the format of trec_eval.

        Raises:
            ValueError: An id holds a space, which separates the columns.
            OSError: The file cannot be written.
        """
        tag = "_".join(self.name.split()) or "run"
        lines = []
        for query, scores in self.scores.items():
            for rank, document in enumerate(self.ranked(query), 1):
                for name in (query, document):
                    if len(name.split()) != 1:
                        raise ValueError(f"The id {name!r} cannot be written to a run: it is blank or holds a space.")
                lines.append(f"{query} Q0 {document} {rank} {scores[document]!r} {tag}\n")
        Path(file).write_text("".join(lines), encoding="utf-8")


def read_run(file: str | PathLike[str]) -> Run:
    """Read a run.

    Args:
        file: TREC's six columns (query id, Q0, document id, rank, score, name of the run), compressed (.gz) or not. As
            in trec_eval the scores order the documents, not the ranks.

    Raises:
        ValueError: The file is empty, a line is malformed, or a document stands twice under a query. The message names
            the line.
        OSError: The file cannot be read.
    """
    path = Path(fspath(file))
    scores = values_by_query(path, run_lines(path), "stands twice under")
    if not scores:
        raise ValueError(f"{path} is empty: a run has a line for each document that was found.")
    return Run(_name(path), scores, path)


def as_run(run: "Run | Mapping[str, Mapping[str, float]] | str | PathLike[str]", name: str = "run") -> Run:
    """A run in any of the forms that users have it in: a `Run`, the dict of ir_measures and BEIR, or a file.

    Raises:
        ValueError: A score of the dict is not a finite number; or as in `read_run`.
    """
    if isinstance(run, Run):
        return run
    if not isinstance(run, Mapping):
        return read_run(run)
    for query, scores in run.items():
        for document, score in scores.items():
            if not math.isfinite(score):
                raise ValueError(f"The run's score of document {document!r} under query {query!r} is {score!r}.")
    return Run(name, run)


def documents_of(runs: Iterable[Run], top_k: int | None = None) -> set[str]:
    """The ids of the documents that any of the runs found; see `Run.documents`."""
    return set().union(*(run.documents(top_k) for run in runs))


def _name(file: Path) -> str:
    name = file.name
    while (stem := name.removesuffix(Path(name).suffix)) != name and Path(name).suffix in _ENDINGS:
        name = stem
    return name
