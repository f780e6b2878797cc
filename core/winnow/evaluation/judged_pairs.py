"""Judged pairs: a query, a document, and whether people found it relevant."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from winnow.evaluation.collection import Collection
from winnow.evaluation.runs import Run
from winnow.lines import AS_IT_IS, json_object, numbered_lines
from winnow.text import checked


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPair:
    """A query and a document that was judged for it.

    Attributes:
        query: Text of the query.
        document: Text of the document.
        label: How relevant the document is: 0 if not, more the more it is.
        instruction: What counts as relevant; None for the reranker's.
    """

    query: str
    document: str
    label: float
    instruction: str | None = None


def read_pairs(file: str | PathLike[str]) -> list[JudgedPair]:
    """Read judged pairs.

    Args:
        file: JSONL in UTF-8: objects with `query`, `document`, `label` (0 and 1, or grades) and perhaps `instruction`.

    Raises:
        ValueError: The file is empty, or a line is malformed. The message names it.
        OSError: The file cannot be read.
    """
    path = Path(fspath(file))
    with path.open(**AS_IT_IS) as text:
        found = [_pair(line, f"{path}, line {number}") for number, line in numbered_lines(text, str(path))]
    if not found:
        raise ValueError(f'{path} is empty: it should have a JSON object with "query", "document" and "label" a line.')
    return found


def pairs_of(collection: Collection, run: Run | None = None, *, top_k: int = 100) -> Iterator[JudgedPair]:
    """The pairs of a judged collection.

    Args:
        collection: The collection.
        run: Take the documents that a retriever found for each query that has judgements. Those that nobody judged
            count as not relevant, as in the metrics of TREC. None for the judged documents alone.
        top_k: How many of the run's documents for each query.
    """
    for query, judgements in collection.qrels.items():
        documents = judgements if run is None else run.ranked(query)[:top_k]
        for document in documents:
            if document in collection.documents:
                yield JudgedPair(
                    query=collection.queries[query],
                    document=collection.documents[document],
                    label=judgements.get(document, 0),
                )


def _pair(line: str, where: str) -> JudgedPair:
    wanted = 'Each line must be a JSON object with texts in "query" and "document" and a number in "label".'
    record = json_object(line, where, wanted)
    for name in ("query", "document"):
        text = record.get(name)
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f'{where}: "{name}" is {"blank" if isinstance(text, str) else "missing"}. {wanted}')
        checked(text, f"{where}: {name}")
    label: Any = record.get("label")
    if not isinstance(label, int | float) or not math.isfinite(label):
        raise ValueError(f'{where}: "label" is {label!r:.80}. {wanted}')
    instruction = record.get("instruction")
    if not isinstance(instruction, str | None):
        raise ValueError(f'{where}: "instruction" must be a text, but is {instruction!r:.80}.')
    return JudgedPair(query=record["query"], document=record["document"], label=label, instruction=instruction)
