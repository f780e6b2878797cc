"""POST /v1/prompt: the prompt of a pair as the model gets it, in its parts, for the page and for other tools."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from starlette.responses import Response

from winnow.errors import DocumentError
from winnow.models import judges_last_token
from winnow.prompts import PartName
from winnow.service.documents import DOCUMENT_SCHEMA, document_of
from winnow.service.errors import Json, ServiceError
from winnow.service.options import Options, required
from winnow.service.scorer import Scorer
from winnow.text import readable, shows

_EXAMPLE: dict[str, Any] = {
    "query": "what is the capital of China?",
    "document": "The capital of China is Beijing.",
    "instruction": "Given a web search query, retrieve relevant passages that answer the query",
}


class PromptRequest(Options):
    """A query and one document, with what `/v1/rerank` takes besides."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": [_EXAMPLE]})

    query: Annotated[Any, WithJsonSchema(DOCUMENT_SCHEMA)] = Field(None, description="What is searched for.")
    document: Annotated[Any, WithJsonSchema(DOCUMENT_SCHEMA)] = Field(None, description="A text, in any of its forms.")


class PromptPiece(BaseModel):
    """A piece of the prompt's text."""

    part: PartName = Field(
        description="The query, the document or the instruction, or the template before, between or after them."
    )
    text: str
    control: bool = Field(description="Whether it is a control token; one that is typed in a text is text.")


class PromptResponse(BaseModel):
    """The prompt of a pair."""

    object: Literal["prompt"] = "prompt"
    model: str
    template: str | None = Field(description="Where the template comes from; null if the tokenizer encodes the pair.")
    pieces: list[PromptPiece]
    ids: list[int] = Field(description="The token ids, as the engine gets them.")
    tokens: dict[str, int] = Field(description="How many tokens each part has, and the total.")
    judged: str | None = Field(description="The last token, if the score comes from it alone.")
    max_length: int | None = Field(description="Most tokens of a prompt that the model takes.")
    truncated: bool = Field(description="Whether the document was cut.")
    query_truncated: bool = Field(description="Whether the query was cut.")
    windows: int = Field(description="In how many windows the document is scored; this is the first one's prompt.")


def prompt_routes(scorer: Scorer) -> APIRouter:
    """The route of prompts."""
    router = APIRouter(tags=["prompt"])

    @router.post("/v1/prompt", responses={200: {"model": PromptResponse}})
    async def prompt(request: Request, body: PromptRequest) -> Response:
        """The prompt of a query and a document as the model gets it, piece by piece. Nothing is scored."""
        query, document = (document_of(getattr(body, name), f"body.{name}") for name in ("query", "document"))
        required(body, "document")
        for name, given in (("query", query), ("document", document)):
            if shows(given):
                raise ServiceError(
                    400,
                    "A prompt with an image or a video is scored, but not shown: its tokens there stand for pieces of "
                    "the picture, and have no text. Leave it out to see the text around it.",
                    f"body.{name}",
                )
        if not readable(document):
            raise ServiceError(400, "The document is blank, and the model gets no prompt of it.", "body.document")
        try:
            shown = await scorer.prompt(request, body, readable(query), readable(document))
        except DocumentError as error:
            raise ServiceError(400, str(error), f"body.{'query' if error.index is None else 'document'}") from None
        checkpoint, parts = scorer.reranker.checkpoint, shown.parts
        judged = None
        if checkpoint is not None and judges_last_token(checkpoint.recipe, with_template=shown.template is not None):
            judged = checkpoint.tokenizer.decode(parts.ids[-1:])
        return Json(
            {
                "object": "prompt",
                "model": shown.model,
                "template": shown.template,
                "pieces": [{"part": one.part, "text": one.text, "control": one.control} for one in parts.pieces],
                "ids": parts.ids,
                "tokens": {**parts.tokens, "total": len(parts.ids)},
                "judged": judged,
                "max_length": None if checkpoint is None else checkpoint.max_length,
                "truncated": parts.built.truncated,
                "query_truncated": parts.built.query_truncated,
                "windows": len(parts.built.prompts),
            }
        )

    return router
