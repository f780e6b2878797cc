"""Render Jinja templates exactly as transformers renders chat templates, within limits.

Only this file uses Jinja. It imports nothing of Winnow, because `winnow.templates.worker` also runs it as a program in
another process, which must start fast and hold no secrets.
"""

import json
import math
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import jinja2
import jinja2.ext
import markupsafe
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

LARGEST_TEXT = 1_000_000  # characters that a template which is not trusted may render

_LARGEST_PRODUCT = 1_000_000  # characters, items or bits that a template may make with * or **
_DEEPEST_BRACKETS = 100
_LARGEST_MEMORY = 512 * 1024**2  # bytes of address space of a worker

# Functions and filters that no score template needs; untrusted templates do not have them. `lipsum` makes any length
# of text in one call, `cycler` and `joiner` are Python objects that lead to many others, and the filters are slow on
# long texts or differ each time.
_NO_GLOBALS = ("lipsum", "cycler", "joiner")
_NO_FILTERS = ("center", "filesizeformat", "pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr")


class RenderError(Exception):
    """A template did not render.

    Args:
        what: What it did, to follow "The template ".
        detail: The message of Jinja or Python.
        line: The line, from 1; None if it is not known.
        over: Whether it exceeded a limit, which no template in use does by mistake.
    """

    def __init__(self, what: str, detail: str = "", line: int | None = None, *, over: bool = False):
        super().__init__(what, detail)
        self.what = what
        self.detail = detail
        self.line = line
        self.over = over


def render(source: str, variables: Mapping[str, Any], seconds: float, *, trusted: bool = True) -> str:
    """Render a template.

    Args:
        source: The template.
        variables: All that it is given.
        seconds: Processor time that it may take in loops and macros. Nothing bounds a single call of a function in
            this process.
        trusted: Whether it may use all that Jinja has, and be as large and deep as Jinja takes it.

    Raises:
        RenderError: It is broken, does what the sandbox forbids, or runs too long.
    """
    try:
        with _environment(trusted).time_limit(seconds):
            return _compile(source, trusted).render(variables)
    except RenderError:
        raise
    except TimeoutError:
        raise RenderError(f"ran for more than {seconds:g} s: does it loop forever?", over=True) from None
    except MemoryError as error:
        raise RenderError("needs too much memory", line=_line_number(error.__traceback__), over=True) from error
    except RecursionError as error:
        line = _line_number(error.__traceback__)
        raise RenderError("is nested too deeply, or calls itself without end", line=line, over=True) from error
    except jinja2.TemplateSyntaxError as error:
        raise RenderError("has a syntax error", error.message or "", error.lineno) from error
    except jinja2.exceptions.SecurityError as error:
        line = _line_number(error.__traceback__)
        raise RenderError("does what the sandbox forbids", str(error), line) from error
    except Exception as error:  # templates run arbitrary expressions: any error is the template's
        line = _line_number(error.__traceback__)
        raise RenderError("failed to render", f"{type(error).__name__}: {error}", line) from error


def _line_number(traceback: TracebackType | None) -> int | None:
    """The template's line in the traceback of an error; Jinja maps compiled templates back to their source."""
    number = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "<template>":
            number = traceback.tb_lineno
        traceback = traceback.tb_next
    return number


