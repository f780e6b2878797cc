"""The folder of the output: what is done stays, what is half done is not taken for whole, and nothing is mixed."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bulk_inputs import parts_in, rows, write_jsonl

from winnow import ConfigurationError, EngineError
from winnow.bulk import BulkCosts
from winnow.bulk.jsonl_source import JsonlSource
from winnow.bulk.output_folder import DONE, ERRORS, MANIFEST, DonePart, OutputFolder, RowError
from winnow.bulk.part_worker import Job, PartWorker
from winnow.bulk.parts import whole_file
from winnow.bulk.row_ranker import _PIECE, RowRanker, bulk_config
from winnow.bulk.rows import Columns

MADE_BY = {"settings": {"model": "a", "top_k": 3}}


def done(number: int, folder: Path, *errors: RowError) -> DonePart:
    file = folder / f"part-{number}.jsonl"
    file.write_text("{}\n")
    return DonePart(part=number, file=file.name, bytes=3, costs=BulkCosts(rows=1, pairs=2), errors=errors)


def test_parts_that_are_done_are_known_to_the_next_run(tmp_path: Path) -> None:
    with OutputFolder(tmp_path, MADE_BY, 3) as folder:
        for number in (2, 0):
            folder.add(done(number, tmp_path, RowError(where=f"row {number}", document=None, reason="no")))
        folder.finish()
    assert json.loads((tmp_path / MANIFEST).read_text())["complete"] is False
    with OutputFolder(tmp_path, MADE_BY, 3) as folder:
        assert sorted(folder.done) == [0, 2]
        folder.add(done(1, tmp_path))
        folder.finish()
    assert json.loads((tmp_path / MANIFEST).read_text())["complete"] is True
    assert [json.loads(line)["where"] for line in (tmp_path / ERRORS).read_text().splitlines()] == ["row 0", "row 2"]


def test_half_a_line_and_a_file_that_is_gone_or_changed_are_not_done(tmp_path: Path) -> None:
    with OutputFolder(tmp_path, MADE_BY, 9) as folder:
        for number in range(4):
            folder.add(done(number, tmp_path))
    (tmp_path / "part-0.jsonl").unlink()
    (tmp_path / "part-1.jsonl").write_text("{}\n{}\n")
    log = (tmp_path / DONE).read_bytes()
    (tmp_path / DONE).write_bytes(log[:-20])
    (tmp_path / ".part-7.jsonl.abc.tmp").write_text("half")
    with OutputFolder(tmp_path, MADE_BY, 9) as folder:
        assert sorted(folder.done) == [2]
        folder.add(done(5, tmp_path))
    with OutputFolder(tmp_path, MADE_BY, 9) as folder:
        assert sorted(folder.done) == [2, 5]
    assert not list(tmp_path.glob(".*.tmp"))


def test_other_settings_are_refused_with_what_differs(tmp_path: Path) -> None:
    with OutputFolder(tmp_path, MADE_BY, 3):
        pass
    other = {"settings": {"model": "b", "top_k": 3, "raw_scores": True}}
    with pytest.raises(ConfigurationError) as refused, OutputFolder(tmp_path, other, 3):
        pass
    assert "settings.model was 'a', and is 'b'; settings.raw_scores was None, and is True." in str(refused.value)


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="is not empty"), OutputFolder(tmp_path, MADE_BY, 3):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_only_one_run_at_a_time_writes(tmp_path: Path) -> None:
    with (
        OutputFolder(tmp_path, MADE_BY, 3),
        pytest.raises(ConfigurationError, match="Another run writes to"),
        OutputFolder(tmp_path, MADE_BY, 3),
    ):
        pass


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"old")
    with pytest.raises(TypeError), whole_file(file) as out:
        out.writelines([b"new", "not bytes"])  # type: ignore[list-item]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert file.read_bytes() == b"old"


FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path[:0] = {path!r}
from bulk_inputs import alone
from winnow.bulk.jsonl_source import JsonlSource
from winnow.bulk.parquet_source import ParquetSource
from winnow.bulk.rows import Columns
file = Path({file!r})
source = (ParquetSource if file.suffix == ".parquet" else JsonlSource)([file], Columns())
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    alone(source, Path({out!r}), 100)
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_full_disk_is_said_and_leaves_no_part(tmp_path: Path, suffix: str) -> None:
    """A limit on the size of files stands in for the end of the disk: the same call fails, with another number."""
    file = write_jsonl(tmp_path / "in.jsonl", rows(100))
    if suffix == "parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        file = tmp_path / "in.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows(500)), file)
    out = tmp_path / "out"
    code = FULL_DISK.format(path=sys.path, file=str(file), out=str(out))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "File too large. Make room, and run the same again" in ended.stdout
    assert f"{out}/part-00000.{suffix}" in ended.stdout
    assert parts_in(out) == {}
    assert not [name for name in os.listdir(out) if "attempts" not in name]  # noqa: PTH208


@contextmanager
def no_room() -> Iterator[None]:
    """No file can grow, as on a full disk, which gives another number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_said_where_notes_are_taken_too(tmp_path: Path) -> None:
    source = JsonlSource([write_jsonl(tmp_path / "in.jsonl", rows(3))], Columns())
    out, config = tmp_path / "out", bulk_config("any", {"engine": "fake"})
    worker = PartWorker(Job(source=source, folder=out, digits=5, config=config, top_k=None, environment={}))
    [part] = source.scan(10).parts
    with OutputFolder(out, MADE_BY, 1) as folder:
        with no_room(), pytest.raises(OSError, match="Make room, and run the same again") as full:
            worker.do(part)
        assert "part-00000.jsonl" in full.value.filename
        made = worker.do(part)
        with no_room(), pytest.raises(OSError, match="Make room, and run the same again") as full:
            folder.add(made)
        assert full.value.filename == str(out / DONE)
        folder.finish()
    assert json.loads((out / MANIFEST).read_text())["complete"] is False
    with OutputFolder(out, MADE_BY, 1) as folder:
        assert not folder.done


