"""The watcher: a process that kills others when its parent ends, also if the parent was killed or crashed.

`winnow.engines.vllm.processes` runs this file as a script, with the parent's id and a temporary folder of the parent's.
It reads ids of processes from standard input, one on each line. When the parent has ended, or sends "end", it kills
those processes that still run and their descendants, deletes the folder, and exits.
"""

import contextlib
import os
import select
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator

import psutil

# How often it checks its parent. Standard input ends with the parent, but not while a forked child keeps it open.
_LOOK_SECONDS = 1.0


def kill_trees(roots: Iterable[psutil.Process]) -> None:
    """Kill processes and their descendants. They are stopped first, so that none starts another process meanwhile."""
    roots = list(roots)
    found: set[psutil.Process] = set()
    while new := {process for root in roots for process in tree(root)} - found:
        found |= new
        for process in new:
            with contextlib.suppress(psutil.Error):
                process.suspend()
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.kill()


def tree(root: psutil.Process) -> list[psutil.Process]:
    """A process and its descendants, without Python's resource tracker; none if the process has ended."""
    with contextlib.suppress(psutil.Error):
        return [one for one in (root, *root.children(recursive=True)) if not _is_resource_tracker(one)]
    return []


def _is_resource_tracker(process: psutil.Process) -> bool:
    """Whether this is multiprocessing's resource tracker, which frees shared memory after its last user, and exits."""
    with contextlib.suppress(psutil.Error):
        return any("resource_tracker" in part for part in process.cmdline())
    return False


def _lines(parent: int) -> Iterator[bytes]:
    """The lines of standard input, while the parent runs."""
    rest = b""
    while True:
        if select.select([0], [], [], _LOOK_SECONDS)[0]:
            if not (read := os.read(0, 4096)):
                return
            *lines, rest = (rest + read).split(b"\n")
            yield from lines
        elif os.getppid() != parent:
            return


def main() -> None:
    """Watch the parent."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # sent to a whole group; the parent reacts to them
        signal.signal(name, signal.SIG_IGN)
    parent, folder = sys.argv[1:]
    watched: list[psutil.Process] = []
    for line in _lines(int(parent)):
        if line == b"end":
            break
        with contextlib.suppress(psutil.Error):
            watched.append(psutil.Process(int(line)))
    kill_trees(watched)
    shutil.rmtree(folder, ignore_errors=True)  # the parent may have deleted it already; links are not followed


if __name__ == "__main__":
    main()
