"""Images before they reach a model: where they may come from, what is refused, sizes and the prompt's budget."""

import asyncio
import base64
import importlib.util
import io
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tiny_families import qwen_like
from tiny_vision import FACTOR, MAX_PIXELS, MIN_PIXELS, encoded, picture, smart_resize
from winnow import DocumentError, Prompt
from winnow.images import ImageLoader, image_identity
from winnow.limits import Limits
from winnow.prompts import PromptBuilder
from winnow.remote_images import ImageError, fetch, is_public, resolve
from winnow.templates import built_in
from winnow.tokenization import PromptTokenizer
from winnow.vision import PromptImage, Vision

TOKENIZER = PromptTokenizer(qwen_like())
VISION = Vision(
    side=FACTOR,
    min_pixels=MIN_PIXELS,
    max_pixels=MAX_PIXELS,
    placeholder="<|vision_start|><|image_pad|><|vision_end|>",
    token_id=TOKENIZER.control_tokens["<|image_pad|>"],
)
MAP = picture(320, 200, "lightblue", "Beijing")
PNG = encoded(MAP)


def load(image: Any, root: Path | None = None, *, remote: bool = False) -> PromptImage:
    return asyncio.run(ImageLoader(root, allow_remote=remote).load(VISION, image, "Document 7", 7))


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


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "LA"])
def test_modes_become_rgb(mode: str) -> None:
    image = Image.new("I;16", (64, 64), 300) if mode == "I;16" else picture(64, 64, "red").convert(mode)
    assert load(image).pixels.mode == "RGB"


def test_what_is_transparent_becomes_white() -> None:
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    assert load(encoded(clear)).pixels.getpixel((5, 5)) == (255, 255, 255)


def test_the_first_frame_of_an_animation_is_read() -> None:
    buffer = io.BytesIO()
    frames = [picture(64, 64, color) for color in ("red", "blue")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert load(buffer.getvalue()).pixels.getpixel((60, 30))[0] > 200


def test_identity_before_loading_and_after() -> None:
    assert image_identity(PNG) == image_identity(bytearray(PNG)) != image_identity(encoded(MAP, "GIF"))
    assert image_identity(Path("a.png")) == image_identity("a.png") != image_identity("b.png")
    assert image_identity(MAP) != image_identity(MAP.copy())
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


def test_models_that_only_read_refuse_images() -> None:
    with pytest.raises(DocumentError, match="Document 7 has an image, but the model only reads text"):
        asyncio.run(ImageLoader().load(None, MAP, "Document 7", 7))


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

    assert load("maps/china.png", root).tokens == 60
    assert load(str(root / "maps" / "china.png"), root).tokens == 60
    assert load(str(tmp_path / "alias" / "maps" / "china.png"), tmp_path / "alias").tokens == 60  # a root may be a link
    for path in (
        "../secret/china.png",
        "maps/../maps/china.png",
        str(outside / "china.png"),
        f"{root}/../secret/china.png",
        f"{root}s/china.png",
        "link.png",
        "inside.png",
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


# --- web addresses ----------------------------------------------------------------------------------------------------


class Site(BaseHTTPRequestHandler):
    """A few pages; every request is kept in `server.seen`."""

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))  # type: ignore[attr-defined]
        path = self.path.partition("?")[0]
        if path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", path.removeprefix("/to/") or "/to/")
            self.end_headers()
        elif path == "/map.png":
            self._send(PNG)
        elif path == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                pass
        elif path == "/slow":
            self.server.stop.wait(5)  # type: ignore[attr-defined]
        else:
            self.send_error(404)

    def _send(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """No log."""


@pytest.fixture
def site() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.seen, server.stop = [], threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.stop.set()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


class ToSite(httpx.AsyncHTTPTransport):
    """The network, in which every address leads to one local server."""

    def __init__(self, port: int):
        super().__init__()
        self.port = port
        self.asked: list[tuple[str, str, Any]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.url.host, request.headers["host"], request.extensions.get("sni_hostname")))
        request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=self.port)
        return await super().handle_async_request(request)


def names(**addresses: list[str]) -> Callable[[str, int], Any]:
    async def resolver(host: str, port: int) -> list[str]:
        if host.replace(".", "_") not in addresses:
            raise OSError("unknown name")
        return addresses[host.replace(".", "_")]

    return resolver


PUBLIC = names(pictures_example=["93.184.215.14"], other_example=["2606:2800:21f:cb07:6820:80da:af6b:8b2c"])


def fetched(site: ThreadingHTTPServer, url: str, resolver: Any = PUBLIC, **limits: Any) -> tuple[bytes, ToSite]:
    transport = ToSite(site.server_port)
    return asyncio.run(fetch(url, resolver=resolver, transport=transport, **limits)), transport


