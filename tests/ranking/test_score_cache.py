"""The score cache: identical results, nothing twice, other keys for whatever makes other scores."""

import asyncio
import json
import os
import pickle
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from winnow import (
    Calibration,
    ConfigurationError,
    EngineError,
    EngineScore,
    FakeEngine,
    ModelRecipe,
    Reranker,
    RerankerConfig,
)
from winnow.engines.settings import resolve
from winnow.models.checkpoint import open_checkpoint
from winnow.ranking.score_cache import MemoryScores, ScoreCache, fingerprint

QUERY = "capital of China"
DOCUMENTS = ["Beijing is the capital of China.", "Paris", "China", "Paris", " "]


def test_what_was_scored_is_not_sent_again() -> None:
    engine = FakeEngine()
    with Reranker("fake", engine=engine, score_cache=100) as reranker:
        first = reranker.rank(QUERY, DOCUMENTS)
        again = reranker.rank(QUERY, [*DOCUMENTS, "new"])
    assert engine.prompts == 4
    assert (first.stats.cache_hits, again.stats.cache_hits) == (0, 3)
    assert (first.stats.unique, again.stats.unique) == (3, 4)
    assert again.stats.prompt_tokens < first.stats.prompt_tokens / 2  # of the new one alone
    assert [hit for hit in again if hit.text != "new"] == list(first)


def test_without_a_cache_there_are_no_hits() -> None:
    engine = FakeEngine()
    with Reranker("fake", engine=engine) as reranker:
        assert [reranker.rank(QUERY, DOCUMENTS).stats.cache_hits for _ in range(2)] == [0, 0]
    assert engine.prompts == 6


queries = st.sampled_from(["a", "b c"])
instructions = st.none() | st.sampled_from(["", "b"])
texts = st.lists(st.text(alphabet="abc ", max_size=40), max_size=6)


@given(st.lists(st.tuples(queries, texts, instructions), max_size=6), st.integers(1, 8))
def test_any_calls_give_what_they_give_without(calls: list[tuple[str, list[str], str | None]], size: int) -> None:
    options: dict[str, Any] = {"engine": "fake", "on_overflow": "window", "max_document_tokens": 10}
    with Reranker("fake", **options) as plain, Reranker("fake", **options, score_cache=size) as cached:
        for query, documents, instruction in calls:
            expected = plain.rank(query, documents, instruction=instruction)
            found = cached.rank(query, documents, instruction=instruction)
            assert found.hits == expected.hits
            assert found.stats.unique == expected.stats.unique
        assert [found.hits for found in cached.rank_many(calls)] == [found.hits for found in plain.rank_many(calls)]


@pytest.mark.parametrize(
    "call",
    [
        {"query": "capital of Chin"},
        {"instruction": "other"},
        {"template": "<q>{{ query }}<d>{{ document }}<e>"},
        {"template_kwargs": {"style": "short"}},
    ],
    ids=lambda call: next(iter(call)),
)
def test_another_prompt_is_another_pair(call: dict[str, Any]) -> None:
    template = "<i>{{ instruction }}<q>{{ query }}<d>{{ document }}{{ style }}<e>"
    with Reranker("fake", engine="fake", score_cache=100, template=template) as reranker:
        reranker.rank(QUERY, DOCUMENTS)
        assert reranker.rank(**{"query": QUERY, "documents": DOCUMENTS, **call}).stats.cache_hits == 0
        assert reranker.rank(**{"query": QUERY, "documents": DOCUMENTS, **call}).stats.cache_hits == 3


def test_a_failure_is_not_kept() -> None:
    class Failing(FakeEngine):
        async def score(self, prompts: Any, *, priority: int = 0) -> list[EngineScore]:
            found = await super().score(prompts)
            if self.calls == 1:
                raise EngineError("once")
            return found

    with Reranker("fake", engine=Failing(), score_cache=100) as reranker:
        with pytest.raises(EngineError, match="once"):
            reranker.rank(QUERY, DOCUMENTS)
        assert reranker.rank(QUERY, DOCUMENTS).stats.cache_hits == 0
        assert reranker.rank(QUERY, DOCUMENTS).stats.cache_hits == 3


