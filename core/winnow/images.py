"""Images of documents and queries: from a path, bytes, a data URI, an address or Pillow, to what goes into a prompt.

What comes from outside is not trusted: paths stay below `root_path`, addresses below `remote_images`, files and pixels
below limits, and only common formats of photographs and screenshots are decoded.
"""

import asyncio
import base64
import binascii
import hashlib
import io
import os
import warnings
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from winnow.errors import DocumentError, MissingExtraError
from winnow.remote_images import MAX_BYTES, ImageError, fetch
from winnow.types import Document
from winnow.vision import PromptImage, Vision

if TYPE_CHECKING:
    from PIL.Image import Image

# A photograph of the largest common cameras. Less than where Pillow itself begins to warn.
MAX_PIXELS = 64_000_000
_TOO_MANY_PIXELS = f"it has more than {MAX_PIXELS // 10**6} million pixels: reduce it"
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")


class ImageLoader:
    """Loads the images of one reranker.

    Args:
        root_path: Folder that local paths are read from, and relative ones start at; None to refuse paths.
        allow_remote: Whether http(s) addresses are fetched.
    """

    def __init__(self, root_path: str | os.PathLike[str] | None = None, *, allow_remote: bool = False):
        self._root = None if root_path is None else Path(root_path)
        self._allow_remote = allow_remote

    async def of_documents(
        self,
        vision: Vision | None,
        documents: Sequence[str | Document | None],
        positions: Sequence[int],
        failed: dict[int, DocumentError],
    ) -> list[PromptImage | None]:
        """The images of documents, all at once; None for a document without one.

        Args:
            vision: How the model sees; None if it only reads.
            documents: The documents.
            positions: What messages call them.
            failed: Gets the errors of documents, by position.

        Raises:
            MissingExtraError: Pillow is not installed.
        """

        async def load(document: str | Document | None, at: int) -> PromptImage | None:
            if not isinstance(document, Document) or document.image is None:
                return None
            try:
                return await self.load(vision, document.image, f"Document {at}", at)
            except DocumentError as error:
                failed[at] = error
                return None

        return await asyncio.gather(*map(load, documents, positions))

    async def load(self, vision: Vision | None, image: Any, what: str, index: int | None = None) -> PromptImage:
        """An image as it goes into a prompt.

        Args:
            vision: How the model sees; None if it only reads.
            image: As in `winnow.Document`.
            what: What a message calls the document.
            index: The document's position, None for the query.

        Raises:
            DocumentError: The model only reads, or the image is refused, missing or damaged. The message says what to
                do.
            MissingExtraError: Pillow is not installed.
        """
        if vision is None:
            raise DocumentError(f"{what} has an image, but the model only reads text.", index)
        try:
            import PIL.Image  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("pillow", "images") from error
        try:
            if _is_address(image):
                if not self._allow_remote:
                    raise ImageError("it is a web address, and these are only fetched with allow_remote_images=True")
                image = await fetch(image.strip())
            return await asyncio.to_thread(self._prepared, vision, image)
        except ImageError as error:
            raise DocumentError(f"{what} has an image that cannot be used: {error}.", index) from error

    def _prepared(self, vision: Vision, image: Any) -> PromptImage:
        from PIL import Image

        if isinstance(image, bytes | bytearray | memoryview):
            opened = _decoded(bytes(image))
        elif isinstance(image, Image.Image):
            opened = image
        elif isinstance(image, str) and image.lstrip()[:5].lower() == "data:":
            opened = _decoded(_of_data_uri(image.strip()))
        elif isinstance(image, str | os.PathLike):
            opened = _decoded(self._read(os.fspath(image)))
        else:
            raise ImageError(
                f"it is of type {type(image).__name__}; give a path, an http(s) address, a data URI, the bytes of an "
                "image file, or a PIL.Image.Image"
            )
        try:
            return vision.prepared(_as_rgb(opened))
        except (ValueError, OSError) as error:  # a strip; or an image of Pillow whose file is gone or damaged
            raise ImageError(str(error)) from error

    def _read(self, path: str | bytes) -> bytes:
        """The bytes of a file below the root, to which no link and no `..` leads."""
        name = os.fsdecode(path)
        if self._root is None:
            raise ImageError(
                f"{name!r} is a local path, and these are only read below root_path: set it to the folder of the images"
            )
        if "\0" in name or "://" in name:
            raise ImageError(f"{name!r} is neither a local path nor an http(s) address")
        root = self._root.resolve()
        outside = ImageError(
            f"the path {name!r} does not lie below root_path ({self._root}), where alone images are read; '..' and "
            "symbolic links are not followed"
        )
        wanted = Path(name)
        if wanted.is_absolute():
            for start in (root, self._root.absolute()):
                if wanted.is_relative_to(start):
                    wanted = wanted.relative_to(start)
                    break
            else:
                raise outside
        file = root / wanted
        if ".." in wanted.parts or file.resolve() != file:
            raise outside
        try:
            if not file.is_file():
                raise ImageError(f"there is no file {name!r} below root_path ({self._root})")
            with file.open("rb") as opened:
                data = opened.read(MAX_BYTES + 1)
        except OSError as error:
            raise ImageError(f"the file {name!r} cannot be read ({error.strerror})") from error
        if len(data) > MAX_BYTES:
            raise ImageError(f"the file {name!r} is larger than {MAX_BYTES >> 20} MiB: reduce it")
        return data


