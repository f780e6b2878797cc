"""The LlamaIndex integration: order, cut, what is read of a node, bad input, nothing mutated."""

import asyncio
import copy
import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from five_texts import BEST_FIRST, QUERY, TEXTS
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.rerank import ReRankStartEvent
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.schema import (
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeWithScore,
    QueryBundle,
    TextNode,
)
from llama_index_helpers import Call, fake, ids, scored, text_nodes

from winnow import DocumentError, ModelError, Reranker
from winnow_llama_index import WinnowRerank

pytest_plugins = ["llama_index_helpers"]

# --- order, cut, scores -----------------------------------------------------------------------------------------------


def test_orders_best_first(call: Call) -> None:
    found = call(fake(), scored(text_nodes()), query_str=QUERY)
    assert ids(found) == BEST_FIRST
    scores = [hit.score for hit in found]
    assert all(type(score) is float and 0 <= score <= 1 for score in scores)
    assert scores == sorted(scores, reverse=True)


def test_scores_are_the_cores(call: Call) -> None:
    with Reranker("fake", engine="fake") as core:
        expected = core.score(QUERY, TEXTS)
    found = call(fake(), scored(text_nodes()), query_str=QUERY)
    assert [hit.score for hit in found] == [expected[at] for at in BEST_FIRST]


def test_top_n() -> None:
    nodes = scored(text_nodes())
    assert WinnowRerank(model="m").top_n == 2
    assert ids(fake(top_n=2).postprocess_nodes(nodes, query_str=QUERY)) == BEST_FIRST[:2]
    assert ids(fake(top_n=99).postprocess_nodes(nodes, query_str=QUERY)) == BEST_FIRST
    assert ids(fake(top_n=None).postprocess_nodes(nodes, query_str=QUERY)) == BEST_FIRST


def test_top_n_may_be_assigned() -> None:
    reranker = fake()
    reranker.top_n = 1
    assert ids(reranker.postprocess_nodes(scored(text_nodes()), query_str=QUERY)) == BEST_FIRST[:1]
    with pytest.raises(ValueError, match="top_n"):
        reranker.top_n = 0
    assert reranker.top_n == 1


def test_ties_keep_the_retrievers_order() -> None:
    nodes = text_nodes(["same words", "other words!", "same words", "some words", "same words"])
    found = fake().postprocess_nodes(scored(nodes), query_str="same")
    assert ids(found)[:3] == [0, 2, 4]
    assert len({hit.score for hit in found[:3]}) == 1


def test_threshold_is_inclusive_and_comes_before_top_n() -> None:
    nodes = scored(text_nodes())
    everything = fake().postprocess_nodes(nodes, query_str=QUERY)
    least = everything[2].score
    assert ids(fake(score_threshold=least).postprocess_nodes(nodes, query_str=QUERY)) == BEST_FIRST[:3]
    assert ids(fake(score_threshold=least, top_n=4).postprocess_nodes(nodes, query_str=QUERY)) == BEST_FIRST[:3]
    assert fake(score_threshold=1.0).postprocess_nodes(nodes, query_str=QUERY) == []
    assert len(fake(score_threshold=0.0).postprocess_nodes(nodes, query_str=QUERY)) == len(nodes)


def test_raw_scores_are_the_logits() -> None:
    nodes = scored(text_nodes())
    raw = fake(raw_scores=True).postprocess_nodes(nodes, query_str=QUERY)
    squashed = fake().postprocess_nodes(nodes, query_str=QUERY)
    assert ids(raw) == ids(squashed)
    assert raw[0].score is not None
    assert raw[0].score > 1
    assert [1 / (1 + math.exp(-hit.score)) for hit in raw] == pytest.approx([hit.score for hit in squashed])


def test_instruction_counts_and_may_be_assigned() -> None:
    reranker = fake(instruction="noodles")
    nodes = scored(text_nodes())
    with_instruction = reranker.postprocess_nodes(nodes, query_str="rice")
    assert ids(with_instruction)[0] == 0
    reranker.instruction = "Paris"
    assert ids(reranker.postprocess_nodes(nodes, query_str="capital of"))[0] == 2
    reranker.instruction = None
    plain = fake().postprocess_nodes(nodes, query_str="rice")
    assert [hit.score for hit in reranker.postprocess_nodes(nodes, query_str="rice")] == [hit.score for hit in plain]


def test_template_and_its_variables_reach_the_model() -> None:
    template = "<i>{{ instruction }}{{ bonus }}<q>{{ query }}<d>{{ document }}<e>"
    reranker = fake(template=template, template_kwargs={"bonus": "Shanghai"})
    nodes = scored(text_nodes())
    assert ids(reranker.postprocess_nodes(nodes, query_str="Shanghai Paris"))[0] == 3
    reranker.template_kwargs = {"bonus": "in China is"}
    assert ids(reranker.postprocess_nodes(nodes, query_str="Shanghai Paris"))[0] == 4


