"""Images from web addresses: what is fetched, from where, and what never is."""

import asyncio
import contextlib
import gzip
import io
import ipaddress
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from PIL import Image

from tiny_vision import clip, encoded, load, load_video, picture, video_file
from winnow import DocumentError
from winnow.media.fetch import fetch, resolve
from winnow.media.limits import MediumError
from winnow.media.public_addresses import is_public

PNG = encoded(picture(320, 200, "lightblue", "Beijing"))


def says_its_size(width: int, height: int) -> bytes:
    """A small PNG that says how large it is."""
    header = bytearray(encoded(picture(64, 64)))
    header[16:24] = struct.pack(">II", width, height)
    header[29:33] = struct.pack(">I", zlib.crc32(header[12:29]))
    return bytes(header)


def animated(kind: str, **options: Any) -> bytes:
    """A red frame, then a blue one."""
    buffer = io.BytesIO()
    red, blue = (Image.new("RGB", (64, 64), color) for color in ("red", "blue"))
    red.save(buffer, kind, save_all=True, append_images=[blue], duration=100, **options)
    return buffer.getvalue()


def answer(*headers: str, body: bytes = b"", status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.0 {status}", *headers, "", ""]).encode() + body


PAGE = b"\xef\xbb\xbf\n<!DOCTYPE html><html><body>Log in first</body></html>"
CLIP = video_file(clip(20, 256, 128))
RAW = {
    "/named-wrongly": answer("Content-Type: text/html", body=PNG),
    "/unnamed": answer(body=PNG),
    "/clip": answer("Content-Type: text/plain", body=CLIP),
    "/page": answer("Content-Type: text/html; charset=utf-8", body=PAGE),
    "/page.png": answer("Content-Type: image/png", body=PAGE),
    "/drawing.svg": answer("Content-Type: image/svg+xml", body=b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "/json": answer("Content-Type: application/json", body=b'{"error": "not found"}'),
    "/empty": answer("Content-Length: 0"),
    "/cut": answer(f"Content-Length: {len(PNG)}", body=PNG[: len(PNG) // 2]),
    "/cut-quietly": answer(body=PNG[: len(PNG) // 2]),
    "/cut-clip": answer(body=CLIP[:-500]),
    "/chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n" + PNG,
    "/lies-about-its-length": answer("Content-Length: 99999999999", body=PNG),
    "/no-length": answer("Content-Length: many", body=PNG),
    "/packed": answer("Content-Encoding: gzip", body=gzip.compress(bytes(10 << 20))),
    "/part": answer(body=PNG, status="206 Partial Content"),
    "/nothing": answer(status="204 No Content"),
    "/unchanged": answer(status="304 Not Modified"),
    "/choices": answer(status="300 Multiple Choices", body=PNG),
    "/nowhere": answer(status="302 Found"),
    "/broken-target": answer("Location: http://[::1", status="302 Found"),
    "/no-such-port": answer("Location: http://pictures.example:99999/", status="302 Found"),
    "/no-such-name": answer("Location: http://xn--/", status="302 Found"),
    "/no-http": b"220 ftp.example ready\r\n",
    "/hangs-up": b"",
    "/headers": b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
    "/huge.png": answer(body=says_its_size(30_000, 30_000)),
    "/flat.png": answer(body=says_its_size(0, 64)),
    "/animated.gif": answer(body=animated("GIF")),
    "/animated.webp": answer(body=animated("WEBP", lossless=True)),
}


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
        elif path == "/drip":  # never quiet for long, and never done
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while not self.server.stop.wait(0.02):  # type: ignore[attr-defined]
                    self.wfile.write(b"a")
        elif path in RAW:
            self.wfile.write(RAW[path])
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
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
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
        with pytest.raises(MediumError, match=r"private network|no http\(s\) address|not found"):
            fetched(site, f"http://pictures.example/to/{target}", inside)
    with pytest.raises(MediumError, match=r"http://pictures\.example/to/ redirects more than 5 times"):
        fetched(site, "http://pictures.example/to/")


async def literal(host: str, port: int) -> list[str]:
    return await resolve(host, port)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1"),
        *("0.0.0.0", "[::1]", "[::]", "[fe80::1]", "[fc00::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]"),  # noqa: S104
        *("2130706433", "0x7f.1", "127.1"),
        *("192.0.0.192", "168.63.129.16", "[::ffff:168.63.129.16]", "[64:ff9b::a83f:8110]", "[fd00:ec2::254]"),
    ],
)
def test_private_networks_are_refused(site: ThreadingHTTPServer, host: str) -> None:
    with pytest.raises(MediumError, match=r"is on a private network|not found|malformed"):
        fetched(site, f"http://{host}:{site.server_port}/map.png", literal)
    assert not site.seen  # type: ignore[attr-defined]


def test_a_name_with_one_private_address_is_refused(site: ThreadingHTTPServer) -> None:
    with pytest.raises(MediumError, match=r"private network \(10\.0\.0\.5\).*give its bytes"):
        fetched(site, "http://mixed.example/map.png", names(mixed_example=["93.184.215.14", "10.0.0.5"]))


# What `ipaddress` of some Python says of each differs, so none of this may depend on it.
PUBLIC_ADDRESSES = (
    *("93.184.215.14", "8.8.8.8", "1.1.1.1", "192.0.1.1", "168.63.129.17", "100.63.255.255", "100.128.0.1"),
    *("2606:2800:21f:cb07:6820:80da:af6b:8b2c", "2a00:1450:4001:82a::200e", "2001:200::1"),
    *("::ffff:8.8.8.8", "64:ff9b::8.8.8.8"),
)
METADATA = (
    *("169.254.169.254", "169.254.170.2", "169.254.42.42", "168.63.129.16", "100.100.100.200", "192.0.0.192"),
    *("fd00:ec2::254", "fd20:ce::254", "fd00:42::42", "fe80::a9fe:a9fe", "fe80::a9fe:a9fe%eth0"),
)
# One address of each row of IANA's registries, and of what they leave out.
SPECIAL = (
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "169.254.1.1", "172.31.255.255"),  # noqa: S104
    *("192.0.0.1", "192.0.0.8", "192.0.0.9", "192.0.0.10", "192.0.0.170", "192.0.0.171", "192.0.2.1"),
    *("192.31.196.1", "192.52.193.1", "192.88.99.1", "192.168.1.1", "192.175.48.1", "198.19.255.255"),
    *("198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "100::1", "100:0:0:1::1", "2001:1::1", "2001:2::1", "2001:3::1", "2001:4:112::1", "2001:10::1"),
    *("2001:20::1", "2001:30::1", "2001:db8::1", "2620:4f:8000::1", "3fff::1", "5f00::1", "fc00::1", "fdff::1"),
    *("fe80::1", "fec0::1", "ff02::1", "4000::1", "200::1"),
)


def inside_ipv6(address: str) -> list[str]:
    """The ways to write an address of IPv4 as one of IPv6 that some machine or gateway takes for it."""
    number = int(ipaddress.IPv4Address(address))
    mapped, compatible, nat64, local = (
        str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) + number))
        for prefix in ("::ffff:0:0", "::", "64:ff9b::", "64:ff9b:1::")
    )
    relayed = str(ipaddress.IPv6Address((0x2002 << 112) + (number << 80) + 1))
    teredo = [
        str(ipaddress.IPv6Address((0x20010000 << 96) + (server << 64) + (client ^ 0xFFFF_FFFF)))
        for server, client in ((number, 0x08080808), (0x08080808, number))
    ]
    return [mapped, mapped.upper(), compatible, nat64, local, relayed, *teredo]


def test_public_addresses() -> None:
    assert [address for address in PUBLIC_ADDRESSES if not is_public(address)] == []
    assert [address for address in (*METADATA, *SPECIAL) if is_public(address)] == []


def test_addresses_that_hide_another_are_as_private_as_that() -> None:
    hidden = [form for address in (*METADATA, *SPECIAL) if ":" not in address for form in inside_ipv6(address)]
    assert len(hidden) > 200
    assert [address for address in hidden if is_public(address)] == []


@pytest.mark.parametrize(
    ("path", "limits", "reason"),
    [
        ("missing.png", {}, r"http://pictures\.example/missing\.png answered with 404"),
        ("map.png", {"max_bytes": 100}, "holds more than 0 MiB"),
        ("endless", {"max_bytes": 1 << 20}, "holds more than 1 MiB"),
        ("drip", {"max_seconds": 0.5}, r"did not answer in full within 0\.5 s"),
        ("slow", {"max_seconds": 0.3}, r"did not answer in full within 0\.3 s|could not be fetched \(ReadTimeout"),
    ],
)
def test_limits_of_the_web(site: ThreadingHTTPServer, path: str, limits: dict[str, Any], reason: str) -> None:
    with pytest.raises(MediumError, match=reason):
        fetched(site, f"http://pictures.example/{path}", **limits)


def shown(site: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, path: str, kind: str = "image") -> Any:
    """What becomes of an address on its whole way into a prompt, over a real connection."""

    async def by_way_of_the_site(url: str) -> bytes:
        return await fetch(url, resolver=PUBLIC, transport=ToSite(site.server_port))

    monkeypatch.setattr("winnow.media.fetch.fetch", by_way_of_the_site)
    url = f"http://pictures.example{path}"
    return load(url, remote=True) if kind == "image" else load_video(url, remote=True)


@pytest.mark.parametrize("path", ["/map.png", "/named-wrongly", "/unnamed"])
def test_the_bytes_say_what_an_answer_is_and_not_its_headers(
    site: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    assert shown(site, monkeypatch, path) == load(PNG)


@pytest.mark.parametrize("path", ["/animated.gif", "/animated.webp"])
def test_of_an_animation_the_first_frame_is_taken(
    site: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    red, green, blue = shown(site, monkeypatch, path).pixels.getpixel((30, 30))
    assert red > 240
    assert max(green, blue) < 15


def test_a_video_from_an_address(site: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(site, monkeypatch, "/clip", "video") == load_video(CLIP)
    with pytest.raises(DocumentError, match=r"a video that cannot be used: its \d+ bytes are not those of a video"):
        shown(site, monkeypatch, "/cut-clip", "video")
    with pytest.raises(DocumentError, match=r"a video .*answered with a page or a drawing \(text/html"):
        shown(site, monkeypatch, "/page", "video")


def test_frames_from_addresses(site: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few of them at once, because each may be large."""
    at_once = most = 0

    async def counted(url: str) -> bytes:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        try:
            return await fetch(url, resolver=PUBLIC, transport=ToSite(site.server_port))
        finally:
            at_once -= 1

    monkeypatch.setattr("winnow.media.fetch.fetch", counted)
    urls = [f"http://pictures.example/map.png?{at}" for at in range(12)]
    assert load_video(urls, remote=True) == load_video([PNG] * 12)
    assert 1 < most <= 4
    with pytest.raises(
        DocumentError, match=r"a video .*: of frame 1, http://pictures.example/nowhere answered with 302"
    ):
        load_video([urls[0], "http://pictures.example/nowhere"], remote=True)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/page", r"answered with a page or a drawing \(text/html; charset=utf-8\), not with an image.*a login"),
        ("/page.png", r"answered with a page or a drawing \(image/png\)"),
        ("/drawing.svg", r"answered with a page or a drawing \(image/svg\+xml\)"),
        ("/json", "its 22 bytes are not those of an image"),
        ("/empty", "its 0 bytes are not those of an image"),
        ("/cut", r"could not be fetched \(RemoteProtocolError: peer closed connection"),
        ("/cut-quietly", "it is damaged"),
        ("/chunk", r"could not be fetched \(RemoteProtocolError"),
        ("/lies-about-its-length", "holds more than 20 MiB"),
        ("/no-length", "could not be fetched"),
        ("/packed", "answered in 'gzip', which it was not asked for"),
        ("/part", "answered with 206"),
        ("/nothing", "answered with 204"),
        ("/unchanged", "answered with 304"),
        ("/choices", "answered with 300"),
        ("/nowhere", "answered with 302"),
        ("/broken-target", "could not be fetched"),
        ("/no-such-port", "its address is malformed .there is no port 99999"),
        ("/no-such-name", "malformed|could not be fetched"),
        ("/no-http", "could not be fetched"),
        ("/hangs-up", "could not be fetched"),
        ("/headers", "could not be fetched"),
        ("/huge.png", "more than 64 million pixels: reduce it"),
        ("/flat.png", "it measures 0 x 64 pixels|it is damaged|not those of an image"),
    ],
)
def test_bad_answers_are_errors_of_the_document(
    site: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, path: str, reason: str
) -> None:
    with pytest.raises(DocumentError, match=rf"Document 7 has an image that cannot be used: .*{reason}") as caught:
        shown(site, monkeypatch, path)
    assert caught.value.index == 7


def test_errors_show_no_secrets(site: ThreadingHTTPServer) -> None:
    with pytest.raises(MediumError) as caught:
        fetched(site, "http://user:word@pictures.example/missing.png?token=abc")
    assert "word" not in str(caught.value)
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        *("http://", "https:///a.png", "http://[::1", "http://unknown.example/a.png", "http://xn--/"),
        *("http://pictures.example:0/", "http://pictures.example:65536/", "http://pictures.example/\ud800"),
    ],
)
def test_addresses_that_lead_nowhere(site: ThreadingHTTPServer, url: str) -> None:
    with pytest.raises(MediumError):
        fetched(site, url)


def test_a_local_server_is_private_to_the_whole_way_in(site: ThreadingHTTPServer) -> None:
    with pytest.raises(
        DocumentError, match=r"Document 7 has an image .*http://127\.0\.0\.1:\d+/map\.png is on a private"
    ):
        load(f"http://127.0.0.1:{site.server_port}/map.png", remote=True)
    assert not site.seen  # type: ignore[attr-defined]


def test_name_servers_that_do_not_answer_hold_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """All calls of an engine share the threads of `asyncio.to_thread`."""
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait())

    async def others_go_on() -> None:
        waiting = [asyncio.ensure_future(resolve(f"{at}.example", 80)) for at in range(64)]
        await asyncio.sleep(0)  # all of them begin
        async with asyncio.timeout(60):
            assert await asyncio.to_thread(lambda: "done") == "done"
        answered.set()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(others_go_on())


def test_a_process_ends_while_a_name_server_does_not_answer() -> None:
    script = """
import asyncio, socket, time
socket.getaddrinfo = lambda *_, **__: time.sleep(3600)
from winnow.media.fetch import fetch
from winnow.media.limits import MediumError
try:
    asyncio.run(fetch("http://slow.example/map.png", max_seconds=0.1))
except MediumError as error:
    print(error)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout == "http://slow.example/map.png did not answer in full within 0.1 s\n"
