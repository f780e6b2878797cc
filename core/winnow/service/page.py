"""The page for people at `/`: static files without data, which need no key. What the page asks for needs one."""

from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

_FOLDER = files("winnow.service") / "page"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_INDEX = "index.html"

# The page runs its own files and asks its own server, and nothing else: neither what a document might bring in nor
# another site.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}

_FILES = {
    "/" if one.name == _INDEX else f"/page/{one.name}": (one.read_bytes(), _KINDS["." + one.name.rpartition(".")[2]])
    for one in _FOLDER.iterdir()
}

PAGE_PATHS = tuple(_FILES)
"""The paths of the page, which need no key."""


def page_routes() -> APIRouter:
    """The routes of the page."""
    router = APIRouter(include_in_schema=False)

    def add(path: str, content: bytes, kind: str) -> None:
        async def file() -> Response:
            return Response(content, media_type=kind, headers=_HEADERS)

        router.add_api_route(path, file, methods=["GET", "HEAD"])

    for path, (content, kind) in _FILES.items():
        add(path, content, kind)
    return router
