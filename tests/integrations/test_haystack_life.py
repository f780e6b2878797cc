"""The Haystack ranker's life: warm-up and close from many threads and loops, copies, secrets, tracing."""

import asyncio
import contextlib
import copy
import dataclasses
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from engine_threads import engine_threads
from five_texts import QUERY
from haystack import Pipeline, tracing
from haystack.tracing import Span, Tracer
from haystack.utils import Secret
from haystack_help import BEST_FIRST, documents, fake, ids

from haystack_integrations.components.rankers.winnow import WinnowRanker
from winnow import EngineScore, FakeEngine, Prompt, Reranker
from winnow.engines.choose import create_engine


class Watched(FakeEngine):
    """An engine that takes its time to start and counts how often it is closed."""

    closed = 0

    async def start(self) -> None:
        await asyncio.sleep(0.05)
        await super().start()

    async def aclose(self) -> None:
        self.closed += 1


def pipeline_of(ranker: WinnowRanker) -> Pipeline:
    pipeline = Pipeline()
    pipeline.add_component("ranker", ranker)
    return pipeline


INPUTS = {"ranker": {"query": QUERY, "documents": documents()}}


# --- warm-up and close ------------------------------------------------------------------------------------------------


def test_making_one_starts_nothing() -> None:
    engine = Watched()
    running = engine_threads()
    ranker = fake(engine=engine)
    ranker.close()
    asyncio.run(ranker.close_async())
    assert (engine.started, engine.closed) == (0, 0)
    assert engine_threads() <= running


def test_warm_up_loads_once() -> None:
    engine = Watched()
    ranker = fake(engine=engine)
    ranker.warm_up()
    asyncio.run(ranker.warm_up_async())
    ranker.warm_up()
    assert (engine.started, engine.calls) == (1, 0)
    ranker.close()


def test_six_threads_load_once() -> None:
    engine = Watched()
    pipeline = pipeline_of(fake(engine=engine))
    barrier = threading.Barrier(6)

    def run(_: int) -> list[str]:
        barrier.wait()
        return ids(pipeline.run(copy.deepcopy(INPUTS))["ranker"])

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(run, range(6))) == [BEST_FIRST] * 6
    assert engine.started == 1
    pipeline.close()
    assert engine.closed == 1


def test_close_frees_the_engine_and_the_next_run_starts_it_again() -> None:
    engine = Watched()
    ranker = fake(engine=engine)
    for round_ in (1, 2):
        assert ids(ranker.run(QUERY, documents())) == BEST_FIRST
        ranker.close()
        ranker.close()
        assert (engine.started, engine.closed) == (round_, round_)
    asyncio.run(ranker.warm_up_async())
    asyncio.run(ranker.close_async())
    assert (engine.started, engine.closed) == (3, 3)


def test_rankers_and_the_core_share_an_engine_until_the_last_closes() -> None:
    engine = Watched()
    first, second = fake(engine=engine), fake(engine=engine, scale_score=False)
    core = Reranker("fake", engine=engine)
    for each in (first, second):
        each.run(QUERY, documents())
    core.rank(QUERY, ["China"])
    assert engine.started == 1
    first.close()
    core.close()
    assert engine.closed == 0
    second.close()
    assert engine.closed == 1


def test_warm_up_async_does_not_block_the_loop() -> None:
    class Slow(Watched):
        loop_goes_on = threading.Event()

        async def start(self) -> None:
            assert self.loop_goes_on.wait(60)  # blocks, as loading a model does

    async def main() -> None:
        warming = asyncio.create_task(fake(engine=Slow()).warm_up_async())
        await asyncio.sleep(0.1)
        Slow.loop_goes_on.set()
        await warming

    asyncio.run(main())


def test_calls_of_one_loop_run_side_by_side() -> None:
    class Together(FakeEngine):
        """Scores when eight calls are there."""

        async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
            self.calls += 1
            while self.calls < 8:
                await asyncio.sleep(0.01)
            return [EngineScore(self._logit(prompt)) for prompt in prompts]

    ranker = fake(engine=Together())

    async def main() -> None:
        runs = (ranker.run_async(f"{QUERY} {at}", documents(), deadline=60) for at in range(8))
        assert [ids(result) for result in await asyncio.gather(*runs)] == [BEST_FIRST] * 8

    asyncio.run(main())
    ranker.close()


def test_cancelled_runs_leave_the_ranker_usable() -> None:
    ranker = fake(engine=FakeEngine(delay=0.2))

    async def main() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ranker.run_async(QUERY, documents()), 0.05)
        assert ids(await ranker.run_async(QUERY, documents())) == BEST_FIRST

    asyncio.run(main())
    ranker.close()


