"""The LangChain integration: what it gives the core, and what comes back."""

import asyncio
import copy
import json
import math
import threading
from typing import Any

import numpy as np
import pytest
from five_texts import BEST_FIRST, QUERY, TEXTS
from langchain_core.documents import Document
from langchain_core.load import dumps
from langchain_kit import Call, call_async, every_call, fake, ids, make_documents, record_handed_over, scores

from winnow import DocumentError, EngineError, FakeEngine, Reranker
from winnow_langchain import WinnowRerank


class Page(Document):
    """A user's own class."""

    number: int


# --- order, cut, scores -----------------------------------------------------------------------------------------------


@every_call
def test_order_and_scores_are_the_cores(call: Call) -> None:
    found = call(fake(), make_documents(), QUERY)
    expected = Reranker("fake", engine="fake").rank(QUERY, TEXTS)
    assert ids(found) == [hit.index for hit in expected] == BEST_FIRST
    assert scores(found) == [hit.score for hit in expected]
    assert {type(score) for score in scores(found)} == {float}
    assert [document.page_content for document in found] == [TEXTS[at] for at in BEST_FIRST]


@every_call
@pytest.mark.parametrize(("top_n", "count"), [(1, 1), (3, 3), (99, 5), (None, 5)])
def test_top_n(call: Call, top_n: int | None, count: int) -> None:
    assert ids(call(fake(top_n=top_n), make_documents(), QUERY)) == BEST_FIRST[:count]


def test_three_by_default() -> None:
    reranker = WinnowRerank(model="fake", engine="fake")
    assert ids(reranker.compress_documents(make_documents(), QUERY)) == BEST_FIRST[:3]
    reranker.top_n = 1
    assert ids(reranker.compress_documents(make_documents(), QUERY)) == BEST_FIRST[:1]


@every_call
def test_threshold_is_inclusive_and_comes_before_the_cut(call: Call) -> None:
    every = scores(call(fake(), make_documents(), QUERY))
    assert scores(call(fake(score_threshold=every[1]), make_documents(), QUERY)) == every[:2]
    assert scores(call(fake(score_threshold=every[1], top_n=1), make_documents(), QUERY)) == every[:1]
    assert call(fake(score_threshold=1.0), make_documents(), QUERY) == []
    assert len(call(fake(score_threshold=0.0), make_documents(), QUERY)) == len(TEXTS)


@every_call
def test_blank_documents_rank_last_with_a_finite_score(call: Call) -> None:
    documents = make_documents(["", TEXTS[1], " \n"])
    assert ids(call(fake(), documents, QUERY)) == [1, 0, 2]
    assert scores(call(fake(), documents, QUERY))[1:] == [0.0, 0.0]
    raw = scores(call(fake(raw_scores=True), documents, QUERY))
    assert raw[0] > 1
    assert all(map(math.isfinite, raw))
    assert raw[1] < -1e38
    json.dumps(raw, allow_nan=False)


def test_ties_keep_the_order_and_equal_texts_are_scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine_prompts: list[int] = []
    score = FakeEngine.score

    async def counting(self: FakeEngine, prompts: Any, **options: Any) -> Any:
        engine_prompts.append(len(prompts))
        return await score(self, prompts)

    monkeypatch.setattr(FakeEngine, "score", counting)
    found = fake().compress_documents(make_documents([TEXTS[3], TEXTS[1], TEXTS[3], TEXTS[1]]), QUERY)
    assert ids(found) == [1, 3, 0, 2]
    assert engine_prompts == [2]


# --- documents come back as they were ---------------------------------------------------------------------------------


@every_call
def test_inputs_are_not_changed(call: Call) -> None:
    documents = [Document(text, metadata={"relevance_score": 7, "deep": {"list": [1]}}) for text in TEXTS]
    before = copy.deepcopy(documents)
    found = call(fake(), documents, QUERY)
    found[0].metadata["more"] = 2
    assert documents == before
    assert not any(copied is document for copied in found for document in documents)


@every_call
def test_what_metadata_hold_is_the_users_and_is_not_copied(call: Call) -> None:
    lock = threading.Lock()  # cannot be copied
    documents = [Document(text, metadata={"lock": lock}) for text in TEXTS]
    for settings in ({}, {"on_error": "skip", "max_document_tokens": 25, "on_overflow": "error"}):
        found = call(fake(**settings), documents, QUERY)
        assert [document.metadata["lock"] for document in found] == [lock] * 5
        assert documents[0].metadata == {"lock": lock}


