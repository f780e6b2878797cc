"""The LangChain integration's settings, secrets, copies and dumps; and the life of its engine."""

import asyncio
import copy
import dataclasses
import gc
import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_threads import engine_threads
from five_texts import BEST_FIRST, QUERY, TEXTS
from langchain_kit import Call, every_call, fake, ids, make_documents, scores
from pydantic import SecretStr, ValidationError
from rich_settings import check_plain, rich_settings

from gated_engine import gated_fake, loop_goes_on_until
from winnow import Calibration, FakeEngine, ModelError, ModelRecipe, Reranker, RerankerConfig
from winnow.engines import shared
from winnow_langchain import WinnowCrossEncoder, WinnowRerank

BOTH = pytest.mark.parametrize("kind", [WinnowRerank, WinnowCrossEncoder])
SERVER = {"model": "some/model", "engine": "server", "url": "http://127.0.0.1:8000"}


# --- settings ---------------------------------------------------------------------------------------------------------


@BOTH
def test_every_setting_of_the_core_is_there_with_its_default(kind: Any) -> None:
    for field in dataclasses.fields(RerankerConfig):
        if field.name in ("model", "api_key"):
            continue
        if field.name == "fallback" and kind is WinnowCrossEncoder:  # its numbers could not say so
            assert field.name not in kind.model_fields
            continue
        expected = {} if field.default is dataclasses.MISSING else field.default
        assert kind.model_fields[field.name].get_default(call_default_factory=True) == expected, field.name
    assert [name for name, field in kind.model_fields.items() if not field.description] == []


@BOTH
def test_settings_reach_the_reranker(kind: Any) -> None:
    settings = {
        "model": "fake",
        "base_model": "some/base",
        "engine": "fake",
        "recipe": ModelRecipe(family="mine", labels=("no", "yes")),
        "template": {"query_template": "q {query}", "document_template": "d {document}"},
        "template_kwargs": {"style": "short"},
        "raw_scores": True,
        "calibration": Calibration(method="platt", slope=2.0, intercept=0.5),
        "max_length": 100,
        "max_query_tokens": 10,
        "max_document_tokens": 50,
        "on_overflow": "window",
        "window_overlap": 0.2,
        "window_score": "mean",
        "on_error": "skip",
        "engine_kwargs": {"delay": 0.0},
        "root_path": "/pictures",
        "allow_remote_images": True,
        "text_only": True,
        "cache_dir": "/files",
        "device": "cpu",
        "score_cache": 1000,
        "max_restarts": 3,
    }
    reranker = kind(**settings)._reranker
    assert {name: getattr(reranker, name) for name in settings} == settings
    assert reranker.api_key is None
    server = kind(**{**SERVER, "url": ["http://a", "http://b"]})._reranker
    assert list(server.url) == ["http://a", "http://b"]


@BOTH
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"topn": 3}, "has no argument 'topn'"),
        ({"model_name": "m"}, "has no argument 'model_name': here it is 'model'"),
        ({"cache_folder": "m"}, "has no argument 'cache_folder': here it is 'cache_dir'"),
        ({"use_fp16": True}, r"has no argument 'use_fp16'.*engine_kwargs=.'dtype': 'float16'"),
        ({"batch_size": 8}, "has no argument 'batch_size'.*own batches"),
        ({"query_suffix": "?"}, "has no argument 'query_suffix'.*write it into them, or into a template"),
        ({"max_length": 0}, "max_length"),
        ({"max_length": True}, "max_length"),
        ({"engine": "transformers", "engine_kwargs": {"dtypee": 1}}, "dtypee"),
        ({"deadline": 0}, "deadline"),
        ({"deadline": float("nan")}, "deadline"),
        ({"deadline": "3"}, "deadline"),
        ({"on_overflow": "drop"}, "truncate"),
        ({"score_cache": 0}, "score_cache must be a number of pairs > 0"),
        ({"score_cache": True}, "score_cache"),
        ({"on_error": "ignore"}, "skip"),
        ({"window_overlap": 1}, "less than 1"),
        ({"engine": "tensorrt"}, "engine must be one of"),
        ({"engine": "server"}, 'url and engine="server" belong together'),
        ({"url": "http://127.0.0.1"}, 'url and engine="server" belong together'),
        ({"model": None}, "model"),
    ],
)
def test_wrong_settings(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**{"model": "fake", "engine": "fake", **settings})


