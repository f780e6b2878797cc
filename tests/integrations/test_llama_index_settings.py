"""The LlamaIndex integration's settings: checked, saved, secrets left out; engines shared, closed, used again."""

import asyncio
import copy
import dataclasses
import gc
import json
import math
import pickle
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_threads import engine_threads
from five_texts import BEST_FIRST, QUERY, TEXTS
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.rerank import ReRankStartEvent
from llama_index.core.schema import (
    MetadataMode,
    TextNode,
)
from llama_index_helpers import Call, fake, ids, scored, text_nodes
from rich_settings import check_plain, rich_settings

from gated_engine import gated_fake, loop_goes_on_until
from winnow import Calibration, ModelRecipe, Reranker, RerankerConfig
from winnow.engines import shared
from winnow_llama_index import WinnowRerank

pytest_plugins = ["llama_index_helpers"]


# --- wrong settings ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "wrong",
    [
        {"top_n": 0},
        {"top_k": 3},
        {"api_keys": "sk-secret"},
        {"api_key": ["sk-secret"]},
        {"url": "http://localhost:8000"},
        {"engine": "server"},
        {"engine": "vllmm"},
        {"on_overflow": "cut"},
        {"on_error": "ignore"},
        {"window_overlap": 1.0},
        {"window_score": "sum"},
        {"max_length": 0},
        {"max_query_tokens": 0},
        {"max_document_tokens": -1},
        {"metadata_mode": "everything"},
        {"score_threshold": math.nan},
        {"score_threshold": "0.5"},
        {"top_n": True},
        {"top_n": "3"},
        {"deadline": 0},
        {"deadline": "3"},
        {"deadline": math.nan},
        {"model_name": "m"},
        {"engine_kwargs": {"delayy": 1.0}},
    ],
    ids=str,
)
def test_wrong_arguments_are_named_and_values_not_printed(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))) as caught:
        fake(**{"api_key": "sk-secret", **wrong})
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"model_name": "m"}, "here it is 'model'"),
        ({"cache_folder": "m"}, "here it is 'cache_dir'"),
        ({"top_k": 3}, "here it is 'top_n'"),
        ({"use_fp16": True}, "engine_kwargs={'dtype': 'float16'}"),
        ({"batch_size": 8}, "own batches"),
        ({"topn": 3}, "did you mean 'top_n'"),
    ],
    ids=str,
)
def test_unknown_arguments_get_a_hint(wrong: dict[str, Any], hint: str) -> None:
    with pytest.raises(ValueError, match=f"has no argument '{next(iter(wrong))}'.*{re.escape(hint)}"):
        fake(**wrong)


def test_model_is_required() -> None:
    with pytest.raises(ValueError, match="model"):
        WinnowRerank()  # type: ignore[call-arg]


def test_what_makes_the_engine_cannot_be_assigned() -> None:
    reranker = fake()
    for name, value in {"model": "other", "engine": "vllm", "max_length": 9, "raw_scores": True}.items():
        with pytest.raises(ValueError, match="frozen"):
            setattr(reranker, name, value)
    with pytest.raises(ValueError, match="topn"):
        reranker.topn = 3  # type: ignore[attr-defined]


# --- serialization ----------------------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "model": "fake",
    "base_model": "some/base",
    "top_n": 3,
    "instruction": "noodles",
    "template": "<i>{{ instruction }}<q>{{ query }}<d>{{ document }}<e>{{ extra }}",
    "template_kwargs": {"extra": "!"},
    "metadata_mode": MetadataMode.ALL,
    "score_threshold": 0.01,
    "keep_retrieval_score": True,
    "raw_scores": True,
    "calibration": Calibration(method="isotonic", knots=((-1.0, 0.1), (2.0, 0.9))),
    "recipe": ModelRecipe(family="mine", labels=("no", "yes")),
    "max_length": 500,
    "max_query_tokens": 50,
    "max_document_tokens": 100,
    "on_overflow": "window",
    "window_overlap": 0.2,
    "window_score": "mean",
    "on_error": "skip",
    "engine": "fake",
    "url": None,
    "api_key": None,
    "engine_kwargs": {"delay": 0.001},
    "device": "cpu",
    "cache_dir": "files",
    "root_path": "images",
    "allow_remote_images": True,
    "text_only": True,
    "deadline": 60.0,
    "score_cache": 1000,
    "fallback": "retrieval order",
    "max_restarts": 3,
}

