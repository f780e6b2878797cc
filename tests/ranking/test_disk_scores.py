"""Scores in a folder: shared by rerankers, processes and users, and never the reason that a call fails or waits.

Whoever can write to the folder may be an attacker: they can spoil scores, and nothing else.
"""

import fcntl
import hashlib
import json
import logging
import math
import os
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from winnow import FakeEngine, Reranker
from winnow.ranking import disk_scores
from winnow.ranking.disk_scores import KEY_BYTES, DiskScores

FILE = "scores-v1.bin"
SLOT, PAGE = 32, 4096

QUERY = "capital of China"
DOCUMENTS = ["Beijing is the capital of China.", "Paris", "China", "Paris", " "]


def slots(folder: Path) -> list[tuple[bytes, float, int]]:
    """What the file holds: keys, logits, checksums."""
    written = (folder / FILE).read_bytes()
    found = [written[at : at + SLOT] for at in range(0, len(written), SLOT)]
    return [struct.unpack("<20sdI", slot) for slot in found if any(slot)]


def slot(key: bytes, logit: float) -> bytes:
    """A slot with the right checksum, as an attacker may write it."""
    score = struct.pack("<20sd", key, logit)
    return score + struct.pack("<I", zlib.crc32(score))


def logits_of(numbers: range) -> dict[bytes, float]:
    """Keys as Winnow makes them, as good as random, and a logit for each."""
    return {hashlib.blake2b(b"%d" % number, digest_size=KEY_BYTES).digest(): number / 7 for number in numbers}


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
    assert len(slots(tmp_path)) == 4 * 30


def test_texts_are_not_written(tmp_path: Path) -> None:
    with Reranker("fake", engine="fake", score_cache=tmp_path, instruction="confidential") as reranker:
        reranker.rank("secretly", ["hidden away"])
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert written
    assert not any(word in written for word in (b"secretly", b"hidden away", b"confidential"))


