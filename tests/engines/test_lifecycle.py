"""An engine's life: started once, shared, closed by the last one, gone with the interpreter, back after a death."""

import asyncio
import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from winnow import EngineDeadError, EngineLoadError, EngineScore, FakeEngine, Prompt, Reranker


class SlowEngine(FakeEngine):
    """A fake that takes its time to start and notes what happens to it."""

    def __init__(self, start_seconds: float = 0.2, **kwargs: float):
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.start_seconds = start_seconds
        self.closed = 0
        self.fail_to_start = 0
        self.die = 0

    async def start(self) -> None:
        await super().start()
        await asyncio.sleep(self.start_seconds)
        if self.fail_to_start:
            self.fail_to_start -= 1
            raise EngineLoadError("no memory")

    async def score(self, prompts: list[Prompt], *, priority: int = 0) -> list[EngineScore]:  # type: ignore[override]
        if self.die:
            self.die -= 1
            raise EngineDeadError("it died")
        return await super().score(prompts)

    async def aclose(self) -> None:
        self.closed += 1


def test_many_threads_start_one_engine_once() -> None:
    engine = SlowEngine()
    reranker = Reranker("fake", engine=engine)
    with ThreadPoolExecutor(16) as threads:
        scores = list(threads.map(lambda _: reranker.score("a b", ["a", "a b"]), range(16)))
    reranker.close()
    assert engine.started == 1
    assert all(found == scores[0] for found in scores)


def test_rerankers_with_the_same_settings_share_an_engine_and_the_last_one_closes_it() -> None:
    engine = SlowEngine()
    first, second = (Reranker("fake", engine=engine, instruction=which) for which in ("one", "two"))
    first.start()
    second.start()
    first.close()
    assert (engine.started, engine.closed) == (1, 0)
    assert second.score("a", ["a"])
    second.close()
    assert (engine.started, engine.closed) == (1, 1)


def test_close_waits_for_calls_in_flight() -> None:
    engine = SlowEngine(delay=0.4)
    reranker = Reranker("fake", engine=engine).start()
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(reranker.score, "a", ["a", str(number)]) for number in range(4)]
        while engine.calls < 4:
            time.sleep(0.01)
        reranker.close()
        assert all(call.done() for call in calls)
        assert all(len(call.result()) == 2 for call in calls)
    assert engine.closed == 1


def test_after_close_a_call_starts_it_again() -> None:
    engine = SlowEngine()
    reranker = Reranker("fake", engine=engine)
    before = reranker.score("a", ["a"])
    reranker.close()
    reranker.close()  # twice is fine
    assert reranker.score("a", ["a"]) == before
    reranker.close()
    assert (engine.started, engine.closed) == (2, 2)


def test_two_event_loops_one_after_the_other() -> None:
    with Reranker("fake", engine="fake") as reranker:
        scores = [asyncio.run(reranker.ascore("a", ["a", "b"])) for _ in range(2)]
    assert scores[0] == scores[1]


def test_an_event_loop_goes_on_while_it_waits() -> None:
    async def main() -> int:
        ticks = 0
        async with Reranker("fake", engine=SlowEngine(start_seconds=0.3, delay=0.2)) as reranker:
            call = asyncio.ensure_future(reranker.arank("a", ["a"]))
            while not call.done():
                await asyncio.sleep(0.01)
                ticks += 1
        return ticks

    assert asyncio.run(main()) > 20


def test_a_sync_call_works_inside_a_running_loop() -> None:
    async def main() -> list[float]:
        with Reranker("fake", engine="fake") as reranker:
            return reranker.score("a", ["a"])

    assert len(asyncio.run(main())) == 1


def test_a_failed_start_is_told_to_all_who_wait_and_the_next_call_tries_again() -> None:
    engine = SlowEngine()
    engine.fail_to_start = 1
    reranker = Reranker("fake", engine=engine)
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(reranker.score, "a", ["a"]) for _ in range(4)]
        assert all(isinstance(call.exception(), EngineLoadError) for call in calls)
    assert engine.started == 1
    assert reranker.score("a", ["a"])
    assert engine.started == 2
    reranker.close()


def test_a_dead_engine_says_so_and_the_next_call_starts_it_again() -> None:
    engine = SlowEngine()
    engine.die = 3
    reranker = Reranker("fake", engine=engine)
    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(reranker.score, "a", [f"a {number}"]) for number in range(3)]
        assert all(isinstance(call.exception(), EngineDeadError) for call in calls)
    assert engine.closed == 1
    assert reranker.score("a", ["a"])
    assert engine.started == 2
    reranker.close()


