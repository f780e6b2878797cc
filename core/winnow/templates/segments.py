"""The segments of a prompt: text of the template, and places for the caller's texts."""

from dataclasses import dataclass
from typing import Literal

FieldName = Literal["query", "document", "instruction"]
FIELDS: tuple[FieldName, ...] = ("query", "document", "instruction")


@dataclass(frozen=True, slots=True)
class Content:
    """A place in the prompt for one of the caller's texts.

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
    """Text that is the same in every prompt, and in which control tokens are text, unlike in the template's own.

    Attributes:
        text: The text.
    """

    text: str


Segment = str | PlainText | Content
"""A `str` is the template's own text, in which control tokens are control tokens."""


def fields_of(segments: tuple[Segment, ...]) -> list[FieldName]:
    """The fields in the order of the prompt; a field that the template places twice is in the list twice."""
    return [segment.field for segment in segments if isinstance(segment, Content)]
