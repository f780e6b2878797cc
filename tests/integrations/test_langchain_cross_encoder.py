"""The cross encoder: scores in the order of the pairs, in one pass."""

import asyncio
import logging
import math
from typing import Any

import pytest
from five_texts import BEST_FIRST, QUERY, TEXTS
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_kit import ids, make_documents

from winnow import DocumentError, EngineError, FakeEngine, Reranker
from winnow_langchain import WinnowCrossEncoder


def fake(**settings: Any) -> WinnowCrossEncoder:
    return WinnowCrossEncoder(**{"model": "fake", "engine": "fake", **settings})


def test_scores_are_the_cores_in_input_order() -> None:
    found = fake().score([(QUERY, text) for text in TEXTS])
    assert found == Reranker("fake", engine="fake").score(QUERY, TEXTS)
    assert {type(score) for score in found} == {float}
    assert isinstance(fake(), BaseCrossEncoder)


def test_mixed_queries_go_through_in_one_batched_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[Any]] = []
    rank_many = Reranker.rank_many

    def recording(self: Reranker, requests: Any, **options: Any) -> Any:
        calls.append(list(requests))
        return rank_many(self, calls[-1], **options)

    monkeypatch.setattr(Reranker, "rank_many", recording)
    pairs = [(QUERY, TEXTS[0]), ("noodles", TEXTS[0]), (QUERY, TEXTS[1]), ("noodles", TEXTS[1]), (QUERY, TEXTS[0])]
    found = fake(instruction="rice").score(pairs)
    assert calls == [[(QUERY, [TEXTS[0], TEXTS[1], TEXTS[0]], "rice"), ("noodles", [TEXTS[0], TEXTS[1]], "rice")]]
    core = Reranker("fake", engine="fake", instruction="rice")
    assert found == [core.score(query, [text])[0] for query, text in pairs]
    assert found[1] > found[3]
    assert found[0] == found[4] < found[2]


def test_pairs_may_be_lists_and_are_not_changed() -> None:
    pairs = [[QUERY, text] for text in TEXTS]
    assert fake().score(pairs) == fake().score([(QUERY, text) for text in TEXTS])  # type: ignore[arg-type]
    assert pairs == [[QUERY, text] for text in TEXTS]


def test_raw_and_blank_scores_are_finite() -> None:
    assert fake().score([(QUERY, " ")]) == [0.0]
    raw = fake(raw_scores=True).score([(QUERY, ""), (QUERY, TEXTS[1])])
    assert raw[0] < -1e38
    assert raw[1] > 1
    assert all(map(math.isfinite, raw))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(QUERY, "a"), (QUERY,)], r"text_pairs\[1\] must be a query and a text"),
        ([(QUERY, "a", "b")], r"text_pairs\[0\] must be"),
        (["ab"], r"text_pairs\[0\] must be"),
        ([("", "a")], "query"),
        ([(None, "a")], "query"),
    ],
)
def test_wrong_pairs(pairs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fake().score(pairs)


def test_failures_raise_or_are_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pairs = [(QUERY, text) for text in TEXTS]
    settings = {"max_document_tokens": 25, "on_overflow": "error"}
    with pytest.raises(DocumentError, match="Document 1"):
        fake(**settings).score(pairs)
    with caplog.at_level(logging.WARNING):
        found = fake(**settings, on_error="skip").score(pairs)
    assert found[1] == 0.0 < min(found[:1] + found[2:])
    assert "1 of 5 texts" in caplog.text
    monkeypatch.setattr(FakeEngine, "_logit", lambda *_: math.nan)
    with pytest.raises(EngineError, match="nan"):
        fake().score(pairs)


def test_a_blank_query_may_leave_the_others_their_scores(caplog: pytest.LogCaptureFixture) -> None:
    found = fake(on_error="skip").score([(QUERY, TEXTS[1]), (" ", TEXTS[1]), (QUERY, TEXTS[0])])
    assert found[1] == 0.0
    assert [found[0], found[2]] == fake().score([(QUERY, TEXTS[1]), (QUERY, TEXTS[0])])
    assert "1 of 3 texts" in caplog.text


def test_a_deadline_ends_a_call() -> None:
    with pytest.raises(TimeoutError):
        fake(engine_kwargs={"delay": 600.0}, deadline=0.2).score([(QUERY, TEXTS[1])])


def test_in_cross_encoder_reranker() -> None:
    reranker = CrossEncoderReranker(model=fake(), top_n=2)
    for found in (
        reranker.compress_documents(make_documents(), QUERY),
        asyncio.run(reranker.acompress_documents(make_documents(), QUERY)),
        asyncio.run(reranker.acompress_documents(make_documents(), QUERY)),
    ):
        assert ids(found) == BEST_FIRST[:2]
    assert reranker.compress_documents([], QUERY) == []


def test_vllm_scores_are_the_cores(vllm_model: str, passages: list[str]) -> None:
    encoder = WinnowCrossEncoder(model=vllm_model, engine="vllm")
    core = Reranker(vllm_model, engine="vllm")
    pairs = [(query, text) for text in passages for query in (QUERY, "how long do bees live")]
    expected = dict(zip(pairs, (core.score(query, [text])[0] for query, text in pairs), strict=True))
    assert encoder.score(pairs) == pytest.approx([expected[pair] for pair in pairs], abs=1e-5)
    assert len(set(encoder.score(pairs))) > len(passages)
    found = CrossEncoderReranker(model=encoder, top_n=3).compress_documents(make_documents(passages), QUERY)
    assert ids(found) == [hit.index for hit in core.rank(QUERY, passages, top_k=3)]
