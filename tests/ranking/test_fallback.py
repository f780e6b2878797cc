"""`fallback=`: what ranks where the engine fails, and that the ranking says so."""

import asyncio
import copy
import logging
import math
import pickle
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from winnow import (
    ConfigurationError,
    DocumentError,
    EngineDeadError,
    EngineError,
    EngineLoadError,
    EngineScore,
    FakeEngine,
    Reranker,
)
from winnow.observability import metrics
from winnow.ranking import fallback

QUERY = "capital of China"
DOCUMENTS = ["Paris", "Beijing is the capital of China", "", "China"]


class Failing(FakeEngine):
    """Does not start, or fails to score, as long as it is set to fail."""

    def __init__(self, *, start: bool = False, score: EngineError | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.fails_to_start = start
        self.failure = score

    async def start(self) -> None:
        await super().start()
        if self.fails_to_start:
            raise EngineLoadError("no memory")

    async def score(self, prompts: Any, *, priority: int = 0) -> list[EngineScore]:
        if self.failure is not None:
            raise self.failure
        return await super().score(prompts)


@pytest.fixture
def expected() -> Iterator[Reranker]:
    with Reranker("fake", engine="fake") as reranker:
        yield reranker


# --- retrieval order --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "engine", [Failing(start=True), Failing(score=EngineError("overflow")), Failing(score=EngineDeadError("killed"))]
)
def test_documents_stay_as_they_came_and_say_why(engine: Failing, caplog: pytest.LogCaptureFixture) -> None:
    with Reranker("fake", engine=engine, fallback="retrieval order") as reranker:
        ranking = reranker.rank(QUERY, DOCUMENTS, top_k=3, score_threshold=0.9)
    why = "no memory" if engine.fails_to_start else str(engine.failure)
    assert ranking.degraded
    assert (ranking.stats.fallback, ranking.stats.error) == ("retrieval order", why)
    assert [(hit.index, hit.text, hit.score, hit.logit, hit.error) for hit in ranking] == [
        (at, text, 0.0, -math.inf, why) for at, text in enumerate(DOCUMENTS[:3])
    ]
    assert (ranking.stats.documents, ranking.stats.failed, ranking.stats.unique) == (4, 4, 0)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"fallback='retrieval order' ranks 4 documents: {why}"


def test_a_ranking_of_the_engine_is_not_degraded() -> None:
    with Reranker("fake", engine=Failing(), fallback="retrieval order") as reranker:
        ranking = reranker.rank(QUERY, DOCUMENTS)
    assert not ranking.degraded
    assert (ranking.stats.fallback, ranking.stats.error) == (None, None)
    assert [hit.index for hit in ranking] == [1, 3, 0, 2]


def test_what_the_user_gave_wrong_is_raised() -> None:
    with Reranker("fake", engine="fake", fallback="retrieval order") as reranker:
        with pytest.raises(DocumentError, match="Document 1 is of type int"):
            reranker.rank(QUERY, ["Paris", 7])  # type: ignore[list-item]
        with pytest.raises(ConfigurationError, match="template"):
            reranker.rank(QUERY, DOCUMENTS, template="{{ query }}")


def test_bare_numbers_have_no_fallback() -> None:
    engine = Failing(score=EngineError("overflow"))
    with Reranker("fake", engine=engine, fallback="retrieval order") as reranker:
        with pytest.raises(EngineError, match="overflow"):
            reranker.score(QUERY, DOCUMENTS)
        with pytest.raises(EngineError, match="overflow"):
            asyncio.run(reranker.ascore(QUERY, DOCUMENTS))


def test_each_query_of_many_falls_back_by_itself(expected: Reranker) -> None:
    class Picky(FakeEngine):
        async def score(self, prompts: Any, *, priority: int = 0) -> list[EngineScore]:
            if any("Rome" in self.checkpoint.tokenizer.decode(prompt.ids) for prompt in prompts):
                raise EngineError("not Rome")
            return await super().score(prompts)

    requests = [(QUERY, DOCUMENTS), ("Rome", DOCUMENTS), ("Paris", DOCUMENTS)]
    with Reranker("fake", engine=Picky(), fallback="retrieval order") as reranker:
        rankings = reranker.rank_many(requests)
    assert [ranking.degraded for ranking in rankings] == [False, True, False]
    assert [hit.index for hit in rankings[1]] == [0, 1, 2, 3]
    assert [rankings[0].hits, rankings[2].hits] == [expected.rank(*requests[at]).hits for at in (0, 2)]


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_a_deadline_leaves_the_retrieval_order() -> None:
    with Reranker("fake", engine=FakeEngine(delay=600), fallback="retrieval order") as reranker:
        ranking = reranker.rank(QUERY, DOCUMENTS, deadline=0.2)
    assert (ranking.stats.fallback, ranking.stats.error) == ("retrieval order", "The deadline passed.")
    assert [hit.index for hit in ranking] == [0, 1, 2, 3]
    assert 200 <= ranking.stats.elapsed_ms < 300_000


