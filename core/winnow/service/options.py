"""The fields that requests of all dialects share, in all the names that clients have for them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from winnow.ranking import CallLimits
from winnow.service.errors import ServiceError


def _none_if_blank(given: Any) -> Any:
    """Forms and configuration files of clients send "" for what their user left out."""
    return None if isinstance(given, str) and not given.strip() else given


def _lower(given: Any) -> Any:
    return given.lower() if isinstance(given, str) else given


def _cuts(given: Any) -> Any:
    """NIM has words for it."""
    return {"none": False, "end": True}.get(given.lower(), given) if isinstance(given, str) else given


Flag = Annotated[bool | None, BeforeValidator(_none_if_blank)]
"""true, false, their texts ("true", "False", "1"), or null."""
Count = Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(_none_if_blank)]
"""A whole number from 0, or null; 0 is no limit, as in vLLM."""
Number = Annotated[Annotated[float, Field(allow_inf_nan=False)] | None, BeforeValidator(_none_if_blank)]
Seconds = Annotated[Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, BeforeValidator(_none_if_blank)]
Kwargs = dict[str, Any] | None
Template = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "object", "additionalProperties": {"type": "string"}},
                {"type": "null"},
            ]
        }
    ),
]
Cut = Annotated[bool | None, BeforeValidator(_cuts), BeforeValidator(_none_if_blank)]
Side = Annotated[Literal["left", "right"] | None, BeforeValidator(_lower), BeforeValidator(_none_if_blank)]


class Options(BaseModel):
    """What every request may say. Null is the same as absent, and unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(None, description="A name that GET /v1/models lists; by default the first.")
    instruction: str | None = Field(None, description="What counts as relevant, for models that take it.")
    instruct: str | None = Field(None, description="The same as instruction.")
    raw_scores: Flag = Field(None, description="Answer with logits instead of scores between 0 and 1.")
    use_activation: Flag = Field(None, description="vLLM's name: false is the same as raw_scores.")
    score_template: Template = Field(
        None, description="Jinja, a format string, format strings by their names, or the name of one of Winnow's."
    )
    rerank_template: Template = Field(None, description="The same as score_template.")
    chat_template: Template = Field(None, description="The same as score_template.")
    score_template_kwargs: Kwargs = Field(None, description="Variables of the template.")
    rerank_template_kwargs: Kwargs = Field(None, description="The same as score_template_kwargs.")
    chat_template_kwargs: Kwargs = Field(None, description="The same as score_template_kwargs.")
    max_tokens_per_doc: Count = Field(None, description="Most tokens of a document; what is longer is cut.")
    max_tokens_per_query: Count = Field(None, description="Most tokens of the query.")
    truncate_prompt_tokens: Annotated[Annotated[int, Field(ge=-1)] | None, BeforeValidator(_none_if_blank)] = Field(
        None, description="Most tokens of a prompt; -1 for what the model takes."
    )
    truncation_side: Side = Field(None, description='"right" cuts the end of a long document, "left" its start.')
    truncation_direction: Side = Field(None, description="TEI's name for truncation_side.")
    truncate: Cut = Field(None, description='TEI and NIM: false or "NONE" refuses documents that are too long.')
    truncation: Cut = Field(None, description="Voyage's name for truncate.")
    priority: Annotated[int | None, BeforeValidator(_none_if_blank)] = Field(
        None, description="Lower numbers are scored earlier, if the server allows priorities; 0 by default."
    )
    deadline: Seconds = Field(None, description="Seconds after which the request gives up and its prompts leave.")

    def raw(self, default: bool) -> bool:
        """Whether scores are logits."""
        if self.raw_scores is not None:
            return self.raw_scores
        return default if self.use_activation is None else not self.use_activation

    @property
    def limits(self) -> CallLimits:
        """How long the prompts may be."""
        side = self.truncation_side or self.truncation_direction
        return CallLimits(
            max_length=max(self.truncate_prompt_tokens or 0, 0) or None,
            max_query_tokens=self.max_tokens_per_query or None,
            max_document_tokens=self.max_tokens_per_doc or None,
            on_overflow="error" if False in (self.truncate, self.truncation) else None,
            keep="end" if side == "left" else "start",
        )

    @property
    def wanted_instruction(self) -> str | None:
        """The request's instruction."""
        return self.instruction if self.instruction is not None else self.instruct


def first_of(options: BaseModel, *names: str) -> tuple[str, Any] | None:
    """The first of some fields that is not null, with its name."""
    found = ((name, getattr(options, name)) for name in names)
    return next(((name, value) for name, value in found if value is not None), None)


def required(options: BaseModel, *names: str) -> tuple[str, Any]:
    """`first_of` that must exist.

    Raises:
        ServiceError: None does.
    """
    if (found := first_of(options, *names)) is None:
        raise ServiceError(400, f"{names[0]} is missing.", f"body.{names[0]}")
    return found
