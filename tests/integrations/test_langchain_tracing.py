"""The LangChain integration's runs: traced as a chain, below the caller's run, sync and async."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import pytest
import reported
from five_texts import BEST_FIRST, QUERY, TEXTS
from langchain_core.callbacks import AsyncCallbackHandler, AsyncCallbackManager, BaseCallbackHandler, CallbackManager
from langchain_core.documents import Document
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langchain_kit import Call, every_call, fake, ids, make_documents

from gated_engine import gated_fake, loop_goes_on_until
from winnow import DocumentError, EngineError, FakeEngine, Reranker
from winnow_langchain import WinnowRerank


class Recorder(BaseCallbackHandler):
    """Keeps what a handler of the user's gets."""

    def __init__(self) -> None:
        self.starts: list[dict[str, Any]] = []
        self.ends: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.errors: list[BaseException] = []

    def on_chain_start(self, serialized: Any, inputs: dict[str, Any], **kwargs: Any) -> None:
        self.starts.append({"serialized": serialized, "inputs": inputs, **kwargs})

    def on_chain_end(self, outputs: dict[str, Any], **kwargs: Any) -> None:
        self.ends.append((outputs, kwargs))

    def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors.append(error)


class AsyncRecorder(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.seen: list[str] = []

    async def on_chain_start(self, serialized: Any, inputs: dict[str, Any], **kwargs: Any) -> None:
        self.seen.append(inputs["query"])

    async def on_chain_end(self, outputs: dict[str, Any], **kwargs: Any) -> None:
        self.seen.append(outputs["documents"][0].page_content)


@every_call
def test_a_run_of_its_own(call: Call) -> None:
    tracer, recorder = RunCollectorCallbackHandler(), Recorder()
    found = call(fake(top_n=2), make_documents(), QUERY, callbacks=[tracer, recorder])
    (run,) = tracer.traced_runs
    assert (run.run_type, run.name, run.error) == ("chain", "WinnowRerank", None)
    assert run.inputs == {"query": QUERY, "documents": make_documents()}
    assert run.outputs["documents"] == found
    assert run.extra["metadata"] == {"rerank_model": "fake"}
    assert run.end_time >= run.start_time
    assert recorder.starts[0]["run_id"] == recorder.ends[0][1]["run_id"] == run.id
    assert recorder.starts[0]["parent_run_id"] is None


def rerank_sync(reranker: WinnowRerank, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
    return reranker.rerank(*args, **kwargs)


def rerank_async(reranker: WinnowRerank, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
    return asyncio.run(reranker.arerank(*args, **kwargs))


every_rerank = pytest.mark.parametrize("rerank", [rerank_sync, rerank_async], ids=["sync", "async"])


@every_rerank
def test_rerank_is_traced_too(rerank: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = RunCollectorCallbackHandler()
    results = rerank(fake(top_n=2), TEXTS, QUERY, callbacks=[tracer])
    outer = RunnableLambda(lambda query: rerank(fake(top_n=2), TEXTS, query), name="outer")
    assert outer.invoke(QUERY, {"callbacks": [tracer]}) == results
    alone, ambient = tracer.traced_runs
    for run in (alone, *ambient.child_runs):
        assert (run.run_type, run.name, run.error) == ("chain", "WinnowRerank", None)
        assert run.inputs == {"query": QUERY, "documents": TEXTS}
        assert run.outputs["results"] == results
        assert run.outputs["winnow"]["documents"] == 5
    monkeypatch.setattr(FakeEngine, "_logit", lambda *_: float("nan"))
    with pytest.raises(EngineError):
        rerank(fake(), TEXTS, QUERY, callbacks=[tracer])
    assert "nan" in tracer.traced_runs[-1].error


@every_call
def test_who_gathers_the_sources_of_retriever_runs_finds_each_once(call: Call) -> None:
    """As chat interfaces do that show what an answer was made of."""
    gathered: list[Document] = []

    class Sources(BaseCallbackHandler):
        def on_retriever_end(self, documents: Sequence[Document], **kwargs: Any) -> None:
            gathered.extend(documents)

    call(fake(), make_documents(), QUERY, callbacks=[Sources()])
    assert gathered == []


@every_call
def test_the_outputs_hold_all_that_the_core_reports(call: Call) -> None:
    recorder = Recorder()
    call(fake(**reported.SETTINGS), make_documents(reported.TEXTS), reported.QUERY, callbacks=[recorder])
    ((outputs, _),) = recorder.ends
    reported.check_reported(outputs["winnow"])


@every_call
def test_skipped_documents_are_counted_and_logged(call: Call, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    reranker = fake(max_document_tokens=25, on_overflow="error", on_error="skip")
    found = call(reranker, make_documents(), QUERY, callbacks=[recorder])
    assert recorder.ends[0][0]["winnow"]["failed"] == 1
    assert "1 of 5 documents" in caplog.text
    assert ids(found)[-1] == 1
    assert "rerank_error" in found[-1].metadata


@every_call
def test_no_documents_no_run(call: Call) -> None:
    recorder = Recorder()
    assert call(fake(), [], QUERY, callbacks=[recorder]) == []
    with pytest.raises(TypeError):
        call(fake(), TEXTS, QUERY, callbacks=[recorder])
    assert (recorder.starts, recorder.ends, recorder.errors) == ([], [], [])


@every_call
def test_errors_are_reported_and_raised(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    tracer, recorder = RunCollectorCallbackHandler(), Recorder()

    def attempt(kind: type[Exception], query: str = QUERY, **settings: Any) -> None:
        with pytest.raises(kind) as caught:
            call(fake(**settings), make_documents(), query, callbacks=[tracer, recorder])
        assert recorder.errors[-1] is caught.value
        assert str(caught.value) in tracer.traced_runs[-1].error

    attempt(DocumentError, max_document_tokens=25, on_overflow="error")
    attempt(ValueError, query=" ")
    monkeypatch.setattr(FakeEngine, "_logit", lambda *_: float("nan"))
    attempt(EngineError)
    assert len(recorder.starts) == len(recorder.errors) == 3
    assert recorder.ends == []


def test_an_interrupt_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Reranker, "rank", interrupted)
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        fake().compress_documents(make_documents(), QUERY, callbacks=[recorder])
    assert [type(error) for error in recorder.errors] == [KeyboardInterrupt]


def test_cancelling_ends_the_run_and_leaves_the_reranker_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, recorder = gated_fake(monkeypatch), Recorder()
    reranker = fake()

    async def main() -> None:
        call = asyncio.ensure_future(reranker.acompress_documents(make_documents(), QUERY, callbacks=[recorder]))
        await loop_goes_on_until(lambda: engine.waiting == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await loop_goes_on_until(lambda: engine.waiting == 0)  # its prompts are withdrawn

    asyncio.run(main())
    assert [type(error) for error in recorder.errors] == [asyncio.CancelledError]
    assert recorder.ends == []
    engine.gate.set()
    assert ids(reranker.compress_documents(make_documents(), QUERY)) == BEST_FIRST
    reranker.close()


@every_call
@pytest.mark.parametrize("manager", [CallbackManager, AsyncCallbackManager])
def test_below_the_callers_manager(call: Call, manager: Any) -> None:
    recorder = Recorder()
    parent = UUID(int=7)
    callbacks = manager([], parent_run_id=parent)
    callbacks.set_handlers([recorder])  # as ParentRunManager.get_child does
    callbacks.add_tags(["mine"])
    callbacks.add_metadata({"user": 1})
    call(fake(), make_documents(), QUERY, callbacks=callbacks)
    (start,) = recorder.starts
    assert start["parent_run_id"] == recorder.ends[0][1]["parent_run_id"] == parent
    assert start["tags"] == ["mine"]
    assert start["metadata"] == {"user": 1, "rerank_model": "fake"}


class Surrounding:
    """A user's own step that calls the compressor without passing callbacks on."""

    def sync(self, query: str) -> list[int]:
        return ids(fake().compress_documents(make_documents(), query))

    async def coroutine(self, query: str) -> list[int]:
        return ids(await fake().acompress_documents(make_documents(), query))


@pytest.mark.parametrize(
    "invoke",
    [
        lambda step, config: step.invoke(QUERY, config),
        lambda step, config: asyncio.run(step.ainvoke(QUERY, config)),
        lambda step, config: step.batch([QUERY], config)[0],
        lambda step, config: asyncio.run(step.abatch([QUERY], config))[0],
    ],
    ids=["invoke", "ainvoke", "batch", "abatch"],
)
def test_below_the_ambient_run(invoke: Callable[[Any, RunnableConfig], list[int]]) -> None:
    tracer = RunCollectorCallbackHandler()
    step = RunnableLambda(Surrounding().sync, afunc=Surrounding().coroutine, name="outer")
    assert invoke(step, {"callbacks": [tracer], "tags": ["mine"]}) == BEST_FIRST
    (outer,) = tracer.traced_runs
    assert outer.name == "outer"
    (run,) = outer.child_runs
    assert (run.run_type, run.name, run.tags) == ("chain", "WinnowRerank", ["mine"])


def test_empty_callbacks_are_not_the_ambient_ones() -> None:
    tracer = RunCollectorCallbackHandler()
    step = RunnableLambda(lambda query: ids(fake().compress_documents(make_documents(), query, callbacks=[])))
    step.invoke(QUERY, {"callbacks": [tracer]})
    assert tracer.traced_runs[0].child_runs == []


def test_async_handlers() -> None:
    recorder = AsyncRecorder()
    asyncio.run(fake().acompress_documents(make_documents(), QUERY, callbacks=[recorder]))
    assert recorder.seen == [QUERY, TEXTS[1]]


def test_astream_events() -> None:
    step = RunnableLambda(Surrounding().sync, afunc=Surrounding().coroutine, name="outer")

    async def main() -> list[tuple[str, str]]:
        return [(event["event"], event["name"]) async for event in step.astream_events(QUERY, version="v2")]

    events = asyncio.run(main())
    assert events.index(("on_chain_start", "WinnowRerank")) < events.index(("on_chain_end", "WinnowRerank"))


def test_a_subclass_is_traced_by_its_name() -> None:
    class Mine(WinnowRerank):
        pass

    recorder = Recorder()
    Mine(model="fake", engine="fake").compress_documents(make_documents(), QUERY, callbacks=[recorder])
    assert recorder.starts[0]["name"] == "Mine"
