"""Judged collections: queries, documents, and which documents people found relevant to which query."""

import errno
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

from winnow.evaluation.files import is_compressed, judgement_lines, parsed_text, run_lines, text_lines, values_by_query
from winnow.evaluation.runs import Run
from winnow.text import checked

logger = logging.getLogger(__name__)

# Where BEIR's layout has the parts of a collection, in a folder.
_PLACES = {"corpus": ("corpus.jsonl",), "queries": ("queries.jsonl",), "qrels": ("qrels/test.tsv", "qrels.tsv")}


@dataclass(frozen=True, slots=True)
class Collection:
    """A judged collection.

    Attributes:
        name: Its name.
        queries: Texts of the queries, by their ids.
        documents: Texts of the documents, by their ids, with the titles before them.
        qrels: For each query's id how relevant documents are, by their ids: 0 or less if not, more the more they are.
    """

    name: str
    queries: Mapping[str, str]
    documents: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]


def read_collection(
    folder: str | PathLike[str] | None = None,
    *,
    corpus: str | PathLike[str] | None = None,
    queries: str | PathLike[str] | None = None,
    qrels: str | PathLike[str] | None = None,
    only: Iterable[str] | None = None,
) -> Collection:
    """Read a judged collection. Each file may be compressed (.gz).

    The corpus is read through once, to check it and to find where each document begins. The texts stay in the file
    until they are asked for, so that a corpus of any size fits in memory; those of a compressed file are kept.

    Args:
        folder: Where the files are in BEIR's layout: corpus.jsonl, queries.jsonl, and qrels/test.tsv or qrels.tsv.
        corpus: The documents, instead of those in the folder: JSONL with `_id`, `text` and perhaps `title`, or a line
            with a tab between id and text for each.
        queries: The queries, in the same formats.
        qrels: The judgements: BEIR's three columns with tabs (query id, document id, judgement), or TREC's four (query
            id, 0, document id, judgement).
        only: Ids of the documents that are needed, besides those with judgements; None for all.

    Raises:
        ValueError: A file is empty, a line is malformed, an id stands twice, or a judgement is of a query that is not
            there. The message names the line and what to do.
        OSError: A file is not there, or cannot be read.
    """
    given = {"corpus": corpus, "queries": queries, "qrels": qrels}
    files = {part: place_of(part, file, folder) for part, file in given.items()}
    texts = read_queries(files["queries"])
    judgements = read_qrels(files["qrels"])
    if not judgements.keys() <= texts.keys():
        line = next(line for line in judgement_lines(files["qrels"]) if line.query not in texts)
        raise ValueError(
            f"{files['qrels']}, line {line.number}: query {line.query!r} is not in {files['queries']}. Add it there, "
            "or remove its judgements."
        )
    judged = set().union(*judgements.values())
    documents = read_corpus(files["corpus"], only=None if only is None else judged.union(only))
    _look_for(judged, documents, files)
    return Collection(Path(fspath(folder or files["qrels"].parent)).resolve().name, texts, documents, judgements)


def read_queries(file: str | PathLike[str]) -> dict[str, str]:
    """Texts of the queries of a file, by their ids; see `read_collection`."""
    path = Path(fspath(file))
    found: dict[str, str] = {}
    for line in text_lines(path):
        if line.id in found:
            raise _twice(path, line.number, "query", line.id)
        found[line.id] = checked(line.text, f"{path}, line {line.number}: the query")
    if not found:
        raise ValueError(f"{path} is empty: it should have a line for each query.")
    return found


def read_qrels(file: str | PathLike[str]) -> dict[str, dict[str, int]]:
    """Judgements by the ids of their queries and documents; see `read_collection`."""
    path = Path(fspath(file))
    found = values_by_query(path, judgement_lines(path), "is judged twice for")
    if not found:
        raise ValueError(f"{path} is empty: it should have a line for each judgement.")
    return {query: {document: int(value) for document, value in values.items()} for query, values in found.items()}


def read_corpus(file: str | PathLike[str], *, only: Iterable[str] | None = None) -> Mapping[str, str]:
    """Texts of the documents of a file, by their ids; see `read_collection`.

    Args:
        file: The file.
        only: Ids of the documents that are needed; None for all.
    """
    path = Path(fspath(file))
    wanted = None if only is None else set(only)
    texts: dict[str, str] = {}
    begins: dict[str, int] = {}
    is_empty = True
    for line in text_lines(path):
        is_empty = False
        if wanted is not None and line.id not in wanted:
            continue
        if line.id in begins:
            raise _twice(path, line.number, "document", line.id)
        begins[line.id] = line.begin
        if is_compressed(path):
            texts[line.id] = line.text
    if is_empty:
        raise ValueError(f"{path} is empty: it should have a line for each document.")
    return texts if is_compressed(path) else _TextsInFile(path, begins)