def test_a_cancelled_call_ends_at_once_and_harms_no_other() -> None:
    async def main() -> float:
        async with Reranker("fake", engine=SlowEngine(start_seconds=0, delay=5)) as reranker:
            await reranker.astart()
            begin = time.monotonic()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reranker.arank("a", ["a"]), 0.1)
        return time.monotonic() - begin  # closing waits for calls in flight: there is none left

    assert asyncio.run(main()) < 2


def test_pickle_and_deepcopy_keep_the_settings_and_share_the_engine() -> None:
    reranker = Reranker("fake", engine="fake", instruction="find it").start()
    twins = [pickle.loads(pickle.dumps(reranker)), copy.deepcopy(reranker)]  # noqa: S301
    for twin in twins:
        assert twin.instruction == "find it"
        assert twin.engine_key == reranker.engine_key
        assert twin.score("a", ["a"]) == reranker.score("a", ["a"])
        twin.close()
    reranker.close()


def test_a_forked_child_starts_its_own_engine() -> None:
    reranker = Reranker("fake", engine="fake").start()
    expected = reranker.score("a", ["a"])
    code = f"""
import os, sys
from winnow import Reranker
reranker = Reranker("fake", engine="fake").start()
child = os.fork()
if child == 0:
    os._exit(0 if reranker.score("a", ["a"]) == {expected!r} else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    reranker.close()
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60, check=False).returncode == 0


# --- vLLM's processes -------------------------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path: Path, tiny_model: str) -> Iterator[subprocess.Popen[str]]:
    """A user's script, without an `if __name__ == "__main__"` guard, that ranks on vLLM and leaves without closing."""
    path = tmp_path / "script.py"
    path.write_text(
        "from winnow import Reranker\n"
        f"reranker = Reranker({tiny_model!r}, engine='vllm')\n"
        "print(reranker.score('a', ['b', 'c']), flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
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


def test_a_script_needs_no_main_guard_and_leaves_no_process_behind(script: subprocess.Popen[str]) -> None:
    seen, thread = watch_children(script)
    out, err = script.communicate(timeout=180)
    thread.join()
    assert script.returncode == 0, err
    assert out.count("[") == 1  # the script ran once, not again in every process of vLLM
    assert "Error" not in err
    assert seen
    assert not psutil.wait_procs(seen, timeout=10)[1]


def test_ctrl_c_while_loading_leaves_nothing_behind(script: subprocess.Popen[str]) -> None:
    seen, thread = watch_children(script)
    while not any("EngineCore" in name or "spawn_main" in name for name in map(command_line, list(seen))):
        assert script.poll() is None, script.communicate()
        time.sleep(0.05)
    os.kill(script.pid, signal.SIGINT)  # to the parent alone: a terminal would tell the children, too
    _, err = script.communicate(timeout=60)
    thread.join()
    assert script.returncode != 0
    assert "KeyboardInterrupt" in err
    assert not psutil.wait_procs(seen, timeout=10)[1]


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_vllm_killed_under_a_call_is_an_error_and_the_next_call_starts_it_again(tiny_model: str) -> None:
    before = set(psutil.Process().children(recursive=True))
    with Reranker(tiny_model, engine="vllm", max_length=512) as reranker:
        expected = reranker.score("a", ["b", "c"])
        for process in set(psutil.Process().children(recursive=True)) - before:
            if "EngineCore" in command_line(process) or "spawn_main" in command_line(process):
                process.kill()
        with pytest.raises(
            EngineDeadError, match=r"The next call starts it again\.\s+Its process was killed by SIGKILL"
        ):
            reranker.score("a", ["b", "c"])
        assert reranker.score("a", ["b", "c"]) == pytest.approx(expected, abs=1e-5)
    left = {process for process in psutil.Process().children(recursive=True) if "spawn_main" in command_line(process)}
    assert not left - before


def test_a_failure_to_load_gives_vllms_own_reason(tiny_model: str) -> None:
    reranker = Reranker(tiny_model, engine="vllm", max_length=512, engine_kwargs={"block_size": 48})
    with reranker, pytest.raises(EngineLoadError, match="No common block size for 48"):
        reranker.start()
