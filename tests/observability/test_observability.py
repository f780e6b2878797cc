"""What is seen from outside: Prometheus metrics, OpenTelemetry spans, and a quiet log."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import pytest

from gated_engine import GatedEngine, loop_goes_on_until, wait_until
from winnow import DocumentError, EngineError, EngineScore, FakeEngine, Reranker, metrics
from winnow.observability import tracing
from winnow.observability.rank_span import observed

prometheus_client = pytest.importorskip("prometheus_client")
pytest.importorskip("opentelemetry.sdk")

from opentelemetry import trace  # noqa: E402 - needs the packages
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402
from opentelemetry.trace import StatusCode  # noqa: E402

QUERY = "capital of China"
DOCUMENTS = ["Beijing is the capital of China.", "Paris", "China", "Paris", " "]
LABELS = {"model": "some/model", "engine": "fake"}


class Broken(FakeEngine):
    """Fails."""

    async def score(self, prompts: Any, *, priority: int = 0) -> list[EngineScore]:
        raise EngineError("no score today")


# --- metrics ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def registry() -> Iterator[Any]:
    registry = prometheus_client.CollectorRegistry()
    metrics.enable(registry)
    yield registry
    metrics.disable()


def value(registry: Any, name: str, **labels: str) -> float | None:
    found: float | None = registry.get_sample_value(f"winnow_{name}", {**LABELS, **labels})
    return found


def test_the_counters_are_the_sums_of_the_stats(registry: Any) -> None:
    documents: list[Any] = [*DOCUMENTS, "long " * 2000, 7]
    with Reranker("some/model", engine="fake", on_error="skip", score_cache=100) as reranker:
        stats = [reranker.rank(QUERY, documents).stats for _ in range(2)]
        stats += [ranking.stats for ranking in reranker.rank_many([(QUERY, DOCUMENTS), ("Paris", DOCUMENTS)])]
    names = {
        "documents": "pairs",
        "prompt_tokens": "prompt_tokens",
        "cached_tokens": "cached_tokens",
        "reused": "reused_prompts",
        "cache_hits": "cache_hits",
        "truncated": "truncated_documents",
        "failed": "failed_documents",
    }
    for field, name in names.items():
        assert value(registry, f"{name}_total") == sum(getattr(one, field) for one in stats), field
    assert value(registry, "cache_hits_total") == 7
    assert value(registry, "truncated_documents_total") == value(registry, "failed_documents_total") == 2
    assert value(registry, "rank_duration_seconds_count") == 4
    seconds = sum(one.elapsed_ms for one in stats) / 1000
    assert value(registry, "rank_duration_seconds_sum") == pytest.approx(seconds, rel=0.5)
    assert value(registry, "rankings_in_flight") == 0
    assert value(registry, "errors_total", type="EngineError") is None


def test_tokens_in_the_prefix_cache_are_counted(registry: Any) -> None:
    class Caching(FakeEngine):
        async def score(self, prompts: Any, *, priority: int = 0) -> list[EngineScore]:
            return [EngineScore(0.0, cached_tokens=5) for _ in prompts]

    with Reranker("some/model", engine=Caching()) as reranker:
        reranker.rank(QUERY, DOCUMENTS)
    assert value(registry, "cached_tokens_total") == 15


def test_errors_are_counted_by_type(registry: Any) -> None:
    with Reranker("some/model", engine=Broken()) as reranker:
        for _ in range(2):
            with pytest.raises(EngineError):
                reranker.rank(QUERY, DOCUMENTS)
    with Reranker("some/model", engine="fake") as reranker, pytest.raises(DocumentError):
        reranker.rank(QUERY, ["\ud83d"])
    with Reranker("some/model", engine=FakeEngine(delay=60)) as reranker:
        with pytest.raises(TimeoutError):
            reranker.rank(QUERY, DOCUMENTS, deadline=0.05)

        async def cancelled() -> None:
            call = asyncio.ensure_future(reranker.arank(QUERY, DOCUMENTS))
            await loop_goes_on_until(lambda: value(registry, "rankings_in_flight") == 1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

        asyncio.run(cancelled())
    assert value(registry, "errors_total", type="EngineError") == 2
    assert value(registry, "errors_total", type="DocumentError") == 1
    assert value(registry, "errors_total", type="TimeoutError") == 1
    assert value(registry, "errors_total", type="CancelledError") == 1
    assert value(registry, "rank_duration_seconds_count") == 5
    assert value(registry, "rankings_in_flight") == 0
    assert value(registry, "pairs_total") is None


def test_rankings_under_way_are_seen(registry: Any) -> None:
    engine = GatedEngine()
    with Reranker("some/model", engine=engine) as reranker, ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(reranker.rank, QUERY, [str(number)]) for number in range(3)]
        wait_until(lambda: value(registry, "rankings_in_flight") == 3)
        engine.gate.set()
        for call in calls:
            call.result()
    assert value(registry, "rankings_in_flight") == 0


def test_they_are_off_until_asked_for_and_can_move() -> None:
    ours = prometheus_client.CollectorRegistry()
    with Reranker("some/model", engine="fake") as reranker:
        reranker.rank(QUERY, DOCUMENTS)
        assert metrics.active() is None
        try:
            metrics.enable()
            metrics.enable()
            reranker.rank(QUERY, DOCUMENTS)
            assert value(prometheus_client.REGISTRY, "pairs_total") == 5
            metrics.enable(ours)
            reranker.rank(QUERY, DOCUMENTS)
            assert value(prometheus_client.REGISTRY, "pairs_total") is None
            assert value(ours, "pairs_total") == 5
        finally:
            metrics.disable()
        reranker.rank(QUERY, DOCUMENTS)
    assert list(ours.collect()) == []


def test_the_page_that_prometheus_reads(registry: Any) -> None:
    with Reranker("some/model", engine="fake") as reranker:
        reranker.rank(QUERY, DOCUMENTS)
    page = prometheus_client.generate_latest(registry).decode()
    assert 'winnow_pairs_total{engine="fake",model="some/model"} 5.0' in page
    documented = {line.split("`")[1] for line in (metrics.__doc__ or "").splitlines() if line.startswith("| `")}
    assert documented == {
        f"{metric.name}_total" if metric.type == "counter" else metric.name for metric in registry.collect()
    }


# --- spans ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "tracer", lambda: provider.get_tracer("winnow"))
    return exporter


def only(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exporter.get_finished_spans()
    assert span.name == "winnow.rank"
    return span


def test_a_span_says_what_a_ranking_cost(exporter: InMemorySpanExporter) -> None:
    with Reranker("some/model", engine="fake", instruction="confidential") as reranker:
        stats = reranker.rank("secretly", ["hidden away", "China"]).stats
    span = only(exporter)
    costs = {f"winnow.{name}": cost for name, cost in asdict(stats).items() if cost is not None}
    assert dict(span.attributes or {}) == {"winnow.model": "some/model", "winnow.engine": "fake", **costs}
    assert span.status.status_code is StatusCode.UNSET
    assert not any(word in span.to_json() for word in ("confidential", "secretly", "hidden", "China"))


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def test_the_callers_span_is_the_parent(exporter: InMemorySpanExporter) -> None:
    outer = TracerProvider().get_tracer("app")
    seen: list[int] = []

    class Looking(FakeEngine):
        async def score(self, prompts: Any, *, priority: int = 0) -> list[EngineScore]:
            seen.append(trace.get_current_span().get_span_context().span_id)
            return await super().score(prompts)

    with Reranker("some/model", engine=Looking(delay=0.01)) as reranker:

        def rank(number: int) -> int:
            with outer.start_as_current_span("request") as span:
                reranker.rank(QUERY, [str(number)])
                return span.get_span_context().span_id

        async def arank(number: int) -> int:
            with outer.start_as_current_span("request") as span:
                await reranker.arank(QUERY, [str(number)])
                return span.get_span_context().span_id

        async def many() -> list[int]:
            return list(await asyncio.gather(*map(arank, range(10, 15))))

        with ThreadPoolExecutor(5) as threads:
            expected = sorted([*threads.map(rank, range(5)), *asyncio.run(many())])
        reranker.rank(QUERY, ["alone"])
    *spans, alone = exporter.get_finished_spans()
    assert sorted(parent_of(span) or 0 for span in spans) == expected
    assert alone.parent is None
    # What the engine does, such as requests to servers, belongs to Winnow's span.
    assert sorted(seen) == sorted(span.context.span_id for span in (*spans, alone) if span.context)


def test_each_query_of_many_has_a_span(exporter: InMemorySpanExporter) -> None:
    with Reranker("some/model", engine="fake") as reranker:
        reranker.rank_many([(QUERY, DOCUMENTS), ("Paris", DOCUMENTS[:2])])
    assert sorted((span.attributes or {})["winnow.documents"] for span in exporter.get_finished_spans()) == [2, 5]


def test_an_error_is_on_its_span(exporter: InMemorySpanExporter) -> None:
    with Reranker("some/model", engine=Broken()) as reranker, pytest.raises(EngineError):
        reranker.rank(QUERY, DOCUMENTS)
    span = only(exporter)
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "EngineError"
    (event,) = span.events
    assert (event.attributes or {})["exception.message"] == "no score today"


def test_a_deadline_that_passed_is_on_its_span(exporter: InMemorySpanExporter) -> None:
    with Reranker("some/model", engine=FakeEngine(delay=60)) as reranker, pytest.raises(TimeoutError):
        reranker.rank(QUERY, DOCUMENTS, deadline=0.05)
    span = only(exporter)
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "TimeoutError"


def test_a_provider_that_is_set_up_later_is_found() -> None:
    code = """
