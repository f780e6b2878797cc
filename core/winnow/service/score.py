"""POST /score, as vLLM has it: pairs in four spellings, one query with many texts, or as many queries as texts."""

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from starlette.responses import Response

from winnow.service.documents import DOCUMENT_SCHEMA, document_of
from winnow.service.errors import Json, ServiceError
from winnow.service.options import Options, required
from winnow.service.scorer import Scorer
from winnow.types import Document, finite

_ONE_OR_MANY: dict[str, Any] = {"anyOf": [DOCUMENT_SCHEMA, {"type": "array", "items": DOCUMENT_SCHEMA}]}
_EXAMPLE: dict[str, Any] = {
    "queries": "what is the capital of China?",
    "documents": ["The capital of China is Beijing.", "Gravity attracts two bodies."],
}

Texts = Annotated[Any, WithJsonSchema(_ONE_OR_MANY)]


class ScoreRequest(Options):
    """Pairs: `queries` and `documents`, or `queries` and `items`, `data_1` and `data_2`, `text_1` and `text_2`."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": [_EXAMPLE]})

    queries: Texts = Field(None, description="A text, or as many as there are documents.")
    documents: Texts = Field(None, description="A text, or many.")
    items: Texts = Field(None, description="The same as documents.")
    data_1: Texts = Field(None, description="The same as queries.")
    data_2: Texts = Field(None, description="The same as documents.")
    text_1: Texts = Field(None, description="The same as queries.")
    text_2: Texts = Field(None, description="The same as documents.")


class Score(BaseModel):
    """The score of one pair."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreUsage(BaseModel):
    """Tokens of all prompts, with the fields of vLLM."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: None = None
    completion_tokens_details: None = None


class ScoreResponse(BaseModel):
    """A score for each pair, in the order of the request."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Score]
    usage: ScoreUsage


def score_routes(scorer: Scorer) -> APIRouter:
    """The routes of scoring."""
    router = APIRouter(tags=["score"])
    answers: dict[int | str, dict[str, Any]] = {200: {"model": ScoreResponse}}

    @router.post("/score", responses=answers)
    @router.post("/v1/score", responses=answers)
    async def score(request: Request, body: ScoreRequest) -> Response:
        """Score pairs of texts, in their order."""
        found = await scorer.score(request, body, _pairs(body))
        hits = [hit for ranking in found.rankings for hit in sorted(ranking, key=lambda hit: hit.index)]
        tokens = found.prompt_tokens
        return Json(
            {
                "id": f"score-{request.state.request_id}",
                "object": "list",
                "created": int(time.time()),
                "model": found.model,
                "data": [{"index": at, "object": "score", "score": finite(hit.score)} for at, hit in enumerate(hits)],
                "usage": {
                    "prompt_tokens": tokens,
                    "total_tokens": tokens,
                    "completion_tokens": 0,
                    "prompt_tokens_details": None,
                    "completion_tokens_details": None,
                },
            }
        )

    return router


def _pairs(body: ScoreRequest) -> list[tuple[str | Document | None, list[str | Document | None]]]:
    """Queries with their documents; the first spelling that is complete counts, as in vLLM.

    Raises:
        ServiceError: None is, or the numbers of texts do not go together.
    """
    spellings = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))
    for first, second in spellings:
        if getattr(body, first) is not None and getattr(body, second) is not None:
            break
    else:
        first, second = spellings[0]
        required(body, *(name for name, _ in spellings))
        required(body, *(name for _, name in spellings))
        raise ServiceError(400, "Give queries and documents: the request has texts of different spellings.", "body")
    queries, documents = _several(getattr(body, first), first), _several(getattr(body, second), second)
    if len(queries) == 1:
        return [(queries[0], documents)]
    if len(queries) != len(documents):
        raise ServiceError(
            400,
            f"{first} has {len(queries)} texts and {second} has {len(documents)}: give one query, or one for each.",
            f"body.{first}",
        )
    return [(query, [document]) for query, document in zip(queries, documents, strict=True)]


def _several(given: Any, name: str) -> list[str | Document | None]:
    """One text or many. A list of content parts is one."""
    is_one = isinstance(given, list) and given and all(isinstance(one, dict) and "type" in one for one in given)
    if is_one or not isinstance(given, list):
        return [document_of(given, f"body.{name}")]
    return [document_of(one, f"body.{name}.{at}") for at, one in enumerate(given)]
