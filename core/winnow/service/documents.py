"""Queries and documents in the forms in which clients send them.

A text, null, `{"text": …}` (Cohere v1, Jina), `{"image": …}` (Jina), `{"content": [parts]}` (vLLM), or a list of parts
(SGLang). Images are data URIs, base64, or, if the server allows them, addresses; never paths of the server's files.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from winnow.service.errors import ServiceError
from winnow.types import Document

_MEDIA = {"image": "image", "image_url": "image", "video": "video", "video_url": "video"}

DOCUMENT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {"type": "null"},
        {
            "type": "object",
            "properties": {
                "text": {"type": ["string", "null"]},
                "image": {"type": "string"},
                "content": {"type": "array", "items": {"type": "object"}},
            },
        },
        {"type": "array", "items": {"type": "object"}},
    ],
}


def document_of(given: Any, where: str, rank_fields: Sequence[str] | None = None) -> str | Document | None:
    """A document or a query as the reranker takes it.

    Args:
        given: The value of the request.
        where: Its place in the request, for messages.
        rank_fields: The fields of an object that are its text, as in Cohere v1; by default "text".

    Raises:
        ServiceError: It has none of the forms.
    """
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, Mapping):
        if "content" in given and given["content"] is not None:
            return document_of(given["content"], f"{where}.content")
        if rank_fields:
            return "\n".join(_text_in(given, name, where) for name in rank_fields if given.get(name) is not None)
        return _document(
            [_text_in(given, "text", where)] if given.get("text") is not None else [],
            [(kind, given[name]) for name, kind in _MEDIA.items() if given.get(name) is not None],
            where,
        )
    if isinstance(given, list):
        texts: list[str] = []
        media: list[tuple[str, Any]] = []
        for at, part in enumerate(given):
            place = f"{where}.{at}"
            if isinstance(part, str):
                texts.append(part)
            elif not isinstance(part, Mapping):
                raise ServiceError(400, f"{place} must be a text or a content part.", place)
            elif part.get("text") is not None:
                texts.append(_text_in(part, "text", place))
            elif found := [(kind, part[name]) for name, kind in _MEDIA.items() if part.get(name) is not None]:
                media += found
            elif part.get("type") != "text":
                raise ServiceError(400, f"{place} must have a text, an image_url or a video_url.", place)
        return _document(texts, media, where)
    raise ServiceError(
        400, f'{where} must be a text, an object with "text" or "image", or a list of content parts.', where
    )


def documents_of(given: Any, where: str, rank_fields: Sequence[str] | None = None) -> list[str | Document | None]:
    """Several documents; see `document_of`."""
    if not isinstance(given, list):
        raise ServiceError(400, f"{where} must be a list.", where)
    # Most are texts, of which a request may have thousands: nothing else is done for them.
    return [
        one if isinstance(one, str) else document_of(one, f"{where}.{at}", rank_fields) for at, one in enumerate(given)
    ]


def document_in_answer(given: Any, read: str | Document | None) -> dict[str, Any]:
    """A document as Cohere's and vLLM's clients expect it back: an object, whose text is never null.

    Args:
        given: The document of the request.
        read: What it was read as.
    """
    if isinstance(given, str):
        return {"text": given}
    if not isinstance(read, Document):
        own = given if isinstance(given, Mapping) and "content" not in given else {}
        return {**own, "text": read or ""}
    shown = [("image_url", read.image), ("video_url", read.video)]
    return {
        "text": read.text or "",
        "multi_modal": [{"type": kind, kind: {"url": medium}} for kind, medium in shown if medium is not None],
    }


def length_of(read: str | Document | None) -> int:
    """Characters of a document's text."""
    if isinstance(read, str):
        return len(read)
    return 0 if read is None or read.text is None else len(read.text)


def _document(texts: Sequence[str], media: Sequence[tuple[str, Any]], where: str) -> str | Document | None:
    text = "\n".join(texts) if texts else None  # as vLLM joins parts
    if not media:
        return text
    if len(media) > 1:
        raise ServiceError(400, f"{where} has {len(media)} images or videos, and a document may have one.", where)
    [(kind, value)] = media
    if isinstance(value, Mapping):  # {"url": …}
        value = value.get("url")
    if not isinstance(value, str):
        raise ServiceError(400, f"The {kind} of {where} must be a text: a data URI, base64 or an address.", where)
    if not value.lstrip()[:8].lower().startswith(("data:", "http://", "https://")):
        value = f"data:;base64,{value}"  # as Jina takes them; a path is no base64 of an image
    return Document(text, **{kind: value})


def _text_in(given: Mapping[str, Any], name: str, where: str) -> str:
    value = given[name]
    if not isinstance(value, str):
        raise ServiceError(400, f"{where}.{name} must be a text.", f"{where}.{name}")
    return value
