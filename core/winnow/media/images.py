"""Images and videos of documents: from a path, bytes, a data URI, an address or Pillow, to what goes into a prompt.

Documents are not trusted: only paths below `root_path` are read, `fetch` checks addresses, files and pixels
have limits, and only common formats of photographs and screenshots are decoded.
"""

import asyncio
import base64
import binascii
import contextlib
import hashlib
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote_to_bytes

from winnow.errors import DocumentError, MissingExtraError
from winnow.media.limits import MAX_BYTES, MediumError
from winnow.media.local_files import read_below
from winnow.media.pixels import in_rgb
from winnow.media.videos import NO_VIDEOS, decoded, sampled, times_of_list
from winnow.media.vision import PromptImage, PromptVideo, Shown, Vision
from winnow.text import shows
from winnow.threads import in_daemon_thread
from winnow.types import Document

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

# Frames of a list that are loaded at once: each may take as much memory as an image, until it is resized.
_FRAMES_AT_ONCE = 4


class MediaLoader:
    """Loads the images and videos of one call.

    Args:
        root_path: Folder with the local files, where relative paths start; None to refuse paths.
        allow_remote: Whether http(s) addresses are fetched.
    """

    def __init__(self, root_path: str | os.PathLike[str] | None = None, *, allow_remote: bool = False):
        self._root = None if root_path is None else Path(os.path.expanduser(root_path))  # noqa: PTH111 - see DiskScores
        self._allow_remote = allow_remote
        self._turns = asyncio.Semaphore(os.cpu_count() or 1)

    async def of_documents(
        self,
        vision: Vision | None,
        documents: Sequence[str | Document | None],
        positions: Sequence[int],
    ) -> list[Shown | DocumentError | None]:
        """The images and videos of documents, loaded all at once.

        Args:
            vision: How the model takes images; None for a text model.
            documents: The documents.
            positions: Their positions in the call, for messages.

        Returns:
            For each document its image or video, None if it has neither, or the error if that cannot be used.

        Raises:
            MissingExtraError: Pillow, or PyAV, is not installed.
        """

        async def load(document: str | Document | None, at: int) -> Shown | DocumentError | None:
            try:
                return await self.of(vision, document, f"Document {at}", at)
            except DocumentError as error:
                return error

        showing = [at for at, document in enumerate(documents) if shows(document)]  # a text needs no task
        loaded = await asyncio.gather(*(load(documents[at], positions[at]) for at in showing))
        found = dict(zip(showing, loaded, strict=True))
        return [found.get(at) for at in range(len(documents))]

    async def of(
        self, vision: Vision | None, document: str | Document | None, what: str, index: int | None = None
    ) -> Shown | None:
        """The image or the video of a document or a query, if it has one; arguments and errors are those of `load`."""
        if not isinstance(document, Document):
            return None
        if document.image is not None and document.video is not None:
            raise DocumentError(f"{what} has an image and a video: make two of it, with one each.", index)
        if document.video is not None:
            return await self.load_video(vision, document.video, what, index)
        return None if document.image is None else await self.load(vision, document.image, what, index)

    async def load(self, vision: Vision | None, image: Any, what: str, index: int | None = None) -> PromptImage:
        """An image as it goes into a prompt.

        Args:
            vision: How the model takes images; None for a text model.
            image: As in `winnow.Document`.
            what: The document's name in messages.
            index: The document's position, None for the query.

        Raises:
            DocumentError: The model is a text model, or the image is refused, missing or damaged. The message says what
                to do.
            MissingExtraError: Pillow is not installed.
        """
        with _refusing("an image", vision, what, index) as seeing:
            fetched = await self._fetched(image)
            return await self._in_turn(lambda: self._prepared(seeing, fetched))

    async def load_video(self, vision: Vision | None, video: Any, what: str, index: int | None = None) -> PromptVideo:
        """A video as it goes into a prompt; arguments and errors are those of `load`, of a video."""
        with _refusing("a video", vision, what, index) as seeing:
            if seeing.video_id < 0:
                raise MediumError("the model takes images, but no videos")
            if seeing.as_text:
                raise MediumError(NO_VIDEOS)
            if not isinstance(video, list | tuple):
                fetched = await self._fetched(video)
                return await self._in_turn(lambda: self._from_file(seeing, fetched))
            chosen = sampled(range(len(video)))
            gate = asyncio.Semaphore(_FRAMES_AT_ONCE)
            frames = await asyncio.gather(*(self._frame(seeing, video[at], at, len(chosen), gate) for at in chosen))
            return await self._in_turn(lambda: seeing.prepared_video(frames, times_of_list(len(frames))))

    async def _frame(self, vision: Vision, image: Any, at: int, frames: int, gate: asyncio.Semaphore) -> Any:
        """Frame number `at` of a list, in the size in which the model takes it."""
        async with gate:
            try:
                fetched = await self._fetched(image)
                return await self._in_turn(lambda: vision.prepared_frame(self._opened(fetched), frames))
            except (MediumError, ValueError, OSError) as error:
                raise MediumError(f"of frame {at}, {error}") from error

    async def _in_turn(self, work: Callable[[], T]) -> T:
        """Reads and decodes, in as many threads at once as there are processors: each may take much memory.

        Not in those of `asyncio.to_thread`, which all calls share: what strangers send may take minutes.
        """
        async with self._turns:
            return await in_daemon_thread(work)

    async def _fetched(self, given: Any) -> Any:
        """What the web address holds, if `given` is one."""
        if not _is_address(given):
            return given
        if not self._allow_remote:
            raise MediumError("it is a web address, and these are only fetched with allow_remote_images=True")
        from winnow.media.fetch import fetch  # here, because it imports an HTTP client

        return await fetch(given.strip())

    def _prepared(self, vision: Vision, image: Any) -> PromptImage:
        return vision.prepared(self._opened(image))

    def _from_file(self, vision: Vision, video: Any) -> PromptVideo:
        data = self._bytes(video)
        if data is None:
            raise MediumError(
                f"it is of type {type(video).__name__}; give a path, an http(s) address, a data URI, the bytes of a "
                "video file, or a list of frames, each of them an image"
            )
        return vision.prepared_video(*decoded(data, vision.frame_size))

    def _opened(self, image: Any) -> "Image":
        """An image in RGB."""
        from PIL import Image

        if isinstance(image, Image.Image):
            return in_rgb(image)
        data = self._bytes(image)
        if data is None:
            raise MediumError(
                f"it is of type {type(image).__name__}; give a path, an http(s) address, a data URI, the bytes of an "
                "image file, or a PIL.Image.Image"
            )
        return in_rgb(data)

    def _bytes(self, given: Any) -> bytes | None:
        """The bytes of a file that is given as bytes, as a data URI or by its path; None if it is none of these."""
        if isinstance(given, bytes | bytearray | memoryview):
            return bytes(given)
        if isinstance(given, str) and given.lstrip()[:5].lower() == "data:":
            return _of_data_uri(given.strip())
        return self._read(os.fspath(given)) if isinstance(given, str | os.PathLike) else None

    def _read(self, path: str | bytes) -> bytes:
        """The bytes of a file below the root."""
        if self._root is None:
            raise MediumError(
                f"{os.fsdecode(path)!r} is a local path, and these are only read below root_path: set it to their "
                "folder"
            )
        return read_below(self._root, path)


