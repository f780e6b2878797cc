"""The application: routes, and the checks that each request passes before them."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from winnow.observability import metrics
from winnow.ranking import Reranker
from winnow.service import errors
from winnow.service.about import about_routes
from winnow.service.bodies import BodyLimits
from winnow.service.config import ServiceConfig
from winnow.service.errors import ClientGoneError
from winnow.service.keys import OPEN_PATHS, KeyCheck
from winnow.service.life import Life
from winnow.service.nvidia import ranking_routes
from winnow.service.page import PAGE_PATHS, page_routes
from winnow.service.request_log import CLIENT_GONE, RequestLog
from winnow.service.rerank import rerank_routes
from winnow.service.score import score_routes
from winnow.service.scorer import Scorer
from winnow.service.shown_prompt import prompt_routes


class _App(FastAPI):
    """Its description says which paths need a key, so that tools such as the page `/docs` ask for it.

    Attributes:
        open_paths: Those that need none; None if no path needs one.
    """

    open_paths: Collection[str] | None = None

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI description."""
        is_made = self.openapi_schema is not None
        schema = super().openapi()
        if not is_made and self.open_paths is not None:
            schema.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"key": []}]
            for path in schema["paths"].keys() & set(self.open_paths):
                for operation in schema["paths"][path].values():
                    operation["security"] = []
        return schema


def create_app(reranker: Reranker, config: ServiceConfig | None = None) -> FastAPI:
    """The service as an ASGI application. It loads the model when it is started, and frees it when it ends.

    `app.state` has its `life` and its `scorer`.

    Args:
        reranker: What scores. Its `raw_scores` and its `deadline` count where a request does not say.
        config: The service's settings.
    """
    config = config or ServiceConfig()
    life = Life(reranker, list(config.presets.values()))
    scorer = Scorer(reranker, config, life)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        life.begin()
        try:
            yield
        finally:
            await life.end()

    open_paths = (*OPEN_PATHS, *PAGE_PATHS, *(["/metrics"] if config.open_metrics else []))
    app = _App(
        title="Winnow",
        version=version("winnow-rerank"),
        description="Reranks documents with an LLM reranker, for the rerank clients of many vendors.",
        lifespan=lifespan,
    )
    app.open_paths = open_paths if config.keys else None
    app.state.life, app.state.scorer = life, scorer
    metrics.enable()
    errors.install(app)

    async def gone(_: Request, __: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    app.add_exception_handler(ClientGoneError, gone)
    for routes in (rerank_routes, score_routes, ranking_routes, prompt_routes):
        app.include_router(routes(scorer))
    app.include_router(about_routes(scorer, life))
    app.include_router(page_routes())
    # The last one sees a request first.
    app.add_middleware(BodyLimits, max_bytes=config.max_body_bytes, max_seconds=config.body_seconds)
    app.add_middleware(KeyCheck, keys=config.keys, open_paths=open_paths)
    app.add_middleware(RequestLog)
    return app
