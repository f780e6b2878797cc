"""What an engine raises becomes one of ours, and a document that cannot be scored leaves the others alone."""

import asyncio
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
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
    Prompt,
    Reranker,
)
from winnow.engines import choose
from winnow.ranking import judging

QUERY = "capital of China"
ERRORS: list[BaseException] = [
    *(MemoryError("no room"), RuntimeError("CUDA out of memory"), IndexError("index 9"), ValueError("v"), OSError()),
    *(SystemExit(1), KeyboardInterrupt()),  # of a model's own code: they would end the event loop
    asyncio.CancelledError(),  # of a future that somebody cancelled: a task group takes it for work that is done
]


class Raising(FakeEngine):
    """Raises the given error in the given method."""

    def __init__(self, error: BaseException, where: str):
        super().__init__()
        self.error = error
        self.where = where

    def _raise_in(self, where: str) -> None:
        if where == self.where:
            raise self.error

    async def start(self) -> None:
        self._raise_in("start")

    async def score(self, prompts: Any, *, priority: int = 0) -> list[EngineScore]:
        self._raise_in("score")
        return await super().score(prompts)

    async def sleep(self) -> None:
        self._raise_in("sleep")

    async def wake(self) -> None:
        self._raise_in("wake")

    async def aclose(self) -> None:
        self._raise_in("aclose")

    def abandon(self) -> None:
        self._raise_in("abandon")


class Picky(FakeEngine):
    """Refuses prompts with the word "bad", and finds no number for those with the word "odd"."""

    async def score(self, prompts: Any, *, priority: int = 0) -> list[EngineScore]:
        scores = await super().score(prompts)
        for at, prompt in enumerate(prompts):
            text = self.checkpoint.tokenizer.decode(prompt.ids)
            if "bad" in text:
                scores[at] = EngineScore(math.nan, error="it is bad.")
            elif "odd" in text:
                scores[at] = EngineScore(math.inf)
        return scores


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_scoring_raises_is_an_engine_error(error: BaseException) -> None:
    engine = Raising(error, "score")
    with Reranker("m", engine=engine) as reranker:
        with pytest.raises(
            EngineError, match=rf"engine fake of fake failed on 1 prompts: {type(error).__name__}"
        ) as got:
            reranker.rank(QUERY, ["a"])
        assert got.value.__cause__ is error
    for fallback in ("retrieval order", "fake"):
        with Reranker(
            "m", engine=engine, fallback=Reranker("f", engine=fallback) if fallback == "fake" else fallback
        ) as it:
            ranking = it.rank(QUERY, ["a"])
        assert ranking.stats.fallback == fallback
        assert type(error).__name__ in (ranking.stats.error or "")


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_starting_raises_is_a_load_error(error: BaseException) -> None:
    engine = Raising(error, "start")
    with (
        Reranker("m", engine=engine) as reranker,
        pytest.raises(EngineLoadError, match=f"did not start: {type(error).__name__}"),
    ):
        reranker.rank(QUERY, ["a"])
    with Reranker("m", engine=engine, fallback="retrieval order") as reranker:
        assert reranker.rank(QUERY, ["a"]).degraded


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_closing_raises_is_an_engine_error(error: BaseException) -> None:
    reranker = Reranker("m", engine=Raising(error, "aclose")).start()
    with pytest.raises(EngineError, match=f"engine fake of fake could not be closed: {type(error).__name__}"):
        reranker.close()
    reranker.close()  # it is closed


def test_a_dead_engine_that_cannot_be_closed_is_dead_and_its_fallback_ranks(caplog: pytest.LogCaptureFixture) -> None:
    class Dying(Raising):
        async def score(self, prompts: Any, *, priority: int = 0) -> list[EngineScore]:
            raise EngineDeadError("it is dead.")

    for fallback in (None, "retrieval order"):
        reranker = Reranker("m", engine=Dying(SystemExit(1), "aclose"), fallback=fallback)
        if fallback is None:
            with pytest.raises(EngineDeadError, match="it is dead"):
                reranker.rank(QUERY, ["a"])
        else:
            assert reranker.rank(QUERY, ["a"]).degraded
        assert "could not be closed: SystemExit: 1" in caplog.text
        caplog.clear()