import winnow
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
with winnow.Reranker("fake", engine="fake") as reranker:
    reranker.score("a", ["b"])
    trace.set_tracer_provider(provider := TracerProvider())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    reranker.score("a", ["b"])
print([span.name for span in exporter.get_finished_spans()])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['winnow.rank']"


# --- price and quiet --------------------------------------------------------------------------------------------------


def test_it_costs_next_to_nothing_when_it_is_off() -> None:
    assert metrics.active() is None

    async def main() -> float:
        best = float("inf")
        clock = asyncio.timeout(None)
        for _ in range(20):
            begin = time.perf_counter()
            for _ in range(500):
                with observed("some/model", "fake", clock):
                    pass
            best = min(best, (time.perf_counter() - begin) / 500)
        return best

    seconds = asyncio.run(main())
    print(f"{seconds * 1e6:.1f} µs a ranking")
    assert seconds < 100e-6


@pytest.mark.slow
def test_vllm_ranks_in_silence(tiny_model: str) -> None:
    pytest.importorskip("vllm")
    code = f"""
import logging, sys, winnow

notes = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: notes.append(record.getMessage())
logging.getLogger("winnow").addHandler(handler)
with winnow.Reranker({tiny_model!r}, engine="vllm", score_cache=10) as reranker:
    assert len(reranker.rank("capital of China", ["Beijing", "Paris", "Beijing"])) == 3
assert not notes, notes
assert not logging.getLogger().handlers
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    # What vLLM's processes say on a machine without a GPU before they have read VLLM_LOGGING_LEVEL.
    assert set(done.stderr.splitlines()) <= {"Triton is installed, but doesn't include CPU backend. Disabling Triton."}
