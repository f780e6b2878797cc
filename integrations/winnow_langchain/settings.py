"""What the compressor and the cross encoder have in common: the model, and how it reads."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

from langchain_core.utils import secret_from_env
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    StrictBool,
    StrictFloat,
    StrictInt,
    field_serializer,
    field_validator,
    model_validator,
)

from winnow import Calibration, ModelRecipe, Reranker, RerankerConfig
from winnow.engines import needs_url
from winnow.plain import plain
from winnow.ranking import unknown_argument

# Given with each call, so that they may be assigned.
_PER_CALL = ("instruction", "deadline")


class WinnowSettings(BaseModel):
    """Settings of a `winnow.Reranker`, as pydantic fields, and the reranker made of them.

    Making one loads nothing; the first call, or `start`, does. Objects with the same model and engine settings share
    one engine in the process, also with Winnow's other integrations.

    Raises:
        ValueError: An argument is unknown or wrong. Errors that depend on the model are raised by the first call.
    """

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )

    model: str = Field(frozen=True)
    """A folder, or a name on the Hugging Face Hub; of a reranker, or of a LoRA adapter, see docs/models.md#adapters."""

    base_model: str | None = Field(default=None, frozen=True)
    """The base of an adapter, if it is not the one that the adapter names: a folder, or a name on the Hub."""

    instruction: str | None = None
    """What counts as relevant, for models that take an instruction; None or "" for the template's default."""

    template: str | dict[str, str] | None = Field(default=None, frozen=True)
    """A score template instead of the model's own: a built-in's name, a path, Jinja source, or format strings
    `{"prefix", "query_template", "document_template", "suffix"}`."""

    template_kwargs: dict[str, Any] | None = Field(default=None, frozen=True)
    """More variables for the template."""

    raw_scores: StrictBool = Field(default=False, frozen=True)
    """Return logits as scores, not sigmoid(logit) or the probabilities of a `calibration`."""

    calibration: Calibration | str | None = Field(default=None, frozen=True)
    """Return probabilities as scores instead of sigmoid(logit), by a curve that `winnow calibrate` fitted on judged
    pairs: a `winnow.Calibration`, its file, or the folder that holds its calibration.json, such as the model's own. The
    order stays the same. See docs/calibration.md#use-it."""

    recipe: str | ModelRecipe | None = Field(default=None, frozen=True)
    """The model's family, or a `winnow.ModelRecipe`, if the model's name does not identify it."""

    max_length: StrictInt | None = Field(default=None, ge=1, frozen=True)
    """Most tokens of a prompt; None for the model's limit, or the length at which the reference code of its family
    stops, if that is less. More than the reference code's is taken, more than the model's limit is lowered to it;
    either is a warning in the log."""

    max_query_tokens: StrictInt | None = Field(default=None, ge=1, frozen=True)
    """Most tokens of the query; None for three quarters of what template and instruction leave."""

    max_document_tokens: StrictInt | None = Field(default=None, ge=1, frozen=True)
    """Most tokens of a document, or of each window; None for all that is left."""

    on_overflow: Literal["truncate", "error", "window"] = Field(default="truncate", frozen=True)
    """What to do with longer documents: "truncate", "error", or "window" (score piece by piece)."""

    window_overlap: StrictFloat = Field(default=0.1, ge=0, lt=1, frozen=True)
    """Share of a window that the next one repeats, from 0 to below 1."""

    window_score: Literal["max", "mean", "first"] = Field(default="max", frozen=True)
    """How a document's windows make its logit: "max", "mean" or "first"."""

    on_error: Literal["raise", "skip"] = Field(default="raise", frozen=True)
    """"raise", or "skip": a document that cannot be scored ranks last, with the reason in `metadata["rerank_error"]`;
    with a blank query all documents do, in the order in which they came."""

    engine: str = Field(default="auto", frozen=True)
    """"auto" (vLLM if it runs here, else transformers; the log says which and why), "vllm" (in this process), "server"
    (vLLM servers at `url`), "transformers", or "fake" (no model, for tests)."""

    engine_kwargs: dict[str, Any] = Field(default_factory=dict, frozen=True, repr=False)
    """Settings of the engine: any field of vLLM's `AsyncEngineArgs`, or the keywords of `TransformersEngine` or
    `ServerEngine`; see docs/settings.md#settings-of-the-engine. `hf_token` is never dumped."""

    device: str | None = Field(default=None, frozen=True)
    """What PyTorch runs on, such as "cpu" or "cuda:1"; None to find it. `engine_kwargs={"device": ...}` is the same.
    vLLM runs on what it was built for: only that is taken, and `CUDA_VISIBLE_DEVICES` chooses the GPU."""

    cache_dir: str | None = Field(default=None, frozen=True)
    """Folder that files from the Hub are kept in; None for that of the environment (`HF_HOME`), where vLLM looks for
    its own copy of a model's small files in any case."""

    url: str | list[str] | None = Field(default=None, frozen=True)
    """Address of a vLLM server, or a list of several that serve the same model, for `engine="server"`; `WINNOW_URL` has
    commas between them. A password does not belong in it: use `api_key`."""

    api_key: SecretStr | None = Field(
        default_factory=secret_from_env("WINNOW_API_KEY", default=None), frozen=True, exclude=True, repr=False
    )
    """Key of these servers. By default that in `WINNOW_API_KEY`. It is never dumped."""

    root_path: str | None = Field(default=None, frozen=True)
    """Folder that images and videos with local paths are read from; without it they are refused."""

    allow_remote_images: StrictBool = Field(default=False, frozen=True)
    """Whether images and videos may be fetched from http(s) addresses (never from private ones)."""

    text_only: StrictBool = Field(default=False, frozen=True)
    """Read texts only, also where the model takes images and videos. A text model always reads only the text."""

    deadline: StrictFloat | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds after which a call gives up and withdraws its prompts, unless the call has a deadline of its own; loading
    the model counts. None to wait."""

    score_cache: StrictInt | str | None = Field(default=None, frozen=True)
    """Keep scores from one call to the next: how many pairs in memory (those used last), or a folder to keep them in;
    None to keep none. See docs/operations.md#score-cache."""

    max_restarts: StrictInt = Field(default=1, ge=0, frozen=True)
    """How often in a row an engine that died is started again, until it scores. Those who share an engine share the
    count, but each has its own limit. See docs/operations.md#when-the-engine-fails."""

    _reranker: Reranker = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _hint(cls, data: Any) -> Any:
        for name in data if isinstance(data, dict) else ():
            if name not in cls.model_fields:
                raise ValueError(unknown_argument(cls.__name__, name, cls.model_fields))
        return data

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """A path, a `torch.dtype` or a number of NumPy's can be dumped then, and is equal when it is read back."""
        return plain(value)

    @field_serializer("engine_kwargs")
    def _without_token(self, value: dict[str, Any]) -> dict[str, Any]:
        return {key: item for key, item in value.items() if key != "hf_token"}

    def model_post_init(self, _context: Any, /) -> None:
        """Make the reranker; it loads nothing yet."""
        names = {field.name for field in dataclasses.fields(RerankerConfig)} & type(self).model_fields.keys()
        settings = {name: getattr(self, name) for name in names.difference(_PER_CALL, ["api_key"])}
        if needs_url(self.engine) and self.api_key:
            settings["api_key"] = self.api_key.get_secret_value()
        self._reranker = Reranker(**settings)

    def __copy__(self) -> Self:
        """Not with the same reranker: a copy holds no engine until it is used, and closing it closes no other."""
        return self.model_copy()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other settings, checked; it shares the engine if model and engine settings are the same."""
        values = dict(self)
        return type(self)(**{**(copy.deepcopy(values) if deep else values), **(update or {})})

    def start(self) -> Self:
        """Load the model now instead of with the first call."""
        self._reranker.start()
        return self

    async def astart(self) -> Self:
        """`start` for event loops."""
        await self._reranker.astart()
        return self

    def close(self) -> None:
        """Wait for calls in flight, then free the engine unless others hold it. The next call loads it again."""
        self._reranker.close()

    async def aclose(self) -> None:
        """`close` for event loops."""
        await self._reranker.aclose()
