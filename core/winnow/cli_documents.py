"""Documents of the command line: lines of text or JSONL in, JSON or lines out."""

import json
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from winnow.types import RankedDocument, Ranking


def read_documents(file: str) -> list[dict[str, Any]]:
    """The documents of a file as records with `text`, and with whatever else their JSON held.

    Args:
        file: A file with a text a line, or JSONL with "text"; "-" for stdin.

    Raises:
        ValueError: A line is malformed. The message names it.
        OSError: The file cannot be read.
    """
    if file == "-":
        return _parse(sys.stdin, "stdin")
    with Path(file).open(encoding="utf-8") as lines:
        return _parse(lines, file)


def _parse(lines: TextIO | Iterable[str], name: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    is_json: bool | None = None
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if not text.strip():
            continue
        if is_json is None:  # the first line decides
            is_json = text.lstrip().startswith("{")
        if not is_json:
            records.append({"text": text})
            continue
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name}, line {number}: not JSON ({error}), though the first line is.") from None
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise ValueError(f'{name}, line {number}: each JSON line must be an object with a string in "text".')
        records.append(record)
    return records


def as_json(query: str, ranking: Ranking, records: list[dict[str, Any]]) -> dict[str, Any]:
    """A ranking for JSON: each result with all that is known of it, and what else its record held."""
    return {
        "query": query,
        "results": [
            {**records[hit.index], **{name: _finite(value) for name, value in asdict(hit).items() if name != "text"}}
            for hit in ranking
        ],
        "stats": asdict(ranking.stats),
    }


def what_to_know(ranking: Ranking) -> list[str]:
    """What a list of texts and scores does not show: what was cut."""
    stats = ranking.stats
    notes = ["The query was cut: the model saw its beginning."] if stats.query_truncated else []
    if stats.truncated:
        notes.append(
            f"{stats.truncated} of {stats.documents} documents were cut; --on-overflow window scores all of them."
        )
    return notes


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def one_line(hit: RankedDocument) -> str:
    """A document's text without line breaks."""
    return " ".join((hit.text or "").split())
