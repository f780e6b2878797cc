"""Scores in a folder: shared by rerankers and processes, only ever floats, and never the reason that a call fails."""

import json
import logging
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from winnow import FakeEngine, Reranker

diskcache = pytest.importorskip("diskcache")

from winnow.disk_scores import DiskScores  # noqa: E402 - needs diskcache

QUERY = "capital of China"
DOCUMENTS = ["Beijing is the capital of China.", "Paris", "China", "Paris", " "]


def hits(folder: Path) -> int:
    with Reranker("fake", engine="fake", score_cache=folder) as reranker:
        return reranker.rank(QUERY, DOCUMENTS).stats.cache_hits


def test_scores_outlive_the_reranker(tmp_path: Path) -> None:
    with Reranker("fake", engine="fake", score_cache=str(tmp_path / "new" / "folder")) as reranker:
        first = reranker.rank(QUERY, DOCUMENTS)
    with Reranker("fake", engine="fake", score_cache=tmp_path / "new" / "folder") as reranker:
        again = reranker.rank(QUERY, DOCUMENTS)
    assert again.hits == first.hits
    assert (first.stats.cache_hits, again.stats.cache_hits) == (0, 3)


def test_scores_outlive_the_process(tmp_path: Path) -> None:
    with Reranker("fake", engine="fake") as reranker:
        scores = reranker.score(QUERY, DOCUMENTS)
    code = f"""
import json, winnow
with winnow.Reranker("fake", engine="fake", score_cache={str(tmp_path)!r}) as reranker:
    print(json.dumps(reranker.score({QUERY!r}, {DOCUMENTS!r})))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stderr, json.loads(done.stdout)) == ("", scores)
    assert hits(tmp_path) == 3


def test_a_real_model_gives_the_same_from_the_folder(tiny_model: str, passages: list[str], tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        with Reranker(tiny_model, engine="transformers", score_cache=tmp_path) as reranker:
            found.append(reranker.rank(QUERY, passages))
    assert found[0].hits == found[1].hits
    assert found[1].stats.cache_hits == len(set(passages))


def test_many_threads_and_rerankers_share_a_folder(tmp_path: Path) -> None:
    calls = [(f"query {number % 4}", [f"document {at}" for at in range(30)]) for number in range(40)]
    with Reranker("fake", engine="fake") as plain:
        expected = [plain.rank(*call).hits for call in calls]

    def rank(call: Any) -> Any:
        with Reranker("fake", engine=FakeEngine(), score_cache=tmp_path) as reranker:
            return reranker.rank(*call).hits

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(rank, calls)) == expected
    with diskcache.Cache(tmp_path) as cache:
        assert len(cache) == 4 * 30


def test_texts_are_not_written(tmp_path: Path) -> None:
    with Reranker("fake", engine="fake", score_cache=tmp_path, instruction="confidential") as reranker:
        reranker.rank("secretly", ["hidden away"])
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert not any(word in written for word in (b"secretly", b"hidden away", b"confidential"))


# --- failures ---------------------------------------------------------------------------------------------------------


def check_one_warning_and_right_scores(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Reranker("fake", engine="fake") as plain:
        expected = plain.rank(QUERY, DOCUMENTS).hits
    with Reranker("fake", engine="fake", score_cache=folder) as reranker:
        for _ in range(3):
            ranking = reranker.rank(QUERY, DOCUMENTS)
            assert ranking.hits == expected
            assert ranking.stats.cache_hits == 0
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.name == "winnow.score_cache"
    assert str(folder) in warning.getMessage()
    assert "everything is scored anew" in warning.getMessage()


def test_a_folder_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    check_one_warning_and_right_scores(tmp_path / "file", caplog)


def test_a_damaged_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache.db").write_bytes(b"no database " * 1000)
    check_one_warning_and_right_scores(tmp_path, caplog)


class Trap:
    """Leaves a trace where it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("value", ["pickle", "text", "nan", "file"])
def test_what_others_put_into_the_folder_is_not_read(
    value: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, trace = tmp_path / "cache", tmp_path / "trace"
    assert hits(folder) == 0
    with diskcache.Cache(folder) as cache:
        for key in list(cache):
            cache[key] = {
                "pickle": Trap(trace),
                "text": "0.99",
                "nan": float("inf"),
                "file": pickle.dumps(Trap(trace)) + b" " * 100_000,
            }[value]
    check_one_warning_and_right_scores(folder, caplog)
    assert not trace.exists()


def test_after_close_it_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "file"
    folder.touch()
    with Reranker("fake", engine="fake", score_cache=folder) as reranker:
        reranker.rank(QUERY, DOCUMENTS)
        folder.unlink()
        assert reranker.rank(QUERY, DOCUMENTS).stats.cache_hits == 0
        reranker.close()
        assert [reranker.rank(QUERY, DOCUMENTS).stats.cache_hits for _ in range(2)] == [0, 3]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("entry", [("text", 1.0), (b"key", 1), (b"key", [1.0])])
def test_nothing_but_floats_is_stored(entry: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"are bytes|are floats"):
        DiskScores(tmp_path).put(dict([entry]))
    assert DiskScores(tmp_path).get([b"key"]) == [None]
