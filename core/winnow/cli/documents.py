"""Documents of the command line: lines of text or JSONL in, JSON out."""

import io
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import regex

from winnow.lines import AS_IT_IS, numbered_lines
from winnow.plain import is_deeper
from winnow.text import checked
from winnow.types import Ranking

# What a record may hold besides its text, so that it can be printed again.
_DEEPEST = 100


def read_documents(file: str) -> list[dict[str, Any]]:
    """The documents of a file as records with `text`, and with whatever else their JSON held.

    Args:
        file: A file in UTF-8 with a text a line, or JSONL with "text"; "-" for stdin.

    Raises:
        ValueError: A line is malformed. The message names it.
        OSError: The file cannot be read.
    """
    if file != "-":
        with Path(file).open(**AS_IT_IS) as text:
            return _parse(numbered_lines(text, file), file)
    if sys.stdin is None:  # the shell closed it (`<&-`)
        raise ValueError("stdin is closed: name a file, or pipe the documents in.")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(**AS_IT_IS)
    return _parse(numbered_lines(sys.stdin, "stdin"), "stdin")


def _parse(lines: Iterable[tuple[int, str]], name: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    is_json: bool | None = None
    for number, text in lines:
        if is_json is None:  # the first line decides
            is_json = text.lstrip().startswith("{")
            if regex.match(r"\s*\[\s*(\{|$)", text):
                raise ValueError(
                    f"{name} begins as a JSON array. Write an object a line, as `jq -c '.[]'` does from such a file."
                )
        if is_json:
            records.append(_record(text, f"{name}, line {number}"))
        else:
            records.append({"text": text})
    return records


def _record(line: str, where: str) -> dict[str, Any]:
    deep = f'{where}: nested more than {_DEEPEST} deep. Leave that out: only "text" is scored.'
    try:
        record = json.loads(line)
    except RecursionError:
        raise ValueError(deep) from None
    except ValueError as error:  # also of a number of thousands of digits
        raise ValueError(f"{where}: not JSON ({error}), though the first line is.") from None
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise ValueError(f'{where}: each JSON line must be an object with a string in "text".')
    if is_deeper(record, _DEEPEST):
        raise ValueError(deep)
    checked(record["text"], f"{where}: the text")
    return record


def as_json(query: str, ranking: Ranking, records: list[dict[str, Any]]) -> dict[str, Any]:
    """A ranking for JSON: each result with all that is known of it, and what else its record held."""
    return {
        "query": query,
        "results": [
            _finite(records[hit.index] | {name: value for name, value in asdict(hit).items() if name != "text"})
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
    """JSON has no infinity, and no NaN."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