def test_long_nodes_follow_on_overflow() -> None:
    nodes = scored(text_nodes(["filler " * 40 + "needle", "filler", "needle " + "filler " * 40]))
    cut = fake(max_document_tokens=30).postprocess_nodes(nodes, query_str="needle")
    assert ids(cut)[0] == 2
    windows = fake(max_document_tokens=30, on_overflow="window").postprocess_nodes(nodes, query_str="needle")
    assert set(ids(windows)[:2]) == {0, 2}
    with pytest.raises(DocumentError, match="Document 0") as caught:
        fake(max_document_tokens=30, on_overflow="error").postprocess_nodes(nodes[::-1], query_str="needle")
    assert "id 2" in str(caught.value.__notes__)


def test_skipped_nodes_rank_last_and_say_why(caplog: pytest.LogCaptureFixture, events: list[BaseEvent]) -> None:
    nodes = scored(text_nodes(["needle " * 40, "filler", "needle"]))
    reranker = fake(max_document_tokens=30, on_overflow="error", on_error="skip")
    found = reranker.postprocess_nodes(nodes, query_str="needle")
    assert ids(found) == [2, 1, 0]
    assert found[-1].score == 0.0
    assert "token" in found[-1].node.metadata["rerank_error"]
    assert "rerank_error" not in found[-1].node.get_content(metadata_mode=MetadataMode.LLM)
    assert "rerank_error" not in found[0].node.metadata
    assert nodes[0].node.metadata == {}
    assert "1 of 3 nodes" in caplog.text
    # Another pass that can read it forgets the old reason.
    again = fake().postprocess_nodes(found, query_str="needle")
    assert [hit.node.metadata.get("rerank_error") for hit in again] == [None] * 3
    assert found[-1].node.metadata["rerank_error"] is not None
    assert [event.tags["winnow"]["failed"] for event in events[1::2]] == [1, 0]


# --- what a node's text is --------------------------------------------------------------------------------------------


def test_metadata_mode_decides_what_is_read() -> None:
    nodes = scored(
        [
            TextNode(id_="0", text="text", metadata={"shown": "needle"}),
            TextNode(id_="1", text="text", metadata={"llm": "needle"}, excluded_embed_metadata_keys=["llm"]),
            TextNode(id_="2", text="needle and more text", metadata={}),
        ]
    )
    expected = {MetadataMode.EMBED: {0, 2}, MetadataMode.ALL: {0, 1, 2}, MetadataMode.NONE: {2}}
    for mode, relevant in expected.items():
        found = fake(metadata_mode=mode, score_threshold=0.5).postprocess_nodes(nodes, query_str="needle")
        assert set(ids(found)) == relevant, mode


def test_every_kind_of_node_is_read() -> None:
    nodes = [
        Document(id_="0", text="a needle"),
        Node(id_="1", text_resource=MediaResource(text="a needle too")),
        IndexNode(id_="2", text="one needle more", index_id="i"),
        ImageNode(id_="3", text="a caption with a needle", metadata={"page": 1}),
    ]
    found = fake(score_threshold=0.5).postprocess_nodes(scored(nodes), query_str="needle")
    assert sorted(ids(found)) == [0, 1, 2, 3]
    assert [type(hit.node) for hit in sorted(found, key=lambda hit: hit.node.node_id)] == [type(node) for node in nodes]


@pytest.mark.parametrize(
    "blank",
    [
        TextNode(id_="0", text=" \n"),
        Node(id_="0", metadata={"file_name": "china.mp3"}, audio_resource=MediaResource(path="china.mp3")),
        ImageNode(id_="0", metadata={"file_name": "china.png"}),  # its image got lost
    ],
    ids=["blank", "audio", "no image"],
)
def test_a_node_with_nothing_to_read_is_not_scored_and_ranks_last(
    call: Call, blank: Any, events: list[BaseEvent]
) -> None:
    nodes = scored([blank, *text_nodes()[1:]])
    found = call(fake(), nodes, query_str="China")
    assert ids(found)[-1] == 0
    assert found[-1].score == 0.0
    assert events[-1].tags["winnow"]["unique"] == len(nodes) - 1
    raw = call(fake(raw_scores=True), nodes, query_str="China")
    assert ids(raw)[-1] == 0
    assert json.loads(raw[-1].model_dump_json())["score"] == pytest.approx(-3.4028235e38)
    assert raw[-1].score < raw[-2].score
    assert ids(call(fake(raw_scores=True, score_threshold=-1e9), nodes, query_str="China")) == ids(raw)[:-1]