def check_run(run: Run, collection: Collection, top_k: int | None = None) -> None:
    """Check that a run belongs to a collection.

    Args:
        run: The run.
        collection: The collection.
        top_k: How many documents of each query are needed; None for all.

    Raises:
        ValueError: A query or a document of the run is not in the collection, or no query of the run has judgements.
            The message names the line, if the run is from a file.
    """
    for query in run.scores:
        if query not in collection.queries:
            raise ValueError(
                f"{_place_in_run(run, query)}: query {query!r} is not among the queries of {collection.name}. Is the "
                "run of another collection, or of another part of it?"
            )
        for document in run.ranked(query)[:top_k]:
            if document not in collection.documents:
                raise ValueError(
                    f"{_place_in_run(run, query, document)}: document {document!r}, found for query {query!r}, is not "
                    f"in the corpus of {collection.name}. Is the run of another corpus, or of another version of it?"
                )
    if not run.scores.keys() & collection.qrels.keys():
        raise ValueError(
            f"No query of the run {run.name} has judgements in {collection.name}: nothing can be evaluated. The run "
            f"has queries such as {next(iter(run.scores), None)!r}, the judgements such as "
            f"{next(iter(collection.qrels), None)!r}."
        )


def _place_in_run(run: Run, query: str, document: str | None = None) -> str:
    if run.file is None:
        return f"The run {run.name}"
    lines = (line for line in run_lines(run.file) if line.query == query and document in (None, line.document))
    return f"{run.file}, line {next(lines).number}"


class _TextsInFile(Mapping[str, str]):
    """Texts that stay in their file.

    Args:
        file: The file, not compressed.
        begins: Where the line of each document begins in it, by the document's id.
    """

    def __init__(self, file: Path, begins: Mapping[str, int]):
        self._file = file
        self._begins = begins

    def __getitem__(self, name: str) -> str:
        begin = self._begins[name]
        with self._file.open("rb") as raw:
            raw.seek(begin)
            line = raw.readline().decode("utf-8", "replace").removeprefix("\ufeff").rstrip("\r\n")
        found, text = parsed_text(line, f"{self._file}, byte {begin}")
        if found != name:
            raise ValueError(f"{self._file} has changed since it was read first: read the collection again.")
        return text

    def __contains__(self, name: object) -> bool:
        return name in self._begins

    def __iter__(self) -> Iterator[str]:
        return iter(self._begins)

    def __len__(self) -> int:
        return len(self._begins)


def place_of(part: str, file: str | PathLike[str] | None, folder: str | PathLike[str] | None) -> Path:
    """Where a part of a collection is: in a file that the user names, or at its place in the folder."""
    if file is not None:
        return Path(fspath(file))
    if folder is None:
        raise ValueError(f"{part} is missing: name its file, or a folder with {' or '.join(_PLACES[part])} in it.")
    places = [Path(fspath(folder)) / place for name in _PLACES[part] for place in (name, f"{name}.gz")]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            errno.ENOENT,
            f"no {' or '.join(_PLACES[part])} in this folder, as BEIR's layout has it. Name the file of {part} itself",
            str(folder),
        )
    return found


def _look_for(judged: set[str], documents: Mapping[str, str], files: Mapping[str, Path]) -> None:
    """Say which documents have judgements and no text. A corpus may be a part of the one that was judged."""
    missing = judged - documents.keys()
    if not missing:
        return
    line = next(line for line in judgement_lines(files["qrels"]) if line.document in missing)
    where = f"{files['qrels']}, line {line.number}: document {line.document!r} is not in {files['corpus']}"
    if missing == judged:
        raise ValueError(f"{where}, nor is any other document that is judged. Are the two of the same collection?")
    logger.warning(
        "%s. This holds for %d of %d judged documents: no run can find them. If the corpus is a part of the one that "
        "was judged, that is right; else check the spelling of the ids.",
        where,
        len(missing),
        len(judged),
    )


def _twice(file: Path, number: int, what: str, name: str) -> ValueError:
    return ValueError(f"{file}, line {number}: the id {name!r} stands twice. Give each {what} an id of its own.")
