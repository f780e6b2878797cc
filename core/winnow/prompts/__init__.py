"""Segments and texts become token ids that fit."""

from winnow.prompts.builder import DocumentPrompts, Limits, Overflow, Prompt, PromptBuilder
from winnow.prompts.cutting import CHARACTERS_PER_TOKEN
from winnow.prompts.parts import PART_NAMES, PartName, Piece, pieces_of, places_as_cut, tokens_of

__all__ = [
    "CHARACTERS_PER_TOKEN",
    "PART_NAMES",
    "DocumentPrompts",
    "Limits",
    "Overflow",
    "PartName",
    "Piece",
    "Prompt",
    "PromptBuilder",
    "pieces_of",
    "places_as_cut",
    "tokens_of",
]
