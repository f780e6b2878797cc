"""POST /v1/ranking, as NVIDIA's NIM has it: passages in, logits out."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from starlette.responses import Response

from winnow.service.documents import DOCUMENT_SCHEMA, document_of, documents_of
from winnow.service.errors import Json
from winnow.service.options import Options, required
from winnow.service.rerank import Usage
from winnow.service.scorer import Scorer
from winnow.types import finite

_EXAMPLE: dict[str, Any] = {
    "query": {"text": "what is the capital of China?"},
    "passages": [{"text": "The capital of China is Beijing."}, {"text": "Gravity attracts two bodies."}],
}


class RankingRequest(Options):
    """A query and its passages."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": [_EXAMPLE]})

    query: Annotated[Any, WithJsonSchema(DOCUMENT_SCHEMA)] = Field(None, description="What is searched for.")
    passages: Annotated[list[Any], WithJsonSchema({"type": "array", "items": DOCUMENT_SCHEMA})] | None = None


class PassageRank(BaseModel):
    """A passage's logit."""

    index: int
    logit: float


class RankingResponse(BaseModel):
    """The passages, best first."""

    rankings: list[PassageRank]
    usage: Usage


def ranking_routes(scorer: Scorer) -> APIRouter:
    """The routes of NVIDIA's clients."""
    router = APIRouter(tags=["ranking"])
    answers: dict[int | str, dict[str, Any]] = {200: {"model": RankingResponse}}

    @router.post("/ranking", responses=answers)
    @router.post("/v1/ranking", responses=answers)
    @router.post("/v1/retrieval/{model:path}/reranking", responses=answers)
    async def ranking(request: Request, body: RankingRequest) -> Response:
        """Order passages by relevance to a query, best first, with their logits."""
        _, passages = required(body, "passages")
        query = document_of(body.query, "body.query")
        found = await scorer.score(request, body, [(query, documents_of(passages, "body.passages"))])
        tokens = found.prompt_tokens
        return Json(
            {
                "rankings": [{"index": hit.index, "logit": finite(hit.logit)} for hit in found.rankings[0]],
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    return router