def image_identity(image: Any) -> Hashable:
    """What tells an image that was not loaded yet from others: its address, its bytes, or which object it is."""
    if isinstance(image, bytes | bytearray | memoryview):
        return hashlib.blake2b(image, digest_size=16).digest()
    return os.fspath(image) if isinstance(image, str | os.PathLike) else id(image)


def _is_address(image: Any) -> bool:
    return isinstance(image, str) and image.lstrip()[:8].lower().startswith(("http://", "https://"))


def _of_data_uri(uri: str) -> bytes:
    head, comma, data = uri.partition(",")
    if not comma:
        raise ImageError("it is a data URI without data: it must look like data:image/png;base64,iVBORw0KGgo…")
    if len(data) > MAX_BYTES * 3:  # at most three characters a byte
        raise ImageError(f"its data URI holds more than {MAX_BYTES >> 20} MiB: reduce it")
    raw = unquote_to_bytes(data)
    if not head.lower().endswith(";base64"):
        return raw
    try:
        return base64.b64decode(b"".join(raw.split()), validate=True)
    except binascii.Error as error:
        raise ImageError(f"its data URI is not base64 ({error})") from error


def _decoded(data: bytes) -> "Image":
    from PIL import Image, UnidentifiedImageError

    if len(data) > MAX_BYTES:
        raise ImageError(f"it has more than {MAX_BYTES >> 20} MiB: reduce it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of sizes above a limit that is checked here
            Image.init()
            opened = Image.open(io.BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN])
            _check_size(opened)
            opened.load()
            return opened
    except ImageError:
        raise
    except Image.DecompressionBombError:  # far more, which Pillow itself refuses
        raise ImageError(_TOO_MANY_PIXELS) from None
    except UnidentifiedImageError:
        raise ImageError(
            f"its {len(data)} bytes are not those of an image; {', '.join(_FORMATS)} can be read"
        ) from None
    except Exception as error:  # Pillow's decoders fail with errors of every kind
        raise ImageError(f"it is damaged ({type(error).__name__}: {error})") from error


def _check_size(image: "Image") -> None:
    width, height = image.size
    if not width or not height:
        raise ImageError(f"it measures {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise ImageError(_TOO_MANY_PIXELS)


def _as_rgb(image: "Image") -> "Image":
    """In three channels, as qwen_vl_utils does it: what is transparent becomes white."""
    from PIL import Image

    _check_size(image)
    if image.mode == "RGBA":
        opaque = Image.new("RGB", image.size, (255, 255, 255))
        opaque.paste(image, mask=image.getchannel("A"))
        return opaque
    return image.convert("RGB")
