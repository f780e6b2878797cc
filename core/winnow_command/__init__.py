"""The `winnow` command from its first moment on: Ctrl-C ends it in one line also while Winnow itself is imported."""

import contextlib
import os
import signal
from typing import NoReturn

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells count it: 128 + SIGINT."""


def end_at_once(*_: object) -> NoReturn:
    """Say so, and end the process at once: nothing runs that needs cleaning up.

    An exception would be raised wherever Python is; inside a callback it would only print a traceback.
    """
    say_interrupted()
    os._exit(INTERRUPTED)


def say_interrupted() -> None:
    """Write the one line, past all that buffers: this is called between any two instructions."""
    with contextlib.suppress(OSError):  # no process reads it
        os.write(2, b"winnow: interrupted\n")


def main() -> None:
    """Run the command line. Ctrl-C stays ignored where a script has ignored it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)
    from winnow.cli import app

    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            os._exit(INTERRUPTED)  # what is to be put away is; the rest of Python's end would wait for threads
        raise