def as_read(vision: Vision | None, given: str | Document | None) -> str | Document | None:
    """A document or a query with a text, without the image or video that the model does not take.

    Args:
        vision: How the model takes images; None for a text model.
        given: What the caller gave.
    """
    if not isinstance(given, Document) or not isinstance(given.text, str) or not given.text.strip():
        return given
    image = None if vision is None else given.image
    video = None if vision is None or vision.video_id < 0 else given.video
    if image is given.image and video is given.video:
        return given
    return Document(given.text, image, video)


@contextlib.contextmanager
def _refusing(kind: str, vision: Vision | None, what: str, index: int | None) -> Iterator[Vision]:
    """Yields `vision` if the model takes images, and turns errors into a `DocumentError` that names the document."""
    if vision is None:
        raise DocumentError(f"{what} has {kind}, but the model only reads text.", index)
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("pillow", "images") from error
    try:
        yield vision
    except (MediumError, ValueError, OSError) as error:  # too long a strip; a Pillow image with a lost or damaged file
        raise DocumentError(f"{what} has {kind} that cannot be used: {error}.", index) from error


def medium_identity(medium: Any) -> Hashable:
    """A key for an image or a video that is not loaded yet: its address, a hash of its bytes, its frames or its id."""
    if isinstance(medium, list | tuple):
        return tuple(map(medium_identity, medium))
    if isinstance(medium, bytes | bytearray | memoryview):
        return hashlib.blake2b(medium, digest_size=16).digest()
    return os.fspath(medium) if isinstance(medium, str | os.PathLike) else id(medium)


def _is_address(medium: Any) -> bool:
    return isinstance(medium, str) and medium.lstrip()[:8].lower().startswith(("http://", "https://"))


def _of_data_uri(uri: str) -> bytes:
    head, comma, data = uri.partition(",")
    if not comma:
        raise MediumError("it is a data URI without data: it must look like data:image/png;base64,iVBORw0KGgo…")
    if len(data) > MAX_BYTES * 3:  # at most three characters a byte
        raise MediumError(f"its data URI holds more than {MAX_BYTES >> 20} MiB: reduce it")
    raw = unquote_to_bytes(data)
    if not head.lower().endswith(";base64"):
        return raw
    try:
        return base64.b64decode(b"".join(raw.split()), validate=True)
    except binascii.Error as error:
        raise MediumError(f"its data URI is not base64 ({error})") from error