def test_a_part_that_kills_its_workers_ends_the_work(tmp_path: Path) -> None:
    source = JsonlSource([write_jsonl(tmp_path / "in.jsonl", rows(3))], Columns())
    config = bulk_config("any", {"engine": "fake"})
    worker = PartWorker(Job(source=source, folder=tmp_path, digits=5, config=config, top_k=None, environment={}))
    [part] = source.scan(10).parts
    (tmp_path / ".part-00000.jsonl.attempts.tmp").write_bytes(b"....")
    with pytest.raises(EngineError, match=r"4 workers died at the part that begins with row or line 1 of"):
        worker.do(part)


def test_a_long_row_is_ranked_in_pieces_as_if_it_were_whole(tmp_path: Path) -> None:
    long = rows(1, lambda _: 2 * _PIECE + 7)[0]
    source = JsonlSource([write_jsonl(tmp_path / "in.jsonl", [rows(3)[2], long])], Columns())
    ranker = RowRanker(bulk_config("any", {"engine": "fake"}), top_k=_PIECE + 1)
    [part] = source.scan(10).parts
    requests = [row.request for row in source.read(part).rows if row.request is not None]
    short, joined = ranker.rank(requests)
    whole = ranker._reranker.rank(long["query"], long["documents"], top_k=_PIECE + 1)
    assert list(joined.ranking) == [hit.index for hit in whole]
    assert list(joined.scores) == [hit.score for hit in whole]
    assert joined.costs.pairs == 2 * _PIECE + 7
    assert short.costs.pairs == 3
    ranker.close()


def test_documents_that_fail_rank_last_and_have_a_reason(tmp_path: Path) -> None:
    ranker = RowRanker(bulk_config("any", {"engine": "fake", "on_overflow": "error", "max_length": 40}))
    ranked = ranker.rank([("a", ["b " * 50, "a", ""], None), ("long " * 50, ["a"], None)])
    assert ranked[0].ranking == [1, 0, 2]
    assert list(ranked[0].failed) == [0]
    assert ranked[0].costs.failed == 1
    assert ranked[1].problem or ranked[1].failed
    ranker.close()


@pytest.mark.parametrize("name", ["on_error", "deadline"])
def test_settings_of_single_calls_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} cannot be set here"):
        bulk_config("any", {"engine": "fake", name: "skip"})
