"""The lines of the files of a judged collection, checked one by one: texts, judgements, and runs.

The layouts are those of BEIR (https://github.com/beir-cellar/beir/wiki/Load-your-custom-dataset) and of trec_eval.
"""

import gzip
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from winnow.lines import json_object, numbered_lines


@dataclass(frozen=True, slots=True)
class TextLine:
    """A document or a query.

    Attributes:
        number: The number of its line, from 1.
        begin: Where its line begins in the file that is not compressed, in bytes.
        id: Its id.
        text: Its text, with the title before it.
    """

    number: int
    begin: int
    id: str
    text: str


@dataclass(frozen=True, slots=True)
class PairLine:
    """A judgement, or a document that a run found.

    Attributes:
        number: The number of its line, from 1.
        query: Id of the query.
        document: Id of the document.
        value: The judgement, a whole number; or the run's score.
    """

    number: int
    query: str
    document: str
    value: float


def is_compressed(file: Path) -> bool:
    """Whether a file is read through gzip."""
    return file.suffix == ".gz"


def text_lines(file: Path) -> Iterator[TextLine]:
    """The documents or queries of a file.

    Args:
        file: JSONL with `_id`, `text` and perhaps `title`; or a tab between id and text. It may be compressed (.gz).

    Raises:
        ValueError: A line is malformed; the message names it.
        OSError: The file cannot be read.
    """
    begin = end = 0

    def decoded(raw: BinaryIO) -> Iterator[str]:
        nonlocal begin, end
        for line in raw:
            begin, end = end, end + len(line)
            yield line.decode("utf-8", "surrogateescape")

    with _opened(file) as raw:
        for number, line in numbered_lines(decoded(raw), str(file)):
            yield TextLine(number, begin, *parsed_text(line, f"{file}, line {number}"))


def parsed_text(line: str, where: str) -> tuple[str, str]:
    """Id and text of a line: JSON, or a tab between the two.

    A title stands before the text, with a space between them: BEIR joins them in this way before it reranks
    (`beir/reranking/rerank.py`).

    Raises:
        ValueError: The line is malformed.
    """
    if not line.lstrip().startswith("{"):
        name, tab, rest = line.partition("\t")
        if not (tab and name.strip()):
            raise ValueError(f'{where}: neither JSON with "_id" and "text", nor an id, a tab and a text.')
        return name.strip(), " ".join(rest.split("\t")).strip()
    wanted = 'must be a JSON object with an id in "_id" and a string in "text"'
    record = json_object(line, where, f"Each line {wanted}.")
    own_id, title, text = record.get("_id"), record.get("title") or "", record.get("text")
    if type(own_id) is int:
        own_id = str(own_id)
    if not (isinstance(own_id, str) and own_id and isinstance(title, str) and isinstance(text, str)):
        raise ValueError(f'{where}: each line {wanted}; if there is a "title", it is a string, too.')
    return own_id, f"{title} {text}".strip()


def judgement_lines(file: Path) -> Iterator[PairLine]:
    """The judgements of a file.

    Args:
        file: BEIR's three columns with tabs (query id, document id, judgement), with or without a line of names before
            them; or TREC's four (query id, 0, document id, judgement). It may be compressed (.gz).

    Raises:
        ValueError: A line is malformed; the message names it.
        OSError: The file cannot be read.
    """
    for number, columns in _columns(file):
        if len(columns) not in (3, 4):
            raise ValueError(
                f"{file}, line {number}: {len(columns)} columns. Judgements have three columns with tabs between them "
                "(query id, document id, judgement), or four as for trec_eval (query id, 0, document id, judgement)."
            )
        query, document, judgement = columns[0], columns[-2], columns[-1]
        try:
            value = int(judgement)
        except ValueError:
            if number == 1 and len(columns) == 3:  # names of the columns
                continue
            raise ValueError(
                f"{file}, line {number}: the judgement must be a whole number, but is {judgement!r}."
            ) from None
        yield PairLine(number, query, document, value)


def run_lines(file: Path) -> Iterator[PairLine]:
    """The documents that a run found.

    Args:
        file: TREC's six columns (query id, Q0, document id, rank, score, name of the run). It may be compressed (.gz).

    Raises:
        ValueError: A line is malformed; the message names it.
        OSError: The file cannot be read.
    """
    with _opened(file) as raw:
        for number, line in numbered_lines(_decoded(raw), str(file)):
            yield _found(_split(line), number, f"{file}, line {number}")


def parsed_run_line(line: bytes, where: str) -> PairLine:
    """What a line of a run says.

    Args:
        line: The line, which is not blank.
        where: What errors call its place.

    Raises:
        ValueError: It is malformed.
    """
    try:
        return _found(_split(line.decode("utf-8")), 1, where)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: it is no UTF-8 ({error}).") from None


def _found(columns: Sequence[str], number: int, where: str) -> PairLine:
    if len(columns) != 6:
        raise ValueError(
            f"{where}: {len(columns)} columns. A run has six, as for trec_eval: query id, Q0, "
            "document id, rank, score, name of the run."
        )
    query, _, document, _, score, _ = columns
    try:
        value = float(score)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: the score must be a finite number, but is {score!r}.")
    return PairLine(number, query, document, value)


def values_by_query(file: Path, lines: Iterable[PairLine], twice: str) -> dict[str, dict[str, float]]:
    """The values of a file by the ids of their queries and documents.

    Args:
        file: The file, for errors.
        lines: Its lines.
        twice: What an error says of a document that a query has already: "stands twice under".

    Raises:
        ValueError: A document stands twice under a query.
    """
    found: dict[str, dict[str, float]] = {}
    for line in lines:
        of_query = found.setdefault(line.query, {})
        if line.document in of_query:
            raise ValueError(
                f"{file}, line {line.number}: document {line.document!r} {twice} query {line.query!r}. Remove one of "
                "the lines."
            )
        of_query[line.document] = line.value
    return found


def _columns(file: Path) -> Iterator[tuple[int, list[str]]]:
    with _opened(file) as raw:
        for number, line in numbered_lines(_decoded(raw), str(file)):
            yield number, _split(line)


def _decoded(raw: Iterable[bytes]) -> Iterator[str]:
    return (line.decode("utf-8", "surrogateescape") for line in raw)


def _split(line: str) -> list[str]:
    """The columns of a line, with tabs between them if it has any, else with spaces."""
    parts = line.strip().split("\t") if "\t" in line else line.split()
    return [part.strip() for part in parts]


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    if not is_compressed(file):
        with file.open("rb") as raw:
            yield raw
        return
    try:
        with gzip.open(file, "rb") as unpacked:
            yield cast("BinaryIO", unpacked)
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{file} is not a whole gzip file: {error}") from None
