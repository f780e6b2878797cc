"""How long prompts may be."""

from dataclasses import dataclass
from typing import Literal

Overflow = Literal["truncate", "error", "window"]
Keep = Literal["start", "end"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long prompts may be, and what happens to longer ones.

    Attributes:
        max_length: Most tokens of a prompt.
        max_query_tokens: Most tokens of the query; None for three quarters of what the template leaves.
        max_document_tokens: Most tokens of the document, or of each window; None for all that is left.
        on_overflow: Cut the document, refuse it, or score it in windows.
        window_overlap: Share of a window that the next one repeats.
        keep: Which end of a document that is cut the model reads.
    """

    max_length: int
    max_query_tokens: int | None = None
    max_document_tokens: int | None = None
    on_overflow: Overflow = "truncate"
    window_overlap: float = 0.1
    keep: Keep = "start"