@every_call
def test_id_class_and_metadata_are_kept(call: Call) -> None:
    documents = [Page(text, id=f"id{at}", number=at, metadata={"source": at}) for at, text in enumerate(TEXTS)]
    for document in call(fake(), documents, QUERY):
        assert type(document) is Page
        assert document.id == f"id{document.number}"
        assert document.metadata.keys() == {"source", "relevance_score"}
        assert document.metadata["source"] == document.number
    assert "relevance_score" in dumps(call(fake(), make_documents(), QUERY)[0])


def test_stale_results_are_overwritten() -> None:
    documents = [Document(text, metadata={"relevance_score": 99, "rerank_error": "old"}) for text in TEXTS]
    found = fake().compress_documents(documents, QUERY)
    assert max(scores(found)) < 1
    assert not any("rerank_error" in document.metadata for document in found)
    assert [document.metadata for document in fake().compress_documents(found, QUERY)] == [
        document.metadata for document in found
    ]


# --- what the model reads ---------------------------------------------------------------------------------------------


@every_call
def test_metadata_fields_stand_before_the_text(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    handed = record_handed_over(monkeypatch)
    documents = [
        Document("text", metadata={"title": "T", "page": 0, "draft": False, "other": "no"}),
        Document("text", metadata={"title": None, "draft": True}),
        Document(" ", metadata={"title": "only a title"}),
        Document(" ", metadata={"title": None}),
    ]
    reranker = fake(metadata_fields=["title", "page", "draft"], embedding_separator=" | ")
    call(reranker, documents, QUERY)
    assert handed == ["T | 0 | False | text", "True | text", "only a title", ""]


def test_metadata_fields_change_the_order() -> None:
    documents = [Document("It is large.", metadata={"about": about}) for about in ("France", QUERY)]
    found = fake(metadata_fields=["about"]).compress_documents(documents, QUERY)
    assert [document.metadata["about"] for document in found] == [QUERY, "France"]


# --- rerank: indices and scores ---------------------------------------------------------------------------------------


def test_rerank_gives_indices_and_scores() -> None:
    reranker = fake()
    expected = [
        {"index": hit.index, "relevance_score": hit.score} for hit in Reranker("fake", engine="fake").rank(QUERY, TEXTS)
    ]
    for documents in (TEXTS, make_documents(), [TEXTS[0], *make_documents()[1:]]):
        assert reranker.rerank(documents, QUERY) == expected
        assert asyncio.run(reranker.arerank(documents, QUERY)) == expected
    json.dumps(expected)


def test_rerank_with_settings_for_the_call() -> None:
    reranker = fake(top_n=2, instruction="noodles rice")

    def found(**options: Any) -> list[int]:
        every = reranker.rerank(TEXTS, QUERY, **options)
        assert asyncio.run(reranker.arerank(TEXTS, QUERY, **options)) == every
        return [one["index"] for one in every]

    assert found() == [1, 0]
    assert found(top_n=1) == [1]
    assert found(top_n=5)[:2] == [1, 0]
    assert found(instruction="") == BEST_FIRST[:2]  # "" is a value: the template's default
    assert found(instruction="Paris", top_n=4) == [1, 2, 3, 4]
    assert ids(reranker.compress_documents(make_documents(), QUERY)) == [1, 0]


@every_call
def test_compressing_with_settings_for_the_call(call: Call) -> None:
    reranker = fake(top_n=2, instruction="noodles rice")
    assert ids(call(reranker, make_documents(), QUERY, top_n=1)) == [1]
    assert ids(call(reranker, make_documents(), QUERY, instruction="", top_n=3)) == BEST_FIRST[:3]
    assert ids(call(reranker, make_documents(), QUERY, instruction="Paris", top_n=4)) == [1, 2, 3, 4]
    assert ids(call(reranker, make_documents(), QUERY)) == [1, 0]
    assert ids(call(reranker, make_documents(), QUERY, top_n=np.int64(1))) == [1]
    for documents in ([], make_documents()):
        with pytest.raises(ValueError, match="top_n must be > 0, but got 0"):
            call(reranker, documents, QUERY, top_n=0)
        for top_n in (True, "3", 1.5):
            with pytest.raises(TypeError, match="top_n must be an integer"):
                call(reranker, documents, QUERY, top_n=top_n)


def test_rerank_says_what_was_skipped() -> None:
    results = fake(on_error="skip", max_document_tokens=25, on_overflow="error").rerank(TEXTS, QUERY)
    assert [one["index"] for one in results if "rerank_error" in one] == [1]
    assert results[-1]["relevance_score"] == 0.0
    with pytest.raises(DocumentError, match="Document 1"):
        fake(max_document_tokens=25, on_overflow="error").rerank(TEXTS, QUERY)


# --- deadlines --------------------------------------------------------------------------------------------------------


@every_call
def test_a_deadline_ends_a_call(call: Call) -> None:
    stalled = {"engine_kwargs": {"delay": 600.0}}
    for reranker, options in ((fake(**stalled, deadline=0.2), {}), (fake(**stalled, deadline=500), {"deadline": 0.2})):
        with pytest.raises(TimeoutError):
            call(reranker, make_documents(), QUERY, **options)
    reranker = fake(**stalled, deadline=0.2, fallback="retrieval order")
    found = call(reranker, make_documents(), QUERY)
    assert ids(found) == [0, 1, 2, 3, 4]
    assert all("deadline" in document.metadata["rerank_error"] for document in found)
    reranker.deadline = None  # given with each call
    assert "deadline" in call(reranker, make_documents(), QUERY, deadline=0.2)[0].metadata["rerank_error"]


def test_a_deadline_ends_rerank() -> None:
    stalled = {"engine_kwargs": {"delay": 600.0}}
    for reranker, options in ((fake(**stalled, deadline=0.2), {}), (fake(**stalled), {"deadline": 0.2})):
        with pytest.raises(TimeoutError):
            reranker.rerank(TEXTS, QUERY, **options)
        with pytest.raises(TimeoutError):
            asyncio.run(reranker.arerank(TEXTS, QUERY, **options))


# --- wrong arguments, failures ----------------------------------------------------------------------------------------


@every_call
@pytest.mark.parametrize("query", ["", " \n", None, 3])
def test_blank_query(call: Call, query: Any) -> None:
    with pytest.raises(ValueError, match="query"):
        call(fake(), make_documents(), query)
    assert call(fake(), [], query) == []


@every_call
@pytest.mark.parametrize("settings", [{"on_error": "skip"}, {"fallback": "retrieval order"}], ids=str)
def test_a_blank_query_may_leave_the_documents_as_they_came(call: Call, settings: dict[str, Any]) -> None:
    """As in a chat, where an LLM condensed the question to nothing."""
    documents = [Document(text, metadata={"relevance_score": at}) for at, text in enumerate(TEXTS)]
    found = call(fake(top_n=3, **settings), documents, " \n")
    assert [document.page_content for document in found] == TEXTS[:3]
    assert [document.metadata["relevance_score"] for document in found] == [0, 1, 2]
    assert all("blank" in document.metadata["rerank_error"] for document in found)
    results = fake(**settings).rerank(TEXTS, "")
    assert [one["index"] for one in results] == [0, 1, 2, 3, 4]
    assert all("blank" in one["rerank_error"] for one in results)


@every_call
@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (TEXTS, r"documents\[0\] is a str, .*rerank\(\)"),
        ([*make_documents(), {"page_content": "x"}], r"documents\[5\] is a dict"),
        ([None], r"documents\[0\] is a NoneType"),
        (make_documents()[0], "put it into a list"),
        ("text", "put it into a list"),
    ],
)
def test_what_is_no_list_of_documents(call: Call, documents: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call(fake(), documents, QUERY)


def test_wrong_arguments_of_rerank() -> None:
    for top_n in (0, -1):
        for documents in ([], TEXTS):
            with pytest.raises(ValueError, match=f"top_n must be > 0, but got {top_n}"):
                fake().rerank(documents, QUERY, top_n=top_n)
            with pytest.raises(ValueError, match=f"top_n must be > 0, but got {top_n}"):
                asyncio.run(fake().arerank(documents, QUERY, top_n=top_n))
    with pytest.raises(TypeError, match="put it into a list"):
        fake().rerank("text", QUERY)
    with pytest.raises(DocumentError, match=r"Document 1 .* dict"):
        fake().rerank(["text", {"text": "text"}], QUERY)  # type: ignore[list-item]


@every_call
@pytest.mark.parametrize("logit", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_raise(call: Call, monkeypatch: pytest.MonkeyPatch, logit: float) -> None:
    monkeypatch.setattr(FakeEngine, "_logit", lambda *_: logit)
    for on_error in ("raise", "skip"):
        with pytest.raises(EngineError, match="logit"):
            call(fake(on_error=on_error), make_documents(), QUERY)


@every_call
def test_a_wrong_number_of_scores_raises(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    score = FakeEngine.score

    async def short(self: FakeEngine, prompts: Any, **options: Any) -> Any:
        return (await score(self, prompts))[:-1]

    monkeypatch.setattr(FakeEngine, "score", short)
    with pytest.raises(EngineError, match="4 scores for 5 prompts"):
        call(fake(), make_documents(), QUERY)


def test_documents_may_come_from_a_generator() -> None:
    assert ids(fake().compress_documents((one for one in make_documents()), QUERY)) == BEST_FIRST  # type: ignore[arg-type]
    assert ids(call_async(fake(), tuple(make_documents()), QUERY)) == BEST_FIRST
