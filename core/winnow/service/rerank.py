"""POST /rerank, in the dialects of vLLM, Jina, Cohere v1 and v2, TEI and Voyage."""

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from starlette.responses import Response

from winnow.service.documents import DOCUMENT_SCHEMA, document_in_answer, document_of, documents_of
from winnow.service.errors import Json
from winnow.service.options import Count, Flag, Number, Options, first_of, required
from winnow.service.pieces import pieces
from winnow.service.scorer import Scorer
from winnow.types import RankedDocument, finite

Documents = Annotated[list[Any], WithJsonSchema({"type": "array", "items": DOCUMENT_SCHEMA})]

_EXAMPLE: dict[str, Any] = {
    "query": "what is the capital of China?",
    "documents": ["The capital of China is Beijing.", "Gravity attracts two bodies."],
    "top_n": 1,
    "instruction": "Given a web search query, retrieve relevant passages that answer the query",
}


class RerankRequest(Options):
    """A query and its documents. `texts` instead of `documents` is TEI's dialect, `truncation` Voyage's."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": [_EXAMPLE]})

    query: Annotated[Any, WithJsonSchema(DOCUMENT_SCHEMA)] = Field(None, description="What is searched for.")
    documents: Documents | None = Field(None, description="Texts, or objects with a text or an image. Null is blank.")
    texts: Documents | None = Field(None, description="TEI's name for documents: the answer is a bare list.")
    top_n: Count = Field(None, description="How many results to answer with; all by default.")
    top_k: Count = Field(None, description="Voyage's name for top_n.")
    return_documents: Flag = Field(
        None, description="Whether results have their documents: by default at /rerank and /v1/rerank."
    )
    return_text: Flag = Field(None, description="TEI's name for return_documents.")
    score_threshold: Number = Field(None, description="Least score of a result.")
    rank_fields: list[str] | None = Field(None, description="Cohere v1: the fields of a document that are its text.")

    @property
    def is_voyage(self) -> bool:
        """Whether the client expects Voyage's answer."""
        return self.truncation is not None or (self.top_k is not None and self.top_n is None)


class ResultDocument(BaseModel):
    """A document as it came."""

    model_config = ConfigDict(extra="allow")

    text: str
    multi_modal: list[dict[str, Any]] | None = None


class RerankResult(BaseModel):
    """A document's place in the ranking is its place in `results`."""

    index: int = Field(description="The document's place in the request.")
    relevance_score: float
    document: ResultDocument | str | None = Field(None, description="An object; a text for Voyage's clients.")
    truncated: bool = Field(description="Whether the model did not read all of it.")
    windows: int = Field(description="How many windows it was scored in; 0 if it is blank.")
    error: str | None = Field(None, description="Why it was not scored, where the server skips such documents.")


class Usage(BaseModel):
    """Tokens of all prompts."""

    prompt_tokens: int
    total_tokens: int


class RerankResponse(BaseModel):
    """The documents, best first."""

    id: str
    object: Literal["rerank"] = "rerank"
    created: int
    model: str
    results: list[RerankResult]
    usage: Usage
    meta: dict[str, Any]


class VoyageResponse(BaseModel):
    """The same for Voyage's clients, under other names."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[RerankResult]
    usage: Usage
    meta: dict[str, Any]


class TextRank(BaseModel):
    """A text's place in the ranking, for TEI's clients, is its place in the answer."""

    index: int
    score: float
    text: str | None = None


def rerank_routes(scorer: Scorer) -> APIRouter:
    """The routes of reranking."""
    router = APIRouter(tags=["rerank"])
    answers: dict[int | str, dict[str, Any]] = {200: {"model": RerankResponse | VoyageResponse | list[TextRank]}}

    @router.post("/rerank", responses=answers)
    @router.post("/v1/rerank", responses=answers)
    async def rerank(request: Request, body: RerankRequest) -> Response:
        """Order documents by relevance to a query, best first."""
        return await answer(request, body, with_documents=True)

    @router.post("/v2/rerank", responses=answers)
    async def rerank_v2(request: Request, body: RerankRequest) -> Response:
        """The same; results have their documents only if `return_documents` asks for them."""
        return await answer(request, body, with_documents=False)

    async def answer(request: Request, body: RerankRequest, with_documents: bool) -> Response:
        name, given = required(body, "documents", "texts")
        query = document_of(body.query, "body.query")
        documents = documents_of(given, f"body.{name}", body.rank_fields)
        found = await scorer.score(request, body, [(query, documents)])
        hits = _kept(body, found.rankings[0].hits)
        if name == "texts":
            return Json(
                [
                    {"index": hit.index, "score": finite(hit.score)}
                    | ({"text": hit.text or ""} if body.return_text else {})
                    for hit in hits
                ]
            )
        wanted = body.return_documents if body.return_documents is not None else with_documents
        results = []
        async for piece in pieces(hits):
            for hit in piece:
                result: dict[str, Any] = {"index": hit.index, "relevance_score": finite(hit.score)}
                if wanted:
                    shown = document_in_answer(given[hit.index], documents[hit.index])
                    result["document"] = shown["text"] if body.is_voyage else shown
                result |= {"truncated": hit.truncated, "windows": hit.windows}
                if hit.error is not None:
                    result["error"] = hit.error
                results.append(result)
        tokens = found.prompt_tokens
        whole = {
            "id": f"rerank-{request.state.request_id}",
            "object": "list" if body.is_voyage else "rerank",
            "created": int(time.time()),
            "model": found.model,
            "data" if body.is_voyage else "results": results,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "meta": {
                "api_version": {"version": "2" if request.url.path.startswith("/v2") else "1"},
                "billed_units": {"search_units": 1, "input_tokens": tokens},
                "tokens": {"input_tokens": tokens, "output_tokens": 0},
            },
        }
        return Json(whole)

    return router


def _kept(body: RerankRequest, hits: tuple[RankedDocument, ...]) -> list[RankedDocument]:
    """The hits that the request asks for. TEI has no number of results: its clients expect one for each text."""
    kept = list(hits)
    if body.score_threshold is not None:
        kept = [hit for hit in kept if hit.score >= body.score_threshold]
    most = None if body.texts is not None and body.documents is None else first_of(body, "top_n", "top_k")
    return kept[: most[1] or None] if most else kept
