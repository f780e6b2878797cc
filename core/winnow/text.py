"""The text of a document or a query: whether it is blank, and whether UTF-8 can hold it."""

from winnow.errors import DocumentError
from winnow.types import Document


def text_of(document: str | Document | None) -> str | None:
    """The text of a document or a query as the caller gave it."""
    return document.text if isinstance(document, Document) else document


def shows(document: str | Document | None) -> bool:
    """Whether a document or a query has an image or a video."""
    return isinstance(document, Document) and not (document.image is None and document.video is None)


def readable(document: str | Document | None) -> str:
    """The text of a document or a query; "" for one that is blank."""
    text = text_of(document)
    return text if text and not text.isspace() else ""


def checked(text: str, what: str, index: int | None = None) -> str:
    """Refuse text that has no UTF-8 form.

    Raises:
        DocumentError: The text holds half of a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DocumentError(
            f"{what} holds the lone surrogate {text[error.start]!r} at character {error.start}, which is not text. It "
            "usually comes from decoding with errors='surrogateescape': decode with errors='replace' instead.",
            index,
        ) from None
    return text
