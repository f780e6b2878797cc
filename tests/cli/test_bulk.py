"""`winnow bulk`, as far as it needs no cluster: its options, and what it says before the work begins."""

import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from winnow.bulk import rerank_files
from winnow.bulk.output_folder import DonePart
from winnow.bulk.part_worker import Job, PartWorker
from winnow.bulk.parts import Part
from winnow.cli.bulk import bulk
from winnow.cli.main import app


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["bulk", "-m", "any", "--engine", "fake", *map(str, arguments)])


def done_here(job: Job, parts: Sequence[Part], _: object) -> Iterator[DonePart]:
    """What the pool does, in this process."""
    return map(PartWorker(job).do, parts)


def test_its_options_are_those_of_the_function_with_the_same_defaults() -> None:
    function, command = inspect.signature(rerank_files).parameters, inspect.signature(bulk).parameters
    named = [name for name in function if name not in ("progress", "settings")]
    assert set(named) <= set(command)
    for name in named:
        if name != "drop":  # a list of options is None if there are none
            assert command[name].default == function[name].default, name


@pytest.mark.parametrize(
    ("name", "content", "arguments", "message"),
    [
        ("a.jsonl", '{"q": "a", "documents": ["b"]}', (), "a.jsonl has no column 'query'. It has 'q', 'documents'."),
        ("a.jsonl", "query,documents", (), "a.jsonl, line 1: it is no JSON"),
        ("a.jsonl", "\n\n", (), "a.jsonl: there are no rows."),
        ("a.jsonl.gz", "", (), "a.jsonl.gz is compressed as a whole"),
        ("a.csv", "", (), "a.csv: what the name ends with says the format"),
        ("a.trec", "1 Q0 2 3 4 run", (), "a.trec is a run, which has no texts: name the collection"),
        ("a.trec", "1 Q0 2 3 4 run", ("--collection", "."), "no corpus.jsonl"),
        ("a.parquet", "PAR1", (), "a.parquet is not a whole Parquet file"),
        (
            "a.jsonl",
            '{"query": "a", "documents": ["b"]}',
            ("--part-rows", "0"),
            "part_rows must be a whole numbe",
        ),
        ("a.jsonl", '{"query": "a", "documents": ["b"]}', ("--top-k", "0"), "top_k must be > 0, but got 0"),
        ("a.jsonl", '{"query": "a", "documents": ["b"]}', ("--collection", "."), "belong to a run"),
    ],
)
def test_what_is_wrong_is_said_before_ray_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: str,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(content)
    done = run("--input", name, "--output", "out", *arguments)
    assert done.exit_code == 1, done.output
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not Path("out").exists()


def test_what_is_done_already_needs_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of a whole run is taken as it is; other settings are refused with what differs."""
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text('{"query": "a", "documents": ["b", "a"]}\n')
    monkeypatch.setattr("winnow.bulk.files_run.done_parts", done_here)
    monkeypatch.setattr("winnow.bulk.files_run.cluster", nullcontext)
    monkeypatch.setattr("winnow.bulk.files_run.pool_of", lambda *_: None)
    first = run("--input", "a.jsonl", "--output", "out", "--json")
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["costs"]["pairs"] == 2
    monkeypatch.delattr("winnow.bulk.files_run.done_parts")
    again = run("--input", "a.jsonl", "--output", "out")
    assert "out: 1 rows in 1 parts, of which 1 parts were done before\n2 pairs, " in again.stdout
    other = run("--input", "a.jsonl", "--output", "out", "--raw-scores")
    assert "settings.raw_scores was None, and is True" in other.stderr
    Path("b.jsonl").write_text('{"query": "a", "documents": ["c"]}\n')
    more = run("--input", "b.jsonl", "--input", "a.jsonl", "--output", "out")
    assert "files was ['a.jsonl'], and is ['b.jsonl', 'a.jsonl']" in more.stderr
