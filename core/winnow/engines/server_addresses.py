"""Addresses of vLLM servers: what they look like, and that no password is in them: it would show wherever they do."""

from collections.abc import Sequence

from winnow.errors import ConfigurationError
from winnow.outside_text import shown_address


def server_addresses(url: str | Sequence[str] | None) -> list[str]:
    """Addresses without a final slash or `/v1`, each once.

    Args:
        url: One address, or several.

    Raises:
        ConfigurationError: There is none, or one is no address of a server, or holds a password. It is not shown.
    """
    urls = [url] if isinstance(url, str) else list(url or ())
    if not urls:
        raise ConfigurationError('engine="server" needs url, the address of a vLLM server: "http://localhost:8000"')
    return list(dict.fromkeys(map(_address, urls)))


def _address(url: str) -> str:
    import httpx

    try:
        parts = httpx.URL(url.strip())
    except (httpx.InvalidURL, AttributeError):
        parts = httpx.URL("")
    if parts.userinfo or (not parts.host and "@" in str(url)):  # not shown: it holds a password
        raise ConfigurationError("url must not hold a user name or a password: give the server's key as api_key")
    if parts.scheme not in ("http", "https") or not parts.host or parts.query or parts.fragment:
        raise ConfigurationError(f'url must look like "http://localhost:8000", but got {shown_address(str(url))!r}')
    return str(parts).rstrip("/").removesuffix("/v1").rstrip("/")
