"""The Haystack ranker: documents in, documents out, best first."""

import copy
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, Self

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.core.errors import PipelineRuntimeError
from haystack.utils import ComponentDevice, Secret

import winnow
from haystack_integrations.components.rankers.winnow.calls import Call
from haystack_integrations.components.rankers.winnow.checks import (
    check_documents,
    check_savable,
    checked_device,
    checked_fields,
    checked_flag,
    checked_secret,
    checked_text,
    with_device_names,
)
from haystack_integrations.components.rankers.winnow.documents import DocumentReader, without_duplicates
from winnow import Calibration, Engine, ModelRecipe, Ranking, Reranker, RerankerConfig
from winnow.engines import name_of, needs_url, reads_model
from winnow.locks import ForkSafeLock
from winnow.plain import plain
from winnow.ranking import checked_deadline, checked_threshold, checked_top_k, hinting

# Held for the moment it takes to make a Reranker (loading is not part of it). Not one a ranker: locks cannot be copied.
_making = ForkSafeLock()


@component
@hinting
class WinnowRanker:
    """Ranks documents by their relevance to the query, with a reranker model on vLLM.

    Making one loads nothing: `warm_up`, which pipelines call, or the first `run` does. Rankers with the same model and
    engine settings share one engine in the process, also with Winnow's other integrations. All methods may be called
    from any thread and any event loop. After `close` the next run loads the model again. A copy holds no engine until
    it is used.

    ```python
    ranker = WinnowRanker("Qwen/Qwen3-Reranker-0.6B", top_k=3)
    ranker.run(query="capital of China", documents=[Document(content="Beijing."), Document(content="Paris.")])
    ```

    Args:
        model: A folder, or a name on the Hugging Face Hub; of a reranker, or of a LoRA adapter, see
            docs/models.md#adapters.
        base_model: The base of an adapter, if it is not the one that the adapter names: a folder, or a name on the Hub.
        top_k: How many documents to return; None for all.
        query_prefix: Put before the query. Models with a template of their own need none of the four.
        query_suffix: Put after the query.
        document_prefix: Put before each document, in front of its metadata.
        document_suffix: Put after each document.
        instruction: What counts as relevant, for models that take an instruction; None or "" for the template's
            default.
        template: A score template instead of the model's own: a built-in's name, a path, Jinja source, or format
            strings `{"prefix", "query_template", "document_template", "suffix"}`.
        template_kwargs: More variables for the template.
        meta_fields_to_embed: Metadata fields to put before a document's text; those that are missing or None are left
            out.
        embedding_separator: What stands between them.
        scale_score: Return sigmoid(logit), between 0 and 1, or the probabilities of a `calibration`, as scores. False
            for raw logits.
        calibration: Return probabilities as scores instead of sigmoid(logit), by a curve that `winnow calibrate` fitted
            on judged pairs: a `winnow.Calibration`, its file, or the folder that holds its calibration.json, such as
            the model's own. The order stays the same. See docs/calibration.md#use-it.
        score_threshold: Least score to return (inclusive), applied before `top_k`; a logit with `scale_score=False`.
        max_length: Most tokens of a prompt; None for the model's limit, or the length at which the reference code of
            its family stops, if that is less. More than the reference code's is taken, more than the model's limit is
            lowered to it; either is a warning in the log.
        max_query_tokens: Most tokens of the query; None for three quarters of what template and instruction leave.
        max_document_tokens: Most tokens of a document, or of each window; None for all that is left.
        on_overflow: What to do with longer documents: "truncate", "error", or "window" (score piece by piece).
        window_overlap: Share of a window that the next one repeats, from 0 to below 1.
        window_score: How a document's windows make its logit: "max", "mean" or "first".
        on_error: "raise", or "skip": a document that cannot be scored ranks last, with the reason in `meta["failed"]`;
            with a blank query all documents do, in the order in which they came.
        deadline: Seconds after which a call gives up and withdraws its prompts, unless the call has a deadline of its
            own; loading the model counts. None to wait. See docs/haystack.md#deadlines-and-blank-queries.
        recipe: The model's family, or a `winnow.ModelRecipe`, if the model's name does not identify it.
        engine: "auto" (vLLM if it runs here, else transformers; the log says which and why), "vllm" (in this process),
            "server" (vLLM servers at `url`), "transformers", "fake" (no model, for tests), or a `winnow.Engine`, which
            cannot be saved.
        engine_kwargs: Settings of the engine: any field of vLLM's `AsyncEngineArgs`, or the keywords of
            `TransformersEngine` or `ServerEngine`; see docs/settings.md#settings-of-the-engine.
        device: What PyTorch runs on, such as "cpu" or "cuda:1"; None to find it. `engine_kwargs={"device": ...}` is the
            same. vLLM runs on what it was built for: only that is taken, and `CUDA_VISIBLE_DEVICES` chooses the GPU. A
            Haystack `ComponentDevice`, or its text.
        cache_dir: Folder that files from the Hub are kept in; None for that of the environment (`HF_HOME`), where vLLM
            looks for its own copy of a model's small files in any case.
        url: Address of a vLLM server, or a list of several that serve the same model, for `engine="server"`;
            `WINNOW_URL` has commas between them. A password does not belong in it: use `api_key`.
        api_key: Key of these servers. A `Secret`, read when it is first needed, and for no other engine.
        token: Access token of the Hugging Face Hub, for private and gated models; read when the model loads.
        text_only: Read texts only, also where the model takes images and videos. A text model always reads only the
            text.
        root_path: Folder that images and videos with local paths are read from; without it they are refused.
        allow_remote_images: Whether images and videos may be fetched from http(s) addresses (never from private ones).
        score_cache: Keep scores from one call to the next: how many pairs in memory (those used last), or a folder to
            keep them in; None to keep none. See docs/operations.md#score-cache.
        fallback: What ranks if the engine fails: the name of another engine for the same model, or "retrieval order",
            which leaves the documents as they came, also when a deadline passes. With any fallback a blank query leaves
            them as they came, too. `meta["fallback"]` then says so. None to raise. See
            docs/operations.md#when-the-engine-fails.
        max_restarts: How often in a row an engine that died is started again, until it scores. Those who share an
            engine share the count, but each has its own limit. See docs/operations.md#when-the-engine-fails.

    Raises:
        ValueError: An argument is out of range. Errors that depend on the model are raised when it loads.
        TypeError: An argument is unknown, or of another type: `top_k` no integer, `meta_fields_to_embed` no list,
            `api_key` or `token` no `Secret`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        base_model: str | os.PathLike[str] | None = None,
        top_k: int | None = 10,
        query_prefix: str = "",
        query_suffix: str = "",
        document_prefix: str = "",
        document_suffix: str = "",
        instruction: str | None = None,
        template: str | os.PathLike[str] | Mapping[str, str] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        meta_fields_to_embed: Sequence[str] | None = None,
        embedding_separator: str = "\n",
        scale_score: bool = True,
        calibration: Calibration | str | os.PathLike[str] | None = None,
        score_threshold: float | None = None,
        max_length: int | None = None,
        max_query_tokens: int | None = None,
        max_document_tokens: int | None = None,
        on_overflow: Literal["truncate", "error", "window"] = "truncate",
        window_overlap: float = 0.1,
        window_score: Literal["max", "mean", "first"] = "max",
        on_error: Literal["raise", "skip"] = "raise",
        deadline: float | None = None,
        recipe: str | ModelRecipe | None = None,
        engine: str | Engine = "auto",
        engine_kwargs: Mapping[str, Any] | None = None,
        device: ComponentDevice | str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        url: str | Sequence[str] | None = None,
        api_key: Secret | None = Secret.from_env_var("WINNOW_API_KEY", strict=False),  # noqa: B008
        token: Secret | None = Secret.from_env_var(["HF_API_TOKEN", "HF_TOKEN"], strict=False),  # noqa: B008
        text_only: bool = False,
        root_path: str | os.PathLike[str] | None = None,
        allow_remote_images: bool = False,
        score_cache: int | str | os.PathLike[str] | None = None,
        fallback: str | None = None,
        max_restarts: int = 1,
    ):
        self.model = plain(model)
        self.top_k = checked_top_k(top_k)
        self.query_prefix = checked_text("query_prefix", query_prefix)
        self.query_suffix = checked_text("query_suffix", query_suffix)
        self.document_prefix = checked_text("document_prefix", document_prefix)
        self.document_suffix = checked_text("document_suffix", document_suffix)
        self.instruction = instruction
        self.template = plain(template)
        self.template_kwargs = template_kwargs
        self.meta_fields_to_embed = checked_fields(meta_fields_to_embed)
        self.embedding_separator = checked_text("embedding_separator", embedding_separator)
        self.scale_score = checked_flag("scale_score", scale_score)
        self.calibration = calibration
        self.score_threshold = checked_threshold(score_threshold)
        self.base_model = base_model
        self.max_length = max_length
        self.max_query_tokens = max_query_tokens
        self.max_document_tokens = max_document_tokens
        self.on_overflow = on_overflow
        self.window_overlap = window_overlap
        self.window_score = window_score
        self.on_error = on_error
        self.deadline = deadline
        self.recipe = recipe
        self.engine = engine
        self.engine_kwargs = with_device_names(engine_kwargs)
        self.device = checked_device(device)
        self.cache_dir = cache_dir
        self.url = url
        self.api_key = checked_secret("api_key", api_key)
        self.token = checked_secret("token", token)
        self.text_only = text_only
        self.root_path = root_path
        self.allow_remote_images = allow_remote_images
        self.score_cache = score_cache
        self.fallback = fallback
        self.max_restarts = max_restarts
        config = RerankerConfig(**self._settings())  # refuses what is out of range
        for name in _SETTINGS - {"device"}:
            setattr(self, name, getattr(config, name))  # as plain data
        self._reranker: Reranker | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Load the model, unless it is loaded.

        With a `fallback`, an engine that does not start within `deadline` is a warning in the log, and loads on.

        Raises:
            ConfigurationError: The model or the template cannot be used.
            EngineError: The engine did not start.
            PipelineRuntimeError: The same, of a ranker in a pipeline; it names the component.
        """
        with self._named():
            self._ready().start()

    async def warm_up_async(self) -> None:
        """`warm_up` for event loops."""
        with self._named():
            await self._ready().astart()

    def close(self) -> None:
        """Wait for runs in flight, then free the engine, unless others use it."""
        if self._reranker is not None:
            self._reranker.close()

    async def close_async(self) -> None:
        """`close` for event loops."""
        if self._reranker is not None:
            await self._reranker.aclose()

    def __getstate__(self) -> dict[str, Any]:
        """All attributes except the engine: a copy gets it with its first run."""
        return {**self.__dict__, "_reranker": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = memo[id(self)] = copy.copy(self)
        if not isinstance(self.engine, str):
            memo[id(self.engine)] = self.engine  # shared, as between rankers that were made with it
        copied.__dict__.update(copy.deepcopy(copied.__dict__, memo))
        return copied

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Name the component in errors of the warm-up; pipelines name it only in errors of `run`."""
        try:
            yield
        except Exception as error:
            pipeline = getattr(self, "__haystack_added_to_pipeline__", None)
            if pipeline is None:
                raise
            raise PipelineRuntimeError.from_exception(pipeline.get_component_name(self), type(self), error) from error

    def _settings(self) -> dict[str, Any]:
        """The arguments of `Reranker`, except the key. Scores are scaled here, because each run may choose that."""
        settings = {name: getattr(self, name) for name in _PARAMETERS if name in _SETTINGS}
        return settings | {"device": None if self.device is None else self.device.to_torch_str()}

    def _ready(self) -> Reranker:
        with _making:
            if self._reranker is None:
                key = self.api_key.resolve_value() if self.api_key is not None and needs_url(self.engine) else None
                settings = {**self._settings(), "api_key": key}
                reranker = Reranker(**settings)
                if token := self._hub_token(reranker):
                    reranker = Reranker(**settings | {"engine_kwargs": {**self.engine_kwargs, "hf_token": token}})
                self._reranker = reranker
            return self._reranker

    def _hub_token(self, reranker: Reranker) -> str | None:
        """`token`, if the model comes from the Hub and the Hub's library would not find the same token in HF_TOKEN.

        An engine with a token of its own is not shared with rankers that have none.
        """
        given = self.engine_kwargs.get("hf_token") is not None
        if self.token is None or given or Path(self.model).expanduser().is_dir():
            return None
        if not reads_model(reranker.engine_settings.engine):  # the environment may have chosen it
            return None
        token = self.token.resolve_value()
        return token if token and token.strip() and token != os.environ.get("HF_TOKEN") else None

    # --- serialization ------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """All init parameters, for `Pipeline.dumps`.

        Raises:
            ValueError: A secret is not from an environment variable.
            SerializationError: A parameter is an object that cannot be written down, such as an engine; it is named.
        """
        if isinstance(self.engine_kwargs.get("hf_token"), str):
            raise ValueError(
                "engine_kwargs['hf_token'] is a secret and cannot be serialized: give "
                "token=Secret.from_env_var('HF_TOKEN') instead"
            )
        parameters = {name: getattr(self, name) for name in _PARAMETERS}
        for name in ("recipe", "calibration"):
            if isinstance(value := parameters[name], ModelRecipe | Calibration):
                parameters[name] = asdict(value)
        data = default_to_dict(self, **{name: plain(value) for name, value in parameters.items()})
        check_savable(data["init_parameters"])
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "WinnowRanker":
        """A ranker from what `to_dict` gave.

        Raises:
            DeserializationError: The data is of another class.
            TypeError: A parameter is unknown.
        """
        return default_from_dict(cls, data)

    def _get_telemetry_data(self) -> dict[str, Any]:
        """What Haystack's usage statistics may hold."""
        return {"model": self.model}

    # --- ranking ------------------------------------------------------------------------------------------------------

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | None = None,
        scale_score: bool | None = None,
        instruction: str | None = None,
        deadline: float | None = None,
    ) -> dict[str, Any]:
        """Rank documents by their relevance to the query.

        Of documents with the same id only the one with the best score is ranked, as in Haystack's own rankers. One
        without text (and image) is not scored: it ranks last, with 0.0, or the least float32 with `scale_score=False`.

        Args:
            query: What is searched for.
            documents: The candidates; never changed.
            top_k: How many to return. This and the next: None for what was set at init.
            score_threshold: Least score to return (inclusive).
            scale_score: True for scores between 0 and 1, False for logits.
            instruction: What counts as relevant; "" for the template's default.
            deadline: Seconds after which the run gives up.

        Returns:
            `documents`, copies with the new score, best first; and `meta`: the `model`, the `usage` in tokens, and all
            of `winnow.RankStats`, but that `truncated` is a list of ids, and `failed` maps ids to reasons. Its `hits`
            are what `winnow.RankedDocument` says of each document, best first, those that were cut off included.

        Raises:
            ValueError: The query is blank, and neither `on_error` is "skip" nor is there a `fallback`; `top_k` is below
                1, or `score_threshold` no finite number.
            TypeError: `documents` is no list of `Document`, or `top_k` no integer.
            DocumentError: A document cannot be scored, and `on_error` is "raise". Its `index` is the place in
                `documents`.
            ConfigurationError: The model or the template cannot be used.
            EngineError: The engine failed.
            TimeoutError: The deadline passed, and `fallback` is not "retrieval order".
        """
        call = self._call(query, documents, top_k, score_threshold, scale_score, instruction, deadline)
        if not documents:
            return call.output(Ranking())
        with call.traced() as output:
            return output(
                self._ready().rank(call.query, self._inputs(call), instruction=call.instruction, deadline=call.deadline)
            )

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | None = None,
        scale_score: bool | None = None,
        instruction: str | None = None,
        deadline: float | None = None,
    ) -> dict[str, Any]:
        """`run` for event loops; arguments, returns and errors are the same."""
        call = self._call(query, documents, top_k, score_threshold, scale_score, instruction, deadline)
        if not documents:
            return call.output(Ranking())
        with call.traced() as output:
            return output(
                await self._ready().arank(
                    call.query, self._inputs(call), instruction=call.instruction, deadline=call.deadline
                )
            )

    def _call(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None,
        score_threshold: float | None,
        scale_score: bool | None,
        instruction: str | None,
        deadline: float | None,
    ) -> Call:
        top_k = checked_top_k(top_k)
        score_threshold = checked_threshold(score_threshold)
        check_documents(documents)
        # A blank query, or one that is not a text, gets no prefix or suffix, so that the core can refuse it.
        asks = isinstance(query, str) and not (query == "" or query.isspace())
        return Call(
            model=self.model,
            engine=name_of(self.engine),
            query=f"{self.query_prefix}{query}{self.query_suffix}" if asks else query,
            instruction=self.instruction if instruction is None else instruction,
            documents=without_duplicates(documents),
            top_k=self.top_k if top_k is None else top_k,
            score_threshold=self.score_threshold if score_threshold is None else score_threshold,
            scale_score=self.scale_score if scale_score is None else checked_flag("scale_score", scale_score),
            deadline=checked_deadline(deadline),
        )

    def _inputs(self, call: Call) -> list[str | winnow.Document | None]:
        reader = DocumentReader(
            prefix=self.document_prefix,
            suffix=self.document_suffix,
            meta_fields=self.meta_fields_to_embed,
            separator=self.embedding_separator,
            root_path=self.root_path,
        )
        return [None if document is None else reader.read(document) for document in call.documents]


_SETTINGS = frozenset(field.name for field in fields(RerankerConfig)) - {"api_key"}
_PARAMETERS = tuple(name for name in inspect.signature(WinnowRanker.__init__).parameters if name != "self")
