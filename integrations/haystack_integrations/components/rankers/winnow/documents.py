"""What the reranker reads of a Haystack document: its text with metadata, its image or video, or both."""

import mimetypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from haystack import Document
from haystack.utils.misc import _deduplicate_documents

import winnow


def without_duplicates(documents: Sequence[Document]) -> list[Document | None]:
    """Of documents with the same id the best-scored one, as Haystack's own rankers do.

    Returns:
        One entry a document of the input: it stands where its id is first seen, the other places hold None. So
        positions in errors are the caller's.
    """
    best = {document.id: document for document in _deduplicate_documents(list(documents))}
    return [best.pop(document.id, None) for document in documents]


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentReader:
    """Reads what is scored from Haystack documents.

    Args:
        prefix: Put before each text.
        suffix: Put after each text.
        meta_fields: Metadata fields to put before the content.
        separator: What stands between these and the content.
        root_path: Folder of the images and videos that `meta["file_path"]` names.
    """

    prefix: str
    suffix: str
    meta_fields: Sequence[str]
    separator: str
    root_path: str | os.PathLike[str] | None

    def read(self, document: Document) -> str | winnow.Document | None:
        """Its text, or a `winnow.Document` if it has an image or a video, or None if there is nothing to judge."""
        content = document.content if document.content and not document.content.isspace() else None
        values = [document.meta.get(name) for name in self.meta_fields]
        parts = [str(value) for value in values if value is not None]
        if content is not None:
            parts.append(content)
        text = self.prefix + self.separator.join(parts) + self.suffix if parts else None
        shown = self._shown(document, content)
        return winnow.Document(text=text, **shown) if shown else text

    def _shown(self, document: Document, content: str | None) -> dict[str, bytes | str]:
        """Its image or its video, under that name. The core checks whether the model takes it."""
        if document.blob is not None and document.blob.data and (kind := _kind(document.blob.mime_type)):
            return {kind: document.blob.data}
        path = document.meta.get("file_path")
        # Content was made from the file, and stands for it.
        if content is not None or not isinstance(path, str | os.PathLike) or not os.fspath(path).strip():
            return {}
        path = os.fspath(path)
        kind = _kind(document.meta.get("mime_type") or mimetypes.guess_type(path)[0])
        if kind is None:
            return {}
        # Relative paths start at root_path, as in Haystack's image converters. Whether it lies below is checked by the
        # core.
        if "://" not in path and self.root_path is not None:
            root = os.path.expanduser(self.root_path)  # noqa: PTH111 - Path raises where a user has no home
            path = str(Path(root, path).absolute())
        return {kind: path}


def _kind(mime_type: object) -> str | None:
    """What a file of this type shows: "image", "video", or None for neither."""
    kind = str(mime_type).partition("/")[0]
    return kind if kind in ("image", "video") else None