# --- bad input --------------------------------------------------------------------------------------------------------


def test_no_query_is_refused_before_any_event(call: Call, events: list[BaseEvent]) -> None:
    for nodes in (scored(text_nodes()), []):
        with pytest.raises(ValueError, match="needs a query: give"):
            call(fake(), nodes)
    assert events == []


@pytest.mark.parametrize("query", ["", " \n", None])
def test_a_blank_query_is_refused(call: Call, query: Any) -> None:
    with pytest.raises(ValueError, match=r"query .*blank"):
        call(fake(), scored(text_nodes()), query_bundle=QueryBundle(query))
    assert call(fake(), [], query_bundle=QueryBundle(query)) == []


@pytest.mark.parametrize("settings", [{"on_error": "skip"}, {"fallback": "retrieval order"}], ids=str)
def test_a_blank_query_may_leave_the_nodes_as_they_came(call: Call, settings: dict[str, Any]) -> None:
    """As in a chat, where an LLM condensed the question to nothing."""
    nodes = [NodeWithScore(node=node, score=at / 10) for at, node in enumerate(text_nodes())]
    found = call(fake(top_n=3, **settings), nodes, query_str=" \n")
    assert ids(found) == [0, 1, 2]
    assert [hit.score for hit in found] == [0.0, 0.1, 0.2]
    assert all("blank" in hit.node.metadata["rerank_error"] for hit in found)
    assert "rerank_error" not in nodes[0].node.metadata


# --- settings for one call --------------------------------------------------------------------------------------------


def rerank_sync(reranker: WinnowRerank, *args: Any, **kwargs: Any) -> list[NodeWithScore]:
    return reranker.rerank(*args, **kwargs)


def rerank_async(reranker: WinnowRerank, *args: Any, **kwargs: Any) -> list[NodeWithScore]:
    return asyncio.run(reranker.arerank(*args, **kwargs))


every_rerank = pytest.mark.parametrize("rerank", [rerank_sync, rerank_async], ids=["sync", "async"])


@every_rerank
def test_rerank_takes_settings_for_the_call(rerank: Call, events: list[BaseEvent], spans: SimpleSpanHandler) -> None:
    reranker = fake(top_n=2, instruction="noodles rice")
    nodes = scored(text_nodes())
    settings = reranker.to_dict()
    assert ids(rerank(reranker, nodes, QUERY)) == [1, 0]
    assert ids(rerank(reranker, nodes, QueryBundle(QUERY), top_n=np.int64(1))) == [1]
    assert ids(rerank(reranker, nodes, QUERY, instruction="", top_n=3)) == BEST_FIRST[:3]
    assert ids(rerank(reranker, nodes, QUERY, instruction="Paris", top_n=4)) == [1, 2, 3, 4]
    assert ids(reranker.postprocess_nodes(nodes, query_str=QUERY)) == [1, 0]
    assert reranker.to_dict() == settings
    starts = [event for event in events if isinstance(event, ReRankStartEvent)]
    assert [event.top_n for event in starts] == [2, 1, 3, 4, 2]
    name = "WinnowRerank.rerank" if rerank is rerank_sync else "WinnowRerank.arerank"
    assert {str(event.span_id).split("-")[0] for event in starts[:4]} == {name}
    assert len(spans.completed_spans) == 5


@every_rerank
def test_wrong_settings_for_the_call(rerank: Call, events: list[BaseEvent]) -> None:
    for nodes in (scored(text_nodes()), []):
        with pytest.raises(ValueError, match="top_n must be > 0, but got 0"):
            rerank(fake(), nodes, QUERY, top_n=0)
        for top_n in (True, "3", 1.5):
            with pytest.raises(TypeError, match="top_n must be an integer"):
                rerank(fake(), nodes, QUERY, top_n=top_n)
    assert events == []
    assert rerank(fake(), [], QUERY) == []


def test_a_deadline_ends_a_query(call: Call) -> None:
    stalled = {"engine_kwargs": {"delay": 600.0}}
    nodes = scored(text_nodes())
    with pytest.raises(TimeoutError):
        call(fake(**stalled, deadline=0.2), nodes, query_str=QUERY)
    reranker = fake(**stalled, deadline=0.2, fallback="retrieval order")
    found = call(reranker, nodes, query_str=QUERY)
    assert ids(found) == [0, 1, 2, 3, 4]
    assert all("deadline" in hit.node.metadata["rerank_error"] for hit in found)
    reranker.deadline = None  # given with each call
    for rerank in (rerank_sync, rerank_async):
        assert "deadline" in rerank(reranker, nodes, QUERY, deadline=0.2)[0].node.metadata["rerank_error"]


