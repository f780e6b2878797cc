"""Images before they reach a model: what they may be, what is refused, and in which size a model takes them."""

import asyncio
import base64
import importlib.util
import io
import os
import struct
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tiny_vision import FACTOR, MAX_PIXELS, MIN_PIXELS, VISION, encoded, fetch_image, load, picture, smart_resize
from winnow import Document, DocumentError
from winnow.media.images import MediaLoader, medium_identity

MAP = picture(320, 200, "lightblue", "Beijing")
PNG = encoded(MAP)


def refused(image: Any, reason: str, root: Path | None = None) -> None:
    with pytest.raises(DocumentError, match=rf"(?s)Document 7 has an image that cannot be used: .*{reason}") as caught:
        load(image, root)
    assert caught.value.index == 7


# --- what is read -----------------------------------------------------------------------------------------------------


def as_data_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    "image",
    [
        PNG,
        bytearray(PNG),
        memoryview(PNG),
        MAP,
        as_data_uri(PNG),
        " DATA:;base64," + base64.encodebytes(PNG).decode(),
        "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG),
        "maps/china.png",
        Path("maps/china.png"),
    ],
    ids=["bytes", "bytearray", "memoryview", "Pillow", "data URI", "with line breaks", "percent", "path", "Path"],
)
def test_every_way_to_give_an_image_gives_the_same_pixels(image: Any, tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "china.png").write_bytes(PNG)
    found = load(image, tmp_path)
    assert found.pixels.mode == "RGB"
    assert found.pixels.tobytes() == MAP.resize((320, 192)).tobytes()
    assert found.tokens == 10 * 6
    assert found == load(MAP)


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"])
def test_formats(kind: str) -> None:
    assert load(encoded(MAP, kind)).tokens == 60


def of_mode(mode: str, value: Any) -> Image.Image:
    return Image.new(mode, (64, 64), value)


def in_palette(*colors: tuple[int, int, int]) -> Image.Image:
    """Left in the first colour, right in the second."""
    image = Image.new("P", (64, 64))
    image.putpalette([number for color in colors for number in color])
    image.paste(1, (32, 0, 64, 64))
    return image


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


