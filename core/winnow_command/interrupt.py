"""How Ctrl-C ends the `winnow` command: in one line, at any moment. Importing this takes no time, unlike `winnow`."""

import contextlib
import os
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
