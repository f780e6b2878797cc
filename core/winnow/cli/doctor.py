"""What `winnow doctor` reports about a model before any weight is loaded: recipe, template, prompt, labels, limits."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from winnow.engines import configured_checkpoint, resolve
from winnow.errors import WinnowError
from winnow.models import (
    Checkpoint,
    ModelRecipe,
    bind_template,
    check_files,
    faults_of,
    judges_last_token,
    template_for,
    why_not_on_vllm,
)
from winnow.prompts import (
    Limits,
    PartName,
    Piece,
    PromptBuilder,
    PromptLayout,
    parts_of,
)
from winnow.ranking import RerankerConfig
from winnow.templates import Segment, TemplateLike
from winnow.tokenizer import PromptTokenizer

QUERY = "what is the capital of China?"
DOCUMENT = "The capital of China is Beijing."


@dataclass(slots=True, kw_only=True)
class Diagnosis:
    """The results. If there is a problem, the fields after it in this list may be empty.

    Attributes:
        model: The model, as the user named it.
        problems: Why the model cannot be used, or its scores would be wrong.
        warnings: What the user should know.
        family: Name of the recipe.
        architectures: `architectures` in config.json.
        formula: The formula of the logit.
        labels: Ids of the label tokens.
        max_length: Most tokens of a prompt.
        template: Where the template comes from.
        pieces: The text of `ids`, with the control tokens that the tokenizer adds.
        ids: Token ids of the prompt as it is sent, cut to `max_length`.
        tokens: How many of `ids` each part has. A token that spans two parts counts where it ends.
        judged: Text of the token that gives the score, the last of `ids`; empty for models that use more tokens.
        max_query_tokens: Most tokens of a query, with the template and this instruction.
        adapter: For an adapter its base, the folder that both are merged into, and whether they were; None for a whole
            model.
        serve: The command that starts a vLLM server of the model; None if its prompts cannot go over HTTP.
    """

    model: str
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    family: str = ""
    architectures: tuple[str, ...] = ()
    formula: str = ""
    labels: dict[str, int] = field(default_factory=dict)
    max_length: int = 0
    template: str = ""
    pieces: list[Piece] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    tokens: dict[PartName, int] = field(default_factory=dict)
    judged: str = ""
    max_query_tokens: int = 0
    adapter: dict[str, Any] | None = None
    serve: str | None = None

    @property
    def verdict(self) -> str:
        """The outcome in a few words."""
        if self.problems:
            return f"not usable as it is: {_count(self.problems, 'problem')}"
        return f"ready, with {_count(self.warnings, 'warning')}" if self.warnings else "ready"

    def as_dict(self) -> dict[str, Any]:
        """The results as plain data for JSON."""
        return {
            "model": self.model,
            "ok": not self.problems,
            "verdict": self.verdict,
            "problems": self.problems,
            "warnings": self.warnings,
            "recipe": {"family": self.family, "architectures": list(self.architectures), "formula": self.formula},
            "labels": self.labels,
            "template": self.template,
            "prompt": "".join(piece.text for piece in self.pieces),
            "pieces": [{"part": piece.part, "text": piece.text, "control": piece.control} for piece in self.pieces],
            "ids": self.ids,
            "judged": self.judged,
            "tokens": {**self.tokens, "total": len(self.ids)},
            "limits": {"max_length": self.max_length, "max_query_tokens": self.max_query_tokens},
            "adapter": self.adapter,
            "serve": self.serve,
        }


def examine(
    model: str,
    *,
    recipe: str | ModelRecipe | None = None,
    base_model: str | None = None,
    template: TemplateLike | None = None,
    instruction: str | None = None,
    query: str = QUERY,
    document: str = DOCUMENT,
) -> Diagnosis:
    """Check a model and its prompts, and build one of them, with what the environment sets for a `Reranker`.

    Args:
        model: A folder, or a name on the Hugging Face Hub. If the weights are local, their names and shapes are read.
        recipe: As for `Reranker`.
        base_model: As for `Reranker`.
        template: As for `Reranker`.
        instruction: As for `Reranker`.
        query: Query of the pair that is shown.
        document: Its document.
    """
    from winnow.engines.server import serve_command  # here, because it imports an HTTP client

    found = Diagnosis(model=model)
    with _logged_warnings(found.warnings):
        try:
            # Any engine that reads a model: the environment may name one that does not.
            config = RerankerConfig(model=model, recipe=recipe, base_model=base_model, engine="transformers")
            checkpoint = configured_checkpoint(config, resolve(config))
            if (adapter := checkpoint.adapter) is not None:
                found.adapter = {
                    "base": adapter.base,
                    "merged": adapter.is_merged,
                    "folder": str(adapter.place),
                }
                adapter.check()
            found.family, found.formula = checkpoint.recipe.family, checkpoint.recipe.formula
            found.architectures = tuple(checkpoint.config.get("architectures") or ())
            found.labels = dict(zip(checkpoint.recipe.labels, checkpoint.label_ids, strict=True))
            found.max_length = checkpoint.max_length
            chosen = template_for(checkpoint, template)
            found.template = chosen.origin if chosen else "none: the tokenizer's own encoding of pairs"
            segments = bind_template(checkpoint, chosen, None, with_instruction=bool(instruction))
            _examine_prompt(found, checkpoint, segments, instruction or "", query, document)
            check_files(checkpoint, required=False)
            found.problems += faults_of(checkpoint, found.ids)
            needs_token_types = checkpoint.template is None and checkpoint.tokenizer.token_types
            if not found.problems and (reason := why_not_on_vllm(checkpoint)) is not None:
                found.warnings.append(f'{reason}: only engine="transformers" scores it.')
            elif not found.problems and not needs_token_types and not checkpoint.head:
                found.serve = serve_command(checkpoint)
        except WinnowError as error:
            found.problems.append(str(error))
    return found


def _examine_prompt(
    found: Diagnosis,
    checkpoint: Checkpoint,
    segments: tuple[Segment, ...] | None,
    instruction: str,
    query: str,
    document: str,
) -> None:
    tokenizer = checkpoint.tokenizer
    layout = PromptLayout(tokenizer, segments, Limits(max_length=checkpoint.max_length))
    builder = PromptBuilder(layout)
    [built] = builder.build(query, [document], instruction)
    parts = parts_of(layout, built, {"query": query, "document": document, "instruction": instruction})
    found.ids, found.pieces, found.tokens = parts.ids, parts.pieces, parts.tokens
    found.max_query_tokens = builder.max_query_tokens(instruction)
    if parts.passed_over:
        found.warnings.append(
            f"The prompt ends with {tokenizer.decode(parts.passed_over)!r}, which is padding for this classifier: it "
            "takes the score from the token before, and Winnow leaves the padding out."
        )
    if judges_last_token(checkpoint.recipe, with_template=segments is not None):
        found.judged = tokenizer.decode(found.ids[-1:])
    if built.truncated:
        found.warnings.append(f"This document does not fit: the model would read {built.document_tokens} tokens of it.")
    elif not built.query_truncated and found.ids != parts.uncut:
        found.problems.append(
            "The prompt's ids differ from those of the whole text: Winnow does not handle this tokenizer. "
            "Please report it."
        )
    forged = _forged(tokenizer, builder, query, document, instruction)
    if forged:
        found.problems.append(
            f"A document that holds {' or '.join(map(repr, forged))} changes the control tokens of the prompt. "
            "Please report it."
        )


def _forged(
    tokenizer: PromptTokenizer, builder: PromptBuilder, query: str, document: str, instruction: str
) -> list[str]:
    """Control tokens that a document can put into the prompt."""
    # A tokenizer without byte tokens uses its unknown token for any rare character: that is not forged.
    control = set(tokenizer.control_tokens.values()) - {tokenizer.unknown}
    names = list(tokenizer.control_tokens)
    typed = [document, *(f"{name} {document}" for name in names)]
    expected, *counts = (
        Counter(index for index in built.prompts[0].ids if index in control)
        for built in builder.build(query, typed, instruction)
    )
    return [name for name, count in zip(names, counts, strict=True) if count != expected][:5]


@contextmanager
def _logged_warnings(into: list[str]) -> Iterator[None]:
    """Collect the warnings that Winnow logs, instead of showing them."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() not in into:
                into.append(record.getMessage())

    logger, collector = logging.getLogger("winnow"), Collector(logging.WARNING)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(collector)
    try:
        yield
    finally:
        logger.removeHandler(collector)
        logger.propagate = propagate


def _count(items: Sequence[str], name: str) -> str:
    return f"{len(items)} {name}{'s' if len(items) != 1 else ''}"