ROUND_TRIPS: dict[str, Callable[[WinnowRerank], WinnowRerank]] = {
    "dict": lambda one: WinnowRerank.from_dict(one.to_dict()),
    "json": lambda one: WinnowRerank.from_json(one.to_json()),
    "model_dump": lambda one: WinnowRerank(**one.model_dump()),
    "model_validate": lambda one: WinnowRerank.model_validate_json(one.model_dump_json()),
    "pickle": lambda one: pickle.loads(pickle.dumps(one)),  # noqa: S301
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "model_copy": lambda one: one.model_copy(),
    "model_copy_deep": lambda one: one.model_copy(deep=True),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_round_trips(name: str) -> None:
    assert EVERYTHING.keys() == WinnowRerank.model_fields.keys() - {"callback_manager"}
    one = WinnowRerank(**EVERYTHING)
    for used in (False, True):
        other = ROUND_TRIPS[name](one)
        assert {field: getattr(other, field) for field in EVERYTHING} == EVERYTHING
        assert other.to_dict() == one.to_dict()
        nodes = scored(text_nodes())
        assert other.postprocess_nodes(nodes, query_str=QUERY) == one.postprocess_nodes(nodes, query_str=QUERY), used
    one.close()
    other.close()


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_whatever_runs_can_be_dumped_and_is_equal_when_read_back(name: str) -> None:
    one = WinnowRerank(**rich_settings(), top_n=np.int64(3), score_threshold=np.float32(0.5))
    other = ROUND_TRIPS[name](one)
    assert json.loads(one.to_json()) == other.to_dict() == one.to_dict()
    assert other.model_dump() == one.model_dump()
    check_plain(one)
    assert (one.top_n, one.score_threshold) == (3, 0.5)
    one.top_n = np.int64(2)  # type: ignore[assignment]
    assert json.loads(one.to_json())["top_n"] == 2


def test_servers_round_trip() -> None:
    for url in ("http://one:8000", ["http://one:8000", "http://two:8000"]):
        one = WinnowRerank(model="m", engine="server", url=url, engine_kwargs={"timeout": 3.0})
        assert WinnowRerank.from_json(one.to_json()).to_dict() == one.to_dict()
        assert one.url == url


def test_class_name_is_stable_and_in_the_dump() -> None:
    assert WinnowRerank.class_name() == "WinnowRerank"
    assert fake().to_dict()["class_name"] == "WinnowRerank"
    assert "WinnowRerank" in json.dumps(WinnowRerank.model_json_schema())


def test_every_setting_of_the_core_is_a_described_field() -> None:
    ours = {name: field for name, field in WinnowRerank.model_fields.items() if name != "callback_manager"}
    assert {field.name for field in dataclasses.fields(RerankerConfig)} <= ours.keys()
    assert [name for name, field in ours.items() if not field.description] == []
    shared = {field.name: field for field in dataclasses.fields(RerankerConfig)}
    for name in ours.keys() & shared.keys() - {"model"}:
        default = shared[name].default
        assert ours[name].get_default(call_default_factory=True) == (
            {} if default is dataclasses.MISSING else default
        ), name


def test_settings_are_not_the_callers_objects() -> None:
    kwargs = {"delay": 0.0}
    one = fake(engine_kwargs=kwargs)
    kwargs["nonsense"] = 1.0
    assert len(one.postprocess_nodes(scored(text_nodes()), query_str=QUERY)) == len(TEXTS)


def test_model_copy_with_an_update_takes_effect() -> None:
    one = fake(top_n=1)
    nodes = scored(text_nodes())
    assert len(one.model_copy(update={"top_n": 3}).postprocess_nodes(nodes, query_str=QUERY)) == 3
    raw = one.model_copy(update={"raw_scores": True}).postprocess_nodes(nodes, query_str=QUERY)
    assert raw[0].score > 1
    with pytest.raises(ValueError, match="topn"):
        one.model_copy(update={"topn": 3})


# --- secrets ----------------------------------------------------------------------------------------------------------
SERVED: dict[str, Any] = {"model": "m", "engine": "server", "url": ["http://one:8000", "http://two:8000"]}


def test_secrets_stay_out_of_dumps_and_reprs() -> None:
    one = WinnowRerank(**SERVED, api_key="sk-secret", engine_kwargs={"hf_token": "hf_secret"})
    for written in (
        *(repr(one), str(one), one.to_json(), one.json(), one.model_dump_json()),
        *(str(one.to_dict()), str(one.model_dump()), str(vars(one)["api_key"]), repr(one.api_key)),
    ):
        assert "secret" not in written
    assert "api_key" not in one.to_dict()
    assert one.to_dict()["engine_kwargs"] == {}


@pytest.mark.parametrize("name", ["pickle", "copy", "deepcopy", "model_copy", "model_copy_deep"])
def test_secrets_survive_copies(name: str) -> None:
    one = WinnowRerank(**SERVED, api_key="sk-secret", engine_kwargs={"hf_token": "hf_secret"})
    for _ in range(2):  # before and after its reranker is made
        other = ROUND_TRIPS[name](one)
        assert other.engine_kwargs == {"hf_token": "hf_secret"}
        assert other._core().api_key == one._core().api_key == "sk-secret"
        assert other._core().engine_key == one._core().engine_key


def test_the_servers_key_comes_from_the_environment_with_the_first_query(monkeypatch: pytest.MonkeyPatch) -> None:
    one, own = WinnowRerank(**SERVED), WinnowRerank(**SERVED, api_key="sk-own")
    monkeypatch.setenv("WINNOW_API_KEY", "sk-from-env")
    assert one._core().api_key == "sk-from-env"
    assert own._core().api_key == "sk-own"
    assert one.api_key is None
    assert b"sk-from-env" not in pickle.dumps(one)
    assert "sk-from-env" not in repr(one) + one.to_json()
    assert fake(api_key="sk-own")._core().api_key is None  # no server, no key
    assert WinnowRerank(**SERVED, api_key="")._core().api_key is None  # given: none
    monkeypatch.delenv("WINNOW_API_KEY")
    assert WinnowRerank(**SERVED)._core().api_key is None


def test_settings_reach_the_reranker(tmp_path: Path) -> None:
    core = WinnowRerank(**{**EVERYTHING, "root_path": tmp_path})._core()
    per_call = {"instruction", "template", "template_kwargs", "deadline"}
    for name in {field.name for field in dataclasses.fields(RerankerConfig)} - per_call - {"root_path"}:
        assert getattr(core, name) == EVERYTHING[name], name
    assert core.root_path == str(tmp_path)
    assert WinnowRerank(**SERVED)._core().url == SERVED["url"]


# --- engines, threads, loops ------------------------------------------------------------------------------------------


def test_constructor_loads_nothing_and_equal_settings_share_one_engine() -> None:
    gc.collect()
    before = engine_threads()
    kwargs = {"delay": 1e-6}  # a key of this test's own
    first, second = fake(engine_kwargs=kwargs), fake(engine_kwargs=kwargs, top_n=1, instruction="noodles")
    core = Reranker("fake", engine="fake", engine_kwargs=kwargs)
    assert engine_threads() <= before
    nodes = scored(text_nodes())
    everyone = [first, second, copy.deepcopy(first), pickle.loads(pickle.dumps(first))]  # noqa: S301
    for reranker in everyone:
        reranker.postprocess_nodes(nodes, query_str=QUERY)
    core.rank(QUERY, TEXTS)
    assert len(engine_threads() - before) == 1
    core.close()
    for reranker in everyone:
        assert len(engine_threads() - before) == 1
        reranker.close()
    assert engine_threads() <= before


def test_copies_hold_no_engine_until_they_are_used_and_dropped_ones_give_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared, "_GRACE_SECONDS", 0.1)
    gc.collect()
    gc.disable()  # what is gone is gone because nothing refers to it
    try:
        one = fake(engine_kwargs={"delay": 4e-6})
        nodes = scored(text_nodes())
        one.postprocess_nodes(nodes, query_str=QUERY)
        key = one._core().engine_key
        running = shared._registry[key]
        copies = [one.model_copy(), one.model_copy(update={"instruction": "noodles"}), one.model_copy(deep=True)]
        copies += [copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))]  # noqa: S301
        one.close()
        assert running.closed.is_set()
        while copies:
            assert len(copies[-1].postprocess_nodes(nodes, query_str=QUERY)) == 5
            assert len(asyncio.run(copies.pop().arerank(nodes, QUERY))) == 5
        end = time.monotonic() + 60
        while key in shared._registry:
            assert time.monotonic() < end, "a dropped copy holds the engine"
            time.sleep(0.01)
    finally:
        gc.enable()


