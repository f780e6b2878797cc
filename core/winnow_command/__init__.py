"""The `winnow` command from its first moment on: Ctrl-C ends it in one line also while Winnow itself is imported."""

import os
import signal

from winnow_command.interrupt import INTERRUPTED, end_at_once


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
