"""Inputs of bulk work, and what one process alone makes of them, without Ray."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from winnow.bulk.part_worker import Job, PartWorker
from winnow.bulk.parts import Source
from winnow.bulk.row_ranker import bulk_config

WORDS = ["capital", "China", "France", "rice", "noodles", "city", "river", "mountain", "Beijing", "Paris"]


def rows(count: int, documents: Callable[[int], int] = lambda at: at % 7 + 1) -> list[dict[str, Any]]:
    """Rows of different lengths, whose documents differ in how they answer."""
    return [
        {
            "id": at,
            "query": f"{WORDS[at % 10]} {WORDS[at % 7]}",
            "documents": [f"{WORDS[(at * to) % 10]} {WORDS[(at + to) % 10]} {to}" for to in range(documents(at))],
        }
        for at in range(count)
    ]


def write_jsonl(file: Path, records: Iterable[Any]) -> Path:
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return file


def alone(source: Source, folder: Path, part_rows: int, top_k: int | None = None, **settings: Any) -> dict[str, bytes]:
    """The parts that one process makes, one after the other."""
    folder.mkdir()
    config = bulk_config(settings.pop("model", "any"), {"engine": "fake", **settings})
    worker = PartWorker(Job(source=source, folder=folder, digits=5, config=config, top_k=top_k, environment={}))
    for part in source.scan(part_rows).parts:
        worker.do(part)
    return parts_in(folder)


def parts_in(folder: Path) -> dict[str, bytes]:
    """The content of each part."""
    return {file.name: file.read_bytes() for file in sorted(folder.glob("part-*"))}


def records_in(parts: dict[str, bytes]) -> list[Any]:
    """The rows of JSONL parts."""
    return [json.loads(line) for name in sorted(parts) for line in parts[name].splitlines()]


def write_collection(folder: Path, records: Sequence[dict[str, Any]]) -> tuple[Path, Path]:
    """Rows as a run and its collection: the documents are those of each row, with an id of their own."""
    write_jsonl(folder / "queries.jsonl", ({"_id": f"q{row['id']}", "text": row["query"]} for row in records))
    texts = {f"d{row['id']}-{at}": text for row in records for at, text in enumerate(row["documents"])}
    write_jsonl(folder / "corpus.jsonl", ({"_id": name, "title": "", "text": text} for name, text in texts.items()))
    lines = [
        f"q{row['id']} Q0 d{row['id']}-{at} {at + 1} {100 - at} bm25\n"
        for row in records
        for at in range(len(row["documents"]))
    ]
    run = folder / "bm25.trec"
    run.write_text("".join(lines), encoding="utf-8")
    return run, folder