def test_processes_write_and_read_at_once(tmp_path: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_disk_scores import DiskScores, logits_of
store = DiskScores({str(tmp_path)!r})
for begin in range(0, 2000, 100):
    logits = logits_of(range(begin, begin + 100))
    store.put(logits)
    assert all(found in (None, logit) for found, logit in zip(store.get(list(logits)), logits.values()))
"""
    running = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[1] for process in running] == [""] * 3
    logits = logits_of(range(2000))
    store = DiskScores(tmp_path)
    store.put(logits)  # those that were lost where two wrote one slot
    assert store.get(list(logits)) == list(logits.values())


def test_a_fork_in_the_middle_of_writing(tmp_path: Path) -> None:
    code = f"""
import os, sys, threading; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_disk_scores import DiskScores, logits_of
store, logits, ends = DiskScores({str(tmp_path)!r}), logits_of(range(100)), threading.Event()
store.put(logits)
def write():
    while not ends.is_set():
        store.put(logits)
threading.Thread(target=write).start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        store.put(logits)
        os._exit(store.get(list(logits)) != list(logits.values()))
    print(os.waitpid(child, 0)[1])
ends.set()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["0"] * 20


# --- size -------------------------------------------------------------------------------------------------------------


def test_pages_that_are_full_go_on_in_the_next_level(tmp_path: Path) -> None:
    logits = logits_of(range(10_000))  # the first two levels hold 7,680
    store = DiskScores(tmp_path)
    store.put(logits)
    assert store.get(list(logits)) == list(logits.values())
    store.put({key: logit + 1 for key, logit in logits.items()})
    assert store.get(list(logits)) == [logit + 1 for logit in logits.values()]
    assert len(slots(tmp_path)) == len(logits)


def test_the_file_stops_growing_and_the_newest_score_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(disk_scores._LEVELS) * PAGE <= 2**30
    monkeypatch.setattr(disk_scores, "_LEVELS", [1, 4])
    store = DiskScores(tmp_path)
    for key, logit in logits_of(range(2000)).items():
        store.put({key: logit})
        assert store.get([key]) == [logit]
    assert (tmp_path / FILE).stat().st_size == 5 * PAGE
    assert len(slots(tmp_path)) == 5 * PAGE // SLOT


# --- failures ---------------------------------------------------------------------------------------------------------


def check_one_warning_and_right_scores(
    folder: Path, caplog: pytest.LogCaptureFixture, expected_hits: int = 0, then: str = "everything is scored anew"
) -> None:
    with Reranker("fake", engine="fake") as plain:
        expected = plain.rank(QUERY, DOCUMENTS).hits
    with Reranker("fake", engine="fake", score_cache=folder) as reranker:
        for _ in range(3):
            ranking = reranker.rank(QUERY, DOCUMENTS)
            assert ranking.hits == expected
            assert ranking.stats.cache_hits == expected_hits
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.name == "winnow.ranking.score_cache"
    assert str(folder) in warning.getMessage()
    assert then in warning.getMessage()


def test_a_folder_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    check_one_warning_and_right_scores(tmp_path / "file", caplog)


@pytest.mark.parametrize("folder", ["no\0folder", "long" * 100])
def test_a_folder_whose_name_cannot_be(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    check_one_warning_and_right_scores(Path(folder), caplog)


def test_the_home_of_a_user_that_there_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [hits(Path("~nobody-of-this-name")) for _ in range(2)] == [0, 3]


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


def test_a_folder_that_vanishes_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "cache"
    with Reranker("fake", engine="fake", score_cache=folder) as reranker:
        assert [reranker.rank(QUERY, DOCUMENTS).stats.cache_hits for _ in range(2)] == [0, 3]
        shutil.rmtree(folder)
        assert [reranker.rank(QUERY, DOCUMENTS).stats.cache_hits for _ in range(2)] == [0, 3]
    assert not caplog.records


RANK = """
import json, sys, winnow
{before}
with winnow.Reranker("fake", engine="fake", score_cache=sys.argv[1]) as reranker:
    found = [reranker.rank({query!r}, {documents!r}) for _ in range(2)]
print(json.dumps([[hit.score for hit in ranking] + [ranking.stats.cache_hits] for ranking in found]))
"""


def rank_in_another_process(folder: Path, before: str = "", documents: list[str] = DOCUMENTS, **options: Any) -> Any:
    """Scores and hits of two rankings, and what was logged."""
    code = RANK.format(before=before, query=QUERY, documents=documents)
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True, **options
    )
    return json.loads(done.stdout), done.stderr


def test_a_full_disk_ends_writing_only(tmp_path: Path) -> None:
    assert hits(tmp_path) == 0
    documents = [*DOCUMENTS, *(f"document {number}" for number in range(200))]
    with Reranker("fake", engine="fake") as plain:
        scores = [hit.score for hit in plain.rank(QUERY, documents)]
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({PAGE}, {PAGE}))"
    (first, second), logged = rank_in_another_process(tmp_path, limit, documents)
    assert (first[:-1], second[:-1]) == (scores, scores)
    assert second[-1] >= first[-1]
    assert logged.count("cannot be written") == 1
    assert "cannot be read" not in logged


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: only root can become another user")
@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_the_folder_of_another_user_is_read_where_it_can_be(mode: int, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with Reranker("fake", engine="fake", score_cache=folder) as reranker:
        reranker.rank(QUERY, DOCUMENTS[:2])
    before = (folder / FILE).read_bytes()
    folder.chmod(mode)
    # Other users may neither pass the folders above nor import Winnow: the process does both before it becomes one.
    become_another_user = f"""
import os
with winnow.Reranker("fake", engine="fake", score_cache=10) as reranker:
    reranker.rank({QUERY!r}, {DOCUMENTS!r})
os.chdir(sys.argv[1])
sys.argv[1] = "."
os.setgroups([]); os.setgid(65534); os.setuid(65534)
"""
    with Reranker("fake", engine="fake") as plain:
        scores = [hit.score for hit in plain.rank(QUERY, DOCUMENTS)]
    found, logged = rank_in_another_process(folder, become_another_user)
    known = 2 if mode == 0o755 else 0
    assert found == [[*scores, known]] * 2
    assert logged.count("The score cache") == 1
    assert ("cannot be written (PermissionError" if known else "cannot be read (PermissionError") in logged
    assert (folder / FILE).read_bytes() == before
    assert [file.name for file in folder.iterdir()] == [FILE]


# --- attacks: what others put into the folder -------------------------------------------------------------------------


def test_the_score_file_is_the_only_one_that_is_opened(tmp_path: Path) -> None:
    """A rule for all attacks with other files: a SQLite journal or a pickle that is not opened does nothing."""
    folder, seen = tmp_path / "cache", tmp_path / "seen"
    folder.mkdir()
    assert hits(folder) == 0
    watch = f"""
import os
def watch(event, arguments):
    if {str(tmp_path)!r} in repr(arguments):
        os.write(seen, f"{{event}} {{arguments[0]}}\\n".encode())
seen = os.open({str(seen)!r}, os.O_WRONLY | os.O_CREAT)
sys.addaudithook(watch)
"""
    rank_in_another_process(folder, watch, [*DOCUMENTS, "another"])
    assert set(seen.read_text().splitlines()) == {f"open {folder / FILE}"}


def forge_journal(folder: Path, victim: Path) -> None:
    """SQLite deletes the "super-journal" that a journal names, wherever it is."""
    database, name = folder / "cache.db", str(victim).encode()
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS Cache (key BLOB, value REAL)")
    connection.close()
    (folder / "cache.db-journal").write_bytes(
        b"\x01" * 1024
        + struct.pack(">I", 0x4000_0000 // PAGE + 1)
        + name
        + struct.pack(">II", len(name), sum(name))
        + bytes.fromhex("d9d505f920a163d7")
    )


def test_a_forged_journal_deletes_nothing(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious", encoding="utf-8")
    folder = tmp_path / "cache"
    folder.mkdir()
    forge_journal(folder, victim)
    assert [hits(folder), hits(folder)] == [0, 3]
    assert victim.exists()
    # The attack is real: it works on SQLite.
    with sqlite3.connect(folder / "cache.db") as connection:
        connection.execute("SELECT * FROM Cache").fetchall()
    connection.close()
    assert not victim.exists()


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_link_is_not_followed(
    link: Callable[[Path, Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "cache"
    assert hits(elsewhere) == 0
    before = (elsewhere / FILE).read_bytes()
    folder.mkdir()
    link(folder / FILE, elsewhere / FILE)
    check_one_warning_and_right_scores(folder, caplog)
    with pytest.raises(OSError, match=FILE):
        DiskScores(folder).put(logits_of(range(1)))
    assert (elsewhere / FILE).read_bytes() == before


def test_a_link_to_nothing_makes_no_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / FILE).symlink_to(tmp_path / "new")
    check_one_warning_and_right_scores(folder, caplog)
    with pytest.raises(OSError, match=FILE):
        DiskScores(folder).put(logits_of(range(1)))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_neither_read_nor_waited_for(
    make: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / FILE)
    check_one_warning_and_right_scores(tmp_path, caplog)


@pytest.mark.skipif(not hasattr(fcntl, "F_SETLEASE"), reason="leases are Linux's")
def test_a_stuck_process_that_holds_the_file_is_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever opens a leased file waits 45 seconds (/proc/sys/fs/lease-break-time) for the one that has the lease."""
    assert hits(tmp_path) == 0
    hold = f"""
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = os.open({str(tmp_path / FILE)!r}, os.O_RDWR)
fcntl.lockf(file, fcntl.LOCK_EX)
fcntl.flock(file, fcntl.LOCK_EX)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("held", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stuck:
        assert stuck.stdout is not None
        assert stuck.stdout.readline() == b"held\n"
        check_one_warning_and_right_scores(tmp_path, caplog)
        assert "BlockingIOError" in caplog.text
        stuck.communicate()


@pytest.mark.parametrize(
    "content",
    [b"no scores ", b"\xff", b"\0", bytes(range(256)), b"SQLite format 3\0"],
    ids=["text", "ones", "zeros", "all", "sqlite"],
)
@pytest.mark.parametrize("length", [1, SLOT + 1, 12 * PAGE, 100 * PAGE + 5])
def test_a_damaged_file_holds_no_scores_and_takes_new_ones(content: bytes, length: int, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes((content * length)[:length])
    assert [hits(tmp_path), hits(tmp_path)] == [0, 3]


def test_a_file_full_of_garbage_takes_new_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_scores, "_LEVELS", [1, 4])
    (tmp_path / FILE).write_bytes(b"\x7f" * 5 * PAGE)
    logits = logits_of(range(1))
    store = DiskScores(tmp_path)
    store.put(logits)
    assert store.get(list(logits)) == list(logits.values())


@pytest.mark.parametrize("logit", [math.nan, math.inf, -math.inf, 1e308, -1e308])
def test_numbers_that_are_no_logits_are_scored_anew(logit: float, tmp_path: Path) -> None:
    with Reranker("fake", engine="fake") as plain:
        expected = plain.rank(QUERY, DOCUMENTS).hits
    assert hits(tmp_path) == 0
    written = (tmp_path / FILE).read_bytes()
    for key, right, _ in slots(tmp_path):
        written = written.replace(slot(key, right), slot(key, logit))
    (tmp_path / FILE).write_bytes(written)
    with Reranker("fake", engine="fake", score_cache=tmp_path, window_score="mean") as reranker:
        found = [reranker.rank(QUERY, DOCUMENTS) for _ in range(2)]
    assert [ranking.hits for ranking in found] == [expected] * 2
    assert [ranking.stats.cache_hits for ranking in found] == [0, 3]  # the right ones took their places


@pytest.mark.parametrize("byte", range(SLOT))
def test_a_score_of_which_a_byte_was_changed_is_none(byte: int, tmp_path: Path) -> None:
    (key,) = logits = logits_of(range(1))
    store = DiskScores(tmp_path)
    store.put(logits)
    written = bytearray((tmp_path / FILE).read_bytes())
    written[written.index(key) + byte] ^= 1
    (tmp_path / FILE).write_bytes(written)
    assert store.get([key]) == [None]
    store.put(logits)
    assert store.get([key]) == list(logits.values())


def test_any_slots_at_any_place_only_spoil_scores(tmp_path: Path) -> None:
    logits = logits_of(range(300))
    store = DiskScores(tmp_path)
    chance = random.Random(0)  # noqa: S311 - a test that runs the same every time
    for _ in range(30):
        store.put(logits)
        with (tmp_path / FILE).open("r+b") as file:
            for key in chance.sample(list(logits), 50):
                file.seek(chance.randrange(13 * PAGE))
                file.write(slot(key, 0.5)[: chance.randrange(SLOT)])
            file.truncate(chance.randrange(14 * PAGE))
        assert all(found in (None, logits[key]) for key, found in zip(logits, store.get(list(logits)), strict=True))
