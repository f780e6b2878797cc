"""Render Jinja score templates exactly as transformers renders them, within bounds. The only file that knows Jinja.

A template is rendered with markers in place of the contents, and what comes out is split at the markers. Rendering it
again with awkward contents proves that it places them as they are, so that it need not be rendered for every document.
"""

import json
import re
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
from winnow.segments import FIELDS, Content, FieldName, Segment

JinjaError = jinja2.TemplateError
"""What Jinja raises, also out of transformers' `apply_chat_template`."""

# What a rendering is given besides the caller's `template_kwargs`.
RESERVED_NAMES = frozenset(
    {*FIELDS, "prompt", "messages", "tools", "documents", "add_generation_prompt", "tokenize", "chat_template"}
)

_RENDER_SECONDS = 2.0
_LARGEST_PRODUCT = 1_000_000  # characters, items or bits that a template may make with * or **
_MARKERS: dict[FieldName, str] = {name: f"\u2983winnow {name} 7f3Kq0\u2984" for name in FIELDS}
# What the second rendering puts around the markers: whitespace shows a trim, the rest escaping, case folding and cuts.
_PADDING = " \n\t"
_AWKWARD = "Aß <b>&amp;</b> \"q\" 'x' \\n {{ y }}  two\r\n\n\n\u00a0e\u0301\ufb01\u200b\U0001f600 " + "long " * 500


class _Layout(NamedTuple):
    """How the messages are written down.

    Attributes:
        structured: Contents are `[{"type": "text", "text": ...}]`, as templates of multimodal models read them.
        system_first: The instruction's message comes before the others, as sentence-transformers puts it.
        roles: Roles of the query's and the document's message.
    """

    structured: bool = False
    system_first: bool = False
    roles: tuple[str, str] = ("query", "document")


def segments_of(
    source: str,
    origin: str,
    with_instruction: bool,
    variables: Mapping[str, Any],
    *,
    system_first: bool = False,
    roles: tuple[str, str] = ("query", "document"),
) -> tuple[Segment, ...]:
    """Split what a template renders into its own text and the contents.

    Args:
        source: The template.
        origin: Where it comes from, for messages.
        with_instruction: Whether there is an instruction.
        variables: Variables besides the contents.
        system_first: Whether the instruction's message comes first if the template takes it both first and last.
        roles: Roles of the first two messages.

    Raises:
        TemplateError: The template is broken, reaches for what the sandbox forbids, runs too long, or changes the
            contents.
    """
    names = FIELDS if with_instruction else FIELDS[:2]
    markers = {name: _MARKERS[name] for name in names}
    layout, probe = _probe(source, origin, markers, variables, _Layout(system_first=system_first, roles=roles))
    padded = _rendered(
        source, origin, {name: _PADDING + text + _PADDING for name, text in markers.items()}, variables, layout
    )

    parts: list[Segment] = []
    pattern = "|".join(re.escape(marker) for marker in markers.values())
    by_marker = {marker: name for name, marker in markers.items()}
    at = 0
    for piece in re.split(f"({pattern})", probe):
        if piece not in by_marker:
            if piece:
                parts.append(piece)
            at += len(piece)
            continue
        whole = _PADDING + piece + _PADDING
        strip = not padded.startswith(whole, at)
        parts.append(Content(by_marker[piece], strip))
        at += len(piece if strip else whole)

    segments = tuple(parts)
    for value in (_PADDING + "{}" + _PADDING, _AWKWARD + "{}"):
        values = {name: value.replace("{}", marker) for name, marker in markers.items()}
        expected = "".join(part.of(values[part.field]) if isinstance(part, Content) else str(part) for part in segments)
        if _rendered(source, origin, values, variables, layout) != expected:
            raise TemplateError(
                f"The template from {origin} changes the query, document or instruction (a filter such as upper, "
                "truncate or tojson, or a condition on their text). Winnow needs them placed as they are: "
                "prepare the text before you pass it in, and bound it with max_query_tokens or max_document_tokens."
            )
    return segments


def _probe(
    source: str, origin: str, markers: Mapping[FieldName, str], variables: Mapping[str, Any], preferred: _Layout
) -> tuple[_Layout, str]:
    """The first layout of the messages in which most markers are placed, and what it renders."""
    layouts = [preferred]
    if "messages" in _undeclared(source):
        first = preferred.system_first
        orders = (first, not first) if "instruction" in markers else (first,)
        layouts = [_Layout(structured, order, preferred.roles) for structured in (False, True) for order in orders]
    best: tuple[tuple[bool, int], _Layout, str] | None = None
    failure: TemplateError | None = None
    for layout in layouts:
        try:
            text = _rendered(source, origin, markers, variables, layout)
        except TemplateError as error:
            failure = failure or error
            continue
        placed = [name for name, marker in markers.items() if marker in text]
        worth = ({"query", "document"} <= set(placed), len(placed))
        if best is None or worth > best[0]:
            best = (worth, layout, text)
        if len(placed) == len(markers):
            break
    if best is None:
        raise failure or TemplateError(f"The template from {origin} does not render.")
    return best[1:]


def _rendered(
    source: str, origin: str, values: Mapping[FieldName, str], variables: Mapping[str, Any], layout: _Layout
) -> str:
    """`render`, with errors that say where the template is from and which line failed."""
    what = f"The template from {origin}"
    try:
        return _render(source, values, variables, layout)
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


def render(source: str, values: Mapping[FieldName, str], variables: Mapping[str, Any] | None = None) -> str:
    """Render a Jinja score template the way transformers' `apply_chat_template` does.

    Args:
        source: The template.
        values: Text of each field; an instruction that is absent is not defined in the template.
        variables: More variables.

    Raises:
        jinja2.TemplateError: The template is broken or did what the sandbox forbids.
        TimeoutError: It ran too long.
    """
    return _render(source, values, variables or {}, _Layout())


def _render(source: str, values: Mapping[FieldName, str], variables: Mapping[str, Any], layout: _Layout) -> str:
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
                **variables,
                **given,
            }
        )


def _undeclared(source: str) -> set[str]:
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
