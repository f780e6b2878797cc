"""Render templates that are not trusted in processes of their own, within limits of time and memory.

Jinja's sandbox keeps a template away from the machine, but cannot limit the time and memory of one function call, such
as `{{ "a".ljust(7 * 10**9) }}`. A worker is started when it is first needed, and used again. It is killed if a template
exceeds a limit, and ends when this process ends. It renders one template at a time. If all workers are busy, another is
started, so that no model waits for another's template.
"""

import atexit
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from io import FileIO
from multiprocessing import spawn
from typing import Any, cast

from winnow.locks import ForkSafeLock
from winnow.templates.jinja_sandbox import LARGEST_TEXT, RenderError, folders_of_program

# A worker's own limit is processor time, so that a busy machine does not matter. This one is for a worker that hangs.
_WALL_SECONDS = 20.0

_LARGEST_REQUEST = 4_000_000  # bytes
_LARGEST_ANSWER = 8 * LARGEST_TEXT  # bytes: JSON may write a character in six
_LARGEST_FAILURE = 20_000  # bytes of an answer that is not a text

# Idle workers that are kept.
_IDLE_WORKERS = 2

_PROGRAM = "import sys; sys.path += sys.argv[1:]; import jinja_sandbox; jinja_sandbox.serve()"

# The only environment variables that a worker inherits. It needs neither tokens nor keys.
_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")


def render(source: str, variables: Mapping[str, Any], seconds: float) -> str:
    """`winnow.templates.jinja_sandbox.render` for a template that is not trusted, in another process.

    Args:
        source: The template.
        variables: All that it is given. They must be what JSON can write.
        seconds: Processor time that it may take.

    Raises:
        RenderError: It is broken, does what the sandbox forbids, or exceeds a limit.
    """
    request = _written({"source": source, "variables": variables, "seconds": seconds})
    try:
        answer = _answer_of(_take(), request, seconds)
    except WorkerEndedError:
        # The system may have killed it while it was idle, as when memory was short: a new one shows who is at fault.
        answer = _answer_of(Worker(), request, seconds)
    if isinstance(answer, RenderError):
        raise answer
    return answer


class WorkerEndedError(RenderError):
    """A worker ended before it answered, and not because the template exceeded a limit."""


class Worker:
    """A process that renders, and the pipes to it.

    Raises:
        RenderError: It cannot be started.
    """

    def __init__(self) -> None:
        python = spawn.get_executable()
        if getattr(sys, "frozen", False) or not python:  # sys.executable is the whole program then, or nothing
            raise RenderError("cannot be rendered: a frozen or embedded Python cannot be started for it", over=True)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own program, in our own Python
                [python, "-I", "-S", "-B", "-c", _PROGRAM, *folders_of_program()],
                bufsize=0,  # a buffer's lock may be taken when the process forks
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _VARIABLES if name in os.environ},
                cwd=os.sep,
                start_new_session=True,
            )
        except OSError as error:
            raise RenderError("cannot be rendered", f"no process can be started for it: {error}", over=True) from error
        self._to, self._back = cast("FileIO", self._process.stdin), cast("FileIO", self._process.stdout)
        os.set_blocking(self._to.fileno(), False)
        _workers.add(self)

    @property
    def lives(self) -> bool:
        """Whether it can render."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def answer(self, request: bytes, seconds: float) -> bytes:
        """Render a template. After an error the worker must not be used again.

        Raises:
            WorkerEndedError: It ended.
            RenderError: There is no answer in time, or a too long one.
        """
        answer = self._exchange(request, time.monotonic() + _WALL_SECONDS)
        if answer.endswith(b"\n"):
            return answer
        if len(answer) > _LARGEST_ANSWER:
            raise RenderError(f"renders more than {LARGEST_TEXT:,} characters", over=True)
        with contextlib.suppress(subprocess.TimeoutExpired):  # it ends, or it closed its pipe and lives on
            self._process.wait(1)
        code = self._process.poll()
        if code == -signal.SIGXCPU:
            raise RenderError(f"ran for more than {seconds:g} s of processor time", over=True)
        raise WorkerEndedError("ended the process that renders it", f"exit code {code}", over=True)

    def _exchange(self, request: bytes, deadline: float) -> bytes:
        """Write the request and read a line, or what there is of it when it grows too long or the process ends."""
        left, answer = memoryview(request), bytearray()
        with selectors.DefaultSelector() as ready, contextlib.suppress(BrokenPipeError):
            ready.register(self._to, selectors.EVENT_WRITE)
            ready.register(self._back, selectors.EVENT_READ)
            while not answer.endswith(b"\n") and len(answer) <= _LARGEST_ANSWER:
                events = ready.select(max(0.0, deadline - time.monotonic()))
                if not events:
                    raise RenderError(f"did not end within {_WALL_SECONDS:g} s", over=True)
                for key, _ in events:
                    if key.events & selectors.EVENT_WRITE:
                        left = left[self._to.write(left) or 0 :]
                        if not left:
                            ready.unregister(self._to)
                    elif piece := self._back.read(1 << 16):
                        answer += piece
                    else:
                        return bytes(answer)
        return bytes(answer)

    def end(self) -> None:
        """Kill it."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._close()

    def forget(self) -> None:
        """Close the pipes in a forked child, so that the parent's worker notices when the parent ends."""
        self._process.returncode = 0  # it is no child of this process
        self._close()

    def _close(self) -> None:
        _workers.discard(self)
        self._to.close()
        self._back.close()