def test_an_engine_that_cannot_be_abandoned_does_not_keep_another_from_being_closed() -> None:
    script = """
import sys
from winnow import FakeEngine, Reranker

class One(FakeEngine):
    def abandon(self):
        sys.exit("no")

class Other(FakeEngine):
    async def aclose(self):
        print("closed")

rerankers = [Reranker("m", engine=engine).start() for engine in (One(), Other())]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == "closed\n"
    assert "could not be abandoned: SystemExit('no')" in done.stderr


def test_work_that_is_cancelled_from_within_is_no_work_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its documents would have no scores, and nobody would say so."""

    async def cancelled(*_: Any) -> None:
        raise asyncio.CancelledError

    with Reranker("m", engine="fake") as reranker:
        monkeypatch.setattr(judging, "score_prompts", cancelled)
        with pytest.raises(EngineError, match="was cancelled, though its call goes on"):
            reranker.rank(QUERY, ["a", "b"])


def test_what_making_an_engine_raises_is_a_load_error(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(choose, "open_checkpoint", fail)
    with (
        Reranker(tiny_model, engine="transformers") as reranker,
        pytest.raises(EngineLoadError, match="could not be made: MemoryError"),
    ):
        reranker.rank(QUERY, ["a"])


@pytest.mark.parametrize("where", ["sleep", "wake"])
def test_what_sleeping_and_waking_raise_is_an_engine_error(where: str) -> None:
    def sleep_and_wake() -> None:
        reranker.sleep()
        reranker.wake()

    reranker = Reranker("m", engine=Raising(RuntimeError("CUDA error"), where))
    with reranker.start(), pytest.raises(EngineError, match=r"could not (sleep|wake up): RuntimeError: CUDA error"):
        sleep_and_wake()


def test_a_bad_document_is_named_or_skipped() -> None:
    documents = ["China", "bad", "odd", "China and Paris", "bad"]
    with Reranker("m", engine=Picky()) as strict, pytest.raises(DocumentError, match=r"Document 1 .* it is bad") as got:
        strict.rank(QUERY, documents)
    assert got.value.index == 1
    with (
        Reranker("m", engine=Picky()) as strict,
        pytest.raises(DocumentError, match=r"Document 1 .*logit inf.*bfloat16"),
    ):
        strict.rank(QUERY, ["China", "odd"])
    with Reranker("m", engine=Picky(), on_error="skip") as lenient, Reranker("m", engine="fake") as plain:
        ranking = lenient.rank(QUERY, documents)
        [alone] = lenient.rank(QUERY, ["bad"])
        assert [hit.logit for hit in ranking[:2]] == [
            hit.logit for hit in plain.rank(QUERY, ["China", "China and Paris"])
        ]
        assert lenient.score(QUERY, documents)[1] == 0.0
    assert [hit.index for hit in ranking] == [0, 3, 1, 2, 4]
    assert [bool(hit.error) for hit in ranking] == [False, False, True, True, True]
    assert (ranking.stats.failed, ranking.stats.unique) == (3, 2)
    assert "it is bad" in (alone.error or "")


def test_a_bad_window_fails_its_document() -> None:
    with Reranker("m", engine=Picky(), on_overflow="window", on_error="skip", max_document_tokens=40) as reranker:
        ranking = reranker.rank(QUERY, ["word " * 30 + "bad", "word " * 30])
    assert [hit.index for hit in ranking] == [1, 0]
    assert (ranking[0].error, ranking[1].windows) == (None, 0)
    assert "it is bad" in (ranking[1].error or "")


def test_a_bad_document_is_not_kept() -> None:
    engine = Picky()
    with Reranker("m", engine=engine, on_error="skip", score_cache=100) as reranker:
        for _ in range(2):
            ranking = reranker.rank(QUERY, ["China", "bad", "odd"])
            assert ranking.stats.failed == 2
        assert ranking.stats.cache_hits == 1
    assert engine.prompts == 3 + 2


def test_callers_who_share_a_bad_prompt_all_hear_of_it() -> None:
    class Waiting(Picky):
        async def score(self, prompts: Any, *, priority: int = 0) -> list[EngineScore]:
            await asyncio.wait_for(both.wait(), 60)
            return await super().score(prompts)

    async def main() -> None:
        async with Reranker("m", engine=Waiting(), on_error="skip") as reranker:
            calls = [
                asyncio.ensure_future(reranker.arank(QUERY, documents)) for documents in (["bad", "x"], ["y", "bad"])
            ]
            await asyncio.sleep(0.2)
            reranker._lease._shared._loop.call_soon_threadsafe(both.set)  # type: ignore[union-attr]
            first, second = await asyncio.gather(*calls)
        for ranking, at in ((first, 0), (second, 1)):
            assert {hit.index: f"Document {at} " in (hit.error or "") for hit in ranking} == {at: True, 1 - at: False}

    both = asyncio.Event()
    asyncio.run(main())


def test_where_nothing_is_a_number_it_is_the_engine() -> None:
    for on_error in ("raise", "skip"):
        options: dict[str, Any] = {"engine": Picky(), "on_error": on_error}
        with (
            Reranker("m", **options) as reranker,
            pytest.raises(EngineError, match=r"returned the logit inf.*bfloat16"),
        ):
            reranker.rank(QUERY, ["odd", "odd too"])
        with Reranker("m", fallback="retrieval order", **options) as reranker:
            assert reranker.rank(QUERY, ["odd", "odd too"]).degraded


@pytest.fixture(scope="module")
def model_without_numbers(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with no number where the word "zebra" is embedded."""
    import safetensors.torch

    from winnow.models.checkpoint import open_checkpoint

    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("nan") / "qwen3-reranker"))
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    encode = open_checkpoint(str(folder)).tokenizer.encode
    weights["model.embed_tokens.weight"][encode(" zebra")[-1]] = math.nan
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_real_model_that_finds_no_number(
    engine: str, model_without_numbers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "vllm":
        pytest.importorskip("vllm")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    good = ["Beijing is the capital of China.", "Rice grows in the south."]
    with Reranker(str(model_without_numbers), engine=engine, on_error="skip") as reranker:
        expected = reranker.score(QUERY, good)
        ranking = reranker.rank(QUERY, [good[0], "Look, a zebra", good[1]])
        scores = {hit.index: hit.score for hit in ranking}
        assert [scores[0], scores[2]] == pytest.approx(expected, abs=1e-6)
        assert [hit.index for hit in ranking if hit.error] == [1]
        assert reranker.score(QUERY, good) == pytest.approx(expected, abs=1e-6)  # nothing is left behind
        with pytest.raises(EngineError, match="returned the logit nan"):
            reranker.rank("a zebra", good)


def test_vllm_refuses_a_token_that_it_does_not_know(vllm_model: str) -> None:
    async def score(started: Any) -> list[EngineScore]:
        requests = await started()
        found: list[EngineScore] = await requests.engine.score([Prompt([1] * 9), Prompt([10**6]), Prompt([2] * 9)])
        return found

    with Reranker(vllm_model, engine="vllm") as reranker:
        first, refused, last = reranker._wait(score)
    assert first.error is last.error is None
    assert re.search("vLLM refused its prompt: .*out of vocabulary", refused.error or "")


def test_a_full_queue_of_vllm_is_no_fault_of_a_document(vllm_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def narrow(started: Any) -> None:
        scheduler = (await started()).engine._llm.vllm_config.scheduler_config
        if not hasattr(scheduler, "max_num_queued_reqs"):
            pytest.skip("this vLLM has no max_num_queued_reqs")
        monkeypatch.setattr(scheduler, "max_num_queued_reqs", 8)

    with Reranker(vllm_model, engine="vllm", on_error="skip") as reranker:
        reranker._wait(narrow)
        with pytest.raises(EngineError, match=r"failed on 32 prompts: QueueOverflowError: .*busy"):
            reranker.rank(QUERY, [f"passage {number}" for number in range(32)])
        monkeypatch.undo()
        assert len(reranker.score(QUERY, ["a", "b"])) == 2


def test_a_configuration_error_stays_one() -> None:
    with (
        Reranker("m", engine=Raising(ConfigurationError("not here"), "score")) as reranker,
        pytest.raises(ConfigurationError, match=r"^not here$"),
    ):
        reranker.rank(QUERY, ["a"])