def test_what_was_not_used_for_longest_makes_room() -> None:
    scores = MemoryScores(2)
    scores.put({b"a": 1.0, b"b": 0.0})
    assert scores.get([b"a"]) == [1.0]
    scores.put({b"c": 3.0})
    assert scores.get([b"a", b"b", b"c"]) == [1.0, None, 3.0]
    scores.put({b"a": 2.0, b"d": 4.0})
    assert scores.get([b"a", b"c", b"d"]) == [2.0, None, 4.0]


def test_many_threads_share_it() -> None:
    engine = FakeEngine(delay=0.001)
    calls = [(f"query {number % 4}", [f"document {at}" for at in range(30)]) for number in range(40)]
    with Reranker("fake", engine="fake") as plain:
        expected = [plain.rank(*call).hits for call in calls]
    with Reranker("fake", engine=engine, score_cache=1000) as reranker, ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda call: reranker.rank(*call).hits, calls)) == expected
        before = engine.prompts
        assert [reranker.rank(*call).stats.cache_hits for call in calls] == [30] * 40
    assert engine.prompts == before < 40 * 30


@pytest.mark.parametrize("value", [0, -1, True, False, ""])
def test_a_size_below_one_is_an_error(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="score_cache must be a number of pairs > 0, or a folder, but got"):
        Reranker("any", score_cache=value)


def test_a_copy_has_a_cache_of_its_own() -> None:
    with Reranker("fake", engine="fake", score_cache=100) as one:
        one.rank(QUERY, DOCUMENTS)
        with pickle.loads(pickle.dumps(one)) as other:  # noqa: S301
            assert [other.rank(QUERY, DOCUMENTS).stats.cache_hits for _ in range(2)] == [0, 3]


# --- real models ------------------------------------------------------------------------------------------------------


def test_the_scores_of_vllm_are_the_same_from_the_cache(vllm_model: str, passages: list[str]) -> None:
    with Reranker(vllm_model, engine="vllm", score_cache=1000) as reranker:
        first, again = (reranker.rank(QUERY, passages) for _ in range(2))
    assert again.hits == first.hits
    assert again.stats.cache_hits == len(set(passages))
    assert (again.stats.prompt_tokens, again.stats.cached_tokens) == (0, 0)


def test_other_weights_in_the_same_folder_are_not_the_same_model(tiny_model: str, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "qwen3-reranker-tiny")
    options: dict[str, Any] = {"engine": "transformers", "score_cache": 100}
    with Reranker(str(folder), **options) as reranker:
        reranker.rank(QUERY, DOCUMENTS)
        reranker.close()
        assert reranker.rank(QUERY, DOCUMENTS).stats.cache_hits == 3
        reranker.close()
        os.utime(folder / "model.safetensors", (1, 1))
        assert reranker.rank(QUERY, DOCUMENTS).stats.cache_hits == 0


# --- fingerprints -----------------------------------------------------------------------------------------------------


class Named(FakeEngine):
    """An engine of some model."""

    def __init__(self, model: str, **options: Any):
        super().__init__()
        self.checkpoint = open_checkpoint(model, **options)


def print_of(model: str, running: FakeEngine | None = None, **options: Any) -> bytes:
    return fingerprint(running or Named(model), resolve(RerankerConfig(model, **options)))


