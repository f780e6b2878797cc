"""The Haystack integration by itself: what Haystack's own rankers are tested for, and where they fail."""

import asyncio
import copy
import dataclasses
import inspect
import json
import logging
import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from five_texts import QUERY, TEXTS
from haystack import Document, Pipeline
from haystack_help import BEST_FIRST, Run, documents, fake, ids, run_async, run_sync, run_sync_in_loop

from haystack_integrations.components.rankers.winnow import WinnowRanker
from winnow import (
    ConfigurationError,
    DocumentError,
    EngineError,
    EngineScore,
    FakeEngine,
    Prompt,
    RankedDocument,
    Ranking,
    RankStats,
    Reranker,
)


@pytest.fixture(params=[run_sync, run_async, run_sync_in_loop], ids=["sync", "async", "sync-in-loop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Each way a ranker is run."""
    return request.param


# --- order, scores, cut -----------------------------------------------------------------------------------------------


def test_documents_come_best_first_with_the_scores_of_the_core(run: Run) -> None:
    result = run(fake(), QUERY, documents())
    assert ids(result) == BEST_FIRST
    with Reranker("fake", engine="fake") as core:
        assert [document.score for document in result["documents"]] == [hit.score for hit in core.rank(QUERY, TEXTS)]
    assert all(type(document.score) is float for document in result["documents"])


def test_equal_scores_keep_the_order_of_the_input(run: Run) -> None:
    same = [Document(id=str(at), content="China") for at in range(20)]
    assert ids(run(fake(), QUERY, same)) == [str(at) for at in range(20)]


@pytest.mark.parametrize(("at_init", "at_run", "expected"), [(2, None, 2), (2, 4, 4), (4, 1, 1), (None, None, 5)])
def test_top_k_of_the_run_wins(run: Run, at_init: int | None, at_run: int | None, expected: int) -> None:
    assert ids(run(fake(top_k=at_init), QUERY, documents(), top_k=at_run)) == BEST_FIRST[:expected]


def test_top_k_above_the_number_of_documents_returns_all(run: Run) -> None:
    assert ids(run(fake(top_k=50), QUERY, documents())) == BEST_FIRST


def test_a_single_document(run: Run) -> None:
    assert ids(run(fake(), QUERY, documents(["Beijing."]))) == ["0"]


@pytest.mark.parametrize("top_k", [0, -1])
@pytest.mark.parametrize("found", [documents(), []], ids=["documents", "none"])
def test_zero_top_k_does_not_fall_back_to_the_instance(run: Run, top_k: int, found: list[Document]) -> None:
    with pytest.raises(ValueError, match=f"top_k must be > 0, but got {top_k}"):
        run(fake(top_k=3), QUERY, found, top_k=top_k)


@pytest.mark.parametrize("top_k", [0, -1])
def test_bad_top_k_at_init(top_k: int) -> None:
    with pytest.raises(ValueError, match=f"top_k must be > 0, but got {top_k}"):
        fake(top_k=top_k)


def test_top_k_of_numpy(run: Run) -> None:
    ranker = fake(top_k=np.int64(3))
    assert type(ranker.top_k) is int
    assert ids(run(ranker, QUERY, documents())) == BEST_FIRST[:3]
    assert ids(run(ranker, QUERY, documents(), top_k=np.uint8(2))) == BEST_FIRST[:2]


@pytest.mark.parametrize("top_k", [1.0, "1", True])
def test_top_k_of_another_type(run: Run, top_k: Any) -> None:
    with pytest.raises(TypeError, match="top_k must be an integer"):
        fake(top_k=top_k)
    with pytest.raises(TypeError, match="top_k must be an integer"):
        run(fake(), QUERY, documents(), top_k=top_k)


def test_threshold_is_inclusive_and_before_the_cut(run: Run) -> None:
    scores = [document.score for document in run(fake(), QUERY, documents())["documents"]]
    assert ids(run(fake(score_threshold=scores[2]), QUERY, documents())) == BEST_FIRST[:3]
    assert ids(run(fake(score_threshold=scores[2], top_k=2), QUERY, documents())) == BEST_FIRST[:2]
    assert ids(run(fake(), QUERY, documents(), score_threshold=math.nextafter(scores[2], 1.0))) == BEST_FIRST[:2]
    assert ids(run(fake(), QUERY, documents(), score_threshold=1.0)) == []


def test_zero_threshold_of_the_run_wins(run: Run) -> None:
    strict = fake(score_threshold=0.9)
    assert ids(run(strict, QUERY, documents())) == BEST_FIRST[:1]
    assert ids(run(strict, QUERY, documents(), score_threshold=0.0)) == BEST_FIRST


@pytest.mark.parametrize("threshold", [math.nan, math.inf, -math.inf, "0.5", True, [0.5]])
def test_a_threshold_that_compares_with_nothing(run: Run, threshold: Any) -> None:
    with pytest.raises(ValueError, match="score_threshold must be a finite number"):
        fake(score_threshold=threshold)
    with pytest.raises(ValueError, match="score_threshold must be a finite number"):
        run(fake(), QUERY, documents(), score_threshold=threshold)


def test_scale_score_false_gives_logits_and_wins_at_run_time(run: Run) -> None:
    scaled = run(fake(), QUERY, documents())["documents"]
    for raw in (
        run(fake(scale_score=False), QUERY, documents()),
        run(fake(scale_score=True), QUERY, documents(), scale_score=False),
    ):
        assert ids(raw) == BEST_FIRST
        assert [1 / (1 + math.exp(-document.score)) for document in raw["documents"]] == pytest.approx(
            [document.score for document in scaled]
        )
    assert run(fake(scale_score=False), QUERY, documents(), scale_score=True)["documents"] == scaled


def test_the_threshold_is_in_the_scale_of_the_scores(run: Run) -> None:
    assert ids(run(fake(scale_score=False), QUERY, documents(), score_threshold=0.0)) == BEST_FIRST[:2]
    assert ids(run(fake(scale_score=False, score_threshold=-3.0), QUERY, documents())) == BEST_FIRST[:3]


def test_instruction_of_the_run_wins_and_an_empty_one_too(run: Run) -> None:
    ranker = fake(instruction="rice and noodles", top_k=1)
    assert ids(run(ranker, "China", documents())) == ["0"]
    assert ids(run(ranker, "China", documents(), instruction="in Shanghai")) == ["4"]
    assert ids(run(ranker, "Paris", documents(), instruction="")) == ["3"]


# --- input ------------------------------------------------------------------------------------------------------------


def test_no_documents_touch_no_engine(run: Run) -> None:
    engine = FakeEngine()
    result = run(fake(engine=engine), QUERY, [])
    assert result["documents"] == []
    assert result["meta"] == {
        "model": "fake",
        "usage": {"prompt_tokens": 0, "total_tokens": 0, "cached_tokens": 0},
        "documents": 0,
        "unique": 0,
        "truncated": [],
        "failed": {},
        "reused": 0,
        "cache_hits": 0,
        "usage_tokens": 0,
        "query_truncated": False,
        "elapsed_ms": 0.0,
        "fallback": None,
        "error": None,
        "hits": [],
    }
    assert engine.started == 0


def test_of_duplicates_the_best_scored_is_ranked(run: Run) -> None:
    engine = FakeEngine()
    found = [
        Document(id="twice", content="keep me", score=0.9),
        Document(id="twice", content="drop me", score=0.1),
        Document(id="later", content="drop me", score=None),
        Document(id="once", content="once"),
        Document(id="later", content="keep me later", score=-5.0),
    ]
    result = run(fake(engine=engine), "keep", found)
    assert {document.id: document.content for document in result["documents"]} == {
        "twice": "keep me",
        "later": "keep me later",
        "once": "once",
    }
    assert len(result["documents"]) == result["meta"]["documents"] == engine.prompts == 3


def test_duplicates_stand_where_their_id_is_first_seen(run: Run) -> None:
    found = [Document(id=name, content="same", score=score) for name, score in [("a", 0.1), ("b", 0.2), ("a", 0.3)]]
    result = run(fake(), QUERY, found)
    assert ids(result) == ["a", "b"]


def test_the_same_text_under_two_ids_is_scored_once_and_returned_twice(run: Run) -> None:
    engine = FakeEngine()
    result = run(fake(engine=engine), QUERY, documents(["China", "China"]))
    assert ids(result) == ["0", "1"]
    assert engine.prompts == result["meta"]["unique"] == 1


def test_documents_without_text_rank_last_unscored(run: Run) -> None:
    engine = FakeEngine()
    found = documents([None, "Rice.", "", " \n", "China"])
    result = run(fake(engine=engine), QUERY, found)
    assert ids(result) == ["4", "1", "0", "2", "3"]
    assert [document.score for document in result["documents"][2:]] == [0.0, 0.0, 0.0]
    assert engine.prompts == 2
    raw = run(fake(engine=engine), QUERY, found, scale_score=False)["documents"]
    assert all(math.isfinite(document.score) for document in raw)
    json.dumps([document.to_dict() for document in raw], allow_nan=False)


class Passage(Document):
    """A document of the user's own."""


def test_nothing_given_is_changed_and_everything_is_kept(run: Run) -> None:
    found: list[Document] = [
        Passage(id="a", content="China", meta={"tags": ["x"], "source": {"page": 1}}, score=0.5, embedding=[0.1]),
        Document(id="b", content="Beijing, China", meta={"tags": []}, score=0.25),
    ]
    before = copy.deepcopy(found)
    ranker = fake(meta_fields_to_embed=["tags"])
    result = run(ranker, QUERY, found)
    assert found == before
    by_id = {document.id: document for document in result["documents"]}
    assert type(by_id["a"]) is Passage
    for document in before:
        ranked = by_id[document.id]
        assert ranked.score != document.score
        assert dataclasses.replace(ranked, score=document.score) == document


@pytest.mark.parametrize("query", ["", " \n", None, 7])
def test_a_query_that_asks_nothing(run: Run, query: Any) -> None:
    with pytest.raises(ValueError, match="query must be a text that is not blank"):
        run(fake(query_prefix="query: ", query_suffix="?"), query, documents())


@pytest.mark.parametrize(
    "softly", [{"on_error": "skip"}, {"fallback": "retrieval order"}, {"fallback": "transformers"}]
)
@pytest.mark.parametrize("query", ["", " \n"])
def test_a_blank_query_leaves_the_documents_as_they_came(run: Run, softly: dict[str, Any], query: str) -> None:
    found = [dataclasses.replace(each, score=0.1 * at) for at, each in enumerate(documents())]
    engine = FakeEngine()
    ranker = fake(engine=engine, top_k=3, score_threshold=0.9, query_prefix="query: ", query_suffix="?", **softly)
    result = run(ranker, query, [*found, found[0]])
    assert result["documents"] == found[:3]
    meta = result["meta"]
    assert (meta["fallback"], meta["documents"], list(meta["failed"])) == (
        "retrieval order",
        5,
        ["0", "1", "2", "3", "4"],
    )
    assert "blank" in meta["error"]
    assert engine.prompts == 0


@pytest.mark.parametrize("query", [f"{QUERY}\n", f" {QUERY}", f"{QUERY}\u3000"])
def test_nothing_is_stripped_from_a_query(run: Run, query: str) -> None:
    with Reranker("fake", engine="fake") as core:
        expected = core.rank(query, TEXTS)
        assert expected.hits[0].logit != core.rank(QUERY, TEXTS).hits[0].logit
    result = run(fake(scale_score=False), query, documents())
    assert [document.score for document in result["documents"]] == [hit.logit for hit in expected]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("text", "must be a list of Document, but got a str"),
        (Document(content="x"), "must be a list of Document, but got a Document"),
        (None, "must be a list of Document, but got a NoneType"),
        ([Document(content="x"), "text"], r"documents\[1\] must be a Document, but got a str"),
    ],
)
def test_documents_of_another_type(run: Run, found: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        run(fake(), QUERY, found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 0}, "max_length must be a whole number > 0"),
        ({"on_overflow": "crop"}, "on_overflow must be one of"),
        ({"engine": "gpu"}, "engine must be one of"),
        ({"url": "http://localhost:8000"}, "url and engine"),
        ({"window_overlap": 1.0}, "window_overlap must be"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fake(**settings)


def test_settings_of_another_type() -> None:
    for name in ("query_prefix", "query_suffix", "document_prefix", "document_suffix", "embedding_separator"):
        with pytest.raises(TypeError, match=f"{name} must be a text, but got None"):
            fake(**{name: None})
    with pytest.raises(TypeError, match="scale_score must be True or False, but got 'no'"):
        fake(scale_score="no")
    with pytest.raises(TypeError, match="scale_score must be True or False, but got 'no'"):
        fake().run(query=QUERY, documents=[Document(content="x")], scale_score="no")
    with pytest.raises(TypeError, match="list of names, but got the text 'title'"):
        fake(meta_fields_to_embed="title")
    with pytest.raises(TypeError, match="api_key must be a Secret") as error:
        fake(api_key="hush-hush")
    assert "hush" not in str(error.value)
    with pytest.raises(TypeError, match="token must be a Secret") as error:
        fake(token="hush-hush")
    assert "hush" not in str(error.value)


# --- what went wrong, what it cost ------------------------------------------------------------------------------------


def test_a_document_that_cannot_be_scored_is_named_by_place_and_id(run: Run) -> None:
    found = [*documents(["China"]), *documents(["China"]), Document(id="long-one", content="China " * 400)]
    ranker = fake(on_overflow="error", max_length=600)
    with pytest.raises(DocumentError, match="'long-one'") as error:
        run(ranker, QUERY, found)
    assert error.value.index == 2  # in the caller's list, duplicates counted
    assert "Document 2" in str(error.value)


def test_a_query_that_is_too_long_is_no_documents_fault(run: Run) -> None:
    with pytest.raises(DocumentError, match="query") as error:
        run(fake(on_overflow="error", max_query_tokens=10), QUERY, documents())
    assert error.value.index is None
    assert "Its id" not in str(error.value)


def test_skipped_documents_rank_last_and_say_why(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    found = [Document(id="long-one", content="China " * 400), *documents(["Rice.", "China."])]
    ranker = fake(on_overflow="error", max_length=600, on_error="skip", top_k=1)
    with caplog.at_level(logging.WARNING, "haystack_integrations"):
        result = run(ranker, QUERY, found)
    assert ids(result) == ["1"]
    assert list(result["meta"]["failed"]) == ["long-one"]
    assert "Document 0" in result["meta"]["failed"]["long-one"]
    assert "1 of 3 documents could not be ranked" in caplog.text
    assert "China China" not in caplog.text
    assert ids(run(ranker, QUERY, found, top_k=3)) == ["1", "0", "long-one"]


def test_truncated_documents_are_named(run: Run) -> None:
    found = [*documents(["China."]), Document(id="long-one", content="China " * 400)]
    meta = run(fake(max_length=600, top_k=1, score_threshold=0.99), QUERY, found)["meta"]
    assert meta["truncated"] == ["long-one"]
    assert 600 < meta["usage"]["prompt_tokens"] == meta["usage"]["total_tokens"] < 700
    assert meta["model"] == "fake"
    assert meta["elapsed_ms"] > 0


def test_windows_take_the_place_of_truncation(run: Run) -> None:
    found = [*documents(["in China."]), Document(id="late", content="x " * 500 + "capital of China")]
    assert ids(run(fake(max_length=600, on_overflow="truncate"), QUERY, found))[0] == "0"
    assert ids(run(fake(max_length=600, on_overflow="window"), QUERY, found))[0] == "late"


VALUES: dict[Any, Any] = {int: 3, float: 0.25, bool: True, str: "text", str | None: "some text"}


def test_all_that_the_core_says_reaches_meta(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fields `RankedDocument` and `RankStats` get."""
    hit = RankedDocument(**{field.name: VALUES[field.type] for field in dataclasses.fields(RankedDocument)})
    stats = RankStats(**{field.name: VALUES[field.type] for field in dataclasses.fields(RankStats)})

    async def arank(*_: Any, **__: Any) -> Ranking:
        return Ranking((hit,), stats)

    monkeypatch.setattr(Reranker, "rank", lambda *_, **__: Ranking((hit,), stats))
    monkeypatch.setattr(Reranker, "arank", arank)
    meta = run(fake(), QUERY, documents())["meta"]
    of_hit, of_stats = dataclasses.asdict(hit), dataclasses.asdict(stats)
    del of_hit["text"]  # the document's own
    assert meta["hits"] == [{"id": "3", **of_hit}]
    of_stats |= {"documents": 1, "truncated": ["3"], "failed": {"3": "some text"}}
    said = meta | meta["usage"]
    assert {name: said[name] for name in of_stats} == of_stats


def test_meta_says_that_the_query_was_cut(run: Run) -> None:
    ranker = fake(max_query_tokens=len(QUERY))
    assert run(ranker, QUERY, documents())["meta"]["query_truncated"] is False
    assert run(ranker, f"{QUERY} and more", documents())["meta"]["query_truncated"] is True


def test_meta_covers_every_document_also_of_those_that_were_cut_off(run: Run) -> None:
    found = [*documents(), Document(id="blank", content=" "), Document(id="long-one", content="China " * 400)]
    result = run(fake(max_length=600, on_overflow="window", top_k=1, scale_score=False), QUERY, found)
    hits = result["meta"]["hits"]
    assert [hit["id"] for hit in hits] != [str(hit["index"]) for hit in hits]
    assert {hit["id"] for hit in hits} == {document.id for document in found}
    assert hits[0]["score"] == hits[0]["logit"] == result["documents"][0].score
    windows = {hit["id"]: hit["windows"] for hit in hits}
    assert windows.pop("long-one") > 1
    assert windows.pop("blank") == 0
    assert set(windows.values()) == {1}
    json.dumps(result["meta"], allow_nan=False)


def test_metadata_that_cannot_be_copied_stays_what_it_is(run: Run) -> None:
    lock = threading.Lock()
    found = [dataclasses.replace(each, meta={"lock": lock}) for each in documents()]
    assert [each.meta["lock"] for each in run(fake(), QUERY, found)["documents"]] == [lock] * 5
    pipeline = Pipeline()
    pipeline.add_component("ranker", fake())
    result = pipeline.run({"ranker": {"query": QUERY, "documents": found}})["ranker"]
    assert [each.meta["lock"] for each in result["documents"]] == [lock] * 5


class Odd(FakeEngine):
    """An engine that gives the scores it was made with."""

    def __init__(self, *logits: float):
        super().__init__()
        self.logits = logits

    async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
        return [EngineScore(logit) for logit in self.logits]


@pytest.mark.parametrize(
    ("logits", "error"),
    [
        ((math.nan, 1.0), DocumentError),
        ((math.inf, 1.0), DocumentError),
        ((math.nan, math.nan), EngineError),
        ((1.0,), EngineError),
        ((1.0, 1.0, 1.0), EngineError),
    ],
)
def test_scores_that_are_no_numbers_or_too_few_are_refused(
    run: Run, logits: tuple[float, ...], error: type[Exception]
) -> None:
    with pytest.raises(error, match="returned"):
        run(fake(engine=Odd(*logits)), QUERY, documents(["a", "b"]))


class Counting(FakeEngine):
    """An engine that keeps how many prompts it was given at once."""

    sizes: list[int]

    async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
        self.sizes.append(len(prompts))
        return await super().score(prompts)


def test_a_thousand_documents_are_not_one_request(run: Run) -> None:
    engine = Counting()
    engine.sizes = []
    result = run(fake(engine=engine), QUERY, documents([f"China {at}" for at in range(1000)]))
    assert len(result["documents"]) == sum(engine.sizes) == 1000
    assert max(engine.sizes) <= 256


def test_two_event_loops_one_after_the_other() -> None:
    ranker = fake()
    assert [ids(asyncio.run(ranker.run_async(QUERY, documents()))) for _ in range(2)] == [BEST_FIRST, BEST_FIRST]


def test_run_and_run_async_have_the_same_parameters() -> None:
    assert inspect.signature(WinnowRanker.run) == inspect.signature(WinnowRanker.run_async)
