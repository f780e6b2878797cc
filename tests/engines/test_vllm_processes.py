"""vLLM's processes: gone with the engine, with the interpreter, with a load that no call waits for."""

import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ctrl_c import press_ctrl_c
from vllm_children import command_line, engine_cores

from gated_engine import wait_until
from winnow import EngineLoadError, Reranker
from winnow.engines import shared

pytestmark = pytest.mark.slow


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where scripts keep temporary files. Its path is short: vLLM makes sockets in it, whose paths are limited."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def without_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM then starts in half the time. To be used before the script, which inherits it."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


@pytest.fixture
def script(
    tmp_path: Path, temporary: Path, tiny_model: str, request: pytest.FixtureRequest
) -> Iterator[subprocess.Popen[str]]:
    """A user's script, without an `if __name__ == "__main__"` guard, that ranks on vLLM and leaves without closing.

    A parameter is what else it does at the end.
    """
    path = tmp_path / "script.py"
    path.write_text(
        "from winnow import Reranker\n"
        f"reranker = Reranker({tiny_model!r}, engine='vllm')\n"
        "print(reranker.score('a', ['b', 'c']), flush=True)\n" + getattr(request, "param", "")
    )
    process = subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    yield process
    process.kill()
    process.communicate()


def watch_children(process: subprocess.Popen[str]) -> tuple[set[psutil.Process], threading.Thread]:
    """All descendants the process ever has, gathered by a thread until it ends."""
    seen: set[psutil.Process] = set()

    def watch() -> None:
        while process.poll() is None:
            try:
                seen.update(psutil.Process(process.pid).children(recursive=True))
            except psutil.NoSuchProcess:
                return
            time.sleep(0.05)

    thread = threading.Thread(target=watch)
    thread.start()
    return seen, thread


_COUNT_FROZEN = "import gc; print(gc.get_freeze_count())"


@pytest.mark.parametrize("script", [_COUNT_FROZEN], indirect=True, ids=["plain"])
def test_a_script_needs_no_main_guard_and_leaves_no_process_behind(script: subprocess.Popen[str]) -> None:
    seen, thread = watch_children(script)
    out, err = script.communicate()
    thread.join()
    assert script.returncode == 0, err
    assert out.count("[") == 1  # the script ran once, not again in every process of vLLM
    assert "Error" not in err
    assert int(out.splitlines()[-1]) > 10_000  # vLLM's heap is frozen, see winnow.engines.vllm.heap
    assert "leaked" not in err  # and thawed before Python ends: libraries report what is left then
    assert seen
    assert not psutil.wait_procs(seen, timeout=10)[1]


@pytest.mark.parametrize(("stage", "after"), [("importing", 0.5), ("importing", 5), ("loading", 2), ("ranking", 0.3)])
def test_ctrl_c_ends_it_in_time_and_leaves_nothing_behind(tiny_model: str, stage: str, after: float) -> None:
    """At a few moments; at thirty random ones with `python tests/engines/ctrl_c.py MODEL`."""
    found = press_ctrl_c(tiny_model, stage, after)
    assert found.is_right, found


def test_killed_while_loading_it_takes_vllm_along(script: subprocess.Popen[str], temporary: Path) -> None:
    seen, thread = watch_children(script)
    while not any("EngineCore" in name or "spawn_main" in name for name in map(command_line, list(seen))):
        assert script.poll() is None, script.communicate()
        time.sleep(0.05)
    script.kill()
    script.communicate(timeout=30)  # nothing that is left keeps its output open
    thread.join()
    assert not psutil.wait_procs(seen, timeout=15)[1]
    assert not list(temporary.glob("winnow-*"))


# A forked child has the watcher's pipe open, so that this does not end with its parent.
_FORK_AND_WAIT = """
import os, time
if (child := os.fork()) == 0:
    time.sleep(600)
print(child, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("script", [_FORK_AND_WAIT], indirect=True, ids=["running"])
def test_killed_while_running_it_takes_vllm_along(script: subprocess.Popen[str], temporary: Path) -> None:
    assert script.stdout is not None
    assert script.stdout.readline().startswith("[")
    forked = psutil.Process(int(script.stdout.readline()))
    try:
        assert list(temporary.glob("winnow-*"))
        left = end_and_watch(script, signal.SIGKILL, forked)
        assert forked.is_running()
        # Python's own resource tracker waits for all who might use it.
        assert all("resource_tracker" in command_line(process) for process in left)
        assert not list(temporary.glob("winnow-*"))
    finally:
        forked.kill()
    assert not psutil.wait_procs(left, timeout=15)[1]


_RANK_ON = """
for number in range(10**9):
    reranker.rank("a", [f"{number} {at} " + "word " * 20 for at in range(100)])
    print(number, flush=True)