# --- the environment --------------------------------------------------------------------------------------------------


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`, with which transformers marks the assistant's text: rendered as if it were not there."""

    tags = {"generation"}  # noqa: RUF012 -- Jinja declares it so

    def parse(self, parser: "jinja2.parser.Parser") -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox of chat templates, with a time limit.

    Jinja's own sandbox limits a single `range`, but not nested loops, recursive macros, or products.
    """

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._limits = threading.local()

    @contextmanager
    def time_limit(self, seconds: float) -> Iterator[None]:
        """Limit the processor time of this thread's rendering, so that a busy machine fails no template."""
        self._limits.deadline = time.thread_time() + seconds
        try:
            yield
        finally:
            del self._limits.deadline

    def tick(self) -> None:
        """Called in every round of a loop and every call of a macro.

        Raises:
            TimeoutError: The time is over.
        """
        if time.thread_time() > self._limits.deadline:
            raise TimeoutError

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        bodies: list[Any] = list(template.find_all((nodes.For, nodes.Macro, nodes.CallBlock)))
        for node in bodies:
            tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(tick).set_lineno(node.lineno))
        return template

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if _size_of_product(operator, left, right) > _LARGEST_PRODUCT:
            raise jinja2.exceptions.SecurityError(f"the result of {operator} is too large")
        return super().call_binop(context, operator, left, right)


def _size_of_product(operator: str, left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
    if isinstance(right, str | list | tuple):
        left, right = right, left
    return len(left) * right if isinstance(left, str | list | tuple) and isinstance(right, int) else 0


@lru_cache(maxsize=2)
def _environment(trusted: bool) -> _BoundedEnvironment:
    """The environment of chat templates in transformers (`utils/chat_template_utils.py`), with limits."""
    environment = _BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(pattern: str) -> str:
        return datetime.now().strftime(pattern)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    if not trusted:
        for name in _NO_GLOBALS:
            del environment.globals[name]
        for name in _NO_FILTERS:
            del environment.filters[name]
    return environment


@lru_cache(maxsize=8)
def _compile(source: str, trusted: bool) -> jinja2.Template:
    environment = _environment(trusted)
    if not trusted:
        _refuse_depth(environment, source)
    return environment.from_string(source)


def _refuse_depth(environment: jinja2.Environment, source: str) -> None:
    """Refuse deeply nested brackets before parsing, because Jinja's parser calls itself for each of them."""
    depth = 0
    for line, kind, value in environment.lex(source):
        if kind != "operator":
            continue
        depth += (value in "([{") - (value in ")]}")
        if depth > _DEEPEST_BRACKETS:
            raise RenderError(f"nests brackets more than {_DEEPEST_BRACKETS} deep", line=line, over=True)


# --- the worker -------------------------------------------------------------------------------------------------------


def folders_of_program() -> list[str]:
    """The folders in which a Python without packages finds this file and its imports.

    This package's folder comes last, because names in it would hide those of the standard library.
    """
    jinja, markup, own = (Path(file or "").absolute() for file in (jinja2.__file__, markupsafe.__file__, __file__))
    return [str(jinja.parents[1]), str(markup.parents[1]), str(own.parent)]


def serve() -> None:
    """Read requests from stdin and write the renderings to stdout, until stdin ends.

    A request is a line of JSON: an object with `source`, `variables` and `seconds`. So is an answer: a string, or an
    object with the arguments of a `RenderError`.
    """
    _limit("RLIMIT_AS", _LARGEST_MEMORY)
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_FSIZE", 0)
    for line in sys.stdin.buffer:
        request = json.loads(line.decode("utf-8", "surrogatepass"))
        seconds = request["seconds"]
        # The sandbox cannot end a single call that takes long; the system's limit can.
        _limit("RLIMIT_CPU", math.ceil(time.process_time() + seconds), for_good=False)
        answer: str | dict[str, Any]
        try:
            answer = render(request["source"], request["variables"], seconds, trusted=False)
            if len(answer) > LARGEST_TEXT:
                raise RenderError(f"renders more than {LARGEST_TEXT:,} characters", over=True)
        except RenderError as error:
            answer = {"what": error.what, "detail": error.detail[:1000], "line": error.line, "over": error.over}
        sys.stdout.buffer.write(json.dumps(answer, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        sys.stdout.buffer.flush()


def _limit(kind: str, most: int, *, for_good: bool = True) -> None:
    """Set a limit of the system, if it has it: Windows has none, macOS none for memory."""
    with suppress(ImportError, AttributeError, ValueError, OSError):
        import resource

        number = getattr(resource, kind)
        _, hard = resource.getrlimit(number)
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(number, (most, most if for_good else hard))
