"""Segments and texts become token ids that fit."""

from winnow.prompts.builder import PromptBuilder
from winnow.prompts.cutting import CHARACTERS_PER_TOKEN
from winnow.prompts.limits import Keep, Limits, Overflow
from winnow.prompts.parts import PART_NAMES, PartName, Piece, PromptParts, parts_of
from winnow.prompts.scaffold import PromptLayout, QueryPart
from winnow.prompts.values import DocumentPrompts, Prompt, Source

__all__ = [
    "CHARACTERS_PER_TOKEN",
    "PART_NAMES",
    "DocumentPrompts",
    "Keep",
    "Limits",
    "Overflow",
    "PartName",
    "Piece",
    "Prompt",
    "PromptBuilder",
    "PromptLayout",
    "PromptParts",
    "QueryPart",
    "Source",
    "parts_of",
]
