"""The fields that requests of all dialects share, in all the names that clients have for them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from winnow.service.errors import ServiceError


def _none_if_blank(given: Any) -> Any:
    """Forms and configuration files of clients send "" for what their user left out."""
    return None if isinstance(given, str) and not given.strip() else given


def _lower(given: Any) -> Any:
    return given.lower() if isinstance(given, str) else given


Flag = Annotated[bool | None, BeforeValidator(_none_if_blank)]
"""true, false, their texts ("true", "False", "1"), or null."""
Count = Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(_none_if_blank)]
"""A whole number from 0, or null; 0 is no limit, as in vLLM."""
Number = Annotated[Annotated[float, Field(allow_inf_nan=False)] | None, BeforeValidator(_none_if_blank)]
Seconds = Annotated[Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, BeforeValidator(_none_if_blank)]
Template = str | dict[str, str] | None
Side = Annotated[Literal["left", "right"] | None, BeforeValidator(_lower), BeforeValidator(_none_if_blank)]


class Options(BaseModel):
    """What every request may say. Null is the same as absent, and unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(None, description="A name that GET /v1/models lists; by default the first.")
    instruction: str | None = Field(None, description="What counts as relevant, for models that take it.")
    instruct: str | None = Field(None, description="The same as instruction.")
    raw_scores: Flag = Field(None, description="Answer with logits instead of scores between 0 and 1.")
    use_activation: Flag = Field(None, description="vLLM's name: false is the same as raw_scores.")
    deadline: Seconds = Field(None, description="Seconds after which the request gives up and its prompts leave.")

    def raw(self, default: bool) -> bool:
        """Whether scores are logits."""
        if self.raw_scores is not None:
            return self.raw_scores
        return default if self.use_activation is None else not self.use_activation

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