"""


@pytest.mark.usefixtures("without_worker")
@pytest.mark.parametrize("script", [_RANK_ON], indirect=True, ids=["ranking"])
def test_terminated_while_ranking_it_takes_vllm_along(script: subprocess.Popen[str], temporary: Path) -> None:
    """SIGTERM ends Python at once, without its exit handlers."""
    assert script.stdout is not None
    while script.stdout.readline() != "2\n":
        assert script.poll() is None, script.communicate()
    assert not end_and_watch(script, signal.SIGTERM)
    assert not list(temporary.glob("winnow-*"))


_LEAVE_HUNG = """
import psutil, threading, time
for process in psutil.Process().children():
    if "EngineCore" in " ".join(process.cmdline()):
        process.suspend()
threading.Thread(target=reranker.score, args=("a", ["d"]), daemon=True).start()
while not reranker._lease._shared.life._on_engine:
    time.sleep(0.01)
"""


@pytest.mark.usefixtures("without_worker")
@pytest.mark.parametrize("script", [_LEAVE_HUNG], indirect=True, ids=["hung"])
def test_a_script_ends_soon_though_vllm_hangs(script: subprocess.Popen[str], temporary: Path) -> None:
    seen, thread = watch_children(script)
    assert script.stdout is not None
    assert script.stdout.readline().startswith("[")
    assert script.wait(30) == 0
    thread.join()
    assert not psutil.wait_procs(seen, timeout=15)[1]
    assert not list(temporary.glob("winnow-*"))


def end_and_watch(
    script: subprocess.Popen[str], by: signal.Signals, forked: psutil.Process | None = None
) -> list[psutil.Process]:
    """End a script that runs vLLM by a signal, and return those of its processes that do not end with it."""
    seen = set(psutil.Process(script.pid).children(recursive=True)) - {forked}
    assert len(seen) >= 2
    script.send_signal(by)
    assert script.wait(15) == -by
    return psutil.wait_procs(seen, timeout=15)[1]


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_a_deadline_while_vllm_loads_is_kept_and_the_load_ends_with_the_reranker(
    tiny_model: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "_GRACE_SECONDS", 0.1)
    before = engine_cores()
    reranker = Reranker(tiny_model, engine="vllm", max_length=500)
    with pytest.raises(TimeoutError):
        reranker.rank("a", ["b", "c"], deadline=0.5)
    wait_until(lambda: bool(engine_cores() - before))  # it still loads
    if how == "closed":
        reranker.close()
        assert not engine_cores() - before
    else:
        del reranker
        gc.collect()
        wait_until(lambda: not engine_cores() - before)


@pytest.mark.usefixtures("without_worker")
def test_a_running_vllm_ends_when_its_last_reranker_is_dropped(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "_GRACE_SECONDS", 0.1)
    before, others = engine_cores(), set(shared._registry)
    reranker = Reranker(tiny_model, engine="vllm", max_length=508)
    assert len(reranker.score("a", ["b", "c"])) == 2
    assert engine_cores() - before
    del reranker
    wait_until(lambda: not engine_cores() - before)
    wait_until(lambda: set(shared._registry) <= others)


def test_a_failure_to_load_gives_vllms_own_reason(tiny_model: str) -> None:
    reranker = Reranker(tiny_model, engine="vllm", max_length=512, engine_kwargs={"block_size": 48})
    with reranker, pytest.raises(EngineLoadError, match="No common block size for 48"):
        reranker.start()


def test_a_cache_of_a_size_that_was_given_is_named_where_it_is_too_small(tiny_model: str) -> None:
    reranker = Reranker(tiny_model, engine="vllm", max_length=512, engine_kwargs={"kv_cache_memory_bytes": 4096})
    with reranker, pytest.raises(EngineLoadError, match="Lower max_length, or raise kv_cache_memory_bytes"):
        reranker.start()
