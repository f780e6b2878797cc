"""Requests to servers that may be slow, broken or hostile, and their answers: bounded, and never showing the API key.

* Each request has one deadline until its last byte, so a server that sends its answer slowly delays no call for longer.
* Answers have a maximum size, and must not be compressed: a small answer cannot become a large one here.
* Every error of sending, receiving and reading becomes a `ReplicaError`, so that a retry, another server or a fallback
  comes next. It has no reference to httpx's error, because that holds the request and with it the key.
* Text of a server gets into messages only through `ServerClient.shown`, which masks the key.
"""

import asyncio
import contextlib
import email.utils
import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, TypeVar

import httpx

from winnow.errors import EngineError
from winnow.outside_text import MaskingFilter, SecretMask, shown

_Result = TypeVar("_Result")

# vLLM closes connections that are idle for 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE); we must close them first, or a request
# now and then goes out on a connection that is just being closed.
_KEEP_ALIVE_SECONDS = 3.0
# Kept connections that one request may find closed before that counts as a fault.
_CLOSED_CONNECTIONS = 3
_CONNECT_SECONDS = 5.0
_LOOKUP_SECONDS = 10.0
# Bytes of an answer. vLLM writes about 60 for a prompt, and 600 for each model and adapter that it serves.
_MOST_BYTES = 4 << 20
_MOST_BYTES_OF_A_PROMPT = 1 << 10
# Characters of an answer that are read for a message: masking a key in all its spellings takes a while.
_MOST_OF_A_MESSAGE = 1 << 16
# The longest Retry-After that counts, in seconds.
_LONGEST_PAUSE = 300.0
# Worth another try, there or elsewhere; so is all that is neither a success nor the client's fault (1xx, 3xx, 5xx), but
# for 501, with which vLLM refuses what a model cannot do.
_TRY_AGAIN = {408, 425, 429}
# The request is at fault: vLLM's answer to token ids that it does not know, and a gateway's to too many bytes.
_REFUSED = {400, 413, 422}
# They log the first line of an answer, and on level DEBUG its headers.
_LOGGERS = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy", "httpcore.socks")


class ReplicaError(EngineError):
    """A server did not answer as it should. A retry there or on another server may succeed.

    Attributes:
        retry_after: Seconds that the server asks to wait before the next request.
    """

    def __init__(self, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.retry_after = retry_after


class RefusedError(EngineError):
    """A server refused a request, for example because of one of its prompts."""


class NotThereError(EngineError):
    """The server has no such path."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer and its connection. `body` is empty if `fault` says why it was not read."""

    status: int
    retry_after: float | None
    connection: Any
    body: bytes = b""
    fault: str = ""


class ServerClient:
    """Sends requests to servers. Their API key goes into the Authorization header and is shown nowhere.

    Args:
        api_key: The key; None for none.
        timeout: Seconds for one request, from connecting to the last byte of the answer.
    """

    def __init__(self, api_key: str | None, timeout: float):
        self._timeout = timeout
        self._connect = min(timeout, _CONNECT_SECONDS)
        self._mask = SecretMask(api_key)
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(None, connect=self._connect),  # `ask` has the deadline
            limits=httpx.Limits(max_connections=None, keepalive_expiry=_KEEP_ALIVE_SECONDS),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # a server could send ever more of them
        )
        self._filter = MaskingFilter(self._mask)
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self._filter)

    async def aclose(self) -> None:
        """Close the connections."""
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self._filter)
        await self._client.aclose()

    def shown(self, text: str) -> str:
        """Text of a server for a message: without the key, on one line, escaped and cut."""
        return shown(self._mask(_beginning(text)))

    async def ask(
        self,
        method: str,
        url: str,
        read: Callable[[Any], _Result],
        *,
        body: bytes | None = None,
        request_id: str | None = None,
        prompts: int = 0,
    ) -> _Result:
        """Send a request to a server, and read its answer.

        Args:
            method: "POST", or "GET", for which a server has less time.
            url: The whole address.
            read: Makes the result from the answer's JSON. If it raises an `EngineError`, that is raised; any other
                error means that the answer is invalid.
            body: The body, in JSON.
            request_id: An id that the server may use for the request.
            prompts: How many prompts the answer is about; it may be larger with more.

        Raises:
            ReplicaError: There is no answer in time, the answer is invalid, or its status allows a retry.
            RefusedError: The server refused the request.
            NotThereError: It has no such path.
            EngineError: It refused the key, or there is another fault that is not a prompt's.
        """
        headers = {} if body is None else {"Content-Type": "application/json"}
        if request_id is not None:
            headers["X-Request-Id"] = request_id
        request = {"method": method, "url": url, "headers": headers, "content": body}
        seconds = min(self._timeout, _LOOKUP_SECONDS) if method == "GET" else self._timeout
        answer = await self._answer(request, seconds, _MOST_BYTES + prompts * _MOST_BYTES_OF_A_PROMPT)
        try:
            return self._result(url, answer, read)
        except EngineError:
            # More data on this connection may be wrong, too: h11 would take it for the answer to the next request.
            await answer.connection.aclose()
            raise

    def _result(self, url: str, answer: _Answer, read: Callable[[Any], _Result]) -> _Result:
        if 200 <= answer.status < 300:
            return self._read(url, answer, read)
        message = f"{url} answered {answer.status}: {self._said(answer)}"
        if 300 <= answer.status < 400:
            message += ". Redirects are not followed: give the address that answers"
        if answer.status in _TRY_AGAIN or (not 400 <= answer.status < 500 and answer.status != 501):
            raise ReplicaError(message, answer.retry_after)
        if answer.status in (401, 403):
            raise EngineError(f"{message}. Check api_key.")
        if answer.status in _REFUSED:
            raise RefusedError(message)
        raise (NotThereError if answer.status in (404, 405, 501) else EngineError)(message)

    async def _answer(self, request: dict[str, Any], seconds: float, most: int) -> _Answer:
        url = request["url"]
        connection = _Connection()
        try:
            async with asyncio.timeout(seconds):
                return await self._exchange(request, connection, most)
        except TimeoutError:
            what = "only a part of its answer" if connection.answers else "no answer"
            problem = _too_slow(what, seconds)
        except httpx.ConnectTimeout:
            problem = _too_slow("no connection", self._connect)
        except Exception as error:  # noqa: BLE001 - of httpx, h11, TLS, codecs …: the server causes all of them
            problem = f"{type(error).__name__}: {self.shown(str(error))}".rstrip(": ")
        # Raised outside of `except`: the error of httpx would be its context, and holds the request with the key.
        raise ReplicaError(f"{url}: {problem}")

    async def _exchange(self, request: dict[str, Any], connection: "_Connection", most: int) -> _Answer:
        """Send a request and receive its answer.

        A server may close a kept connection just when a request is sent on it. That is no fault: it is sent again.
        """
        for tries_left in reversed(range(_CLOSED_CONNECTIONS)):
            connection.is_new = False
            built = self._client.build_request(**request, extensions={"trace": connection.trace})
            try:
                response = await self._client.send(built, stream=True)
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
                if connection.is_new or not tries_left:
                    raise
                continue
            try:
                connection.answers = True
                return await _received(response, most)
            finally:
                await response.aclose()
        raise AssertionError("the last try returns or raises")

    def _read(self, url: str, answer: _Answer, read: Callable[[Any], _Result]) -> _Result:
        problem = self.shown(answer.fault)
        if not problem:
            try:
                return read(json.loads(answer.body))
            except EngineError:
                raise
            except Exception as error:  # noqa: BLE001 - every error means that the answer is invalid
                problem = f"{type(error).__name__}: {self.shown(str(error))}"
        # Outside of `except`, because the error may quote what the server wrote.
        raise ReplicaError(f"{url} does not answer as vLLM does ({problem}): {self._said(answer)}")

    def _said(self, answer: _Answer) -> str:
        """The text of a server's answer, for a message."""
        text = answer.body.decode(errors="replace")
        said = answer.fault or _message_in(text)
        if said is None:  # a gateway's page; the key is masked first, because a part of it may look like a tag
            said = re.sub(r"<[^<>]*>", " ", self._mask(_beginning(text)))
        return self.shown(said) or "(nothing)"


