"""Convert an image file, or an image of Pillow, to pixels: three channels of eight bits, on white."""

import io
import math
from typing import TYPE_CHECKING

from winnow.media.limits import MAX_BYTES, MediumError

if TYPE_CHECKING:
    from PIL.Image import Image

# A photograph of the largest common cameras. Less than where Pillow itself begins to warn.
MAX_PIXELS = 64_000_000
_TOO_MANY_PIXELS = f"it has more than {MAX_PIXELS // 10**6} million pixels: reduce it"
# Passes over all of the picture that a progressive JPEG may take; cameras and programs write 10 to 20.
_MAX_PASSES = 100
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")


def in_rgb(image: "bytes | Image") -> "Image":
    """An image in RGB, with white where it is transparent.

    Args:
        image: The bytes of an image file, or an image of Pillow.

    Raises:
        MediumError: It is not an image, or it is damaged or too large.
    """
    from PIL import Image

    # Without warnings.catch_warnings: images are read in several threads at once, and it changes all of the process.
    try:
        opened = _opened(image) if isinstance(image, bytes) else image
        _check_size(opened)
        if isinstance(image, bytes):
            _check_work(opened, image)
        opened.load()
        return _on_white(opened)
    except MediumError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # far more, which Pillow itself refuses
        raise MediumError(_TOO_MANY_PIXELS) from None
    except Exception as error:  # Pillow's decoders fail with errors of every kind
        raise MediumError(f"it is damaged ({type(error).__name__}: {error})") from error


def _opened(data: bytes) -> "Image":
    from PIL import Image, UnidentifiedImageError

    if len(data) > MAX_BYTES:
        raise MediumError(f"it has more than {MAX_BYTES >> 20} MiB: reduce it")
    Image.init()
    try:
        return Image.open(io.BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN])
    except UnidentifiedImageError:
        raise MediumError(
            f"its {len(data)} bytes are not those of an image; {', '.join(_FORMATS)} can be read"
        ) from None


def _check_size(image: "Image") -> None:
    width, height = image.size
    if not width or not height:
        raise MediumError(f"it measures {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise MediumError(_TOO_MANY_PIXELS)


def _check_work(image: "Image", data: bytes) -> None:
    """Refuse files of a moderate size that would take hours or gigabytes to decode."""
    passes = 0
    if image.format in ("JPEG", "MPO"):
        passes = _MAX_PASSES
    elif image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        wide, high = tags.get(322, image.width), tags.get(323, image.height)
        if wide * high > MAX_PIXELS:  # libtiff decodes a tile as a whole, however little of it the image shows
            raise MediumError(_TOO_MANY_PIXELS)
        if "jpeg" in image.info.get("compression", ""):
            rows = min(high, tags.get(278, high))
            passes = _MAX_PASSES + math.ceil(image.width / wide) * math.ceil(image.height / rows)
    if passes and data.count(b"\xff\xda") > passes:  # the marker of a pass; no compressed data hold it
        raise MediumError(f"it is a JPEG of more than {_MAX_PASSES} passes: save it again")


def _on_white(image: "Image") -> "Image":
    """The image in three channels. Transparent pixels become white in all modes; qwen_vl_utils does so in RGBA only."""
    from PIL import Image

    if _has_16_bits(image):
        # The upper eight of them; Pillow's own conversion would make all but the darkest white.
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
        image.info.pop("transparency", None)  # it names a grey of 16 bits
    if image.mode in ("LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        opaque = Image.new("RGB", image.size, (255, 255, 255))
        opaque.paste(image, mask=image.getchannel("A"))
        return opaque
    return image.convert("RGB")


def _has_16_bits(image: "Image") -> bool:
    """Whether it is a grey of 16 bits. Older releases of Pillow open such files in "I", which has 32."""
    if image.mode != "I":
        return image.mode.startswith("I;16")
    _, highest = image.getextrema()
    return highest > 255  # type: ignore[operator]  # of one band it is a number