@pytest.mark.parametrize(
    "settings",
    [
        *({"top_n": value} for value in (0, -1, 1.5, True, "3")),
        *({"score_threshold": value} for value in (float("nan"), "0.5", True)),
    ],
    ids=str,
)
def test_wrong_settings_of_the_compressor(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(ValidationError, match=name):
        fake(**settings)
    with pytest.raises(ValidationError, match=name):
        setattr(fake(), name, settings[name])


def test_what_makes_the_reranker_cannot_be_assigned() -> None:
    reranker = fake()
    for name in ("model", "engine", "template", "max_length", "raw_scores", "engine_kwargs", "api_key"):
        with pytest.raises(ValidationError, match=f"(?s){name}.*frozen"):
            setattr(reranker, name, None)
    reranker = fake(instruction="Paris")
    for instruction, best in (("noodles", 0), (None, 2), ("Paris", 3)):
        reranker.instruction = instruction
        assert ids(reranker.compress_documents(make_documents(), "of"))[0] == best


@pytest.mark.parametrize("name", ["top_n", "top_k", "score_threshold"])
def test_a_cross_encoder_chooses_nothing(name: str) -> None:
    with pytest.raises(ValidationError, match=f"has no argument '{name}': it returns all scores"):
        WinnowCrossEncoder(model="fake", engine="fake", **{name: 1})


def test_what_peers_call_top_n() -> None:
    with pytest.raises(ValidationError, match="has no argument 'top_k': here it is 'top_n'"):
        fake(top_k=3)


@every_call
def test_no_model_is_an_error_not_an_empty_list(call: Call, tmp_path: Path) -> None:
    reranker = WinnowRerank(model=tmp_path / "nowhere", engine="transformers")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="nowhere"):
        call(reranker, make_documents(), QUERY)


# --- secrets ----------------------------------------------------------------------------------------------------------


@BOTH
def test_key_from_the_environment_or_the_caller_and_only_for_servers(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kind(**SERVER)._reranker.api_key is None
    monkeypatch.setenv("WINNOW_API_KEY", "of the environment")
    assert kind(**SERVER)._reranker.api_key == "of the environment"
    assert kind(**SERVER, api_key="mine")._reranker.api_key == "mine"
    assert kind(**SERVER, api_key=SecretStr("mine"))._reranker.api_key == "mine"
    assert kind(**SERVER, api_key=None)._reranker.api_key is None
    assert kind(model="fake", engine="fake")._reranker.api_key is None
    monkeypatch.setenv("WINNOW_API_KEY", "")
    assert kind(**SERVER)._reranker.api_key is None


@BOTH
def test_a_dump_takes_the_key_of_where_it_is_read(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dumped = kind(**SERVER, api_key="mine").model_dump_json()
    monkeypatch.setenv("WINNOW_API_KEY", "of the environment")
    assert kind.model_validate_json(dumped)._reranker.api_key == "of the environment"


@BOTH
def test_secrets_stay_out_of_dumps_reprs_and_errors(kind: Any) -> None:
    one = kind(**SERVER, api_key="sk-secret", engine_kwargs={"hf_token": "hf_secret", "timeout": 5.0})
    for written in (repr(one), str(one), repr(one.model_dump()), one.model_dump_json()):
        assert "secret" not in written
        assert "api_key" not in written
    assert one.model_dump()["engine_kwargs"] == {"timeout": 5.0}
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one)), one.model_copy(), one.model_copy(deep=True)):  # noqa: S301
        assert other == one
        assert other._reranker.api_key == "sk-secret"
        assert other.engine_kwargs["hf_token"] == "hf_secret"
    with pytest.raises(ValueError, match="max_length") as caught:
        kind(**SERVER, api_key="sk-secret", max_length="hf_secret")
    assert "secret" not in str(caught.value)


# --- dumps and copies -------------------------------------------------------------------------------------------------