_lock = ForkSafeLock()
_workers: set[Worker] = set()
_idle: list[Worker] = []


def _answer_of(worker: Worker, request: bytes, seconds: float) -> str | RenderError:
    """A worker's answer. Afterwards the worker is idle; or killed, if the template took it to a limit."""
    try:
        answer = _read(worker.answer(request, seconds))
    except BaseException:
        worker.end()
        raise
    if isinstance(answer, RenderError) and answer.over:
        worker.end()  # the next template would find less time and memory
    else:
        _give_back(worker)
    return answer


def _take() -> Worker:
    with _lock:
        while _idle:
            if (worker := _idle.pop()).lives:
                return worker
            worker.end()
    return Worker()


def _give_back(worker: Worker) -> None:
    with _lock:
        if len(_idle) < _IDLE_WORKERS:
            _idle.append(worker)
            return
    worker.end()


def _written(request: Mapping[str, Any]) -> bytes:
    """A request as the worker reads it."""
    try:
        text = json.dumps(request, ensure_ascii=False)
        same = json.loads(text) == request
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise RenderError(
            "came with the model and is rendered in a process of its own: it takes template_kwargs of texts, numbers, "
            "booleans, None, lists and dicts only"
        )
    written = text.encode("utf-8", "surrogatepass")
    if len(written) > _LARGEST_REQUEST:
        raise RenderError(f"is given more than {_LARGEST_REQUEST:,} bytes of variables", over=True)
    return written + b"\n"


def _read(answer: bytes) -> str | RenderError:
    """An answer. It may be anything, if the template found a way out of the sandbox.

    Raises:
        RenderError: It is none.
    """
    with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError):
        text = answer.decode("utf-8", "surrogatepass")
        if text.startswith('"') and len(text) <= _LARGEST_ANSWER:
            return str(json.loads(text))
        if len(text) <= _LARGEST_FAILURE:
            failure = json.loads(text)
            line = failure["line"]
            return RenderError(
                str(failure["what"]),
                str(failure["detail"]),
                line if isinstance(line, int) else None,
                over=bool(failure["over"]),
            )
    raise RenderError("made the process that renders it answer with nonsense", over=True)


def _end_all() -> None:
    for worker in list(_workers):
        worker.end()


def _forget_all() -> None:
    for worker in list(_workers):
        worker.forget()
    _idle.clear()


atexit.register(_end_all)
os.register_at_fork(after_in_child=_forget_all)
