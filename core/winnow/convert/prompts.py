"""The templates and the padding token of a converted checkpoint, and the check that its prompts are the original's."""

from pathlib import Path
from typing import Any

from winnow.errors import ModelError, TemplateError
from winnow.models import Checkpoint, open_checkpoint
from winnow.prompts import Limits, PromptBuilder, PromptLayout
from winnow.templates import Origin, ScoreTemplate, Segment, as_jinja, fields_of, rendered_chat

_SAMPLE = {"query": "what is it?", "document": "This is it."}
_INSTRUCTION = "Find what answers it"


def write_templates(part: Path, checkpoint: Checkpoint, template: ScoreTemplate) -> None:
    """Write the score template for Winnow and vLLM, and the chat template for sentence-transformers.

    `score_template.jinja` is the template's own source if that needs only messages, because vLLM passes nothing else.
    `chat_template.jinja` also holds what the tokenizer adds to a plain text, such as BOS, because a rendered chat is
    tokenised without it (transformers, `apply_chat_template`).

    Args:
        part: The new folder, which has its tokenizer already.
        checkpoint: The original.
        template: Its template.

    Raises:
        TemplateError: The template cannot be written as a chat template.
    """
    from transformers import AutoTokenizer

    tokenizer = checkpoint.tokenizer
    chat = AutoTokenizer.from_pretrained(part)
    absent = _segments(checkpoint, template, with_instruction=False)
    given = _segments(checkpoint, template, with_instruction=True) or ()
    expected = _expected(checkpoint, template)
    begin, end = ("".join(map(tokenizer.token, ids)) for ids in (tokenizer.begin, tokenizer.end))

    source = as_jinja(absent, given)
    if isinstance(template.source, str) and not template.variables and not template.instruction:
        # Without its last newline, which Jinja does not render anyway, unless another would be lost in its place.
        own = template.source if template.source.endswith("\n\n") else template.source.removesuffix("\n")
        text = None if absent is None else _own_as_chat(chat, own, template)
        source = own if text is not None and text == _as_chat(chat, source, None) else source
    (part / "score_template.jinja").write_text(source, encoding="utf-8")

    # If a tokenizer marks the beginning of words, the first word needs a space after a control token.
    for before in (begin, f"{begin} "):
        source = as_jinja(absent, given, begin=before, end=end)
        chats = ((_as_chat(chat, source, instruction), ids) for instruction, ids in expected.items())
        if all(text is not None and chat(text, add_special_tokens=False)["input_ids"] == ids for text, ids in chats):
            (part / "chat_template.jinja").write_text(source, encoding="utf-8")
            return
    raise TemplateError(
        f"The template from {template.origin} cannot be saved as a chat template of {checkpoint.model}, which "
        "sentence-transformers needs: no text of a chat is tokenised to the same prompt."
    )


def pad_token_for(checkpoint: Checkpoint, template: ScoreTemplate) -> str:
    """The token that pads batches: the tokenizer's padding token, or another with which no prompt ends.

    transformers' classifiers take the score from the last token that is not the padding token (`modeling_layers.py`).

    Raises:
        ModelError: Every candidate may be a prompt's last token.
    """
    tokenizer = checkpoint.tokenizer
    last = {ids[-1] for ids in _expected(checkpoint, template).values()}
    named = tokenizer.special_tokens
    own = named.get("pad_token")
    names = [own] if own else [named[name] for name in ("eos_token", "unk_token", "bos_token") if name in named]
    for token in [*names, *([] if own else tokenizer.control_tokens)]:
        index = tokenizer.token_id(token)
        if index is not None and index not in last:
            return token
    raise ModelError(
        f"The tokenizer of {checkpoint.model} has no token to pad with: {names or 'none'} is how its prompts end, and "
        "a classifier takes the score from the last token before the padding. Set another pad_token in "
        "tokenizer_config.json."
    )


def check_prompts(part: Path, checkpoint: Checkpoint, template: ScoreTemplate) -> None:
    """Check that Winnow can open the new folder, and that its prompts are the original's, token for token.

    Raises:
        ModelError: Winnow cannot open it.
        TemplateError: The prompts differ.
    """
    converted = open_checkpoint(str(part))
    saved = converted.template
    for instruction, ids in _expected(checkpoint, template).items():
        found = [] if saved is None else _ids(converted, saved, instruction)
        if found != ids:
            raise TemplateError(
                f"The template from {template.origin} cannot be saved: the prompt would be "
                f"{converted.tokenizer.decode(found)!r} instead of {converted.tokenizer.decode(ids)!r}."
            )


def takes_instruction(checkpoint: Checkpoint, template: ScoreTemplate) -> bool:
    """Whether the template has a place for an instruction."""
    return "instruction" in fields_of(_segments(checkpoint, template, with_instruction=True) or ())


def _segments(checkpoint: Checkpoint, template: ScoreTemplate, *, with_instruction: bool) -> tuple[Segment, ...] | None:
    """The template's segments; None if it needs an instruction and there is none."""
    tokenizer = checkpoint.tokenizer
    try:
        return template.segments(
            with_instruction=with_instruction,
            special_tokens=tokenizer.special_tokens,
            control_tokens=tokenizer.control_tokens,
        )
    except TemplateError:
        if with_instruction:
            raise
        template.segments(with_instruction=True, special_tokens=tokenizer.special_tokens)
        return None


def _as_chat(chat: Any, source: str, instruction: str | None) -> str | None:
    """The sample's prompt as sentence-transformers and vLLM render it; None if they cannot."""
    try:
        return str(chat.apply_chat_template(_messages(instruction), chat_template=source, tokenize=False))
    except Exception:  # noqa: BLE001 - templates run arbitrary expressions, which may raise anything
        return None


def _own_as_chat(chat: Any, source: str, template: ScoreTemplate) -> str | None:
    """`_as_chat` of a template's own source. It may come from the model, and transformers would render it unlimited."""
    try:
        origin = Origin(template.origin, template.trusted)
        return rendered_chat(source, origin, _messages(None), chat.special_tokens_map)
    except TemplateError:
        return None


def _messages(instruction: str | None) -> list[dict[str, str]]:
    system = [{"role": "system", "content": instruction}] if instruction else []
    return [*system, *({"role": role, "content": text} for role, text in _SAMPLE.items())]


def _expected(checkpoint: Checkpoint, template: ScoreTemplate) -> dict[str | None, list[int]]:
    """The sample's prompts, by instruction."""
    optional = _segments(checkpoint, template, with_instruction=False) is not None
    instructions = (None, _INSTRUCTION) if optional else (_INSTRUCTION,)
    return {instruction: _ids(checkpoint, template, instruction) for instruction in instructions}


def _ids(checkpoint: Checkpoint, template: ScoreTemplate, instruction: str | None) -> list[int]:
    segments = _segments(checkpoint, template, with_instruction=instruction is not None)
    builder = PromptBuilder(PromptLayout(checkpoint.tokenizer, segments, Limits(max_length=checkpoint.max_length)))
    [built] = builder.build(_SAMPLE["query"], [_SAMPLE["document"]], instruction)
    return built.prompts[0].ids
