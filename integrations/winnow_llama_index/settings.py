"""The settings of the postprocessor, as described fields, and the reranker made of them."""

import copy
import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal, Self

from llama_index.core.bridge.pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    StrictFloat,
    StrictInt,
    field_serializer,
    field_validator,
    model_validator,
)
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from pydantic import StrictBool

from winnow import Calibration, ModelRecipe, Reranker, RerankerConfig
from winnow.engines import needs_url
from winnow.locks import ForkSafeLock
from winnow.plain import plain
from winnow.ranking import unknown_argument

# Given with each call, so that they may be assigned between two queries; api_key waits for the first.
_PER_CALL = {"instruction", "template", "template_kwargs", "deadline"}
_SETTINGS = {field.name for field in dataclasses.fields(RerankerConfig)} - _PER_CALL - {"api_key"}

_making = ForkSafeLock()


class WinnowSettings(BaseNodePostprocessor):
    """Settings of a `winnow.Reranker`, as LlamaIndex's components have them, and the reranker made of them."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )

    model: str = Field(frozen=True)
    """A folder, or a name on the Hugging Face Hub; of a reranker, or of a LoRA adapter, see docs/models.md#adapters."""

    base_model: str | None = Field(default=None, frozen=True)
    """The base of an adapter, if it is not the one that the adapter names: a folder, or a name on the Hub."""

    instruction: str | None = None
    """What counts as relevant, for models that take an instruction; None or "" for the template's default."""

    template: str | dict[str, str] | None = None
    """A score template instead of the model's own: a built-in's name, a path, Jinja source, or format strings
    `{"prefix", "query_template", "document_template", "suffix"}`."""

    template_kwargs: dict[str, Any] | None = None
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
    """Most tokens of a node, or of each window; None for all that is left."""

    on_overflow: Literal["truncate", "error", "window"] = Field(default="truncate", frozen=True)
    """What to do with longer nodes: "truncate", "error", or "window" (score piece by piece)."""

    window_overlap: StrictFloat = Field(default=0.1, ge=0, lt=1, frozen=True)
    """Share of a window that the next one repeats, from 0 to below 1."""

    window_score: Literal["max", "mean", "first"] = Field(default="max", frozen=True)
    """How a node's windows make its logit: "max", "mean" or "first"."""

    on_error: Literal["raise", "skip"] = Field(default="raise", frozen=True)
    """"raise", or "skip": a node that cannot be scored ranks last, with the reason in its metadata, as `rerank_error`;
    with a blank query all nodes do, in the order in which they came."""

    engine: str = Field(default="auto", frozen=True)
    """"auto" (vLLM if it runs here, else transformers; the log says which and why), "vllm" (in this process), "server"
    (vLLM servers at `url`), "transformers", or "fake" (no model, for tests)."""

    url: str | list[str] | None = Field(default=None, frozen=True)
    """Address of a vLLM server, or a list of several that serve the same model, for `engine="server"`; `WINNOW_URL` has
    commas between them. A password does not belong in it: use `api_key`."""

    api_key: SecretStr | None = Field(default=None, frozen=True, exclude=True, repr=False)
    """Key of these servers. None for that in `WINNOW_API_KEY`, read with the first query. It is never serialized."""

    engine_kwargs: dict[str, Any] = Field(default_factory=dict, frozen=True, repr=False)
    """Settings of the engine: any field of vLLM's `AsyncEngineArgs`, or the keywords of `TransformersEngine` or
    `ServerEngine`; see docs/settings.md#settings-of-the-engine. `hf_token` is never serialized."""

    device: str | None = Field(default=None, frozen=True)
    """What PyTorch runs on, such as "cpu" or "cuda:1"; None to find it. `engine_kwargs={"device": ...}` is the same.
    vLLM runs on what it was built for: only that is taken, and `CUDA_VISIBLE_DEVICES` chooses the GPU."""

    cache_dir: str | None = Field(default=None, frozen=True)
    """Folder that files from the Hub are kept in; None for that of the environment (`HF_HOME`), where vLLM looks for
    its own copy of a model's small files in any case."""

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

    fallback: str | None = Field(default=None, frozen=True)
    """What ranks if the engine fails: the name of another engine for the same model, or "retrieval order", which leaves
    the nodes as they came, also when a deadline passes. With any fallback a blank query leaves them as they came, too.
    None to raise. See docs/operations.md#when-the-engine-fails. After "retrieval order", `rerank_error` in the metadata
    says why."""

    max_restarts: StrictInt = Field(default=1, ge=0, frozen=True)
    """How often in a row an engine that died is started again, until it scores. Those who share an engine share the
    count, but each has its own limit. See docs/operations.md#when-the-engine-fails."""

    _reranker: Reranker | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _hint(cls, data: Any) -> Any:
        """LlamaIndex writes `class_name` into every dump; everything else that is unknown is refused."""
        if not isinstance(data, dict):
            return data
        given = {name: value for name, value in data.items() if name != "class_name"}
        for name in given:
            if name not in cls.model_fields:
                raise ValueError(unknown_argument(cls.__name__, name, cls.model_fields))
        return given

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """A path, a `torch.dtype` or a number of NumPy's can be serialized then, and is equal when it is read back."""
        return plain(value)

    @field_serializer("engine_kwargs")
    def _without_token(self, value: dict[str, Any]) -> dict[str, Any]:
        return {key: item for key, item in value.items() if key != "hf_token"}

    def model_post_init(self, _context: Any, /) -> None:
        """Refuse settings that do not go together; nothing is loaded yet."""
        RerankerConfig(**self._settings())

    def __getstate__(self) -> dict[str, Any]:
        """Without the reranker, which may know a key from the environment: a copy makes its own."""
        return {**super().__getstate__(), "__pydantic_private__": None}

    def __copy__(self) -> Self:
        """Not with the same reranker: a copy holds no engine until it is used, and closing it closes no other."""
        return self.model_copy()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other settings, checked; it shares the engine if model and engine settings are the same."""
        values = dict(self)
        return type(self)(**{**(copy.deepcopy(values) if deep else values), **(update or {})})

    def close(self) -> None:
        """Wait for calls in flight, then free the engine unless others hold it. The next query loads it again."""
        if self._reranker is not None:
            self._reranker.close()

    async def aclose(self) -> None:
        """`close` for event loops."""
        if self._reranker is not None:
            await self._reranker.aclose()

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _SETTINGS}

    def _core(self) -> Reranker:
        """The reranker, made by the first query: only then are secrets looked up."""
        with _making:
            if self._reranker is None:
                key = None
                if needs_url(self.engine):
                    given = None if self.api_key is None else self.api_key.get_secret_value()
                    key = (os.environ.get("WINNOW_API_KEY") if given is None else given) or None
                self._reranker = Reranker(**self._settings(), api_key=key)
            return self._reranker
