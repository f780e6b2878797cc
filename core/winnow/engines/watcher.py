"""A process that ends others with its parent, however the parent ends: killed, crashed, or out of memory.

`winnow.engines.vllm_processes` runs this file as a script, with the parent's id and a temporary folder of the parent's.
It reads the ids of processes from standard input, one a line. When the parent has ended, or says "end", it kills those
that still run, with all below them, deletes the folder, and ends itself.
"""

import contextlib
import os
import select
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator

import psutil

# How often it looks for its parent. Input ends with the parent, but not while a child that the parent forked keeps it
# open.
_LOOK_SECONDS = 1.0


def kill_trees(roots: Iterable[psutil.Process]) -> None:
    """Kill processes and all below them. They are stopped first, so that none starts another meanwhile."""
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
    """A process and all below it, but for Python's resource tracker; none if it is gone."""
    with contextlib.suppress(psutil.Error):
        return [one for one in (root, *root.children(recursive=True)) if not _is_resource_tracker(one)]
    return []


def _is_resource_tracker(process: psutil.Process) -> bool:
    """Of Python's multiprocessing: it frees shared memory when all who use it are gone, and then ends."""
    with contextlib.suppress(psutil.Error):
        return any("resource_tracker" in part for part in process.cmdline())
    return False


def _lines(parent: int) -> Iterator[bytes]:
    """The lines of standard input while the parent lives."""
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
    """Watch."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # sent to a whole group; the parent decides what to do
        signal.signal(name, signal.SIG_IGN)
    parent, folder = sys.argv[1:]
    watched: list[psutil.Process] = []
    for line in _lines(int(parent)):
        if line == b"end":
            break
        with contextlib.suppress(psutil.Error):
            watched.append(psutil.Process(int(line)))
    kill_trees(watched)
    shutil.rmtree(folder, ignore_errors=True)  # the parent's own try came first; it follows no links


if __name__ == "__main__":
    main()
