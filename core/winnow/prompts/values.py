"""What goes into the prompts of a query and its documents, and what comes out."""

import struct
from dataclasses import dataclass

from winnow.errors import DocumentError
from winnow.media import PromptImage, PromptVideo, Shown


@dataclass(frozen=True, slots=True)
class Source:
    """What a prompt shows of a query or of a document.

    Attributes:
        text: The text. A query's is not blank unless it has a medium.
        medium: An image or a video, which comes before the text. It is never cut, and every window has it.
        index: Position of the document in the call, for messages. None for a query; for a document its place in the
            list.
    """

    text: str
    medium: Shown | None = None
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an engine scores.

    Attributes:
        ids: Token ids, control tokens and template included.
        second_type_from: Position of the first token of token type 1, for models that have token types; else None.
        images: Its images, in order. `ids` has all tokens of each of them.
        videos: Its videos, in order. `ids` has all tokens of each of them.
    """

    ids: list[int]
    second_type_from: int | None = None
    images: tuple[PromptImage, ...] = ()
    videos: tuple[PromptVideo, ...] = ()

    @property
    def key(self) -> bytes:
        """Bytes that are the same for equal prompts, and different for others."""
        second = -1 if self.second_type_from is None else self.second_type_from
        ids = struct.pack(f"{1 + len(self.ids)}q", second, *self.ids)  # twice as fast as an array of them
        if not (self.images or self.videos):
            return ids
        return b"".join([ids, *(one.key for one in self.images), *(one.key for one in self.videos)])


@dataclass(frozen=True, slots=True)
class DocumentPrompts:
    """The prompts of one document: one, or one for each window.

    Attributes:
        prompts: The prompts, in the order of the text.
        truncated: True if no prompt has the end of the text.
        document_tokens: Tokens of the document in all prompts; overlaps count twice.
        query_truncated: True if the query was cut.
        error: Why the document has no prompts; None if it has some.
    """

    prompts: tuple[Prompt, ...] = ()
    truncated: bool = False
    document_tokens: int = 0
    query_truncated: bool = False
    error: DocumentError | None = None