def test_close_frees_the_engine_and_the_next_query_loads_it_again(call: Call) -> None:
    before = engine_threads()
    reranker = fake(engine_kwargs={"delay": 2e-6})
    nodes = scored(text_nodes())
    first = call(reranker, nodes, query_str=QUERY)
    reranker.close()
    asyncio.run(reranker.aclose())
    assert engine_threads() <= before
    assert call(reranker, nodes, query_str=QUERY) == first
    asyncio.run(reranker.aclose())
    assert engine_threads() <= before


def test_async_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many more calls than threads of the default executor wait at the same time, and the loop runs on."""
    engine = gated_fake(monkeypatch)
    reranker = fake()
    nodes = scored(text_nodes())

    async def main() -> None:
        calls = [reranker.apostprocess_nodes(nodes, query_str=f"{QUERY} {number}") for number in range(50)]
        others = [reranker.arerank(nodes, f"{QUERY} {number}") for number in range(50, 100)]
        everything = asyncio.gather(*calls, *others)
        try:
            await loop_goes_on_until(lambda: engine.waiting == 100)
        finally:
            engine.gate.set()
        assert len(await everything) == 100

    asyncio.run(main())
    reranker.close()


def test_two_event_loops_in_a_row() -> None:
    reranker = fake()
    nodes = scored(text_nodes())
    first = asyncio.run(reranker.apostprocess_nodes(nodes, query_str=QUERY))
    second = asyncio.run(reranker.apostprocess_nodes(nodes, query_str=QUERY))
    assert first == second == reranker.postprocess_nodes(nodes, query_str=QUERY)


def test_threads_get_their_own_answers() -> None:
    reranker = fake(engine_kwargs={"delay": 0.01}, top_n=1)

    def find(word: int) -> str:
        nodes = scored([TextNode(text=f"word{number}") for number in range(40)])
        return reranker.postprocess_nodes(nodes, query_str=f"word{word}")[0].node.get_content()

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(find, range(40))) == [f"word{number}" for number in range(40)]
    reranker.close()


def test_cancelling_a_query_ends_its_events(monkeypatch: pytest.MonkeyPatch, events: list[BaseEvent]) -> None:
    engine, debug = gated_fake(monkeypatch), LlamaDebugHandler(print_trace_on_end=False)
    reranker = fake(callback_manager=CallbackManager([debug]))

    async def main() -> None:
        call = asyncio.ensure_future(reranker.apostprocess_nodes(scored(text_nodes()), query_str=QUERY))
        await loop_goes_on_until(lambda: engine.waiting == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await loop_goes_on_until(lambda: engine.waiting == 0)  # its prompts are withdrawn

    asyncio.run(main())
    assert [type(event) for event in events] == [ReRankStartEvent]
    assert len(debug.get_event_pairs(CBEventType.RERANKING)[0]) == 2
    engine.gate.set()
    assert ids(reranker.postprocess_nodes(scored(text_nodes()), query_str=QUERY)) == BEST_FIRST
    reranker.close()
