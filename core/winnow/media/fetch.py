"""Images and videos from web addresses: limited in size and time, and never from a private network.

Addresses come from documents, which may come from strangers. Unchecked, they could make this machine send requests to
machines that only it can reach (server-side request forgery). So Winnow resolves names itself, requires that every
address of a name is public, and connects to the address that it checked, also after each redirect. A name that resolves
to another address a moment later (DNS rebinding) has no effect.
"""

import asyncio
import functools
import socket
import ssl
from collections.abc import Awaitable, Callable

import httpx

from winnow.media.limits import MAX_BYTES, MediumError
from winnow.media.public_addresses import is_public
from winnow.threads import in_daemon_thread

MAX_SECONDS = 20.0
_MAX_REDIRECTS = 5
_BLANK = b" \t\r\n\xef\xbb\xbf"  # what may stand before markup: white space, and the mark of UTF-8

Resolver = Callable[[str, int], Awaitable[list[str]]]


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host. A name server that does not answer delays neither other work nor the process's exit.

    Raises:
        OSError: It has none.
    """
    found = await in_daemon_thread(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def fetch(
    url: str,
    *,
    resolver: Resolver = resolve,
    transport: httpx.AsyncBaseTransport | None = None,
    max_bytes: int = MAX_BYTES,
    max_seconds: float = MAX_SECONDS,
) -> bytes:
    """The bytes at a web address.

    Proxies of the environment are not used, because Winnow could not check which address a proxy connects to.

    Args:
        url: An http(s) address.
        resolver: Returns the addresses of a host and port.
        transport: The transport of the requests; by default the network.
        max_bytes: Most bytes that are read.
        max_seconds: Most seconds that all of it takes.

    Raises:
        MediumError: The address is malformed or not public, does not answer with 200, or is over a limit.
    """
    try:
        async with (
            asyncio.timeout(max_seconds),
            httpx.AsyncClient(
                transport=transport, trust_env=False, timeout=max_seconds, verify=_certificates()
            ) as client,
        ):
            target = _parsed(url)
            for _ in range(_MAX_REDIRECTS + 1):
                request = await _pinned(client, target, resolver)
                response = await client.send(request, stream=True)
                try:
                    if not response.has_redirect_location:
                        return await _body(response, target, max_bytes)
                    target = _parsed(str(target.join(response.headers["location"])))
                finally:
                    await response.aclose()
            raise MediumError(f"{_shown(_parsed(url))} redirects more than {_MAX_REDIRECTS} times")
    except TimeoutError:
        raise MediumError(f"{_shown(_parsed(url))} did not answer in full within {max_seconds:g} s") from None
    except MediumError:
        raise
    except Exception as error:  # strangers' addresses and servers fail in every way, also past httpx's own errors
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise MediumError(f"{_shown(_parsed(url))} could not be fetched ({reason})") from error


@functools.cache
def _certificates() -> ssl.SSLContext:
    """What certificates are checked with. Read once: for each image it would hold the event loop up for 50 ms."""
    return httpx.create_ssl_context(trust_env=False)


def _parsed(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
        host, port = parsed.host, parsed.port
    except (httpx.InvalidURL, ValueError) as error:  # the latter of characters that no name or path has
        raise MediumError(f"its address is malformed ({error})") from None
    if parsed.scheme not in ("http", "https") or not host:
        raise MediumError(f"{_shown(parsed)!r} is no http(s) address")
    if port is not None and not 0 < port < 1 << 16:
        raise MediumError(f"its address is malformed (there is no port {port})")
    return parsed


def _shown(url: httpx.URL) -> str:
    """The address without parts that may be secret.

    `outside_text.shown_address` is for malformed addresses: it hides all up to the last "@", and so it would hide the
    host of https://host/@name/picture.png.
    """
    return str(url.copy_with(username=None, password=None, query=None, fragment=None))


async def _pinned(client: httpx.AsyncClient, url: httpx.URL, resolver: Resolver) -> httpx.Request:
    """A request that goes to an address which was checked, whatever the name resolves to later."""
    host = url.host
    try:
        found = await resolver(host, url.port or (443 if url.scheme == "https" else 80))
    except (OSError, UnicodeError) as error:
        raise MediumError(f"the host {host!r} is not found ({error})") from error
    for address in found:
        if not is_public(address):
            raise MediumError(
                f"{_shown(url)} is on a private network ({address}), from which nothing is fetched: read the file, and "
                "give its bytes"
            )
    if not found:
        raise MediumError(f"the host {host!r} is not found")
    named = client.build_request("GET", url, headers={"Accept": "image/*", "Accept-Encoding": "identity"})
    # httpx's own way to connect to one address and ask for, and check the certificate of, another name.
    return httpx.Request(
        "GET",
        url.copy_with(host=found[0]),
        headers=named.headers,
        extensions={**named.extensions, "sni_hostname": host},
    )


async def _body(response: httpx.Response, url: httpx.URL, max_bytes: int) -> bytes:
    if response.status_code != 200:
        raise MediumError(f"{_shown(url)} answered with {response.status_code}")
    packed = response.headers.get("content-encoding", "identity").strip().lower()
    if packed not in ("", "identity"):
        raise MediumError(f"{_shown(url)} answered in {packed!r}, which it was not asked for")
    too_large = MediumError(f"{_shown(url)} holds more than {max_bytes >> 20} MiB")
    length = response.headers.get("content-length", "")
    if length.isdigit() and int(length) > max_bytes:
        raise too_large
    body = bytearray()
    async for piece in response.aiter_raw():  # raw: a small answer that unpacks to a large one stays small
        body += piece
        if len(body) > max_bytes:
            raise too_large
    if body[:1000].lstrip(_BLANK).startswith(b"<"):  # no image or video begins so, whatever the server calls it
        kind = response.headers.get("content-type", "text")
        raise MediumError(
            f"{_shown(url)} answered with a page or a drawing ({kind}), not with an image or a video: see in a browser "
            "whether it wants a login"
        )
    return bytes(body)
