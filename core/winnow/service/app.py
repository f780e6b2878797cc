"""The application: routes, and the checks that each request passes before them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

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

    app = FastAPI(
        title="Winnow",
        version=version("winnow-rerank"),
        description="Reranks documents with an LLM reranker, for the rerank clients of many vendors.",
        lifespan=lifespan,
    )
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
    open_paths = (*OPEN_PATHS, *PAGE_PATHS, *(["/metrics"] if config.open_metrics else []))
    app.add_middleware(KeyCheck, keys=config.keys, open_paths=open_paths)
    app.add_middleware(RequestLog)
    return app
