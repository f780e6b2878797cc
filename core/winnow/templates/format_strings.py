"""Score templates made of format strings: `prefix`, `query_template`, `document_template`, `suffix`."""

from collections.abc import Mapping
from string import Formatter

from winnow.errors import TemplateError
from winnow.templates.segments import FIELDS, Content, FieldName, Segment

PARTS: Mapping[str, str] = {
    "prefix": "",
    "query_template": "{query}",
    "document_template": "{document}",
    "suffix": "",
}
_OLDER_NAMES: dict[str, FieldName] = {"doc": "document", "instruct": "instruction", "task": "instruction"}


def is_format_string(text: str) -> bool:
    """Whether `text` alone is a whole prompt: a format string that places the query and the document."""
    try:
        names = {name for _, name, _, _ in Formatter().parse(text)}
    except ValueError:
        return False
    return "query" in names and not names.isdisjoint(("document", "doc"))


def segments_of(parts: Mapping[str, str], origin: str) -> tuple[Segment, ...]:
    """Join the parts in order. Where a template has `{prefix}` or `{suffix}`, that part goes there instead.

    Args:
        parts: Some of `PARTS`; the others have their defaults. `prefix` and `suffix` are literal text, also braces.
        origin: Where the parts come from, for messages.

    Raises:
        TemplateError: A placeholder is unknown or has a format, or braces do not match.
    """
    filled = {**PARTS, **parts}
    body = filled["query_template"] + filled["document_template"]
    named = {name for _, name, _, _ in _parse(body, origin) if name in ("prefix", "suffix")}
    whole = ("" if "prefix" in named else "{prefix}") + body + ("" if "suffix" in named else "{suffix}")
    segments: list[Segment] = []
    for literal, name, spec, conversion in _parse(whole, origin):
        if literal:
            segments.append(literal)
        if name is None:
            continue
        if spec or conversion:
            raise TemplateError(f"{{{name}}} in {origin} must be a plain placeholder, without a format or conversion.")
        if name in ("prefix", "suffix"):
            if filled[name]:
                segments.append(filled[name])
            continue
        known = _OLDER_NAMES.get(name, name)
        if known not in FIELDS:
            raise TemplateError(
                f"{{{name}}} in {origin} is not a placeholder Winnow fills: use {{query}}, {{document}} or "
                f"{{instruction}}. Write literal braces as {{{{ and }}}}."
            )
        segments.append(Content(known))
    return tuple(segments)


def _parse(text: str, origin: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(Formatter().parse(text))
    except ValueError as error:
        raise TemplateError(
            f"A format string in {origin} is broken: {error}. Write literal braces as {{{{ and }}}}."
        ) from error
