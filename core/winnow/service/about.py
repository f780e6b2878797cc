"""What the service says of itself: its models, its health, its version, its metrics."""

import time
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from starlette.responses import Response

from winnow.service.errors import Json, ServiceError
from winnow.service.life import Life
from winnow.service.scorer import Scorer


def about_routes(scorer: Scorer, life: Life) -> APIRouter:
    """The routes without scores."""
    router = APIRouter(tags=["about"])
    created = int(time.time())

    def model_card(name: str) -> dict[str, Any]:
        checkpoint = scorer.reranker.checkpoint
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "winnow",
            "root": scorer.reranker.config.model,  # from which `vllm bench serve` loads the tokenizer
            "max_model_len": None if checkpoint is None else checkpoint.max_length,
            "parent": None if name not in scorer.config.presets else next(iter(scorer.models)),
            "model_type": "rerank",  # for Xinference's client
        }

    @router.get("/v1/models")
    async def models() -> Response:
        """The names under which the model is served; the first is the default."""
        return Json({"object": "list", "data": [model_card(name) for name in scorer.models]})

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """One of them."""
        return Json(model_card(scorer.name_of(name)))

    @router.get("/v1/cluster/auth", include_in_schema=False)
    async def auth() -> Response:
        """Xinference's client sends its key only if this says that there are keys."""
        return Json({"auth": bool(scorer.config.keys)})

    @router.get("/health")
    async def health() -> Response:
        """Whether the process should go on; also while it loads the model."""
        if not life.is_healthy:
            raise ServiceError(503, "The engine does not start any more; the server's log says why.")
        return Json({"status": "ok"})

    @router.get("/ready")
    async def ready() -> Response:
        """Whether requests are answered: from the engine's first score on, until it ends or dies."""
        life.refuse_unless_ready()
        return Json({"status": "ready"})

    @router.get("/ping")
    @router.post("/ping", include_in_schema=False)
    async def ping() -> Response:
        """The same as `/ready`, for SageMaker."""
        return await ready()

    @router.get("/version")
    async def version_of() -> Response:
        """Winnow's version."""
        return Json({"version": version("winnow-rerank")})

    @router.get("/metrics")
    def metrics() -> Response:
        """Metrics of the service, the reranker and the engine, for Prometheus."""
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    return router
