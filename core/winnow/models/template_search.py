"""Find the score template that comes with a model."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from winnow.errors import TemplateError
from winnow.models.folder import CrossEncoderFiles, read_tokenizer_config
from winnow.models.named_files import leads_inside
from winnow.templates import (
    Origin,
    ScoreTemplate,
    Segment,
    TemplateLimitError,
    fields_of,
    from_file,
    from_user,
    is_file,
    read_template,
)
from winnow.templates import splitting as template_segments

logger = logging.getLogger(__name__)

_TOKENIZER_CONFIG = "tokenizer_config.json"


def find_template(
    folder: Path,
    config: Mapping[str, Any],
    *,
    hf_overrides: Mapping[str, Any] | None = None,
    special_tokens: Mapping[str, str] | None = None,
    cross_encoder: CrossEncoderFiles | None = None,
) -> ScoreTemplate | None:
    """The score template that comes with a model, or None.

    Searched in this order: `score_template` in `hf_overrides`, then in config.json, then in tokenizer_config.json;
    `score_template.jinja`; the chat template (`chat_template.jinja`, then tokenizer_config.json) if
    sentence-transformers saved the folder as a cross-encoder that reads messages, or if the template was written for
    query and document.

    Args:
        folder: The model's folder.
        config: The contents of config.json.
        hf_overrides: Values that the user put in place of those of config.json.
        special_tokens: The tokenizer's named special tokens.
        cross_encoder: What sentence-transformers wrote into the folder.

    Raises:
        TemplateError: A `score_template` is given that cannot be read.
        TemplateLimitError: A chat template exceeds a limit, so that it cannot be checked for being a score template.
        ModelError: A file is damaged.
    """
    if (hf_overrides or {}).get("score_template"):
        return from_user((hf_overrides or {})["score_template"], "score_template of hf_overrides")
    for name, content in (("config.json", config), (_TOKENIZER_CONFIG, read_tokenizer_config(folder, str(folder)))):
        if content.get("score_template"):
            return _from_config(content["score_template"], name, folder)
    own = folder / "score_template.jinja"
    if own.is_file():
        return from_file(own)
    for template in _chat_templates(folder):
        if cross_encoder is not None and cross_encoder.reads_messages:
            template = replace(template, variables=cross_encoder.template_kwargs, system_first=True)
            if _segments_of(template, special_tokens) is not None:
                return template
        if is_score_template(str(template.source), template.origin, special_tokens):
            return template
        logger.debug("%s is a chat template, not a score template: not used", template.origin)
    return None


def is_score_template(source: str, origin: str, special_tokens: Mapping[str, str] | None = None) -> bool:
    """Whether a chat template found in a model folder was written for query and document.

    A chat template of a base model was not: it ignores the roles `query` and `document`, or it writes every role into
    the prompt, so that ordinary chat roles change the result.
    """
    segments = _segments_of(ScoreTemplate(source, origin), special_tokens)
    if segments is None:
        return False
    try:
        as_chat = template_segments.segments_of(
            source, Origin(origin, False), False, dict(special_tokens or {}), roles=("user", "assistant")
        )
    except TemplateLimitError:
        raise
    except TemplateError:
        return True  # it needs the roles `query` and `document`
    return set(fields_of(as_chat)) != {"query", "document"} or as_chat == segments


def _segments_of(template: ScoreTemplate, special_tokens: Mapping[str, str] | None) -> tuple[Segment, ...] | None:
    """The template's segments, or None if it does not place query and document, once each."""
    try:
        segments = template.segments(with_instruction=False, special_tokens=special_tokens)
    except TemplateLimitError:
        raise
    except TemplateError:
        return None
    return segments if fields_of(segments).count("query") == 1 else None


def _from_config(value: Any, name: str, folder: Path) -> ScoreTemplate:
    """`score_template` of a config. A path in it must be in the folder: a download may not name the user's files."""
    what = f"score_template of {name}"
    if not isinstance(value, str | Mapping):
        raise TemplateError(
            f"{what} in {folder} must be a text or an object with format strings, but is {value!r:.200}."
        )
    found = read_template(value, what)
    if found is not None:
        return found
    if not leads_inside(value) or not is_file(folder / str(value)):
        raise TemplateError(
            f"{what} in {folder} is {value!r:.200}, which is neither a file in that folder, nor Jinja source, nor the "
            "name of a built-in template. Pass template=... instead."
        )
    return from_file(folder / str(value))


def _chat_templates(folder: Path) -> Iterator[ScoreTemplate]:
    chat = folder / "chat_template.jinja"
    if chat.is_file():
        yield from_file(chat)
    found = read_tokenizer_config(folder, str(folder)).get("chat_template")
    if isinstance(found, list):  # several, by name
        named = [entry for entry in found if entry.get("name") == "default"]
        found = named[-1].get("template") if named else None
    if isinstance(found, str):
        yield ScoreTemplate(found, f"chat_template in {folder / _TOKENIZER_CONFIG}")
