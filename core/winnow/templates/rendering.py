"""Render score templates: trusted ones in this process, all others in a process of their own, with limits."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from winnow.errors import TemplateError
from winnow.outside_text import escaped
from winnow.templates.segments import FIELDS, FieldName

# Variables of a rendering besides the caller's `template_kwargs`.
RESERVED_NAMES = frozenset(
    {*FIELDS, "prompt", "messages", "tools", "documents", "add_generation_prompt", "tokenize", "chat_template"}
)

# Characters that a template which is not trusted may have. The longest chat templates in use have 30,000.
LARGEST_SOURCE = 100_000

_RENDER_SECONDS = 2.0  # of processor time


class TemplateLimitError(TemplateError):
    """A template exceeded a limit. Winnow neither renders it in another way nor takes another template instead."""


class Layout(NamedTuple):
    """The form of the messages.

    Attributes:
        structured: Contents are `[{"type": "text", "text": ...}]`, as templates of multimodal models read them.
        system_first: The instruction's message comes before the others, as sentence-transformers puts it.
        roles: Roles of the query's and the document's message.
    """

    structured: bool = False
    system_first: bool = False
    roles: tuple[str, str] = ("query", "document")


class Origin(NamedTuple):
    """Where a template comes from.

    Attributes:
        name: For messages.
        trusted: Whether it is the user's own, or Winnow's. One that came with a model is not.
    """

    name: str
    trusted: bool


def rendered(
    source: str, origin: Origin, values: Mapping[FieldName, str], variables: Mapping[str, Any], layout: Layout
) -> str:
    """Render a score template as transformers' `apply_chat_template` does.

    Args:
        source: The template.
        origin: Where it comes from.
        values: Text of each field; an instruction that is absent is not defined in the template.
        variables: More variables.
        layout: How the messages are written down.

    Raises:
        TemplateError: The template is broken or did what the sandbox forbids. The message names origin and line.
        TemplateLimitError: It takes too much time or memory, or is too large.
    """
    messages = [_message(role, values[name], layout) for name, role in zip(FIELDS, layout.roles, strict=False)]
    given: dict[str, Any] = {"query": values["query"], "document": values["document"]}
    if "instruction" in values:
        system = _message("system", values["instruction"], layout)
        messages.insert(0 if layout.system_first else 2, system)
        given |= {"instruction": values["instruction"], "prompt": values["instruction"]}
    return rendered_chat(source, origin, messages, {**variables, **given})


def rendered_chat(
    source: str, origin: Origin, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
) -> str:
    """The rendering of messages; see `rendered`."""
    from winnow.templates import jinja_sandbox, worker  # here, because the former imports Jinja

    given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": False, **variables}
    try:
        if origin.trusted:
            return jinja_sandbox.render(source, given, _RENDER_SECONDS)
        refuse_size(source, origin)
        return worker.render(source, given, _RENDER_SECONDS)
    except jinja_sandbox.RenderError as error:
        said = f": {_printable(error.detail)}" if error.detail else ""
        message = f"The template from {origin.name} {error.what}{_line(source, error.line)}{said}"
        if error.over:
            raise TemplateLimitError(message + ("" if message.endswith("?") else ".") + _advice(origin)) from error
        raise TemplateError(message) from error


def refuse_size(source: str | Mapping[str, Any], origin: Origin) -> None:
    """Refuse a template that is too long to come with a model.

    Raises:
        TemplateLimitError: It is too long.
    """
    length = len(source) if isinstance(source, str) else sum(len(str(part)) for part in source.values())
    if length > LARGEST_SOURCE and not origin.trusted:
        raise TemplateLimitError(
            f"The template from {origin.name} is longer than {LARGEST_SOURCE:,} characters.{_advice(origin)}"
        )


def _message(role: str, text: str, layout: Layout) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}] if layout.structured else text}


def _advice(origin: Origin) -> str:
    """What to do about a template that exceeds a limit."""
    if origin.trusted:
        return ""
    return (
        " It is not your own template, so it is kept within limits. If it came with a model, look into what else did. "
        'To use the model with another template, pass it as hf_overrides={"score_template": ...}.'
    )


def _line(source: str, number: int | None) -> str:
    """The number of a line and its text."""
    lines = source.splitlines()
    if number is None or not 0 < number <= len(lines):
        return ""
    return f" in line {number} (`{_printable(lines[number - 1].strip()[:200])}`)"


def _printable(text: str) -> str:
    """`text` without characters that control a terminal, in the lines that it has."""
    return "\n".join(map(escaped, text.split("\n")))
