"""The processes of one vLLM engine. They are recorded when they start, so that none is left running."""

import contextlib
import logging
import multiprocessing.process
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from multiprocessing import spawn
from pathlib import Path
from typing import Any

from winnow.errors import EngineLoadError

logger = logging.getLogger(__name__)

_END_SECONDS = 5.0

# By psutil's names of the states.
_STOPPED = {"stopped": "stopped (state T)", "tracing-stop": "stopped by a debugger (state t)"}


class EngineProcesses:
    """The processes that vLLM starts for one engine, and the watcher process that ends them.

    vLLM's processes do not notice when the process that started them is killed, and keep the GPU's memory for ever
    (vllm-project/vllm#55510). The watcher notices it and kills them; see `winnow.engines.vllm.watcher`.
    """

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._abandoned = False
        self._watcher: subprocess.Popen[bytes] | None = None

    @contextlib.contextmanager
    def starting(self, folder: Path) -> Iterator[None]:
        """Record the processes that this thread starts in this context, so that `abandon` can kill them.

        Args:
            folder: A temporary folder, which the watcher deletes when it has killed them.
        """
        self._watcher = _start_watcher(folder)
        thread = threading.get_ident()

        def noted(start: Callable[..., None]) -> Callable[..., None]:
            def start_and_note(process: Any, *args: Any, **kwargs: Any) -> None:
                if threading.get_ident() != thread:
                    return start(process, *args, **kwargs)
                if self._abandoned:
                    raise EngineLoadError("Loading was interrupted.")
                start(process, *args, **kwargs)
                return self._note(process.pid)

            return start_and_note

        # vLLM starts its own processes with the first, and others, which inspect model or machine, with the second.
        with (
            _replaced(multiprocessing.process.BaseProcess, "start", noted),
            _replaced(subprocess.Popen, "__init__", noted),
        ):
            yield

    def _note(self, process: int) -> None:
        self._ids.append(process)
        if self._abandoned:
            self.kill()
        self._send(str(process))

    def _send(self, line: str) -> None:
        if self._watcher is None or self._watcher.stdin is None:
            return
        try:
            self._watcher.stdin.write(f"{line}\n".encode())
        except OSError:
            logger.warning(
                "Winnow's watcher has ended. If this process is killed, vLLM's processes may be left running."
            )

    def abandon(self) -> None:
        """Kill the processes, and let no new one start. From any thread."""
        self._abandoned = True
        self.kill()

    def kill(self) -> None:
        """Kill the processes that run."""
        from winnow.engines.vllm.watcher import kill_trees

        kill_trees(self._roots())

    def stopped(self) -> str:
        """Which of the processes and their descendants are stopped, as sentences; "" if none is."""
        import psutil

        from winnow.engines.vllm.watcher import tree

        found = []
        for process in (process for root in self._roots() for process in tree(root)):
            with contextlib.suppress(psutil.Error):
                if (how := _STOPPED.get(process.status())) is not None:
                    found.append(f"{process.name()} (process {process.pid}) is {how}.")
        return " ".join(found)

    def _roots(self) -> list[Any]:
        import psutil  # vLLM brings it

        children = {child.pid: child for child in psutil.Process().children()}
        return [children[process] for process in list(self._ids) if process in children]

    def close(self) -> None:
        """End the watcher, which first kills all processes that are left running."""
        self._send("end")
        watcher, self._watcher = self._watcher, None
        if watcher is None or watcher.stdin is None:
            return
        with contextlib.suppress(OSError):
            watcher.stdin.close()
        try:
            watcher.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            watcher.kill()
            watcher.wait()


def _start_watcher(folder: Path) -> "subprocess.Popen[bytes] | None":
    """Start the watcher, in a session of its own, so that no Ctrl-C reaches it, and without our output streams.

    A program that reads our output to its end must not wait for the watcher.
    """
    from winnow.engines.vllm import watcher

    try:
        return subprocess.Popen(  # noqa: S603 - our own file
            [os.fsdecode(spawn.get_executable()), "-P", watcher.__file__, str(os.getpid()), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        logger.warning("If this process is killed, vLLM's processes may be left running: no watcher starts (%s)", error)
        return None


@contextlib.contextmanager
def _replaced(owner: type, name: str, by: Callable[[Callable[..., None]], Callable[..., None]]) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, by(original))
    try:
        yield
    finally:
        setattr(owner, name, original)
