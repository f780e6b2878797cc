"""API keys: who may use the service."""

import hashlib
import hmac
from collections.abc import Collection, Sequence
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from winnow.errors import ConfigurationError
from winnow.service.errors import ServiceError

# What load balancers and orchestrators ask, who have no key; where Xinference's client asks whether it needs one; and
# the description of the API, which is the same on every server, and which a browser opens without a key.
OPEN_PATHS = ("/health", "/ready", "/ping", "/v1/cluster/auth", "/openapi.json", "/docs", "/redoc")


def keys_in_file(path: Path) -> list[str]:
    """The keys of a file, one a line; blank lines and lines that begin with "#" are none.

    Raises:
        ConfigurationError: It holds no key.
        OSError: It cannot be read.
    """
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigurationError(f"{path} holds no key: write one a line, or leave the option out.")
    return keys


class KeyCheck:
    """Answers 401 to a request without one of the keys, before anything of its body is read.

    Args:
        app: What answers requests with a key.
        keys: The keys; without any, every request is answered.
        open_paths: Paths that need no key.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], open_paths: Collection[str]):
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request."""
        if scope["type"] != "http" or not self._digests or scope["path"] in self._open_paths or self._has_key(scope):
            await self._app(scope, receive, send)
            return
        error = ServiceError(
            401,
            "A valid API key is missing: send the header `Authorization: Bearer KEY`.",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await error.answer()(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.strip().partition(b" ")
        digest = _digest(key.strip())
        # All keys are compared, each in constant time: how long it takes says nothing about them.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == b"bearer" and any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