def test_a_start_that_fails_is_tried_again() -> None:
    class Flaky(Watched):
        async def start(self) -> None:
            self.started += 1
            if self.started == 1:
                raise RuntimeError("the GPU is busy")

    ranker = fake(engine=Flaky())
    with pytest.raises(RuntimeError, match="the GPU is busy"):
        ranker.warm_up()
    assert ids(ranker.run(QUERY, documents())) == BEST_FIRST
    ranker.close()


class Uncopied(Watched):
    """An engine that cannot be copied, as those with threads and models."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def test_a_copied_pipeline_holds_no_engine_until_it_runs() -> None:
    engine = Uncopied()
    pipeline = pipeline_of(fake(engine=engine))
    pipeline.run(copy.deepcopy(INPUTS))
    unused, used = copy.deepcopy(pipeline), copy.deepcopy(pipeline)
    assert ids(used.run(copy.deepcopy(INPUTS))["ranker"]) == BEST_FIRST
    assert engine.started == 1  # an engine object is shared, as between rankers that were made with it
    pipeline.close()
    assert engine.closed == 0
    used.close()
    assert engine.closed == 1
    unused.close()
    assert engine.closed == 1


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda ranker: pickle.loads(pickle.dumps(ranker))],  # noqa: S301
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_work_and_make_their_own_reranker(copied: Callable[[WinnowRanker], WinnowRanker]) -> None:
    ranker = fake(engine_kwargs={"delay": 0.0})
    ranker.warm_up()
    other = copied(ranker)
    assert other._reranker is None
    assert other.to_dict() == ranker.to_dict()
    assert ids(other.run(QUERY, documents())) == BEST_FIRST
    other.close()
    assert ids(ranker.run(QUERY, documents())) == BEST_FIRST
    ranker.close()


# --- secrets and telemetry --------------------------------------------------------------------------------------------


def test_the_key_is_read_when_first_needed_and_only_for_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    missing = Secret.from_env_var("NO_SUCH_KEY")
    fake(api_key=missing).warm_up()  # this engine needs none
    server = WinnowRanker("model", engine="server", url="http://localhost:1", api_key=missing)
    with pytest.raises(ValueError, match="NO_SUCH_KEY"):
        server.warm_up()
    monkeypatch.setenv("NO_SUCH_KEY", "hush")
    assert server._ready().api_key == "hush"
    assert fake(api_key=missing)._ready().api_key is None


def test_the_key_comes_from_the_environment_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_API_KEY", "hush")
    servers = ["http://localhost:1", "http://localhost:2"]
    core = WinnowRanker("model", engine="server", url=servers)._ready()
    assert (core.api_key, core.url) == ("hush", servers)
    assert WinnowRanker("model", engine="server", url=servers, api_key=None)._ready().api_key is None


def test_secrets_are_never_written() -> None:
    server = WinnowRanker("model", engine="server", url="http://localhost:1", api_key=Secret.from_token("hush"))
    assert "hush" not in repr(server)
    with pytest.raises(ValueError, match="Cannot serialize token-based secret"):
        server.to_dict()
    with pytest.raises(ValueError, match="Cannot serialize token-based secret"):
        fake(token=Secret.from_token("hush")).to_dict()
    with pytest.raises(ValueError, match=r"give token=Secret\.from_env_var\('HF_TOKEN'\)") as error:
        WinnowRanker("model", engine="transformers", engine_kwargs={"hf_token": "hush"}).to_dict()
    assert "hush" not in str(error.value)


ENGINES: list[dict[str, Any]] = [
    {"engine": "auto"},
    {"engine": "vllm"},
    {"engine": "transformers"},
    {"engine": "server", "url": "http://localhost:1"},
]


@pytest.fixture
def no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_API_TOKEN", "HF_TOKEN", "WINNOW_HF_TOKEN", "WINNOW_ENGINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
@pytest.mark.usefixtures("no_tokens")
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine["engine"])
def test_the_hub_is_asked_with_the_token(
    engine: dict[str, Any], tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine["engine"] == "vllm":
        pytest.importorskip("vllm")
    asked: list[str | None] = []

    def download(name: str, *, token: str | None, **_: Any) -> str:
        asked.append(token)
        return tiny_model

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setenv("HF_API_TOKEN", "hf_environment")
    for given in ({}, {"token": Secret.from_token("hf_given")}, {"engine_kwargs": {"hf_token": "hf_kwargs"}}):
        ranker = WinnowRanker("me/private-Qwen3-Reranker", **engine, **given)
        create_engine(ranker._ready())
        assert "hf_" not in str(ranker.engine_kwargs) or "engine_kwargs" in given
    assert asked == ["hf_environment", "hf_given", "hf_kwargs"]


@pytest.mark.usefixtures("no_tokens")
def test_a_token_that_the_hub_finds_by_itself_or_nobody_needs_makes_no_other_engine(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = Reranker("me/private", engine="transformers")
    assert WinnowRanker("me/private", engine="transformers")._ready().engine_key == core.engine_key
    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    assert WinnowRanker("me/private", engine="transformers")._ready().engine_key == core.engine_key
    token = Secret.from_token("hf_other")
    one, two = (WinnowRanker("me/private", engine="transformers", token=token)._ready() for _ in range(2))
    assert one.engine_key == two.engine_key != core.engine_key
    folder = WinnowRanker(tiny_model, engine="transformers", token=token)._ready()
    assert folder.engine_key == Reranker(tiny_model, engine="transformers").engine_key
    missing = Secret.from_env_var("NO_SUCH_TOKEN")
    for ranker in (
        fake(token=missing),
        fake(engine=FakeEngine(), token=missing),
        WinnowRanker(tiny_model, token=missing),
    ):
        assert "hf_token" not in ranker._ready().engine_kwargs
    with pytest.raises(ValueError, match="NO_SUCH_TOKEN"):
        WinnowRanker("me/private", token=missing).warm_up()
    monkeypatch.setenv("WINNOW_ENGINE", "fake")
    assert ids(WinnowRanker("me/private", token=token).run(QUERY, documents())) == BEST_FIRST


def test_telemetry_holds_the_model_and_nothing_else() -> None:
    assert fake(instruction="secret")._get_telemetry_data() == {"model": "fake"}


# --- tracing ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class SpySpan(Span):
    operation: str
    parent: "SpySpan | None"
    tags: dict[str, Any]

    def set_tag(self, key: str, value: Any) -> None:
        self.tags[key] = value


class SpyTracer(Tracer):
    def __init__(self) -> None:
        self.spans: list[SpySpan] = []
        self.open: list[SpySpan] = []

    @contextlib.contextmanager
    def trace(
        self, operation_name: str, tags: dict[str, Any] | None = None, parent_span: Span | None = None
    ) -> Iterator[Span]:
        assert parent_span is None or isinstance(parent_span, SpySpan)
        span = SpySpan(operation_name, parent_span, dict(tags or {}))
        self.spans.append(span)
        self.open.append(span)
        try:
            yield span
        finally:
            self.open.remove(span)

    def current_span(self) -> Span | None:
        return self.open[-1] if self.open else None


@pytest.fixture
def tracer() -> Iterator[SpyTracer]:
    spy = SpyTracer()
    tracing.enable_tracing(spy)
    yield spy
    tracing.disable_tracing()


@pytest.mark.parametrize("native", [False, True], ids=["sync", "async"])
def test_a_child_span_says_what_the_run_cost(tracer: SpyTracer, native: bool) -> None:
    pipeline = pipeline_of(fake(instruction="an instruction", max_length=120))
    inputs = copy.deepcopy(INPUTS)
    inputs["ranker"]["documents"] += documents(["long " * 200])  # type: ignore[operator]  # a duplicate id: dropped
    if native:
        asyncio.run(pipeline.run_async(inputs))
    else:
        pipeline.run(inputs)
    (span,) = [span for span in tracer.spans if span.operation == "winnow.rank"]
    assert span.parent is not None
    assert span.parent.operation == "haystack.component.run"
    assert span.parent.tags["haystack.component.name"] == "ranker"
    assert span.tags.pop("winnow.elapsed_ms") > 0
    assert span.tags.pop("winnow.prompt_tokens") > 100
    assert span.tags.pop("winnow.usage_tokens") > 100
    assert span.tags == {
        "winnow.model": "fake",
        "winnow.engine": "fake",
        "winnow.documents": 5,
        "winnow.unique": 5,
        "winnow.truncated": 0,
        "winnow.failed": 0,
        "winnow.reused": 0,
        "winnow.cache_hits": 0,
        "winnow.query_truncated": False,
        "winnow.cached_tokens": 0,
    }
    assert not tracer.open


def test_content_is_traced_only_where_it_is_wanted(tracer: SpyTracer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing.tracer, "is_content_tracing_enabled", True)
    fake(instruction="an instruction").run(QUERY, documents())
    assert tracer.spans[0].tags["winnow.query"] == QUERY
    assert tracer.spans[0].tags["winnow.instruction"] == "an instruction"


def test_nothing_to_rank_makes_no_span(tracer: SpyTracer) -> None:
    fake().run(QUERY, [])
    assert tracer.spans == []


# --- imports ----------------------------------------------------------------------------------------------------------


def test_without_haystack_the_import_names_the_extra() -> None:
    code = """
import sys
sys.modules["haystack"] = None
try:
    import haystack_integrations.components.rankers.winnow
except ImportError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingExtraError")
    assert 'pip install "winnow-rerank[haystack]"' in done.stdout


@pytest.mark.slow
def test_the_import_does_not_bring_vllm() -> None:
    code = """
import sys
import haystack_integrations.components.rankers.winnow
print("vllm" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