def test_round_trips() -> None:
    one = fake(
        top_n=2,
        instruction="Which is a city?",
        template={"query_template": "q {query}", "document_template": "d {document}"},
        recipe=ModelRecipe(family="mine", labels=("no", "yes")),
        calibration=Calibration(method="isotonic", knots=((-1.0, 0.1), (2.0, 0.9))),
        metadata_fields=["title"],
        score_threshold=0.25,
        engine_kwargs={"delay": 0.0},
    )
    assert WinnowRerank(**one.model_dump()) == one
    assert WinnowRerank.model_validate_json(one.model_dump_json()) == one
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301
    assert copy.deepcopy(one) == copy.copy(one) == one.model_copy() == one
    assert "engine" in WinnowRerank.model_json_schema()["properties"]
    assert one != fake()
    assert one != WinnowCrossEncoder(model="fake", engine="fake")


@BOTH
def test_whatever_runs_can_be_dumped_and_is_equal_when_read_back(kind: Any) -> None:
    one = kind(**rich_settings())
    assert kind(**one.model_dump()) == kind.model_validate_json(one.model_dump_json()) == one
    assert json.loads(one.model_dump_json()) == one.model_dump()
    check_plain(one)
    chosen = fake(top_n=np.int64(3), score_threshold=np.float32(0.5))
    assert (chosen.top_n, chosen.score_threshold) == (3, 0.5)
    chosen.top_n = np.int64(2)  # type: ignore[assignment]
    assert WinnowRerank.model_validate_json(chosen.model_dump_json()) == chosen


def test_copies_work_and_updates_take_effect() -> None:
    one = fake(top_n=1)
    expected = one.compress_documents(make_documents(), QUERY)
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one)), one.model_copy()):  # noqa: S301
        assert other.compress_documents(make_documents(), QUERY) == expected
    assert len(one.model_copy(update={"top_n": 3}).compress_documents(make_documents(), QUERY)) == 3
    assert scores(one.model_copy(update={"raw_scores": True}).compress_documents(make_documents(), QUERY))[0] > 1
    with pytest.raises(ValueError, match="topn"):
        one.model_copy(update={"topn": 3})


def test_settings_are_not_the_callers_objects() -> None:
    kwargs: dict[str, Any] = {"delay": 0.0}
    fields = ["title"]
    one = fake(engine_kwargs=kwargs, metadata_fields=fields)
    kwargs["nonsense"] = 1
    fields.append("page")
    assert one.metadata_fields == ["title"]
    assert len(one.compress_documents(make_documents(), QUERY)) == len(TEXTS)


# --- engines, threads, loops ------------------------------------------------------------------------------------------


def test_constructor_and_empty_input_load_nothing_and_equal_settings_share_one_engine() -> None:
    gc.collect()
    before = engine_threads()
    kwargs = {"delay": 1e-6}  # a key of this test's own
    first, second = fake(engine_kwargs=kwargs), fake(engine_kwargs=kwargs, top_n=1, instruction="noodles")
    encoder = WinnowCrossEncoder(model="fake", engine="fake", engine_kwargs=kwargs)
    core = Reranker("fake", engine="fake", engine_kwargs=kwargs)
    assert first.compress_documents([], QUERY) == asyncio.run(first.acompress_documents([], QUERY)) == []
    assert first.rerank([], QUERY) == asyncio.run(first.arerank([], QUERY)) == encoder.score([]) == []
    assert engine_threads() <= before
    everyone: list[Any] = [first, second, copy.deepcopy(first), pickle.loads(pickle.dumps(first))]  # noqa: S301
    for reranker in everyone:
        reranker.compress_documents(make_documents(), QUERY)
    core.rank(QUERY, TEXTS)
    encoder.score([(QUERY, text) for text in TEXTS])
    assert len(engine_threads() - before) == 1
    for one in [core, encoder, *everyone]:
        assert len(engine_threads() - before) == 1
        one.close()
    assert engine_threads() <= before


