"""Images from web addresses: what is fetched, from where, and what never is."""

import asyncio
import ipaddress
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from tiny_vision import encoded, load, picture
from winnow import DocumentError
from winnow.public_addresses import is_public
from winnow.remote_images import ImageError, fetch, resolve

PNG = encoded(picture(320, 200, "lightblue", "Beijing"))


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
        *("192.0.0.192", "168.63.129.16", "[::ffff:168.63.129.16]", "[64:ff9b::a83f:8110]", "[fd00:ec2::254]"),
    ],
)
def test_private_networks_are_refused(site: ThreadingHTTPServer, host: str) -> None:
    with pytest.raises(ImageError, match=r"is on a private network|not found|malformed"):
        fetched(site, f"http://{host}:{site.server_port}/map.png", literal)
    assert not site.seen  # type: ignore[attr-defined]


def test_a_name_with_one_private_address_is_refused(site: ThreadingHTTPServer) -> None:
    with pytest.raises(ImageError, match=r"private network \(10\.0\.0\.5\).*give its bytes"):
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
