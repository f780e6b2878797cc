"""The pieces a prompt is made of: text of the template, and places where the caller's text stands."""

from dataclasses import dataclass
from typing import Literal

FieldName = Literal["query", "document", "instruction"]
FIELDS: tuple[FieldName, ...] = ("query", "document", "instruction")


@dataclass(frozen=True, slots=True)
class Content:
    """A place in the prompt where the caller's text stands.

    Attributes:
        field: Whose text it is.
        strip: True if the template strips whitespace at both ends of the text.
    """

    field: FieldName
    strip: bool = False

    def of(self, text: str) -> str:
        """`text` as the template would write it."""
        return text.strip() if self.strip else text


@dataclass(frozen=True, slots=True)
class PlainText:
    """Text that is the same in every prompt but, unlike the template's own, may not hold control tokens.

    Attributes:
        text: The text.
    """

    text: str


Segment = str | PlainText | Content
"""A `str` is the template's own text, in which control tokens are control tokens."""


def fields_of(segments: tuple[Segment, ...]) -> list[FieldName]:
    """The fields that are placed, in the order of the prompt, as often as they are placed."""
    return [segment.field for segment in segments if isinstance(segment, Content)]
