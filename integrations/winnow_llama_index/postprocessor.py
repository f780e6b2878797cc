"""The LlamaIndex door: nodes in, nodes out, best first."""

import copy
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Literal, Self

from llama_index.core.bridge.pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    StrictInt,
    field_serializer,
    field_validator,
    model_validator,
)
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from winnow import Document, DocumentError, ModelRecipe, RankedDocument, Ranking, Reranker, RerankerConfig
from winnow.types import RETRIEVAL_ORDER, finite
from winnow_llama_index.nodes import document_of, with_hidden_metadata

dispatcher = get_dispatcher(__name__)
logger = logging.getLogger(__name__)

# Given with each call, so that they may be assigned between two queries; api_key waits for the first.
_PER_CALL = {"instruction", "template", "template_kwargs"}
_SETTINGS = {field.name for field in fields(RerankerConfig)} - _PER_CALL - {"api_key"}

_making = threading.Lock()


class WinnowRerank(BaseNodePostprocessor):
    """Reorders nodes by their relevance to the query, with a reranker model on vLLM.

    Making one loads nothing; the first query does. Postprocessors with the same model and engine settings share one
    engine in the process, also with Winnow's other doors. Nodes are returned as they came, in new `NodeWithScore`
    objects. A node is judged by its text, behind the metadata that `metadata_mode` shows, and by its image if it has
    one. A node with neither is not scored: it ranks last, with 0.0, or with `raw_scores` the least float32.

    `ReRankEndEvent.tags["winnow"]` is what `winnow.Ranking.as_dict` says: what the call cost, and what was truncated or
    failed.

    Raises:
        ValueError: An argument is unknown or wrong. What only the model can tell is raised by the first query, as a
            `winnow.ConfigurationError`.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True, hide_input_in_errors=True)

    model: str = Field(description="A folder, or a name on the Hugging Face Hub.", frozen=True)
    top_n: int | None = Field(default=2, ge=1, description="How many nodes to return; None for all.")
    instruction: str | None = Field(
        default=None,
        description="What counts as relevant, for models that take an instruction; None for the template's default.",
    )
    template: str | dict[str, str] | None = Field(
        default=None,
        description="A score template instead of the model's own: a built-in's name, a path, Jinja source, or format "
        "strings for prefix, query_template, document_template and suffix.",
    )
    template_kwargs: dict[str, Any] | None = Field(default=None, description="More variables for the template.")
    metadata_mode: MetadataMode = Field(
        default=MetadataMode.EMBED, description="Which metadata stand before a node's text when it is scored."
    )
    score_threshold: float | None = Field(
        default=None, allow_inf_nan=False, description="Least score to return (inclusive), applied before top_n."
    )
    keep_retrieval_score: bool = Field(
        default=False,
        description="Keep the score that a node came with in its metadata, as retrieval_score; hidden from the models.",
    )
    raw_scores: bool = Field(
        default=False, frozen=True, description="Return logits as scores instead of sigmoid(logit)."
    )
    recipe: str | ModelRecipe | None = Field(
        default=None, frozen=True, description="The model's family, where the model's name does not tell."
    )
    max_length: int | None = Field(
        default=None, ge=1, frozen=True, description="Most tokens of a prompt; None for the model's limit."
    )
    max_query_tokens: int | None = Field(
        default=None, ge=1, frozen=True, description="Most tokens of the query; None for three quarters of the room."
    )
    max_document_tokens: int | None = Field(
        default=None, ge=1, frozen=True, description="Most tokens of a node, or of each window; None for what is left."
    )
    on_overflow: Literal["truncate", "error", "window"] = Field(
        default="truncate", frozen=True, description='What to do with longer nodes; "window" scores piece by piece.'
    )
    window_overlap: float = Field(
        default=0.1, ge=0, lt=1, frozen=True, description="Share of a window that the next one repeats."
    )
    window_score: Literal["max", "mean", "first"] = Field(
        default="max", frozen=True, description="How a node's windows make its score."
    )
    on_error: Literal["raise", "skip"] = Field(
        default="raise",
        frozen=True,
        description='"skip": a node that cannot be scored ranks last and says why in its metadata, as rerank_error.',
    )
    engine: str = Field(
        default="auto",
        frozen=True,
        description='"auto", "vllm" (in this process), "server" (vLLM servers at url), "transformers", or "fake" (no '
        "model, for tests).",
    )
    url: str | list[str] | None = Field(
        default=None, frozen=True, description='Address of a vLLM server, or of several, for engine="server".'
    )
    api_key: SecretStr | None = Field(
        default=None,
        frozen=True,
        exclude=True,
        repr=False,
        description="Key of these servers; None for the environment variable WINNOW_API_KEY. Never serialized.",
    )
    engine_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        frozen=True,
        repr=False,
        description="Settings of the engine: any field of vLLM's AsyncEngineArgs, or the keywords of Winnow's "
        "TransformersEngine or ServerEngine. hf_token is never serialized.",
    )
    root_path: str | None = Field(
        default=None,
        frozen=True,
        description="Folder that images with local paths are read from; without it such images are refused.",
    )
    allow_remote_images: bool = Field(
        default=False, frozen=True, description="Whether images may be fetched from http(s) addresses."
    )

    score_cache: StrictInt | str | None = Field(
        default=None,
        frozen=True,
        description="Keep scores from one query to the next: how many pairs in memory, or a folder to keep them in.",
    )

    fallback: str | None = Field(
        default=None,
        frozen=True,
        description='What ranks where the engine fails: the name of another engine, or "retrieval order", which leaves '
        "the nodes and their scores as they came and says why in their metadata, as rerank_error. None to raise.",
    )

    max_restarts: int = Field(
        default=1, ge=0, frozen=True, description="How often in a row an engine that died is started again."
    )

    _reranker: Reranker | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _admit_class_name(cls, data: Any) -> Any:
        """LlamaIndex writes `class_name` into every dump; everything else that is unknown is refused."""
        return {key: value for key, value in data.items() if key != "class_name"} if isinstance(data, dict) else data

    @field_validator("model", "template", "root_path", "score_cache", mode="before")
    @classmethod
    def _path_to_str(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @field_serializer("engine_kwargs")
    def _without_token(self, value: dict[str, Any]) -> dict[str, Any]:
        return {key: item for key, item in value.items() if key != "hf_token"}

    def model_post_init(self, _context: Any, /) -> None:
        """Refuse settings that do not go together; nothing is loaded yet."""
        RerankerConfig(**self._settings())

    def __getstate__(self) -> dict[str, Any]:
        """Without the reranker, which may know a key from the environment: a copy makes its own."""
        return {**super().__getstate__(), "__pydantic_private__": None}

    @classmethod
    def class_name(cls) -> str:
        """The name in serialized configurations."""
        return "WinnowRerank"

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

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _checked_query(nodes, query_bundle)
        if not nodes:
            return []
        with self._events(nodes, query_bundle, query) as finish:
            return finish(self._core().rank(query, self._documents(nodes), **self._options()))

    @dispatcher.span
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _checked_query(nodes, query_bundle)
        if not nodes:
            return []
        with self._events(nodes, query_bundle, query) as finish:
            return finish(await self._core().arank(query, self._documents(nodes), **self._options()))

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _SETTINGS & type(self).model_fields.keys()}

    def _core(self) -> Reranker:
        """The reranker, made by the first query: only then are secrets looked up."""
        with _making:
            if self._reranker is None:
                key = None
                if self.engine == "server":
                    given = None if self.api_key is None else self.api_key.get_secret_value()
                    key = (os.environ.get("WINNOW_API_KEY") if given is None else given) or None
                self._reranker = Reranker(**self._settings(), api_key=key)
            return self._reranker

    def _documents(self, nodes: Sequence[NodeWithScore]) -> list[str | Document]:
        return [document_of(hit.node, self.metadata_mode) for hit in nodes]

    def _options(self) -> dict[str, Any]:
        return {
            "top_k": self.top_n,
            "score_threshold": self.score_threshold,
            "instruction": self.instruction,
            "template": self.template,
            "template_kwargs": self.template_kwargs,
        }

    @contextmanager
    def _events(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None, query: str
    ) -> Iterator[Callable[[Ranking], list[NodeWithScore]]]:
        """Both kinds of LlamaIndex events around the scoring. Yields what turns the ranking into nodes."""
        top_n = len(nodes) if self.top_n is None else min(self.top_n, len(nodes))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: top_n,
        }
        dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=top_n, model_name=self.model))
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:

            def finish(ranking: Ranking) -> list[NodeWithScore]:
                scored = ranking.stats.fallback != RETRIEVAL_ORDER
                reranked = [self._reranked(nodes[hit.index], hit, scored) for hit in ranking]
                if ranking.stats.failed:
                    logger.warning("%d of %d nodes could not be reranked.", ranking.stats.failed, len(nodes))
                event.on_end(payload={EventPayload.NODES: reranked})
                dispatcher.event(ReRankEndEvent(nodes=reranked, tags={"winnow": ranking.as_dict()}))
                return reranked

            try:
                yield finish
            except DocumentError as error:
                if error.index is not None:  # a place in a list that whoever asks a query engine never sees
                    error.add_note(f"It is the node with the id {nodes[error.index].node.node_id}.")
                raise

    def _reranked(self, found: NodeWithScore, hit: RankedDocument, scored: bool) -> NodeWithScore:
        added: dict[str, Any] = {}
        if self.keep_retrieval_score:
            added["retrieval_score"] = found.score
        if hit.error is not None or "rerank_error" in found.node.metadata:  # the latter from another call
            added["rerank_error"] = hit.error
        node = with_hidden_metadata(found.node, added)
        return found.model_copy(update={"node": node, "score": finite(hit.score) if scored else found.score})


def _checked_query(nodes: Sequence[NodeWithScore], query_bundle: QueryBundle | None) -> str:
    """The text of the query, as it came.

    Raises:
        ValueError: There is no query.
        TypeError: A node is no `NodeWithScore`.
    """
    if query_bundle is None:
        raise ValueError("WinnowRerank needs a query: give query_bundle or query_str.")
    for at, node in enumerate(nodes):
        if not isinstance(node, NodeWithScore):
            raise TypeError(
                f"WinnowRerank takes NodeWithScore objects, but node {at} is a {type(node).__name__}: "
                "wrap it as NodeWithScore(node=...)."
            )
    return query_bundle.query_str