BLACK_AND_RED = in_palette((0, 0, 0), (255, 0, 0))
WHITE, RED = (255, 255, 255), (255, 0, 0)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (of_mode("1", 0), (0, 0, 0)),
        (of_mode("1", 1), WHITE),
        (of_mode("L", 77), (77, 77, 77)),
        (of_mode("CMYK", (255, 0, 0, 0)), (0, 255, 255)),
        (of_mode("CMYK", (0, 0, 0, 255)), (0, 0, 0)),
        (saved(of_mode("CMYK", (0, 0, 0, 255)), "TIFF"), (0, 0, 0)),
        (of_mode("YCbCr", (77, 128, 128)), (77, 77, 77)),
        (of_mode("HSV", (0, 255, 255)), RED),
        (of_mode("I", 77), (77, 77, 77)),
        (of_mode("I", 77 * 256 + 200), (77, 77, 77)),
        (of_mode("I;16", 77), (0, 0, 0)),
        (of_mode("I;16", 77 * 256 + 200), (77, 77, 77)),
        (of_mode("I;16", 65535), WHITE),
        (saved(of_mode("I;16", 77 * 256), "PNG"), (77, 77, 77)),
        (saved(of_mode("I;16", 77 * 256), "TIFF"), (77, 77, 77)),
        (of_mode("RGBA", (255, 0, 0, 255)), RED),
        (of_mode("RGBA", (255, 0, 0, 0)), WHITE),
        (of_mode("RGBA", (255, 0, 0, 51)), (255, 204, 204)),
        (of_mode("LA", (0, 255)), (0, 0, 0)),
        (of_mode("LA", (0, 0)), WHITE),
        (saved(of_mode("LA", (0, 0)), "PNG"), WHITE),
        (saved(of_mode("LA", (0, 51)), "PNG"), (204, 204, 204)),
        (saved(of_mode("LA", (0, 51)), "WEBP", lossless=True), (204, 204, 204)),
        (of_mode("RGBa", (0, 0, 0, 0)), WHITE),
        (of_mode("PA", (0, 0)), WHITE),
        (saved(of_mode("L", 0), "PNG", transparency=0), WHITE),
        (saved(of_mode("1", 0), "PNG", transparency=0), WHITE),
        (saved(of_mode("RGB", 0), "PNG", transparency=(0, 0, 0)), WHITE),
        (saved(BLACK_AND_RED, "PNG"), (0, 0, 0)),
        (saved(BLACK_AND_RED, "PNG", transparency=0), WHITE),
        (saved(BLACK_AND_RED, "PNG", transparency=bytes([51, 255])), (204, 204, 204)),
        (saved(BLACK_AND_RED, "GIF"), (0, 0, 0)),
        (saved(BLACK_AND_RED, "GIF", transparency=0), WHITE),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "file" if isinstance(value, bytes) else "",
)
def test_each_mode_becomes_rgb_on_white(image: Any, expected: tuple[int, int, int]) -> None:
    found = load(image).pixels
    assert found.mode == "RGB"
    assert found.getpixel((5, 5)) == expected
    if isinstance(image, bytes) and (b"PLTE" in image or b"GIF" in image):
        assert found.getpixel((60, 5)) == RED  # what is not transparent stays


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_pixels_are_those_of_the_reference_code(mode: str) -> None:
    image = picture(64, 64, (200, 100, 50)).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize((64, 64)))
    assert load(image).pixels.tobytes() == fetch_image(image).tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_how_a_camera_was_held_is_not_heeded(kind: str, orientation: int) -> None:
    """As in the model card's code (qwen_vl_utils, fetch_image), and unlike vLLM's endpoints."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    held = saved(MAP, kind, exif=exif)
    opened = Image.open(io.BytesIO(held))
    assert opened.getexif()[0x0112] == orientation
    assert load(held) == load(opened) == load(encoded(MAP, kind))
    assert load(held).pixels.tobytes() == fetch_image(Image.open(io.BytesIO(held))).tobytes()


def test_reading_many_images_leaves_the_warnings_of_the_process_alone() -> None:
    """`warnings.catch_warnings` in several threads at once may leave them changed for good."""
    before = list(warnings.filters)

    async def load_all() -> None:
        documents = [Document(image=encoded(picture(64, 64, (at, at, at)))) for at in range(200)]
        loaded = await MediaLoader().of_documents(VISION, documents, range(200))
        assert not [one for one in loaded if isinstance(one, DocumentError)]
        assert None not in loaded

    asyncio.run(load_all())
    assert warnings.filters == before


def test_the_first_frame_of_an_animation_is_read() -> None:
    buffer = io.BytesIO()
    frames = [picture(64, 64, color) for color in ("red", "blue")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert load(buffer.getvalue()).pixels.getpixel((60, 30))[0] > 200


def test_identity_before_loading_and_after() -> None:
    assert medium_identity(PNG) == medium_identity(bytearray(PNG)) != medium_identity(encoded(MAP, "GIF"))
    assert medium_identity(Path("a.png")) == medium_identity("a.png") != medium_identity("b.png")
    assert medium_identity(MAP) != medium_identity(MAP.copy())
    assert load(PNG).key == load(MAP.copy()).key != load(picture(320, 200, "lightblue", "Nanjing")).key
    # The same bytes in another shape.
    assert load(Image.new("RGB", (64, 128))).key != load(Image.new("RGB", (128, 64))).key


# --- what is refused --------------------------------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says it is large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "its 0 bytes are not those of an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not those of an image; .*PNG.* can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not those of an image"),
        (PNG[: len(PNG) // 2], "damaged"),
        (bomb(30000, 30000), "more than 64 million pixels: reduce it"),
        (bomb(9000, 9000), "more than 64 million pixels: reduce it"),
        (Image.new("1", (9000, 9000)), "more than 64 million pixels: reduce it"),
        (bytes(21 << 20), "more than 20 MiB"),
        ("data:image/png;base64", "a data URI without data"),
        ("data:image/png;base64,not base64!", "not base64"),
        ("data:image/png;base64," + "A" * (61 << 20), "more than 20 MiB"),
        (Image.new("RGB", (5, 1005)), "measures 5 x 1005 pixels, .* 200 times"),
        (5, "of type int; give a path"),
        ({"url": "https://example.com/a.png"}, "of type dict"),
        ("https://example.com/a.png", "only fetched with allow_remote_images=True"),
        ("HTTP://example.com/a.png", "only fetched with allow_remote_images=True"),
        ("a.png", "'a.png' is a local path, .* only read below root_path: set it"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) and len(value) < 99 else "image",
)
def test_bad_images_say_what_to_do(image: Any, reason: str) -> None:
    refused(image, reason)


def jpeg_of_many_passes(more: int) -> bytes:
    """Its last pass, of a hundred bytes, so many times more; each takes as long as any other."""
    data = saved(Image.new("RGB", (600, 600), "red"), "JPEG", progressive=True)
    last = data[data.rfind(b"\xff\xc4") : -2]
    assert b"\xff\xda" in last
    assert len(last) < 200
    return data[:-2] + last * more + b"\xff\xd9"


def tiff(tags: dict[int, int], data: bytes) -> bytes:
    """A TIFF of 64 x 64 pixels of grey, with `data` as its only tile or strip."""
    tags = {256: 64, 257: 64, 258: 8, 259: 1, 262: 1, 277: 1, **tags}
    offset = 14 + 12 * len(tags)
    for tag in (273, 324):
        if tag in tags:
            tags[tag] = offset
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def test_small_files_that_take_long_are_refused_before_they_are_decoded() -> None:
    assert load(jpeg_of_many_passes(50)).pixels.getpixel((5, 5))[0] > 250
    refused(jpeg_of_many_passes(200), "a JPEG of more than 100 passes: save it again")
    huge = {322: 24000, 323: 24000, 324: 0, 325: 9, 259: 8}  # one tile, of which it shows the first 64 x 64
    refused(tiff(huge, zlib.compress(bytes(9))), "more than 64 million pixels")
    tile = {322: 64, 323: 64, 324: 0, 325: 64 * 64}
    assert load(tiff(tile, bytes(64 * 64))).pixels.getpixel((5, 5)) == (0, 0, 0)
    grey = saved(Image.new("L", (64, 64), 77), "JPEG", progressive=True)
    strip = {273: 0, 278: 64, 259: 7}
    assert load(tiff({**strip, 279: len(grey)}, grey)).pixels.getpixel((5, 5)) == (77, 77, 77)
    many = grey[:-2] + grey[grey.rfind(b"\xff\xc4") : -2] * 200 + grey[-2:]
    refused(tiff({**strip, 279: len(many)}, many), "a JPEG of more than 100 passes: save it again")


def test_models_that_only_read_refuse_images() -> None:
    with pytest.raises(DocumentError, match="Document 7 has an image, but the model only reads text"):
        asyncio.run(MediaLoader().load(None, MAP, "Document 7", 7))


def test_paths_stay_below_the_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "images", tmp_path / "secret"
    for folder in (root / "maps", outside):
        folder.mkdir(parents=True)
        (folder / "china.png").write_bytes(PNG)
    (root / "link.png").symlink_to(outside / "china.png")
    (root / "inside.png").symlink_to(root / "maps" / "china.png")
    (root / "folder").symlink_to(outside)
    (tmp_path / "alias").symlink_to(root)
    os.mkfifo(root / "pipe.png")
    (root / "large.png").write_bytes(bytes((20 << 20) + 1))
    (root / "text.png").write_text("no image")

    for path in ("maps/china.png", "inside.png"):
        assert load(path, root).tokens == 60
    assert load(str(root / "maps" / "china.png"), root).tokens == 60
    assert load(str(tmp_path / "alias" / "maps" / "china.png"), tmp_path / "alias").tokens == 60  # a root may be a link
    for path in (
        "../secret/china.png",
        "maps/../maps/china.png",
        str(outside / "china.png"),
        f"{root}/../secret/china.png",
        f"{root}s/china.png",
        "link.png",
        "folder/china.png",
        "/etc/passwd",
    ):
        refused(path, "does not lie below root_path", root)
    for path in ("missing.png", "maps", "", "pipe.png"):
        refused(path, "there is no file", root)
    refused("large.png", "larger than 20 MiB", root)
    refused("text.png", "not those of an image", root)
    refused("file:///etc/passwd", "neither a local path nor an http", root)
    refused("a\0.png", "neither a local path", root)
    refused("a" * 300, r"cannot be read|no file", root)


# --- sizes and tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height"),
    [(1, 1), (20, 20), (31, 33), (64, 64), (97, 233), (320, 200), (640, 480), (1920, 1080), (4000, 3000), (600, 3)],
)
def test_sizes_are_those_of_qwen_vl_utils(width: int, height: int) -> None:
    high, wide = smart_resize(height, width)
    assert VISION.size(width, height) == (wide, high)


def test_a_size_is_its_own_size() -> None:
    """Otherwise vLLM and transformers would resize again, and count other tokens."""
    small = replace(VISION, min_pixels=4096, max_pixels=65536)
    for vision in (VISION, small):
        for width in (*range(1, 200, 7), 333, 1000, 3333):
            for height in (1, 5, 16, 31, 48, 100, 640, 2000):
                if max(width, height) <= 200 * min(width, height):
                    size = vision.size(width, height)
                    assert vision.size(*size) == size
                    assert vision.min_pixels <= size[0] * size[1] <= vision.max_pixels


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="needs torchvision")
def test_sizes_are_those_of_transformers() -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as of_transformers

    for width, height in ((64, 64), (97, 233), (320, 200), (1920, 1080), (4000, 3000)):
        high, wide = of_transformers(height, width, FACTOR, MIN_PIXELS, MAX_PIXELS)
        assert VISION.size(width, height) == (wide, high)
