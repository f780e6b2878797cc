"""Render Jinja score templates exactly as transformers renders them, within bounds. The only file that knows Jinja."""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from types import TracebackType
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from winnow.errors import TemplateError
from winnow.segments import FIELDS, FieldName

# What a rendering is given besides the caller's `template_kwargs`.
RESERVED_NAMES = frozenset(
    {*FIELDS, "prompt", "messages", "tools", "documents", "add_generation_prompt", "tokenize", "chat_template"}
)

_RENDER_SECONDS = 2.0
_LARGEST_PRODUCT = 1_000_000  # characters, items or bits that a template may make with * or **


class Layout(NamedTuple):
    """How the messages are written down.

    Attributes:
        structured: Contents are `[{"type": "text", "text": ...}]`, as templates of multimodal models read them.
        system_first: The instruction's message comes before the others, as sentence-transformers puts it.
        roles: Roles of the query's and the document's message.
    """

    structured: bool = False
    system_first: bool = False
    roles: tuple[str, str] = ("query", "document")


def rendered(
    source: str, origin: str, values: Mapping[FieldName, str], variables: Mapping[str, Any], layout: Layout
) -> str:
    """`render`, with errors that say where the template is from and which line failed.

    Raises:
        TemplateError: The template is broken, reaches for what the sandbox forbids, or runs too long.
    """
    what = f"The template from {origin}"
    try:
        return render(source, values, variables, layout)
    except TimeoutError:
        raise TemplateError(f"{what} ran for more than {_RENDER_SECONDS:g} s: does it loop forever?") from None
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"{what} has a syntax error{_line(source, error.lineno)}: {error.message}") from error
    except jinja2.exceptions.SecurityError as error:
        where = _line(source, _line_number(error.__traceback__))
        raise TemplateError(f"{what} does what the sandbox forbids{where}: {error}") from error
    except Exception as error:  # templates run arbitrary expressions: any error is the template's
        where = _line(source, _line_number(error.__traceback__))
        raise TemplateError(f"{what} failed to render{where}: {type(error).__name__}: {error}") from error


def render(
    source: str,
    values: Mapping[FieldName, str],
    variables: Mapping[str, Any] | None = None,
    layout: Layout | None = None,
) -> str:
    """Render a Jinja score template the way transformers' `apply_chat_template` does.

    Args:
        source: The template.
        values: Text of each field; an instruction that is absent is not defined in the template.
        variables: More variables.
        layout: How the messages are written down; by default that of `Layout()`.

    Raises:
        jinja2.TemplateError: The template is broken or did what the sandbox forbids.
        TimeoutError: It ran too long.
    """
    layout = layout or Layout()

    def message(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}] if layout.structured else text}

    query_role, document_role = layout.roles
    messages = [message(query_role, values["query"]), message(document_role, values["document"])]
    given: dict[str, Any] = {"query": values["query"], "document": values["document"]}
    if "instruction" in values:
        messages.insert(0 if layout.system_first else 2, message("system", values["instruction"]))
        given |= {"instruction": values["instruction"], "prompt": values["instruction"]}
    with _environment().time_limit(_RENDER_SECONDS):
        return _compile(source).render(
            {
                "messages": messages,
                "tools": None,
                "documents": None,
                "add_generation_prompt": False,
                **(variables or {}),
                **given,
            }
        )


def undeclared(source: str) -> set[str]:
    """Variables that a template reads; none if it has a syntax error, which rendering will report."""
    try:
        return jinja2.meta.find_undeclared_variables(_environment().parse(source))
    except jinja2.TemplateSyntaxError:
        return set()


def _line(source: str, number: int | None) -> str:
    """Which line, and what stands there."""
    lines = source.splitlines()
    if number is None or not 0 < number <= len(lines):
        return ""
    return f" in line {number} (`{lines[number - 1].strip()[:200]}`)"


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
    """The sandbox of chat templates, which cannot run for longer than it is allowed to.

    The sandbox alone bounds a single `range`, not loops in loops, macros that call themselves, or products.
    """

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._limits = threading.local()

    @contextmanager
    def time_limit(self, seconds: float) -> Iterator[None]:
        """Bound what this thread renders."""
        self._limits.deadline = time.monotonic() + seconds
        try:
            yield
        finally:
            del self._limits.deadline

    def tick(self) -> None:
        """Called in every round of a loop and every call of a macro.

        Raises:
            TimeoutError: The time is over.
        """
        if time.monotonic() > self._limits.deadline:
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


@lru_cache(maxsize=1)
def _environment() -> _BoundedEnvironment:
    """The environment of chat templates in transformers (`utils/chat_template_utils.py`), bounded."""
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
    return environment


@lru_cache(maxsize=64)
def _compile(source: str) -> jinja2.Template:
    return _environment().from_string(source)
