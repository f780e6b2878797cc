"""Bind a score template to a model: choose it, render it, check it, and say what it ignores."""

import logging
from collections.abc import Mapping
from typing import Any

from winnow.errors import TemplateError
from winnow.models.checkpoint import Checkpoint
from winnow.templates import ScoreTemplate, Segment, TemplateLike, fields_of, from_user

logger = logging.getLogger(__name__)


def bind_template(
    checkpoint: Checkpoint,
    template: TemplateLike | None,
    template_kwargs: Mapping[str, Any] | None,
    *,
    with_instruction: bool,
) -> tuple[Segment, ...] | None:
    """Bind the user's template, or else the model's, to a model: render it, check it, and log what it ignores.

    Args:
        checkpoint: The model.
        template: What the user gave.
        template_kwargs: Variables that the user gave.
        with_instruction: Whether there is an instruction.

    Returns:
        The prompt's segments, or None for a model that takes the tokenizer's pair encoding.

    Raises:
        TemplateError: The model needs a template and there is none, or the template is wrong.
    """
    chosen = template_for(checkpoint, template)
    segments = None
    if chosen is not None:
        segments = chosen.segments(
            with_instruction=with_instruction,
            template_kwargs=template_kwargs,
            special_tokens=checkpoint.tokenizer.special_tokens,
            control_tokens=checkpoint.tokenizer.control_tokens,
        )
    for warning in _warnings_about(checkpoint, chosen, segments, with_instruction=with_instruction):
        logger.warning("%s", warning)
    return segments


def template_for(checkpoint: Checkpoint, template: TemplateLike | None) -> ScoreTemplate | None:
    """The user's template, or else the model's; None for the tokenizer's pair encoding.

    Raises:
        TemplateError: The model needs a template and there is none, or the user's cannot be read.
    """
    if template is not None:
        return from_user(template)
    if checkpoint.template is None and checkpoint.recipe.labels:
        raise TemplateError(
            f"{checkpoint.model} is a causal language model ({checkpoint.recipe.family}) and no score template was "
            "found for it: not in the call, not in the reranker, no score_template in its configs, no "
            "score_template.jinja or chat template for query and document in its folder, none built in for its family. "
            "Pass template=..."
        )
    return checkpoint.template


def _warnings_about(
    checkpoint: Checkpoint,
    template: ScoreTemplate | None,
    segments: tuple[Segment, ...] | None,
    *,
    with_instruction: bool,
) -> list[str]:
    """Warnings about a template that works, but may not do what the user expects.

    Args:
        checkpoint: The model.
        template: The template, or None for the pair encoding.
        segments: What it renders.
        with_instruction: Whether there is an instruction.
    """
    if template is None or segments is None:
        if not with_instruction:
            return []
        return [
            f"{checkpoint.model} takes no instruction: its prompt is the pair of query and document. It is ignored."
        ]
    found = []
    placed = fields_of(segments)
    if with_instruction and "instruction" not in placed:
        found.append(f"The template from {template.origin} takes no instruction: it is ignored.")
    if placed.count("query") > 1:
        found.append(f"The template from {template.origin} places the query {placed.count('query')} times.")
    if template.drops_final_newline:
        found.append(
            f"The template from {template.origin} ends with a newline, which Jinja does not render. If the prompt "
            'needs it, end the file with {{ "\\n" }}.'
        )
    return found
