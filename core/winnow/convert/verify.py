"""Whether a converted model gives the original's scores: both score a few pairs in float32."""

import math
from collections.abc import Sequence
from typing import Any

from winnow.convert.prompts import takes_instruction
from winnow.models import Checkpoint
from winnow.ranking import RankRequest, Reranker
from winnow.templates import ScoreTemplate

TOLERANCE = 1e-4
"""Most that a converted model's logit may differ from the original's, in float32."""

PAIRS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "what is the capital of China?",
        (
            "Beijing is the capital of China.",
            "Bread rises because yeast makes gas.",
            "The tide falls twice a day. " * 8,
        ),
    ),
    ("Wer schrieb den Faust?", ("Johann Wolfgang von Goethe.", "x")),
)
"""Queries with documents of different lengths, so that batches are padded."""


def largest_difference(original: str, converted: str, checkpoint: Checkpoint, template: ScoreTemplate | None) -> float:
    """Largest difference between the logits of a model and of its conversion, which are loaded one after the other.

    Args:
        original: Folder of the original.
        converted: Folder of the conversion; its own files say how it is prompted and scored.
        checkpoint: The original, with the recipe that was converted.
        template: The template that was saved; None for the tokenizer's pair encoding.
    """
    pairs: list[RankRequest] = list(PAIRS)
    if template is not None and takes_instruction(checkpoint, template):
        pairs.append((*PAIRS[0], "Find what answers it"))
    before = _logits(original, pairs, recipe=checkpoint.recipe, template=template)
    after = _logits(converted, pairs)
    return max(abs(a - b) if math.isfinite(a - b) else math.inf for a, b in zip(before, after, strict=True))


def _logits(model: str, pairs: Sequence[RankRequest], **settings: Any) -> list[float]:
    with Reranker(model, engine="transformers", engine_kwargs={"dtype": "float32"}, **settings) as reranker:
        rankings = reranker.rank_many(pairs)
    return [hit.logit for ranking in rankings for hit in sorted(ranking, key=lambda hit: hit.index)]
