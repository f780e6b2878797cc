"""Write a bound template as Jinja, so that other tools that read chat templates render the same prompt.

sentence-transformers passes a pair as messages with the roles query and document, whose contents are texts or lists of
parts, and an instruction as a system message (`base/modality.py`, `pair_to_messages`). vLLM's `--chat-template` gets
the same, with texts only (`entrypoints/pooling/scoring/io_processor.py`). Neither passes `query` and `document` as
variables.
"""

import json
from collections.abc import Sequence

from winnow.templates.segments import Content, PlainText, Segment

_HEAD = """\
{% set query = (messages | selectattr("role", "eq", "query") | first).content %}
{% set query = query if query is string else query[0].text %}
{% set document = (messages | selectattr("role", "eq", "document") | first).content %}
{% set document = document if document is string else document[0].text %}
{% set system = messages | selectattr("role", "eq", "system") | map(attribute="content") | first %}
{% if system and system is not string %}{% set system = system[0].text %}{% endif %}
{% set instruction = instruction or system %}
"""


def as_jinja(
    without_instruction: Sequence[Segment] | None,
    with_instruction: Sequence[Segment],
    *,
    begin: str = "",
    end: str = "",
) -> str:
    """The Jinja source of a template that is given as segments.

    Args:
        without_instruction: The segments if there is no instruction; None if the template needs one.
        with_instruction: The segments if there is an instruction.
        begin: Text before the prompt: tokens that the tokenizer adds to a plain text, but not to a chat.
        end: Text after the prompt, likewise.
    """
    given = _body([begin, *with_instruction, end])
    if without_instruction is None:
        absent = '{{ raise_exception("This template needs an instruction, as the system message.") -}}'
    else:
        absent = _body([begin, *without_instruction, end])
    return _HEAD + (
        given if given == absent else f"{{% if instruction %}}\n{given}\n{{% else %}}\n{absent}\n{{% endif %}}"
    )


def _body(segments: Sequence[Segment]) -> str:
    """All segments in one expression, so that Jinja's rules about whitespace between tags do not change the text."""
    return "{{ " + " ~ ".join(_expression(part) for part in segments if part != "") + " -}}"


def _expression(segment: Segment) -> str:
    if isinstance(segment, Content):
        return f"{segment.field} | trim" if segment.strip else segment.field
    text = segment.text if isinstance(segment, PlainText) else segment
    return json.dumps(text, ensure_ascii=False)
