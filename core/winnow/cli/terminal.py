"""The command line's way to the terminal: all that it prints, and how errors become one line and an exit code.

Control characters in what documents, models and servers say are shown as escapes: they could move the cursor, change
the window's title, or reverse a line. JSON holds the texts as they are.
"""

import contextlib
import errno
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TextIO

import regex

from winnow.errors import WinnowError
from winnow_command.interrupt import INTERRUPTED, end_at_once, say_interrupted

logger = logging.getLogger(__name__)

# Exit code after the reader of the output has gone, as shells count it: 128 + SIGPIPE.
_CLOSED_PIPE = 141

# How long an interrupted command may take to end by itself: an import of PyTorch cannot be interrupted.
_SECONDS_TO_PUT_AWAY = 5

_UNSAFE = regex.compile(r"[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\p{Bidi_Control}]")


def shown(text: str) -> str:
    r"""`text` as a person may see it: in one line, with control characters as escapes such as \x1b and \u202e."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """`text` without line breaks, and with one space between words."""
    return " ".join(text.split())


def write(text: str) -> None:
    """Write to standard output, all of it, as it is.

    Raises:
        OSError: It cannot be written.
    """
    if sys.stdout is None:  # the shell closed it (`>&-`)
        raise OSError(errno.EBADF, "standard output is closed")
    try:
        _write(sys.stdout, text)
    except OSError as error:
        error.filename = "standard output"
        raise


def write_json(value: Any) -> None:
    """Write a value as JSON to standard output."""
    write(json_text(value, sys.stdout.encoding if sys.stdout else "utf-8"))


def json_text(value: Any, encoding: str) -> str:
    """A value as JSON, exact down to characters that an encoding does not have."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:  # also half of a surrogate pair, which JSON has only as an escape
        text = json.dumps(value, indent=2)
    return text + "\n"


def write_note(text: str) -> None:
    """Write a line to standard error, if it is still open."""
    with contextlib.suppress(OSError):
        if sys.stderr is not None:
            _write(sys.stderr, f"winnow: {shown(one_line(text))}\n")


class LogFormatter(logging.Formatter):
    """One line for each message, and the lines of a traceback, made fit to be seen."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name of logging
        """The message's line."""
        return f"winnow: {shown(one_line(record.getMessage()))}"

    def formatException(self, ei: Any) -> str:  # noqa: N802 - likewise
        """The traceback's lines."""
        return "\n".join(map(shown, super().formatException(ei).splitlines()))


def run(command: Callable[[], Any]) -> NoReturn:
    """Run a command of Typer's, and end the process with its exit code; each error is one line.

    Args:
        command: Returns an exit code, or None. Typer's own errors must come out of it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what a terminal's encoding lacks
    try:
        code = command() or 0
        if sys.stdout is not None:
            sys.stdout.flush()  # at the very end Python would show a traceback
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit as end:  # Typer's, of a closed pipe
        code = _CLOSED_PIPE if isinstance(end.__context__, BrokenPipeError) else end.code
    except MemoryError:
        write_note("There is not enough memory.")
        code = 1
    except OSError as error:
        what = error.strerror or str(error)
        write_note(f"{error.filename}: {what}" if error.filename else what)
        code = 1
    except (WinnowError, ValueError) as error:
        write_note(str(error))
        code = 1
    except Exception as error:  # noqa: BLE001 - the last to see it
        code = _usage_error(error) or _unexpected(error)
    for stream in (sys.stdout, sys.stderr):
        _leave(stream)
    sys.exit(code)


@contextlib.contextmanager
def put_away_on_interrupt() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt here, so that an engine is closed, and half a file removed.

    A second Ctrl-C, or five seconds, end the process at once: its engines end with it.

    It changes nothing where the process is not the command's own.
    """
    if signal.getsignal(signal.SIGINT) is not end_at_once:
        yield
        return

    def end(*_: object) -> NoReturn:
        os._exit(INTERRUPTED)

    def interrupt(*_: object) -> NoReturn:
        signal.signal(signal.SIGINT, end)
        if hasattr(signal, "alarm"):  # not on Windows
            signal.signal(signal.SIGALRM, end)
            signal.alarm(_SECONDS_TO_PUT_AWAY)
        say_interrupted()
        raise KeyboardInterrupt

    def not_raised(lost: Any) -> None:
        """An exception came out where Python cannot raise it, as in a finaliser: the interrupt would be lost."""
        if lost.exc_type is KeyboardInterrupt:
            end()
        before(lost)

    before, sys.unraisablehook = sys.unraisablehook, not_raised
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, end_at_once)
        sys.unraisablehook = before


def _write(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()


def _leave(stream: TextIO | None) -> None:
    """Have a stream that cannot be written to drop what it holds: at its end Python would try again, and complain."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _usage_error(error: Exception) -> int:
    """Print what is wrong with the arguments; 0 if the error is not Typer's.

    Up to 0.27 Typer has no public class for them.
    """
    message = getattr(error, "format_message", None)
    if message is None:
        return 0
    if text := message():  # empty where it has printed the help
        where = getattr(getattr(error, "ctx", None), "command_path", "winnow")
        write_note(f"{text.rstrip('.')}. Try '{where} --help'.")
    return int(getattr(error, "exit_code", 2))


def _unexpected(error: Exception) -> int:
    write_note(
        f"unexpected {type(error).__name__}: {error}. This is a fault of Winnow: please report it, with what the same "
        "command prints as `winnow --verbose …`."
    )
    logger.info("The traceback:", exc_info=error)
    return 1
