"""WinnowRerank: nodes in, nodes out, best first."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llama_index.core.bridge.pydantic import Field, StrictFloat, StrictInt
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from pydantic import StrictBool

from winnow import Document, DocumentError, RankedDocument, Ranking
from winnow.ranking import checked_top_k
from winnow.types import RETRIEVAL_ORDER, finite
from winnow_llama_index.nodes import document_of, with_hidden_metadata
from winnow_llama_index.settings import WinnowSettings

dispatcher = get_dispatcher(__name__)
logger = logging.getLogger(__name__)


class WinnowRerank(WinnowSettings):
    """Reorders nodes by their relevance to the query, with a reranker model on vLLM.

    Making one loads nothing; the first query does. Postprocessors with the same model and engine settings share one
    engine in the process, also with Winnow's other integrations. Nodes are returned as they came, in new
    `NodeWithScore` objects. A node is judged by its text, behind the metadata that `metadata_mode` shows, and by its
    image if it has one and the model takes images. A node with neither is not scored: it ranks last, with 0.0, or with
    `raw_scores` the least float32.

    `ReRankEndEvent.tags["winnow"]` is what `winnow.Ranking.as_dict` says: what the call cost, and what was truncated or
    failed.

    Raises:
        ValueError: An argument is unknown or wrong. Errors that depend on the model are raised by the first query, as a
            `winnow.ConfigurationError`.
    """

    top_n: StrictInt | None = Field(default=2, ge=1)
    """How many nodes to return; None for all."""

    metadata_mode: MetadataMode = MetadataMode.EMBED
    """Which metadata stand before a node's text when it is scored; see docs/llama_index.md#what-is-read."""

    score_threshold: StrictFloat | None = Field(default=None, allow_inf_nan=False)
    """Least score to return (inclusive), applied before `top_n`."""

    keep_retrieval_score: StrictBool = False
    """Keep the score that a node came with in its metadata, as `retrieval_score`; hidden from the models."""

    @classmethod
    def class_name(cls) -> str:
        """The name in serialized configurations."""
        return "WinnowRerank"

    @dispatcher.span
    def rerank(
        self,
        nodes: list[NodeWithScore],
        query: str | QueryBundle,
        *,
        instruction: str | None = None,
        top_n: int | None = None,
        deadline: float | None = None,
    ) -> list[NodeWithScore]:
        """`postprocess_nodes` with settings for this call; others who use the same object do not notice.

        Args:
            nodes: What was retrieved. Not changed.
            query: What was searched for.
            instruction: Instead of the postprocessor's; "" for the template's default.
            top_n: Instead of the postprocessor's.
            deadline: Instead of the postprocessor's: seconds after which the call gives up.

        Returns:
            The best `top_n`, best first; ties keep the input's order. Where nothing could be ranked (a blank query with
            `on_error="skip"` or a `fallback`, or the fallback "retrieval order"), the first `top_n` as they came, each
            with the reason in its metadata, as `rerank_error`.

        Raises:
            TypeError: A node is no `NodeWithScore`, or `top_n` is no integer.
            ValueError: The query is blank, or `top_n` is below 1.
            DocumentError: A node cannot be scored, and `on_error` is "raise".
            ConfigurationError: The model or the template cannot be used.
            EngineError: The engine failed, and there is no `fallback`.
            TimeoutError: The deadline passed, and `fallback` is not "retrieval order".
        """
        return self._ranked(nodes, _bundle(query), self._options(instruction, top_n, deadline))

    @dispatcher.span
    async def arerank(
        self,
        nodes: list[NodeWithScore],
        query: str | QueryBundle,
        *,
        instruction: str | None = None,
        top_n: int | None = None,
        deadline: float | None = None,
    ) -> list[NodeWithScore]:
        """`rerank` for event loops. Cancelling it withdraws its prompts from the engine."""
        return await self._aranked(nodes, _bundle(query), self._options(instruction, top_n, deadline))

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return self._ranked(nodes, query_bundle, self._options())

    @dispatcher.span
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return await self._aranked(nodes, query_bundle, self._options())

    def _ranked(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None, options: dict[str, Any]
    ) -> list[NodeWithScore]:
        query = _checked(nodes, query_bundle)
        if not nodes:
            return []
        with self._events(nodes, query, options["top_k"]) as finish:
            return finish(self._core().rank(query.query_str, self._documents(nodes), **options))

    async def _aranked(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None, options: dict[str, Any]
    ) -> list[NodeWithScore]:
        query = _checked(nodes, query_bundle)
        if not nodes:
            return []
        with self._events(nodes, query, options["top_k"]) as finish:
            return finish(await self._core().arank(query.query_str, self._documents(nodes), **options))

    def _documents(self, nodes: Sequence[NodeWithScore]) -> list[str | Document]:
        return [document_of(hit.node, self.metadata_mode) for hit in nodes]

    def _options(
        self, instruction: str | None = None, top_n: int | None = None, deadline: float | None = None
    ) -> dict[str, Any]:
        top_n = checked_top_k(top_n, "top_n")
        return {
            "top_k": self.top_n if top_n is None else top_n,
            "score_threshold": self.score_threshold,
            "instruction": self.instruction if instruction is None else instruction,
            "template": self.template,
            "template_kwargs": self.template_kwargs,
            "deadline": self.deadline if deadline is None else deadline,
        }

    @contextmanager
    def _events(
        self, nodes: list[NodeWithScore], query: QueryBundle, top_n: int | None
    ) -> Iterator[Callable[[Ranking], list[NodeWithScore]]]:
        """Send both kinds of LlamaIndex events around the scoring. Yields a function that makes nodes of a ranking."""
        top_n = len(nodes) if top_n is None else min(top_n, len(nodes))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query.query_str,
            EventPayload.TOP_K: top_n,
        }
        dispatcher.event(ReRankStartEvent(query=query, nodes=nodes, top_n=top_n, model_name=self.model))
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
                if (
                    error.index is not None
                ):  # a position in the retriever's list, which the user of a query engine lacks
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


def _bundle(query: str | QueryBundle) -> QueryBundle:
    return query if isinstance(query, QueryBundle) else QueryBundle(query)


def _checked(nodes: Sequence[NodeWithScore], query_bundle: QueryBundle | None) -> QueryBundle:
    """The query.

    Raises:
        ValueError: There is none.
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
    return query_bundle