@pytest.mark.slow
def test_a_deadline_over_many_queries_keeps_what_is_done(expected: Reranker) -> None:
    class SlowInParis(FakeEngine):
        async def score(self, prompts: Any, *, priority: int = 0) -> list[EngineScore]:
            if any("Paris, where" in self.checkpoint.tokenizer.decode(prompt.ids) for prompt in prompts):
                await asyncio.sleep(600)
            return await super().score(prompts)

    quick, slow = (QUERY, DOCUMENTS), ("Paris, where?", DOCUMENTS)
    with Reranker("fake", engine=SlowInParis(), fallback="retrieval order") as reranker:
        rankings = reranker.rank_many([quick, *[slow] * 100], deadline=3.0)  # more than are under way at once
        with pytest.raises(TimeoutError):  # its length is not known
            reranker.rank_many(iter([quick, slow]), deadline=0.2)
    assert [ranking.degraded for ranking in rankings] == [False, *[True] * 100]
    assert rankings[0].hits == expected.rank(*quick).hits


def test_an_engine_has_no_time_after_a_deadline() -> None:
    with Reranker("fake", engine=FakeEngine(delay=600), fallback="fake") as reranker, pytest.raises(TimeoutError):
        reranker.rank(QUERY, DOCUMENTS, deadline=0.2)


def test_a_cancelled_call_gets_no_ranking() -> None:
    async def main() -> None:
        async with Reranker("fake", engine=FakeEngine(delay=600), fallback="retrieval order") as reranker:
            task = asyncio.create_task(reranker.arank(QUERY, DOCUMENTS, deadline=60))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())


# --- another engine ---------------------------------------------------------------------------------------------------


def test_another_engine_gives_the_same_models_scores(tiny_model: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("httpx")
    documents = ["Beijing is the capital of China.", "Rice grows in the south."]
    options: dict[str, Any] = {"instruction": "Find capitals", "max_document_tokens": 5, "raw_scores": True}
    with Reranker(tiny_model, engine="transformers", **options) as alone:
        expected = alone.rank(QUERY, documents)
    with Reranker(
        tiny_model,
        engine="server",
        url="http://127.0.0.1:9",  # no server is there
        engine_kwargs={"max_retries": 0, "max_model_len": 256},
        fallback="transformers",
        **options,
    ) as reranker:
        ranking = reranker.rank(QUERY, documents)
        again = asyncio.run(reranker.arank(QUERY, documents))
    assert [(hit.index, hit.truncated) for hit in ranking] == [(hit.index, hit.truncated) for hit in expected]
    assert [hit.score for hit in ranking] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    assert ranking.hits == again.hits
    assert ranking.stats.fallback == "transformers"
    assert "127.0.0.1:9" in (ranking.stats.error or "")


def test_another_reranker_brings_its_own_template_and_instruction() -> None:
    template = "<i>{{ instruction }}<q>{{ query }} France<d>{{ document }}<e>"
    other = Reranker("fake", engine="fake", template=template, instruction="Paris")
    with other, Reranker("fake", engine=Failing(start=True), fallback=other, raw_scores=True) as reranker:
        ranking = reranker.rank(QUERY, DOCUMENTS)
        own = other.rank(QUERY, DOCUMENTS)
        instructed = reranker.rank(
            QUERY, DOCUMENTS, instruction="China", template="{{ query }}{{ instruction }}{{ document }}"
        )
        own_instructed = other.rank(QUERY, DOCUMENTS, instruction="China")
    assert [(hit.index, hit.logit) for hit in ranking] == [(hit.index, hit.logit) for hit in own]
    assert [hit.score for hit in ranking] == [hit.logit for hit in own]  # as this reranker's scores are
    assert [(hit.index, hit.logit) for hit in instructed] == [(hit.index, hit.logit) for hit in own_instructed]
    assert ranking.stats.fallback == "fake"


def test_a_fallback_may_have_a_fallback() -> None:
    other = Reranker("fake", engine=Failing(score=EngineError("overflow")), fallback="retrieval order")
    with Reranker("fake", engine=Failing(start=True), fallback=other) as reranker:
        ranking = reranker.rank(QUERY, DOCUMENTS)
    assert (ranking.stats.fallback, ranking.stats.error) == ("retrieval order", "no memory")


def test_if_the_fallback_fails_too_the_error_has_both_reasons() -> None:
    other = Reranker("fake", engine=Failing(score=EngineError("overflow")))
    with (
        Reranker("fake", engine=Failing(start=True), fallback=other) as reranker,
        pytest.raises(EngineError, match="overflow") as caught,
    ):
        reranker.rank(QUERY, DOCUMENTS)
    assert any("because of: no memory" in note for note in caught.value.__notes__)


def test_closing_a_reranker_closes_the_engine_of_its_fallback() -> None:
    class Closing(FakeEngine):
        closed = 0

        async def aclose(self) -> None:
            self.closed += 1

    engine = Closing()
    with Reranker("fake", engine=Failing(start=True), fallback=Reranker("fake", engine=engine)) as reranker:
        assert reranker.rank(QUERY, DOCUMENTS).degraded
        assert (engine.started, engine.closed) == (1, 0)
    assert engine.closed == 1


# --- the way back -----------------------------------------------------------------------------------------------------


def test_an_engine_that_did_not_start_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(fallback, "time", SimpleNamespace(monotonic=lambda: now))
    engine = Failing(start=True)
    with Reranker("fake", engine=engine, fallback="retrieval order") as reranker:
        assert reranker.start() is reranker  # a pipeline that is warmed up goes on
        assert all(reranker.rank(QUERY, DOCUMENTS).degraded for _ in range(5))
        assert engine.started == 1
        now += fallback._RETRY_SECONDS
        assert all(ranking.degraded for ranking in reranker.rank_many([(QUERY, DOCUMENTS)] * 20))
        assert engine.started == 2  # one of the twenty tried
        engine.fails_to_start = False
        now += fallback._RETRY_SECONDS
        assert not reranker.rank(QUERY, DOCUMENTS).degraded
        assert engine.started == 3


def test_after_close_the_next_call_tries_the_engine_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "_RETRY_SECONDS", math.inf)
    engine = Failing(start=True)
    with Reranker("fake", engine=engine, fallback="retrieval order") as reranker:
        assert reranker.rank(QUERY, DOCUMENTS).degraded
        engine.fails_to_start = False
        assert reranker.rank(QUERY, DOCUMENTS).degraded  # not tried yet
        reranker.close()
        assert not reranker.rank(QUERY, DOCUMENTS).degraded


