"""The settings of a reranker in one value, which can be compared, and is the same for every integration."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from os import PathLike
from typing import Any, Literal, Protocol, get_args

from winnow.engines import (
    SETTINGS,
    Engine,
    EngineSettings,
    check_names,
    check_values,
    engine_names,
    fallback_names,
    given_settings,
    names_with_url,
    needs_url,
    reads_model,
    resolve,
    server_addresses,
    url_in_environment,
)
from winnow.errors import ConfigurationError
from winnow.models import ModelRecipe
from winnow.plain import is_seconds, plain
from winnow.prompts import Overflow
from winnow.ranking.calibration import Calibration
from winnow.ranking.hints import hinting
from winnow.ranking.options import check_count
from winnow.templates import TemplateLike

# Settings that are not made plain: objects, and a path, which as a text could be the name of a template.
_NOT_PLAIN = ("engine", "template", "fallback")
# Types of settings that are plain data, and their names in messages. None means the default, except for the model.
_TYPES: Mapping[str, tuple[Any, str]] = {
    "model": (str, "a folder, or a name on the Hugging Face Hub"),
    "base_model": (str, "a folder, or a name on the Hugging Face Hub"),
    "url": (str | list, "a text, or a list of texts"),
    "api_key": (str, "a text"),
    "recipe": (str | ModelRecipe, "the name of a family, a ModelRecipe, or a mapping of its fields"),
    "instruction": (str, "a text"),
    "template_kwargs": (dict, "a mapping"),
    "engine_kwargs": (dict, "a mapping"),
    "root_path": (str, "a folder"),
    "calibration": (str | Calibration, "a Calibration, its file, or the folder of its calibration.json"),
    "score_cache": (int | str, "a number of pairs > 0, or a folder"),
}


class HasConfig(Protocol):
    """A `Reranker`."""

    @property
    def config(self) -> "RerankerConfig":
        """Its settings."""


@hinting
@dataclass(frozen=True, kw_only=True)
class RerankerConfig:
    """Settings of a reranker. `Reranker` takes the same arguments.

    The docs and the integrations have their sentences from here: `make fix` writes them there.

    They are kept as plain data (a path as its text, `torch.bfloat16` as "bfloat16", NumPy's numbers as Python's): what
    is written to JSON or pickled is equal when it is read back. A `recipe` and a `calibration` may be given as a
    mapping.

    What is left out of `base_model`, `engine`, `url`, `api_key`, `max_length`, `device`, `cache_dir` and
    `engine_kwargs` is looked for in the environment (`WINNOW_ENGINE`, `WINNOW_DTYPE`, ...: docs/settings.md) when a
    reranker is made. It is never stored here.

    Args:
        model: A folder, or a name on the Hugging Face Hub; of a reranker, or of a LoRA adapter, see
            docs/models.md#adapters.
        base_model: The base of an adapter, if it is not the one that the adapter names: a folder, or a name on the Hub.
        engine: "auto" (vLLM if it runs here, else transformers; the log says which and why), "vllm" (in this process),
            "server" (vLLM servers at `url`), "transformers", "fake" (no model, for tests), or an `Engine`.
        url: Address of a vLLM server, or a list of several that serve the same model, for `engine="server"`;
            `WINNOW_URL` has commas between them. A password does not belong in it: use `api_key`.
        api_key: Key of these servers.
        recipe: The model's family, or a `winnow.ModelRecipe`, if the model's name does not identify it.
        instruction: What counts as relevant, for models that take an instruction; None or "" for the template's
            default.
        template: A score template instead of the model's own: a built-in's name, a path, Jinja source, or format
            strings `{"prefix", "query_template", "document_template", "suffix"}`.
        template_kwargs: More variables for the template.
        max_length: Most tokens of a prompt; None for the model's limit, or the length at which the reference code of
            its family stops, if that is less. More than the reference code's is taken, more than the model's limit is
            lowered to it; either is a warning in the log.
        max_query_tokens: Most tokens of the query; None for three quarters of what template and instruction leave.
        max_document_tokens: Most tokens of a document, or of each window; None for all that is left.
        on_overflow: What to do with longer documents: "truncate", "error", or "window" (score piece by piece).
        window_overlap: Share of a window that the next one repeats, from 0 to below 1.
        window_score: How a document's windows make its logit: "max", "mean" or "first".
        on_error: "raise", or "skip": a document that cannot be scored ranks last, with the reason in `error`; with a
            blank query all documents do, in the order in which they came.
        raw_scores: Return logits as scores, not sigmoid(logit) or the probabilities of a `calibration`.
        calibration: Return probabilities as scores instead of sigmoid(logit), by a curve that `winnow calibrate` fitted
            on judged pairs: a `winnow.Calibration`, its file, or the folder that holds its calibration.json, such as
            the model's own. The order stays the same. See docs/calibration.md#use-it.
        engine_kwargs: Settings of the engine: any field of vLLM's `AsyncEngineArgs`, or the keywords of
            `TransformersEngine` or `ServerEngine`; see docs/settings.md#settings-of-the-engine.
        device: What PyTorch runs on, such as "cpu" or "cuda:1"; None to find it. `engine_kwargs={"device": ...}` is the
            same. vLLM runs on what it was built for: only that is taken, and `CUDA_VISIBLE_DEVICES` chooses the GPU.
        cache_dir: Folder that files from the Hub are kept in; None for that of the environment (`HF_HOME`), where vLLM
            looks for its own copy of a model's small files in any case.
        root_path: Folder that images and videos with local paths are read from; without it they are refused.
        allow_remote_images: Whether images and videos may be fetched from http(s) addresses (never from private ones).
        text_only: Read texts only, also where the model takes images and videos. A text model always reads only the
            text.
        deadline: Seconds after which a call gives up and withdraws its prompts, unless the call has a deadline of its
            own; loading the model counts. None to wait.
        score_cache: Keep scores from one call to the next: how many pairs in memory (those used last), or a folder to
            keep them in; None to keep none. See docs/operations.md#score-cache.
        fallback: What ranks if the engine fails: the name of another engine for the same model, another `Reranker`, or
            "retrieval order", which leaves the documents as they came, also when a deadline passes. With any fallback a
            blank query leaves them as they came, too. Such a ranking is `degraded`. None to raise. See
            docs/operations.md#when-the-engine-fails.
        max_restarts: How often in a row an engine that died is started again, until it scores. Those who share an
            engine share the count, but each has its own limit. See docs/operations.md#when-the-engine-fails.

    Raises:
        ConfigurationError: A value is out of range. Errors that depend on the model are raised when it loads.
    """

    model: str = field(kw_only=False)
    base_model: str | None = None
    engine: str | Engine = "auto"
    url: str | Sequence[str] | None = None
    api_key: str | None = field(default=None, repr=False)
    recipe: str | ModelRecipe | None = None
    instruction: str | None = None
    template: TemplateLike | None = None
    template_kwargs: Mapping[str, Any] | None = None
    max_length: int | None = None
    max_query_tokens: int | None = None
    max_document_tokens: int | None = None
    on_overflow: Overflow = "truncate"
    window_overlap: float = 0.1
    window_score: Literal["max", "mean", "first"] = "max"
    on_error: Literal["raise", "skip"] = "raise"
    raw_scores: bool = False
    calibration: Calibration | str | PathLike[str] | None = None
    engine_kwargs: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None
    cache_dir: str | PathLike[str] | None = None
    root_path: str | PathLike[str] | None = None
    allow_remote_images: bool = False
    text_only: bool = False
    deadline: float | None = None
    score_cache: int | str | PathLike[str] | None = None
    fallback: "str | RerankerConfig | HasConfig | None" = None
    max_restarts: int = 1

    def __post_init__(self) -> None:
        for one in fields(RerankerConfig):
            if one.name not in _NOT_PLAIN:
                object.__setattr__(self, one.name, plain(getattr(self, one.name)))
        if self.engine_kwargs is None:  # as where all settings are written out, in JSON
            object.__setattr__(self, "engine_kwargs", {})
        for name, kind in (("recipe", ModelRecipe), ("calibration", Calibration)):
            if isinstance(value := getattr(self, name), Mapping):
                try:
                    object.__setattr__(self, name, kind(**value))
                except TypeError as error:
                    raise ConfigurationError(f"{name} {value!r} does not make a {kind.__name__}: {error}") from None
        self._check_types()
        for name in ("max_length", "max_query_tokens", "max_document_tokens"):
            check_count(name, getattr(self, name))
        for name in ("raw_scores", "allow_remote_images", "text_only"):
            if type(getattr(self, name)) is not bool:
                raise ConfigurationError(f"{name} must be True or False, but got {getattr(self, name)!r}")
        for name in ("device", "cache_dir"):
            SETTINGS[name].check(getattr(self, name), name)
        if type(self.max_restarts) is not int or self.max_restarts < 0:
            raise ConfigurationError(f"max_restarts must be a whole number from 0, but got {self.max_restarts!r}")
        if type(self.window_overlap) not in (int, float) or not 0 <= self.window_overlap < 1:
            raise ConfigurationError(f"window_overlap must be at least 0 and below 1, but got {self.window_overlap!r}")
        if self.deadline is not None and not (is_seconds(self.deadline) and self.deadline > 0):
            raise ConfigurationError(f"deadline must be a number of seconds > 0, but got {self.deadline!r}")
        cache = self.score_cache
        if isinstance(cache, bool) or cache == "" or (isinstance(cache, int) and cache < 1):
            raise ConfigurationError(f"score_cache must be a number of pairs > 0, or a folder, but got {cache!r}")
        choices: dict[str, tuple[str, ...]] = {
            "on_overflow": get_args(Overflow),
            "window_score": ("max", "mean", "first"),
            "on_error": ("raise", "skip"),
        }
        if isinstance(self.fallback, str):
            choices["fallback"] = tuple(name for name in fallback_names() if name != self.engine)
        if isinstance(self.engine, str):
            choices["engine"] = engine_names()
        if (self.url is not None) != needs_url(self.engine) and not (self.url is None and url_in_environment()):
            raise ConfigurationError(
                f"url and {names_with_url()} belong together: give both or neither (the variable WINNOW_URL counts as "
                "url)"
            )
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigurationError(
                    f"{name} must be one of {', '.join(map(repr, allowed))}, but got {getattr(self, name)!r}"
                )

        if self.url is not None:
            server_addresses(self.url)
        self._check_engine_settings()

    def _check_types(self) -> None:
        for name, (kind, words) in _TYPES.items():
            value = getattr(self, name)
            if not (isinstance(value, kind) or (value is None and name != "model")):
                shown = "something else" if name == "api_key" else repr(value)
                raise ConfigurationError(f"{name} must be {words}, but got {shown}")
        if not (isinstance(self.engine, str) or callable(getattr(self.engine, "score", None))):
            raise ConfigurationError(
                f"engine must be one of {', '.join(map(repr, engine_names()))}, or an Engine, but got {self.engine!r}"
            )
        if not isinstance(self.fallback, str | None) and self.fallback_config is None:
            raise ConfigurationError(
                f"fallback must be one of {', '.join(map(repr, fallback_names()))}, or a Reranker, "
                f"but got {self.fallback!r}"
            )

    def _check_engine_settings(self) -> None:
        given = given_settings(self)
        if not isinstance(self.engine, str):
            if given:
                raise ConfigurationError(
                    f"{', '.join(given)} cannot be set here: the engine is an object, and has its own settings"
                )
        elif not reads_model(self.engine):
            check_names(self.engine, self.engine_kwargs)
        else:
            check_values(given, self.max_length)
            check_names(self.engine, given)

    @property
    def fallback_config(self) -> "RerankerConfig | None":
        """The settings of the fallback, if that is another reranker."""
        settings = getattr(self.fallback, "config", self.fallback)
        return settings if isinstance(settings, RerankerConfig) else None

    @property
    def engine_key(self) -> Hashable:
        """Equal for two configurations that share an engine, with the environment's settings."""
        return self.key_with(resolve(self))

    def key_with(self, settings: EngineSettings) -> Hashable:
        """`engine_key`, if `settings` are what the environment makes of the engine's settings."""
        return (self.model, self.recipe, settings.key)
