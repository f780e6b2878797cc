"""The Haystack door: documents in, documents out, best first."""

import inspect
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.utils import Secret

import winnow
from haystack_integrations.components.rankers.winnow.calls import Call
from haystack_integrations.components.rankers.winnow.checks import (
    basic,
    check_documents,
    checked_fields,
    checked_secret,
    checked_threshold,
    checked_top_k,
)
from haystack_integrations.components.rankers.winnow.documents import DocumentReader, without_duplicates
from winnow import Engine, ModelRecipe, Ranking, Reranker, RerankerConfig
from winnow.engines.base import name_of
from winnow.engines.settings import resolve

# Held for the moment it takes to make a Reranker (loading is not part of it). Not one a ranker: locks cannot be copied.
_making = threading.Lock()


@component
class WinnowRanker:
    """Ranks documents by their relevance to the query, with a reranker model on vLLM.

    Making one loads nothing: `warm_up`, which pipelines call, or the first `run` does. Rankers with the same model and
    engine settings share one engine in the process, also with Winnow's other doors. All methods may be called from any
    thread and any event loop. After `close` the next run loads the model again.

    ```python
    ranker = WinnowRanker("Qwen/Qwen3-Reranker-0.6B", top_k=3)
    ranker.run(query="capital of China", documents=[Document(content="Beijing."), Document(content="Paris.")])
    ```

    Args:
        model: A folder, or a name on the Hugging Face Hub.
        top_k: How many documents to return; None for all.
        query_prefix: Put before the query. Models with a template of their own need neither prefix.
        document_prefix: Put before each document, in front of its metadata.
        instruction: What counts as relevant, for models that take an instruction; None for the template's default.
        template: A score template instead of the model's own: a built-in's name, a path, Jinja source, or format
            strings `{"prefix", "query_template", "document_template", "suffix"}`.
        template_kwargs: More variables for the template.
        meta_fields_to_embed: Metadata fields to put before a document's text; those that are missing or None are left
            out.
        embedding_separator: What stands between them.
        scale_score: Return sigmoid(logit), between 0 and 1, as scores. False for raw logits.
        score_threshold: Least score to return (inclusive), applied before `top_k`; a logit with `scale_score=False`.
        max_length: Most tokens of a prompt; None for the model's limit.
        max_query_tokens: Most tokens of the query; None for three quarters of what template and instruction leave.
        max_document_tokens: Most tokens of a document, or of each window; None for all that is left.
        on_overflow: What to do with longer documents: "truncate", "error", or "window" (score piece by piece).
        window_overlap: Share of a window that the next one repeats.
        window_score: How a document's windows make its score: "max", "mean" or "first".
        on_error: "raise", or "skip": a document that cannot be scored ranks last, and `meta["failed"]` says why.
        recipe: The model's family, or a `winnow.ModelRecipe`, where the model's name does not tell.
        engine: "auto" (vLLM where it runs, else transformers), "vllm", "transformers", "server" (vLLM servers at
            `url`), "fake" (no model, for tests), or a `winnow.Engine`, which cannot be serialized.
        engine_kwargs: Settings of the engine: any field of vLLM's `AsyncEngineArgs`, or the keywords of Winnow's
            `TransformersEngine` or `ServerEngine`.
        url: Address of a vLLM server, or several that serve the same model, for `engine="server"`.
        api_key: Key of these servers; read when it is first needed, and for no other engine.
        token: Access token of the Hugging Face Hub, for private and gated models; read when the model loads.
        root_path: Folder that images in `meta["file_path"]` are read from; without it they are refused.
        allow_remote_images: Whether `meta["file_path"]` may be an http(s) address.
        score_cache: Keep scores from one run to the next: how many pairs in memory, or a folder to keep them in.
        fallback: What ranks where the engine fails: the name of another engine, or "retrieval order", which leaves the
            documents and their scores as they came. `meta["fallback"]` then says so. None to raise.
        max_restarts: How often in a row an engine that died is started again.

    Raises:
        ValueError: An argument is out of range. What only the model can tell is raised when it loads.
        TypeError: `top_k` is not an integer, `meta_fields_to_embed` no list, or `api_key` or `token` no `Secret`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        top_k: int | None = 10,
        query_prefix: str = "",
        document_prefix: str = "",
        instruction: str | None = None,
        template: str | os.PathLike[str] | Mapping[str, str] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        meta_fields_to_embed: Sequence[str] | None = None,
        embedding_separator: str = "\n",
        scale_score: bool = True,
        score_threshold: float | None = None,
        max_length: int | None = None,
        max_query_tokens: int | None = None,
        max_document_tokens: int | None = None,
        on_overflow: Literal["truncate", "error", "window"] = "truncate",
        window_overlap: float = 0.1,
        window_score: Literal["max", "mean", "first"] = "max",
        on_error: Literal["raise", "skip"] = "raise",
        recipe: str | ModelRecipe | None = None,
        engine: str | Engine = "auto",
        engine_kwargs: Mapping[str, Any] | None = None,
        url: str | Sequence[str] | None = None,
        api_key: Secret | None = Secret.from_env_var("WINNOW_API_KEY", strict=False),  # noqa: B008
        token: Secret | None = Secret.from_env_var(["HF_API_TOKEN", "HF_TOKEN"], strict=False),  # noqa: B008
        root_path: str | os.PathLike[str] | None = None,
        allow_remote_images: bool = False,
        score_cache: int | str | os.PathLike[str] | None = None,
        fallback: str | None = None,
        max_restarts: int = 1,
    ):
        self.model = os.fspath(model)
        self.top_k = checked_top_k(top_k)
        self.query_prefix = query_prefix
        self.document_prefix = document_prefix
        self.instruction = instruction
        self.template = basic(template)
        self.template_kwargs = basic(template_kwargs)
        self.meta_fields_to_embed = checked_fields(meta_fields_to_embed)
        self.embedding_separator = embedding_separator
        self.scale_score = scale_score
        self.score_threshold = checked_threshold(score_threshold)
        self.max_length = max_length
        self.max_query_tokens = max_query_tokens
        self.max_document_tokens = max_document_tokens
        self.on_overflow = on_overflow
        self.window_overlap = window_overlap
        self.window_score = window_score
        self.on_error = on_error
        self.recipe = recipe
        self.engine = engine
        self.engine_kwargs = basic(engine_kwargs or {})
        self.url = basic(url)
        self.api_key = checked_secret("api_key", api_key)
        self.token = checked_secret("token", token)
        self.root_path = basic(root_path)
        self.allow_remote_images = allow_remote_images
        self.score_cache = basic(score_cache)
        self.fallback = fallback
        self.max_restarts = max_restarts
        RerankerConfig(**self._settings())  # refuses what is out of range
        self._reranker: Reranker | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Load the model, unless it is loaded."""
        self._ready().start()

    async def warm_up_async(self) -> None:
        """`warm_up` for event loops."""
        await self._ready().astart()

    def close(self) -> None:
        """Wait for runs in flight, then free the engine unless others hold it."""
        if self._reranker is not None:
            self._reranker.close()

    async def close_async(self) -> None:
        """`close` for event loops."""
        if self._reranker is not None:
            await self._reranker.aclose()

    def _settings(self) -> dict[str, Any]:
        """What `Reranker` is made of, but for the key. Scores are scaled here, as each run may want it differently."""
        return {name: getattr(self, name) for name in _PARAMETERS if name in _SETTINGS}

    def _ready(self) -> Reranker:
        with _making:
            if self._reranker is None:
                key = self.api_key.resolve_value() if self.api_key is not None and self.engine == "server" else None
                settings = self._settings()
                if token := self._hub_token():
                    settings["engine_kwargs"] = {**self.engine_kwargs, "hf_token": token}
                self._reranker = Reranker(**settings, api_key=key)
            return self._reranker

    def _hub_token(self) -> str | None:
        """`token`, where the model comes from the Hub, whose library would not find the same in HF_TOKEN by itself.

        An engine with a token of its own is not shared with those that were given none.
        """
        given = self.engine_kwargs.get("hf_token") is not None
        if self.token is None or given or Path(self.model).expanduser().is_dir():
            return None
        engine = resolve(RerankerConfig(**self._settings())).engine
        if not isinstance(engine, str) or engine == "fake":
            return None
        token = self.token.resolve_value()
        return token if token and token.strip() and token != os.environ.get("HF_TOKEN") else None

    # --- serialization ------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """All init parameters, for `Pipeline.dumps`.

        Raises:
            ValueError: A secret is not from an environment variable.
        """
        if isinstance(self.engine_kwargs.get("hf_token"), str):
            raise ValueError(
                "engine_kwargs['hf_token'] is a secret and cannot be serialized: give "
                "token=Secret.from_env_var('HF_TOKEN') instead"
            )
        parameters = {name: getattr(self, name) for name in _PARAMETERS}
        if isinstance(self.recipe, ModelRecipe):
            parameters["recipe"] = {name: basic(value) for name, value in asdict(self.recipe).items()}
        return default_to_dict(self, **parameters)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "WinnowRanker":
        """A ranker from what `to_dict` gave.

        Raises:
            DeserializationError: The data is of another class.
            TypeError: A parameter is unknown.
        """
        parameters: dict[str, Any] = dict(data.get("init_parameters", {}))
        if isinstance(recipe := parameters.get("recipe"), dict):
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in recipe.items()}
            parameters["recipe"] = ModelRecipe(**values)
        return default_from_dict(cls, {**data, "init_parameters": parameters})

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
    ) -> dict[str, Any]:
        """Rank documents by their relevance to the query.

        Of documents with the same id only the one with the best score is ranked, as in Haystack's own rankers. One
        without text (and image) is not scored: it ranks last, with 0.0, or the least float32 with `scale_score=False`.

        Args:
            query: What is searched for.
            documents: The candidates; never changed.
            top_k: How many to return. This and the next: None for what was set at init.
            score_threshold: Least score to return (inclusive).
            scale_score: True for sigmoid(logit) as scores, False for logits.
            instruction: What counts as relevant; "" for the template's default.

        Returns:
            `documents`, copies with the new score, best first; and `meta`: the `model`, the `usage` in tokens, how many
            `documents` were ranked and how many different ones scored (`unique`), the ids of those `truncated`, what
            `failed` and why (id to message, with `on_error="skip"`), and `elapsed_ms`; `fallback`, None or what
            ranked instead of the engine, and `error`, why.

        Raises:
            ValueError: The query is blank, `top_k` is below 1, or `score_threshold` not finite.
            TypeError: `documents` is no list of `Document`, or `top_k` no integer.
            DocumentError: A document cannot be scored, and `on_error` is "raise". Its `index` is the place in
                `documents`.
            ConfigurationError: The model or the template cannot be used.
            EngineError: The engine failed.
        """
        call = self._call(query, documents, top_k, score_threshold, scale_score, instruction)
        if not documents:
            return call.output(Ranking())
        with call.traced() as output:
            return output(self._ready().rank(call.query, self._inputs(call), instruction=call.instruction))

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | None = None,
        scale_score: bool | None = None,
        instruction: str | None = None,
    ) -> dict[str, Any]:
        """`run` for event loops; arguments, returns and errors are the same."""
        call = self._call(query, documents, top_k, score_threshold, scale_score, instruction)
        if not documents:
            return call.output(Ranking())
        with call.traced() as output:
            return output(await self._ready().arank(call.query, self._inputs(call), instruction=call.instruction))

    def _call(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None,
        score_threshold: float | None,
        scale_score: bool | None,
        instruction: str | None,
    ) -> Call:
        top_k = checked_top_k(top_k)
        score_threshold = checked_threshold(score_threshold)
        check_documents(documents)
        if documents and (not isinstance(query, str) or not query.strip()):
            raise ValueError(f"query must be a text that is not blank, but got {query!r}")
        return Call(
            model=self.model,
            engine=name_of(self.engine),
            query=f"{self.query_prefix}{query}",
            instruction=self.instruction if instruction is None else instruction,
            documents=without_duplicates(documents),
            top_k=self.top_k if top_k is None else top_k,
            score_threshold=self.score_threshold if score_threshold is None else score_threshold,
            scale_score=self.scale_score if scale_score is None else scale_score,
        )

    def _inputs(self, call: Call) -> list[str | winnow.Document | None]:
        reader = DocumentReader(
            prefix=self.document_prefix,
            meta_fields=self.meta_fields_to_embed,
            separator=self.embedding_separator,
            root_path=self.root_path,
        )
        return [None if document is None else reader.read(document) for document in call.documents]


_SETTINGS = frozenset(field.name for field in fields(RerankerConfig)) - {"api_key"}
_PARAMETERS = tuple(name for name in inspect.signature(WinnowRanker.__init__).parameters if name != "self")
