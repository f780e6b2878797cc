"""Split the prompt of a Jinja template into segments: the template's own text, and the places of the contents.

The contents are query, document and instruction. The template is rendered with markers in their place, and the result
is split at the markers. It is rendered again with difficult texts, to check that it does not change them. So it need
not be rendered for every document.
"""

import re
from collections.abc import Mapping
from typing import Any

from winnow.errors import TemplateError
from winnow.templates.rendering import Layout, Origin, TemplateLimitError, rendered
from winnow.templates.segments import FIELDS, Content, FieldName, Segment, fields_of

_MARKERS: dict[FieldName, str] = {name: f"\u2983winnow {name} 7f3Kq0\u2984" for name in FIELDS}
# Text around the markers in further renderings. Whitespace shows whether the template strips; the difficult text shows
# whether it escapes, changes case or cuts.
_PADDING = " \n\t"
# Most places for contents in a template: with more, the contents would fill the memory.
_MOST_PLACES = 100
_AWKWARD = "Aß <b>&amp;</b> \"q\" 'x' \\n {{ y }}  two\r\n\n\n\u00a0e\u0301\ufb01\u200b\U0001f600 " + "long " * 500


def segments_of(
    source: str,
    origin: Origin,
    with_instruction: bool,
    variables: Mapping[str, Any],
    *,
    system_first: bool = False,
    roles: tuple[str, str] = ("query", "document"),
) -> tuple[Segment, ...]:
    """The segments of a template.

    Args:
        source: The template.
        origin: Where it comes from.
        with_instruction: Whether there is an instruction.
        variables: Variables besides the contents.
        system_first: Whether the instruction's message comes first, if the template takes it at either end.
        roles: Roles of the first two messages.

    Raises:
        TemplateError: The template is broken, uses what the sandbox forbids, or changes the contents.
        TemplateLimitError: It takes too much time or memory, or is too large.
    """
    names = FIELDS if with_instruction else FIELDS[:2]
    markers = {name: _MARKERS[name] for name in names}
    layout, probe = _probe(source, origin, markers, variables, Layout(system_first=system_first, roles=roles))
    padded = rendered(
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
    if len(fields_of(segments)) > _MOST_PLACES:
        raise TemplateLimitError(
            f"The template from {origin.name} places query, document and instruction {len(fields_of(segments))} times, "
            f"which is more than {_MOST_PLACES}."
        )
    for value in (_PADDING + "{}" + _PADDING, _AWKWARD + "{}"):
        values = {name: value.replace("{}", marker) for name, marker in markers.items()}
        expected = "".join(part.of(values[part.field]) if isinstance(part, Content) else str(part) for part in segments)
        if rendered(source, origin, values, variables, layout) != expected:
            raise TemplateError(
                f"The template from {origin.name} changes the query, document or instruction (a filter such as upper, "
                "truncate or tojson, or a condition on their text). Winnow needs them placed as they are: "
                "prepare the text before you pass it in, and bound it with max_query_tokens or max_document_tokens."
            )
    return segments


def _probe(
    source: str, origin: Origin, markers: Mapping[FieldName, str], variables: Mapping[str, Any], preferred: Layout
) -> tuple[Layout, str]:
    """The layout of the messages with which the template places the most markers, and the result."""
    layouts = [preferred]
    if "messages" in source:
        first = preferred.system_first
        orders = (first, not first) if "instruction" in markers else (first,)
        layouts = [Layout(structured, order, preferred.roles) for structured in (False, True) for order in orders]
    best: tuple[tuple[bool, int], Layout, str] | None = None
    failure: TemplateError | None = None
    for layout in layouts:
        try:
            text = rendered(source, origin, markers, variables, layout)
        except TemplateLimitError:
            raise
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
        raise failure or TemplateError(f"The template from {origin.name} does not render.")
    return best[1:]
