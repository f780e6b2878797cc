"""Bodies of requests: read whole, within a limit of bytes and a limit of time, before the application sees them."""

import asyncio
from email.message import Message

from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

from winnow.service.errors import RETRY_BUSY, ServiceError

# Bodies that are read or answered at one time may take this many times the largest one in memory.
_BODIES_AT_ONCE = 8


class ClientLeftError(Exception):
    """The client closed the connection in the middle of the body."""


class BodyLimits:
    """Reads the body of each request, so that slow and endless ones take neither a place in the queue nor memory.

    Args:
        app: What gets the request, with its body.
        max_bytes: Most bytes of a body.
        max_seconds: Most seconds until it has come.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_seconds: float):
        self._app = app
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._held = 0  # bytes of all bodies in memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body of one request, and hand it on."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        body = bytearray()
        try:
            try:
                await self._read(headers, receive, body)
            except ServiceError as error:
                error.headers["Connection"] = "close"  # the rest of the body is never read
                await error.answer()(scope, receive, send)
            except ClientLeftError:
                return
            else:
                await self._app(scope, _once(body, receive), send)
        finally:
            self._held -= len(body)

    async def _read(self, headers: dict[bytes, bytes], receive: Receive, body: bytearray) -> None:
        """Read a body into `body`, whose length counts as held.

        A body that is too long is read to its end and dropped, because most clients look for an answer only then.
        """
        length = int(headers[b"content-length"]) if headers.get(b"content-length", b"").isdigit() else 0
        if length > self._max_bytes and b"expect" in headers:
            raise self._too_large()
        refused: ServiceError | None = None
        try:
            async with asyncio.timeout(self._max_seconds):
                more = True
                while more:
                    event = await receive()
                    if event["type"] == "http.disconnect":
                        raise ClientLeftError
                    piece, more = event.get("body", b""), event.get("more_body", False)
                    if refused is not None:
                        continue
                    body += piece
                    self._held += len(piece)
                    if max(length, len(body)) > self._max_bytes:
                        refused = self._too_large()
                    elif self._held > self._max_bytes * _BODIES_AT_ONCE:
                        refused = ServiceError(
                            429, "The server holds too many large requests at once: try again.", retry_after=RETRY_BUSY
                        )
                    if refused is not None:
                        self._held -= len(body)
                        body.clear()
        except TimeoutError:
            raise refused or ServiceError(
                408, f"The body of the request did not arrive within {self._max_seconds:g} seconds."
            ) from None
        if refused is not None:
            raise refused
        if body and not _is_json(headers.get(b"content-type", b"")):
            raise ServiceError(415, "The body must be JSON: send the header `Content-Type: application/json`.")

    def _too_large(self) -> ServiceError:
        return ServiceError(413, f"The body has more than {self._max_bytes:,} bytes: split it into several requests.")


def _is_json(content_type: bytes) -> bool:
    """Whether a body is declared as JSON. Web pages cannot send that to a server on their reader's machine."""
    kind = Message()
    kind["content-type"] = content_type.decode("latin-1")
    return kind.get_content_maintype() == "application" and kind.get_content_subtype().endswith("json")


def _once(body: bytearray, receive: Receive) -> Receive:
    """The events of a request whose body was read: all of it, then what the server says, such as a disconnect."""
    given = False

    async def next_event() -> Event:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    return next_event