def test_an_image_is_fetched_from_the_address_that_was_checked(site: ThreadingHTTPServer) -> None:
    data, network = fetched(site, "https://pictures.example/map.png?key=1")
    assert data == PNG
    assert network.asked == [("93.184.215.14", "pictures.example", "pictures.example")]
    ((path, headers),) = site.seen  # type: ignore[attr-defined]
    assert path == "/map.png?key=1"
    assert headers["Host"] == "pictures.example"


def test_redirects_are_followed_and_each_is_checked(site: ThreadingHTTPServer) -> None:
    data, network = fetched(site, "http://pictures.example/to/http://other.example:81/map.png")
    assert data == PNG
    assert [host for _, host, _ in network.asked] == ["pictures.example", "other.example:81"]
    inside = names(pictures_example=["93.184.215.14"], inner_example=["10.0.0.5"])
    for target in ("http://inner.example/map.png", "http://127.0.0.1/map.png", "file:///etc/passwd"):
        with pytest.raises(ImageError, match=r"private network|no http\(s\) address|not found"):
            fetched(site, f"http://pictures.example/to/{target}", inside)
    with pytest.raises(ImageError, match=r"http://pictures\.example/to/ redirects more than 5 times"):
        fetched(site, "http://pictures.example/to/")


async def literal(host: str, port: int) -> list[str]:
    return await resolve(host, port)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1"),
        *("0.0.0.0", "[::1]", "[::]", "[fe80::1]", "[fc00::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]"),  # noqa: S104
        *("2130706433", "0x7f.1", "127.1"),
    ],
)
def test_private_networks_are_refused(site: ThreadingHTTPServer, host: str) -> None:
    with pytest.raises(ImageError, match=r"is on a private network|not found|malformed"):
        fetched(site, f"http://{host}:{site.server_port}/map.png", literal)
    assert not site.seen  # type: ignore[attr-defined]


def test_a_name_with_one_private_address_is_refused(site: ThreadingHTTPServer) -> None:
    with pytest.raises(ImageError, match=r"private network \(10\.0\.0\.5\).*give its bytes"):
        fetched(site, "http://mixed.example/map.png", names(mixed_example=["93.184.215.14", "10.0.0.5"]))


def test_public_addresses() -> None:
    public = ("93.184.215.14", "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:8.8.8.8")
    assert all(map(is_public, public))
    private = ("224.0.0.1", "240.0.0.1", "255.255.255.255", "198.18.0.1", "2002:7f00:1::", "2001:0:1::", "ff02::1")
    assert not any(map(is_public, private))
    assert not is_public("fe80::1%eth0")
    assert not is_public("fec0::1")