@BOTH
def test_copies_hold_no_engine_until_they_are_used_and_dropped_ones_give_it_back(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "_GRACE_SECONDS", 0.1)
    gc.collect()
    gc.disable()  # what is gone is gone because nothing refers to it
    try:
        one = kind(model="fake", engine="fake", engine_kwargs={"delay": 4e-6}).start()
        key = one._reranker.engine_key
        running = shared._registry[key]
        copies = [one.model_copy(), one.model_copy(update={"instruction": "noodles"}), one.model_copy(deep=True)]
        copies += [copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))]  # noqa: S301
        one.close()
        assert running.closed.is_set()
        while copies:
            use(copies.pop())
        wait_until(lambda: key not in shared._registry)
    finally:
        gc.enable()


def use(one: Any) -> None:
    if isinstance(one, WinnowCrossEncoder):
        assert len(one.score([(QUERY, text) for text in TEXTS])) == 5
    else:
        assert len(one.compress_documents(make_documents(), QUERY)) == 3
        assert len(asyncio.run(one.arerank(TEXTS, QUERY))) == 3


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


@every_call
def test_close_frees_the_engine_and_the_next_call_loads_it_again(call: Call) -> None:
    before = engine_threads()
    reranker = fake(engine_kwargs={"delay": 2e-6})
    first = call(reranker, make_documents(), QUERY)
    reranker.close()
    asyncio.run(reranker.aclose())
    assert engine_threads() <= before
    assert call(reranker, make_documents(), QUERY) == first
    asyncio.run(reranker.aclose())
    assert engine_threads() <= before


def test_start_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[FakeEngine] = []
    start = FakeEngine.start

    async def recording(self: FakeEngine) -> None:
        started.append(self)
        await start(self)

    monkeypatch.setattr(FakeEngine, "start", recording)
    reranker = fake(engine_kwargs={"delay": 3e-6})
    assert reranker.start() is reranker
    assert asyncio.run(reranker.astart()) is reranker
    reranker.compress_documents(make_documents(), QUERY)
    assert len(started) == 1
    reranker.close()


def test_async_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many more calls than threads of the default executor wait at the same time, and the loop runs on."""
    engine = gated_fake(monkeypatch)
    reranker = fake()

    async def main() -> None:
        calls = [reranker.acompress_documents(make_documents(), f"{QUERY} {number}") for number in range(50)]
        others = [reranker.arerank(TEXTS, f"{QUERY} {number}") for number in range(50, 100)]
        everything: Any = asyncio.gather(*calls, *others)
        try:
            await loop_goes_on_until(lambda: engine.waiting == 100)
        finally:
            engine.gate.set()
        assert len(await everything) == 100

    asyncio.run(main())
    reranker.close()


def test_two_event_loops_in_a_row() -> None:
    reranker = fake()
    first = asyncio.run(reranker.acompress_documents(make_documents(), QUERY))
    second = asyncio.run(reranker.acompress_documents(make_documents(), QUERY))
    assert first == second == reranker.compress_documents(make_documents(), QUERY)
    assert ids(first) == BEST_FIRST


def test_threads_get_their_own_answers() -> None:
    reranker = fake(engine_kwargs={"delay": 0.01}, top_n=1)

    def find(word: int) -> str:
        documents = make_documents([f"word{number}" for number in range(40)])
        return reranker.compress_documents(documents, f"word{word}")[0].page_content

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(find, range(40))) == [f"word{number}" for number in range(40)]
    reranker.close()


# --- imports ----------------------------------------------------------------------------------------------------------


def run_python(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_missing_langchain_names_the_extra() -> None:
    done = run_python("import sys; sys.modules['langchain_core'] = None; import winnow_langchain")
    assert done.returncode == 1
    assert "MissingExtraError" in done.stderr
    assert '"winnow-rerank[langchain]"' in done.stderr


def test_only_langchain_core_is_needed_and_nothing_heavy_is_imported() -> None:
    absent = ("langchain_classic", "langchain_community", "langchain", "torch", "vllm")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent})); from winnow_langchain import WinnowRerank; "
        "from langchain_core.documents import Document; "
        "print(WinnowRerank(model='fake', engine='fake').compress_documents([Document('a')], 'a')[0].page_content)"
    )
    done = run_python(code)
    assert (done.returncode, done.stdout) == (0, "a\n"), done.stderr
