"""Work on a Ray cluster of two nodes gives what one process alone gives, also when processes are killed on the way."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bulk_inputs import alone, parts_in, records_in, rows, write_collection, write_jsonl

from ray_nodes import RayNodes
from test_docs import ROOT, snippets
from winnow import ConfigurationError, DocumentError, Reranker
from winnow.bulk import rerank_dataset, rerank_files
from winnow.bulk.jsonl_source import JsonlSource
from winnow.bulk.output_folder import DONE, ERRORS
from winnow.bulk.rows import Columns
from winnow.bulk.run_source import RunSource

pytestmark = pytest.mark.slow

FAKE: dict[str, Any] = {"model": "any", "engine": "fake"}


def wait_for(is_true: Callable[[], object]) -> None:
    """Wait for what happens in another process."""
    end = time.monotonic() + 240
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.05)


def done_lines(folder: Path) -> int:
    return (folder / DONE).read_bytes().count(b"\n") if (folder / DONE).exists() else 0


def test_a_dataset_gets_what_rank_many_gives(ray_nodes: RayNodes, tiny_model: str) -> None:
    import ray

    records: list[dict[str, Any]] = rows(12)
    records[5]["documents"] = []
    ds = ray.data.from_items(records)
    reranked = rerank_dataset(
        ds,
        model=tiny_model,
        engine="transformers",
        query_column="query",
        documents_column="documents",
        top_k=3,
        batch_rows=5,
    )
    found = sorted(reranked.take_all(), key=lambda row: row["id"])
    with Reranker(tiny_model, engine="transformers") as reranker:
        for row, record in zip(found, records, strict=True):
            assert row["query"] == record["query"]
            if not record["documents"]:
                assert row["error"] == "'documents' is an empty list: there is nothing to rank."
                assert list(row["ranking"]) == []
                continue
            assert row["error"] is None
            ranking = reranker.rank(record["query"], record["documents"], top_k=3)
            assert list(row["ranking"]) == [hit.index for hit in ranking]
            assert list(row["scores"]) == pytest.approx([hit.score for hit in ranking], abs=1e-6)


def test_a_dataset_of_pandas_is_ranked_too_by_each_rows_instruction(ray_nodes: RayNodes) -> None:
    pandas = pytest.importorskip("pandas")
    import ray

    records = [{**row, "how": how} for row, how in zip(rows(3), ("briefly", None, "at length"), strict=True)]
    ds = ray.data.from_pandas(pandas.DataFrame(records))
    fake = {**FAKE, "template": "<i>{{ instruction }}<q>{{ query }}<d>{{ document }}<e>", "instruction": "as ever"}
    reranked = rerank_dataset(ds, query_column="query", documents_column="documents", instruction_column="how", **fake)
    found = reranked.take_all()
    with Reranker(**fake) as reranker:
        for row, record in zip(sorted(found, key=lambda row: row["id"]), records, strict=True):
            ranking = reranker.rank(record["query"], record["documents"], instruction=record["how"])
            assert list(row["ranking"]) == [hit.index for hit in ranking]
            assert list(row["scores"]) == [hit.score for hit in ranking]


def test_a_dataset_without_the_column_is_refused(ray_nodes: RayNodes) -> None:
    import ray

    ds = ray.data.from_items(rows(2))
    with pytest.raises(ConfigurationError, match=r"The dataset has no column 'question'. It has 'id', 'query'"):
        rerank_dataset(ds, query_column="question", documents_column="documents", **FAKE)
    with pytest.raises(ConfigurationError, match="'id' is of the type int64"):
        rerank_dataset(ds, query_column="query", documents_column="id", **FAKE)


def test_a_run_on_two_nodes_is_that_of_one_process(ray_nodes: RayNodes, tmp_path: Path) -> None:
    run, collection = write_collection(tmp_path, rows(23))
    report = rerank_files(run, tmp_path / "out", collection=collection, top_k=4, part_rows=4, concurrency=2, **FAKE)
    source = RunSource([run], collection / "corpus.jsonl", collection / "queries.jsonl")
    assert parts_in(tmp_path / "out") == alone(source, tmp_path / "alone", 4, top_k=4)
    assert report.parts == 6
    assert report.costs.rows == 23
    assert report.costs.pairs == sum(len(row["documents"]) for row in rows(23))
    again = rerank_files(run, tmp_path / "out", collection=collection, top_k=4, part_rows=4, **FAKE)
    assert (again.parts_before, again.costs) == (6, report.costs)
    with pytest.raises(ConfigurationError, match="top_k was 4, and is 5"):
        rerank_files(run, tmp_path / "out", collection=collection, top_k=5, part_rows=4, **FAKE)


def test_an_actor_that_is_killed_is_replaced(ray_nodes: RayNodes, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", rows(40, lambda _: 20))
    out = tmp_path / "out"
    command = bulk_command(file, out, "delay=0.1")
    environment, pipe = {**os.environ, **ray_nodes.environment}, subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe) as driver:
        wait_for(lambda: done_lines(out) or driver.poll() is not None)
        ray_nodes.workers()[0].send_signal(signal.SIGKILL)
        stdout, stderr = driver.communicate(timeout=240)
        assert driver.returncode == 0, stderr
    assert json.loads(stdout)["costs"]["pairs"] == 800  # what Ray prints of the worker is not in it
    assert b"40/40" in stderr
    assert parts_in(out) == alone(JsonlSource([file], Columns()), tmp_path / "alone", 2)
    assert done_lines(out) == 20


def test_the_work_of_a_node_that_is_lost_goes_to_the_other(ray_nodes: RayNodes, tmp_path: Path) -> None:
    """On a busy machine the worker on the second node may not have started when half of the work is done."""
    file = write_jsonl(tmp_path / "in.jsonl", rows(100, lambda _: 20))
    out = tmp_path / "out"

    def is_time() -> bool:
        return (done_lines(out) > 0 and len(ray_nodes.workers()) == 2) or done_lines(out) > 25

    command = bulk_command(file, out, "delay=0.2")
    with subprocess.Popen(command, env={**os.environ, **ray_nodes.environment}, stderr=subprocess.PIPE) as driver:
        wait_for(lambda: is_time() or driver.poll() is not None)
        ray_nodes.lose_second()
        assert done_lines(out) < 50
        _, stderr = driver.communicate(timeout=600)
        assert driver.returncode == 0, stderr
    ray_nodes.add_second()
    assert parts_in(out) == alone(JsonlSource([file], Columns()), tmp_path / "alone", 2)
    assert done_lines(out) == 50


def bulk_command(file: Path, out: Path, *engine_args: str) -> list[str]:
    command = [sys.executable, "-m", "winnow_command", "bulk", "-i", str(file), "-o", str(out), "-m", "any"]
    given = [word for argument in engine_args for word in ("--engine-arg", argument)]
    return [*command, "--engine", "fake", "--part-rows", "2", "--concurrency", "2", "--json", *given]


def test_a_driver_that_is_killed_is_continued(ray_nodes: RayNodes, tmp_path: Path) -> None:
    records: list[Any] = rows(40, lambda _: 20)
    records[31] = {"query": "a", "documents": []}
    file = write_jsonl(tmp_path / "in.jsonl", records)
    out = tmp_path / "out"
    command = bulk_command(file, out, "delay=0.1")
    with subprocess.Popen(command, env={**os.environ, **ray_nodes.environment}, stderr=subprocess.PIPE) as driver:
        wait_for(lambda: done_lines(out) > 1 or driver.poll() is not None)
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
    assert driver.returncode == -signal.SIGKILL
    before = done_lines(out)
    assert 1 < before < 20
    wait_for(lambda: not ray_nodes.workers())  # they end with their driver
    stamps = {file.name: file.stat().st_mtime_ns for file in out.glob("part-*")}
    with pytest.raises(DocumentError, match=r"max_errors is 0.*line 32: 'documents' is an empty list"):
        rerank_files(file, out, part_rows=2, concurrency=2, max_errors=0, engine_kwargs={"delay": 0.1}, **FAKE)
    report = rerank_files(file, out, part_rows=2, concurrency=2, engine_kwargs={"delay": 0.1}, **FAKE)
    assert (report.parts, report.errors) == (20, 1)
    assert report.parts_before >= before
    parts = parts_in(out)
    assert parts == alone(JsonlSource([file], Columns()), tmp_path / "alone", 2)
    assert [row["id"] for row in records_in(parts)] == [at for at in range(40) if at != 31]
    kept = [name for name, stamp in stamps.items() if (out / name).stat().st_mtime_ns == stamp]
    assert len(kept) >= before
    [error] = [json.loads(line) for line in (out / ERRORS).read_text().splitlines()]
    assert error["where"] == f"{file}, line 32"


def test_without_a_cluster_ray_is_started_for_the_command_alone(ray_nodes: RayNodes, tmp_path: Path) -> None:
    """The Ray of another program here is not joined, which would end with that; nor is one that has ended."""
    file = write_jsonl(tmp_path / "in.jsonl", rows(4))
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        noted = Path(folder, "ray", "ray_current_cluster")
        noted.parent.mkdir()
        noted.write_text("127.0.0.1:1")
        environment = {**os.environ, **ray_nodes.environment, "RAY_TMPDIR": folder}
        del environment["RAY_ADDRESS"]
        subprocess.run(bulk_command(file, tmp_path / "out"), env=environment, check=True, timeout=240)
        assert (noted.parent / "session_latest").exists()
    assert parts_in(tmp_path / "out") == alone(JsonlSource([file], Columns()), tmp_path / "alone", 2)


def test_an_address_without_a_cluster_is_said_at_once(tmp_path: Path) -> None:
    command = bulk_command(write_jsonl(tmp_path / "in.jsonl", rows(1)), tmp_path / "out")
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert ended.returncode == 1
    assert "nothing answers at RAY_ADDRESS=127.0.0.1:1." in ended.stderr


def test_what_is_wrong_with_the_reranker_is_said_without_a_trace_of_ray(ray_nodes: RayNodes, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", rows(4))
    with pytest.raises(ConfigurationError, match=r"^The template from .* places the document 0 times [^\n]*$"):
        rerank_files(file, tmp_path / "out", template="{{ query }} {{ stop }}", concurrency=1, **FAKE)
    assert not parts_in(tmp_path / "out")
    wait_for(lambda: not ray_nodes.workers())


def test_the_snippets_of_the_page_run(
    ray_nodes: RayNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WINNOW_ENGINE", "fake")  # the actors, which others started, have it from here, too
    program = snippets(ROOT / "docs" / "bulk.md")
    exec(compile(program, "docs/bulk.md", "exec"), {"__name__": "__main__"})  # noqa: S102
    assert "'ranking': [1, 0]" in capsys.readouterr().out
