"""What the model reads of a LangChain document, and the copies that hold the scores."""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from numbers import Number
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import convert_to_openai_image_block

import winnow
from winnow.types import RETRIEVAL_ORDER, finite


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What is read of a document besides its text; the attributes are settings of `WinnowRerank`."""

    metadata_fields: Sequence[str]
    embedding_separator: str
    image_key: str | None
    video_key: str | None

    def of(self, document: str | Document) -> str | winnow.Document:
        """The text behind the metadata that count, with the image or the video if there is one."""
        if not isinstance(document, Document):
            return document
        metadata = document.metadata
        parts = [str(metadata[name]) for name in self.metadata_fields if metadata.get(name) is not None]
        if document.page_content.strip():
            parts.append(document.page_content)
        text = self.embedding_separator.join(parts)
        image, video = (None if key is None else _medium(metadata.get(key)) for key in (self.image_key, self.video_key))
        return text if image is video is None else winnow.Document(text=text or None, image=image, video=video)


def _medium(value: Any) -> Any:
    """An image or a video as the core takes it; None for other values: a number, a flag, an empty value, an object.

    The core checks whether it can be used, because the core knows whether the model takes images.
    """
    if isinstance(value, Mapping):
        return _of_block(value)
    nothing = (
        value is None
        or isinstance(value, Number)
        or (isinstance(value, str) and not value.strip())
        or (isinstance(value, Sized) and not len(value))
    )
    return None if nothing else value


def _of_block(block: Mapping[str, Any]) -> Any:
    """The address or the data URI of a standard content block."""
    try:
        # Blocks of videos look the same. The type is a label only: whoever opens the data looks at its first bytes.
        return _medium(convert_to_openai_image_block({"mime_type": "image/png", **block})["image_url"]["url"])
    except (KeyError, ValueError):
        # A block of another kind, such as a file's id, is refused by the core; a record of the user's is no medium.
        return block if block.get("type") in ("image", "video") else None


def check_list(documents: Sequence[Any]) -> list[Any]:
    """Documents or texts as a list.

    Raises:
        TypeError: It is a single one.
    """
    if isinstance(documents, str | Document):  # a Document is iterable too: over its fields
        raise TypeError("documents must be several, but got a single one: put it into a list")
    return list(documents)


def check_documents(documents: Sequence[Document]) -> list[Document]:
    """Documents as a list.

    Raises:
        TypeError: One is no document.
    """
    found = check_list(documents)
    for at, document in enumerate(found):
        if not isinstance(document, Document):
            raise TypeError(
                f"documents[{at}] is a {type(document).__name__}, not a langchain_core Document; rerank() takes texts"
            )
    return found


def reranked(documents: Sequence[Document], ranking: winnow.Ranking) -> list[Document]:
    """Copies of the documents in the ranking's order, with their scores."""
    scored = ranking.stats.fallback != RETRIEVAL_ORDER
    return [_with_score(documents[hit.index], hit, scored) for hit in ranking]


def _with_score(document: Document, hit: winnow.RankedDocument, scored: bool) -> Document:
    metadata = dict(document.metadata)  # what it holds is the user's, may not be copied, and stays as it is
    if scored:
        metadata["relevance_score"] = finite(hit.score)
    metadata.pop("rerank_error", None)
    if hit.error is not None:
        metadata["rerank_error"] = hit.error
    return document.model_copy(update={"metadata": metadata})


def as_results(ranking: winnow.Ranking) -> list[dict[str, Any]]:
    """Positions and scores, in the ranking's order."""
    return [
        {
            "index": hit.index,
            "relevance_score": finite(hit.score),
            **({} if hit.error is None else {"rerank_error": hit.error}),
        }
        for hit in ranking
    ]