class Late(FakeEngine):
    """Starts when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    async def start(self) -> None:
        await asyncio.to_thread(self.gate.wait)
        await super().start()


def test_a_start_keeps_the_deadline_and_an_engine_that_is_late_loads_on() -> None:
    engine = Late()
    with Reranker("fake", engine=engine, fallback="retrieval order", deadline=0.1) as reranker:
        reranker.start()  # comes back, though nothing is loaded
        asyncio.run(reranker.astart())
        assert reranker.rank(QUERY, DOCUMENTS).degraded
        engine.gate.set()
        assert not reranker.rank(QUERY, DOCUMENTS, deadline=600).degraded
        assert engine.started == 1


def test_an_engine_that_failed_to_score_is_asked_again_at_once() -> None:
    engine = Failing(score=EngineError("overflow"))
    with Reranker("fake", engine=engine, fallback="retrieval order") as reranker:
        assert reranker.rank(QUERY, DOCUMENTS).degraded
        engine.failure = None
        assert not reranker.rank(QUERY, DOCUMENTS).degraded


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "wrong"),
    [("fake", "fake"), ("vllm", "vllm"), ("auto", "retrieval_order"), ("auto", "auto"), ("auto", "")],
)
def test_a_fallback_that_is_none_is_refused(engine: str, wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=r"fallback must be one of .*'retrieval order', but got"):
        Reranker("fake", engine=engine, fallback=wrong)


def test_copies_have_the_fallback_too() -> None:
    reranker = Reranker("fake", engine="fake", fallback=Reranker("other", engine="fake", instruction="mine"))
    for copied in (copy.copy(reranker), copy.deepcopy(reranker), pickle.loads(pickle.dumps(reranker))):  # noqa: S301
        assert isinstance(copied.fallback, Reranker)
        assert (copied.fallback.model, copied.fallback.instruction) == ("other", "mine")
        assert copied.rank(QUERY, DOCUMENTS).hits
        copied.close()


def test_fallbacks_are_counted() -> None:
    prometheus_client = pytest.importorskip("prometheus_client")
    registry = prometheus_client.CollectorRegistry()
    metrics.enable(registry)
    try:
        with Reranker("fake", engine=FakeEngine(delay=0.1), fallback="retrieval order") as reranker:
            reranker.rank(QUERY, DOCUMENTS)
            reranker.rank(QUERY, DOCUMENTS, deadline=0.01)
        labels = {"model": "fake", "engine": "fake"}
        counted = registry.get_sample_value("winnow_fallbacks_total", {**labels, "fallback": "retrieval order"})
        assert counted == 1
        assert registry.get_sample_value("winnow_rank_duration_seconds_count", labels) == 2
    finally:
        metrics.disable()