class _Connection:
    """Learns from httpx on which connection a request is sent.

    Attributes:
        is_new: Whether the connection was made for this request.
        answers: Whether the answer has begun.
    """

    def __init__(self) -> None:
        self.is_new = False
        self.answers = False

    async def trace(self, event: str, _: dict[str, Any]) -> None:
        """Called by httpx (its `trace` extension) with names of events; "connection.connect_tcp.started" is one."""
        self.is_new |= event.startswith("connection.connect")


async def _received(response: httpx.Response, most: int) -> _Answer:
    headers = response.headers
    answer = _Answer(
        response.status_code, _retry_after(headers.get("retry-after", "")), response.extensions["network_stream"]
    )
    packing = headers.get("content-encoding", "identity")
    if packing.strip().lower() not in ("identity", ""):
        return replace(answer, fault=f"packed as {packing}, which was not asked for")
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > most:
            return replace(answer, fault=f"more than {most >> 20} MiB")
    return replace(answer, body=bytes(body))


def _too_slow(what: str, seconds: float) -> str:
    hint = "If the server is only slow, raise engine_kwargs timeout, or lower chunk_size or concurrency."
    return f"{what} within {seconds:g} seconds. {hint}"


def _beginning(text: str) -> str:
    """Enough of a text for a message. It does not end within a word, which may be the key."""
    return text if len(text) <= _MOST_OF_A_MESSAGE else text[:_MOST_OF_A_MESSAGE].rsplit(None, 1)[0]


def _message_in(text: str) -> str | None:
    """The message in an error of vLLM or FastAPI; None if it is neither."""
    with contextlib.suppress(Exception):
        content = json.loads(text)
        content = content.get("error", content.get("detail", content))
        return str(content["message"] if isinstance(content, dict) and "message" in content else content)
    return None


def _retry_after(value: str) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date (RFC 9110, 10.2.3); None for none and for junk."""
    try:
        if value.isascii() and value.isdecimal():
            seconds = float(value)
        else:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, IndexError, OverflowError, OSError):
        return None
    return min(seconds, _LONGEST_PAUSE) if seconds > 0 else None