@pytest.mark.parametrize(
    ("path", "limits", "reason"),
    [
        ("missing.png", {}, r"http://pictures\.example/missing\.png answered with 404"),
        ("map.png", {"max_bytes": 100}, "holds more than 0 MiB"),
        ("endless", {"max_bytes": 1 << 20}, "holds more than 1 MiB"),
        ("slow", {"max_seconds": 0.3}, r"did not answer in full within 0\.3 s|could not be fetched \(ReadTimeout"),
    ],
)
def test_limits_of_the_web(site: ThreadingHTTPServer, path: str, limits: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        fetched(site, f"http://pictures.example/{path}", **limits)


def test_errors_show_no_secrets(site: ThreadingHTTPServer) -> None:
    with pytest.raises(ImageError) as caught:
        fetched(site, "http://user:word@pictures.example/missing.png?token=abc")
    assert "word" not in str(caught.value)
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://", "https:///a.png", "http://[::1", "http://unknown.example/a.png"])
def test_addresses_that_lead_nowhere(site: ThreadingHTTPServer, url: str) -> None:
    with pytest.raises(ImageError):
        fetched(site, url)


def test_a_local_server_is_private_to_the_whole_way_in(site: ThreadingHTTPServer) -> None:
    with pytest.raises(
        DocumentError, match=r"Document 7 has an image .*http://127\.0\.0\.1:\d+/map\.png is on a private"
    ):
        load(f"http://127.0.0.1:{site.server_port}/map.png", remote=True)
    assert not site.seen  # type: ignore[attr-defined]


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
    small = Vision(side=FACTOR, min_pixels=4096, max_pixels=65536, placeholder="", token_id=0)
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


# --- prompts ----------------------------------------------------------------------------------------------------------

SMALL = load(picture(64, 64, "red"))
LARGE = load(MAP)


def builder(**limits: Any) -> PromptBuilder:
    segments = built_in("qwen3_vl_reranker").segments(
        with_instruction=False, special_tokens={}, control_tokens=TOKENIZER.control_tokens
    )
    return PromptBuilder(TOKENIZER, segments, Limits(**{"max_length": 400, **limits}), VISION)


def text_of(prompt: Prompt) -> str:
    return TOKENIZER.decode(VISION.collapsed(prompt.ids))


def test_the_placeholder_stands_before_the_text_as_often_as_the_image_has_tokens() -> None:
    (document,) = builder().build("a query", ["a text"], query_image=SMALL, images=[LARGE])
    (prompt,) = document.prompts
    mark = "<|vision_start|><|image_pad|><|vision_end|>"
    assert f"<Query>:{mark}a query\n<Document>:{mark}a text<|im_end|>" in text_of(prompt)
    assert prompt.ids.count(VISION.token_id) == 4 + 60
    assert prompt.images == (SMALL, LARGE)
    assert VISION.expanded(VISION.collapsed(prompt.ids), prompt.images) == prompt.ids
    plain = builder().build("a query", ["a text"])[0]
    assert len(prompt.ids) == len(plain.prompts[0].ids) + 4 + 60 + 2 * 2
    assert document.document_tokens == plain.document_tokens + 60 + 2


def test_placeholders_that_a_text_spells_are_text() -> None:
    spelled = "<|vision_start|><|image_pad|><|vision_end|>"
    (prompt,) = builder().build(spelled, [spelled], images=[SMALL])[0].prompts
    assert prompt.ids.count(VISION.token_id) == 4


def test_prompts_with_other_images_are_other_prompts() -> None:
    other = load(picture(64, 64, "blue"))
    ids = builder().build("q", ["d"], images=[SMALL])[0].prompts[0].ids
    assert Prompt(ids, images=(SMALL,)).key != Prompt(ids, images=(other,)).key != Prompt(ids).key
    assert Prompt(ids, images=(SMALL,)) != Prompt(ids, images=(other,))
    assert Prompt(ids, images=(SMALL,)).key == Prompt(list(ids), images=(load(encoded(picture(64, 64, "red"))),)).key


@pytest.mark.parametrize("length", [440, 450, 501])
def test_texts_are_cut_to_what_images_leave(length: int) -> None:
    texts = ["word " * 1000, "word " * 1000, "short", ""]
    built = builder(max_length=length).build(
        "query " * 100, texts, query_image=SMALL, images=[LARGE, None, LARGE, SMALL]
    )
    assert [len(document.prompts) for document in built] == [1, 1, 1, 1]
    sizes = [len(document.prompts[0].ids) for document in built]
    assert all(size <= length for size in sizes)
    assert min(sizes[:2]) >= length - 2
    assert [document.truncated for document in built] == [True, True, False, False]
    for document, tokens in zip(built, (64, 4, 64, 8), strict=True):
        assert document.prompts[0].ids.count(VISION.token_id) == tokens
    assert all(document.query_truncated for document in built)


def test_most_tokens_of_a_document_and_a_query_count_their_images() -> None:
    built = builder(max_document_tokens=70).build("q", ["word " * 99, "word " * 99], images=[LARGE, None])
    assert [document.document_tokens for document in built] == [70, 70]
    assert built[0].truncated
    whole = builder().build("", ["d"], query_image=SMALL)[0].prompts[0]
    capped = builder(max_query_tokens=9).build("query " * 50, ["d"], query_image=SMALL)[0]
    assert capped.query_truncated
    assert len(capped.prompts[0].ids) == len(whole.ids) + 3  # nine, less four of the image and its two marks


def test_images_without_room_are_errors_and_not_cut() -> None:
    with pytest.raises(DocumentError, match=r"Document 0 has an image of 60 tokens \(320 x 192 .*room for 48;"):
        builder(max_document_tokens=50).build("q", ["d"], images=[LARGE])
    with pytest.raises(DocumentError, match=r"The query has an image of 60 tokens .*room for 48;"):
        builder(max_query_tokens=50).build("q", ["d"], query_image=LARGE)
    errors: dict[int, DocumentError] = {}
    built = builder(max_document_tokens=50).build(
        "q", ["a", "b"], images=[LARGE, SMALL], positions=[8, 9], errors=errors
    )
    assert list(errors) == [8]
    assert [len(document.prompts) for document in built] == [0, 1]
    exact = builder(max_document_tokens=62).build("q", ["cut away"], images=[LARGE])[0]
    assert (exact.document_tokens, exact.truncated) == (62, True)


def test_an_overflow_beside_an_image_is_an_error_or_makes_windows() -> None:
    text = " ".join(f"word{number}" for number in range(100))
    with pytest.raises(DocumentError, match=r"Document 0 \(\d+ characters\) does not fit: the prompt leaves 38 tokens"):
        builder(max_document_tokens=100, on_overflow="error").build("q", [text], images=[LARGE])
    document = builder(max_document_tokens=100, on_overflow="window").build("q", [text], images=[LARGE])[0]
    assert len(document.prompts) > 3
    assert all(prompt.images == (LARGE,) and prompt.ids.count(VISION.token_id) == 60 for prompt in document.prompts)
    assert text_of(document.prompts[-1]).count("word99<|im_end|>") == 1