@pytest.mark.parametrize(
    "kwargs",
    [{"gpu_memory_utilization": 0.5}, {"hf_token": "secret"}, {"max_num_seqs": 7}, {"kv_cache_memory_bytes": 1 << 30}],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_what_only_makes_it_faster_is_no_other_model(tiny_model: str, kwargs: dict[str, Any]) -> None:
    assert print_of(tiny_model, engine_kwargs=kwargs) == print_of(tiny_model)


def test_a_calibration_beside_the_model_is_no_other_model(tiny_model: str, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "qwen3-reranker-tiny")
    before = print_of(str(model))
    Calibration(method="platt", slope=1.0, intercept=0.0).save(model)
    assert print_of(str(model)) == before


CHANGES: dict[str, Callable[[Path], bytes]] = {
    "dtype": lambda model: print_of(str(model), engine_kwargs={"dtype": "bfloat16"}),
    "quantization": lambda model: print_of(str(model), engine_kwargs={"quantization": "fp8"}),
    "revision": lambda model: print_of(str(model), engine_kwargs={"revision": "v2"}),
    "a field of vLLM that Winnow does not know": lambda model: print_of(
        str(model), engine_kwargs={"kv_cache_dtype": "fp8"}
    ),
    "server": lambda model: print_of(str(model), engine="server", url="http://localhost:1"),
    "recipe": lambda model: print_of(
        str(model), Named(str(model), recipe=ModelRecipe(family="mine", labels=("no", "yes"), shift=1.0))
    ),
    "config": lambda model: print_of(str(model), Named(str(model), hf_overrides={"rms_norm_eps": 0.1})),
    "time of the weights": lambda model: (os.utime(model / "model.safetensors", (1, 1)), print_of(str(model)))[1],
    "size of the weights": lambda model: (grow(model / "model.safetensors"), print_of(str(model)))[1],
    "more weights": lambda model: (shutil.copy(model / "config.json", model / "x.bin"), print_of(str(model)))[1],
    "how images enter": lambda model: (
        shutil.copy(model / "config.json", model / "preprocessor_config.json"),
        print_of(str(model)),
    )[1],
    "which tokens are the labels": lambda model: (grow(model / "tokenizer.json"), print_of(str(model)))[1],
    "how a module pools": lambda model: (
        (model / "1_Pooling").mkdir(),
        shutil.copy(model / "config.json", model / "1_Pooling" / "config.json"),
        print_of(str(model)),
    )[2],
    "code of its own": lambda model: (shutil.copy(__file__, model / "modeling_x.py"), print_of(str(model)))[1],
    "another folder": lambda model: print_of(str(shutil.copytree(model, model.parent / "qwen3-reranker-copy"))),
}


def grow(file: Path) -> None:
    """One byte more, at the same time."""
    stat = file.stat()
    file.write_bytes(file.read_bytes() + b" ")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("change", CHANGES)
def test_what_makes_other_scores_is_another_model(change: str, tiny_model: str, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "qwen3-reranker-tiny")
    before = print_of(str(model))
    assert print_of(str(model)) == before
    assert CHANGES[change](model) != before


def test_settings_from_the_environment_count(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = print_of(tiny_model)
    monkeypatch.setenv("WINNOW_DTYPE", "bfloat16")
    assert print_of(tiny_model) == print_of(tiny_model, engine_kwargs={"dtype": "bfloat16"}) != before


def test_a_model_of_the_hub_is_known_by_its_commit(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    engine = Named(tiny_model)
    engine.checkpoint = replace(engine.checkpoint, model="someone/model")
    prints = []
    for commit in ("a" * 40, "b" * 40):
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text(json.dumps({}), encoding="utf-8")
        (repository / "refs" / "main").write_text(commit, encoding="utf-8")
        prints.append(print_of("someone/model", engine))
    assert prints[0] != prints[1]


# --- event loop -------------------------------------------------------------------------------------------------------


def test_a_slow_store_does_not_keep_others_waiting() -> None:
    asked, goes_on = threading.Event(), threading.Event()

    class Slow(MemoryScores):
        def get(self, keys: Any) -> list[float | None]:
            asked.set()
            assert goes_on.wait(30)
            return super().get(keys)

    engine = FakeEngine()
    with Reranker("fake", engine=engine, score_cache=10) as slow, Reranker("fake", engine=engine) as quick:
        cache = slow._calls.cache
        assert isinstance(cache, ScoreCache)
        cache._store = Slow(10)

        async def main() -> None:
            waiting = [asyncio.ensure_future(slow.arank(QUERY, DOCUMENTS)) for _ in range(64)]
            await asyncio.to_thread(asked.wait)
            assert len(await asyncio.wait_for(quick.arank(QUERY, DOCUMENTS), 10)) == len(DOCUMENTS)
            with pytest.raises(TimeoutError):
                await slow.arank(QUERY, DOCUMENTS, deadline=0.05)
            assert not any(one.done() for one in waiting)
            goes_on.set()
            for ranking in await asyncio.gather(*waiting):
                assert ranking.hits == quick.rank(QUERY, DOCUMENTS).hits

        asyncio.run(main())


def test_looking_up_costs_little() -> None:
    documents = [f"document {number} " * 20 for number in range(256)]
    with Reranker("fake", engine="fake", score_cache=1000) as reranker:
        reranker.rank(QUERY, documents)
        found = [reranker.rank(QUERY, documents).stats for _ in range(5)]
    assert [stats.cache_hits for stats in found] == [256] * 5
    # 15 ms where nothing else runs; the best of five, because a machine may be busy.
    assert min(stats.elapsed_ms for stats in found) < 1000