@pytest.mark.parametrize("wrong", [TextNode(text="a"), "a", None], ids=["node", "text", "none"])
def test_what_is_no_node_with_score_is_refused_before_any_event(
    call: Call, wrong: Any, events: list[BaseEvent]
) -> None:
    with pytest.raises(TypeError, match=f"node 5 is a {type(wrong).__name__}"):
        call(fake(), [*scored(text_nodes()), wrong], query_str=QUERY)
    assert events == []


def test_no_nodes_touch_nothing(call: Call, events: list[BaseEvent]) -> None:
    missing = WinnowRerank(model="no/such/folder", engine="transformers")
    assert call(missing, [], query_str=QUERY) == []
    assert events == []
    assert call(missing, scored([TextNode(text="")]), query_str=QUERY)[0].score == 0.0


def test_a_model_that_is_missing_is_an_error_and_ends_the_events(
    call: Call, events: list[BaseEvent], spans: SimpleSpanHandler, tmp_path: Path
) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    reranker = WinnowRerank(
        model=tmp_path / "missing", engine="transformers", callback_manager=CallbackManager([debug])
    )
    with pytest.raises(ModelError, match="missing"):
        call(reranker, scored(text_nodes()), query_str=QUERY)
    assert [type(event) for event in events] == [ReRankStartEvent]
    (pair,) = debug.get_event_pairs(CBEventType.RERANKING)
    assert isinstance(pair[1].payload[EventPayload.EXCEPTION], ModelError)
    assert [span.id_.split("-")[0].split(".")[0] for span in spans.dropped_spans] == ["WinnowRerank"]


# --- nothing is mutated -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
def test_what_metadata_hold_is_the_users_and_is_not_copied(call: Call, keep: bool) -> None:
    lock = threading.Lock()  # cannot be copied
    nodes = scored([TextNode(text=text, metadata={"lock": lock}) for text in TEXTS])
    found = call(fake(keep_retrieval_score=keep, metadata_mode=MetadataMode.NONE), nodes, query_str=QUERY)
    assert [hit.node.metadata["lock"] for hit in found] == [lock] * 5
    assert all(hit.node.metadata == {"lock": lock} for hit in nodes)


@pytest.mark.parametrize("keep", [False, True])
def test_input_is_left_as_it_was(call: Call, keep: bool) -> None:
    nodes = [
        NodeWithScore(
            node=TextNode(
                text=text,
                metadata={"nested": {"list": [1]}, "score": 0},
                excluded_llm_metadata_keys=["score"],
                embedding=[0.5],
            ),
            score=0.1,
        )
        for text in TEXTS
    ]
    before, order = copy.deepcopy(nodes), list(nodes)
    found = call(fake(keep_retrieval_score=keep), nodes, query_str=QUERY)
    assert nodes == before
    assert all(left is right for left, right in zip(nodes, order, strict=True))
    assert not {id(hit) for hit in found} & {id(hit) for hit in nodes}
    assert {hit.node.node_id for hit in found} == {hit.node.node_id for hit in nodes}


def test_nodes_are_shared_and_the_kind_of_hit_is_kept() -> None:
    class Hit(NodeWithScore):
        origin: str = ""

    nodes = [Hit(node=node, score=None, origin="bm25") for node in text_nodes()]
    found = fake().postprocess_nodes(nodes, query_str=QUERY)
    assert all(isinstance(hit, Hit) and hit.origin == "bm25" for hit in found)
    assert all(hit.node is nodes[int(hit.node.node_id)].node for hit in found)


def test_keep_retrieval_score_is_hidden_from_every_model() -> None:
    nodes = [
        NodeWithScore(node=node, score=score)
        for node, score in zip(text_nodes(), [0.1, 0.2, None, 0.4, 0.5], strict=True)
    ]
    nodes[0].node.metadata = {"retrieval_score": "old", "page": 3}
    nodes[0].node.excluded_llm_metadata_keys = ["retrieval_score", "page"]
    nodes[0].node.excluded_embed_metadata_keys = ["retrieval_score"]
    reranker = fake(keep_retrieval_score=True)
    found = reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert [hit.node.metadata["retrieval_score"] for hit in found] == [nodes[at].score for at in ids(found)]
    for hit in found:
        assert "retrieval_score" not in hit.node.get_content(metadata_mode=MetadataMode.EMBED)
        assert "retrieval_score" not in hit.node.get_content(metadata_mode=MetadataMode.LLM)
    first = found[ids(found).index(0)].node
    assert first.metadata["page"] == 3
    assert first.excluded_llm_metadata_keys == ["retrieval_score", "page"]
    # A second pass reads the same text, so it scores the same.
    again = reranker.postprocess_nodes(found, query_str=QUERY)
    assert [hit.score for hit in again] == [hit.score for hit in found]
