"""Settings of the engines from the environment: arguments win, engines share, secrets stay secret."""

import logging
import os
import pickle
from collections.abc import Mapping
from typing import Any

import pytest

from winnow import ConfigurationError, FakeEngine, Reranker, RerankerConfig
from winnow.engines import settings
from winnow.engines.choose import create_engine
from winnow.engines.setting_table import SETTINGS
from winnow.engines.settings import EngineSettings, resolve


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WINNOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(settings, "_warned_about", set())


def resolved(environment: Mapping[str, str], **config: Any) -> EngineSettings:
    return resolve(RerankerConfig("m", **config), environment)


def test_every_setting_is_read_from_its_variable() -> None:
    texts = {
        "trust_remote_code": "Yes",
        "hf_overrides": '{"a": 1}',
        "mm_processor_kwargs": '{"min_pixels": 9}',
        "dtype": " float16 ",
        "gpu_memory_utilization": "0.5",
        "enable_prefix_caching": "0",
        "enforce_eager": "on",
        "enable_sleep_mode": "yes",
        "runner": "pooling",
        "convert": "classify",
        "timeout": "2.5",
        "stall_timeout": "90",
    }
    expected: dict[str, Any] = {
        "trust_remote_code": True,
        "hf_overrides": {"a": 1},
        "mm_processor_kwargs": {"min_pixels": 9},
        "dtype": "float16",
        "gpu_memory_utilization": 0.5,
        "enable_prefix_caching": False,
        "enforce_eager": True,
        "enable_sleep_mode": True,
        "timeout": 2.5,
        "stall_timeout": 90.0,
    }
    environment = {setting.variable: texts.get(name, "12") for name, setting in SETTINGS.items()}
    found = resolved(environment)
    assert found.max_length == 12  # WINNOW_MAX_MODEL_LEN
    for name, setting in SETTINGS.items():
        if name != "max_model_len":
            number = setting.values.parse is int
            assert found.found[name] == expected.get(name, 12 if number else texts.get(name, "12")), name
    assert found.given == {}


def test_arguments_win_over_the_environment() -> None:
    environment = {"WINNOW_DTYPE": "float16", "WINNOW_MAX_LENGTH": "100", "WINNOW_MAX_NUM_SEQS": "  "}
    found = resolved(environment, engine="vllm", max_length=200, engine_kwargs={"dtype": "bfloat16", "seed": 1})
    assert found.max_length == 200
    assert found.for_engine("vllm") == {"dtype": "bfloat16", "seed": 1}
    assert resolved(environment, engine="vllm").for_engine("vllm") == {"dtype": "float16"}
    assert resolved(environment, engine_kwargs={"dtype": None}).for_engine("vllm") == {"dtype": "float16"}
    # vLLM's name for the length is an argument, too.
    assert resolved(environment, engine_kwargs={"max_model_len": 300}).max_length == 300
    assert resolved({"WINNOW_MAX_MODEL_LEN": "50"}, max_length=200).max_length == 200


def test_two_variables_of_the_length_must_agree() -> None:
    assert resolved({"WINNOW_MAX_LENGTH": "64", "WINNOW_MAX_MODEL_LEN": "64"}).max_length == 64
    with pytest.raises(ConfigurationError, match="WINNOW_MAX_LENGTH=64 and WINNOW_MAX_MODEL_LEN=65"):
        resolved({"WINNOW_MAX_LENGTH": "64", "WINNOW_MAX_MODEL_LEN": "65"})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("WINNOW_TENSOR_PARALLEL_SIZE", "two"),
        ("WINNOW_TENSOR_PARALLEL_SIZE", "0"),
        ("WINNOW_GPU_MEMORY_UTILIZATION", "90"),
        ("WINNOW_GPU_MEMORY_UTILIZATION", "nan"),
        ("WINNOW_ENFORCE_EAGER", "maybe"),
        ("WINNOW_HF_OVERRIDES", "{"),
        ("WINNOW_HF_OVERRIDES", "[1]"),
        ("WINNOW_DTYPE", "fp8x"),
        ("WINNOW_MAX_LENGTH", "-1"),
        ("WINNOW_ENGINE", "vlm"),
    ],
)
def test_a_malformed_variable_is_named(name: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{name} must be .*, but got "):
        resolved({name: text})


def test_the_environment_chooses_where_auto_would() -> None:
    assert resolved({"WINNOW_ENGINE": "transformers"}).engine == "transformers"
    assert resolved({"WINNOW_ENGINE": "transformers"}, engine="vllm").engine == "vllm"


def test_a_server_of_the_environment(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="WINNOW_URL"):
        Reranker(tiny_model, engine="server")
    monkeypatch.setenv("WINNOW_URL", "http://gpu-1:8000, http://gpu-2:8000/v1")
    monkeypatch.setenv("WINNOW_API_KEY", "sk-secret")
    monkeypatch.setenv("WINNOW_TIMEOUT", "7")
    monkeypatch.setenv("WINNOW_HF_TOKEN", "hf_secret")
    config = RerankerConfig(tiny_model, engine="server")
    engine: Any = create_engine(config)
    assert engine._urls == ["http://gpu-1:8000", "http://gpu-2:8000"]
    assert (engine._api_key, engine._settings["timeout"]) == ("sk-secret", 7.0)
    assert (config.url, config.api_key, config.engine_kwargs) == (None, None, {})
    given: Any = create_engine(RerankerConfig(tiny_model, engine="server", url="http://mine", api_key="my-key"))
    assert (given._urls, given._api_key) == (["http://mine"], "my-key")


@pytest.mark.slow
def test_a_server_that_auto_leaves_alone_is_said(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WINNOW_URL", "http://gpu")
    assert create_engine(RerankerConfig(tiny_model)).name != "server"
    assert "Set WINNOW_ENGINE=server, too" in caplog.text
    monkeypatch.setenv("WINNOW_ENGINE", "server")
    assert create_engine(RerankerConfig(tiny_model)).name == "server"


def test_variables_of_other_engines_are_left_alone(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WINNOW_TENSOR_PARALLEL_SIZE", "8")
    monkeypatch.setenv("WINNOW_BATCH_TOKENS", "99")
    monkeypatch.setenv("WINNOW_MAX_LENGTH", "99")
    with caplog.at_level(logging.INFO, logger="winnow"):
        engine: Any = create_engine(RerankerConfig(tiny_model, engine="transformers"))
    assert engine._batch_tokens == 99
    assert "From the environment: WINNOW_BATCH_TOKENS=99" in caplog.text
    for fake in (create_engine(RerankerConfig("fake", engine="fake")), FakeEngine()):
        assert create_engine(RerankerConfig("m", engine=fake)) is fake
        assert fake.checkpoint.max_length == 4096


@pytest.mark.slow
def test_no_secret_of_the_environment_is_logged_or_kept(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WINNOW_HF_TOKEN", "hf_secret")
    monkeypatch.setenv("WINNOW_DTYPE", "float32")
    reranker = Reranker(tiny_model, engine="vllm")
    with caplog.at_level(logging.INFO, logger="winnow"):
        pytest.importorskip("vllm")
        engine: Any = create_engine(reranker)
        assert engine._engine_args.hf_token == "hf_secret"
    assert "WINNOW_HF_TOKEN=…" in caplog.text
    assert "secret" not in caplog.text + repr(reranker) + repr(resolve(reranker))
    assert b"hf_secret" not in pickle.dumps(reranker)
    assert b"float32" not in pickle.dumps(reranker)


def test_the_hub_is_asked_with_the_token(monkeypatch: pytest.MonkeyPatch, tiny_model: str) -> None:
    asked: list[dict[str, Any]] = []

    def download(name: str, **options: Any) -> str:
        asked.append({"name": name, **options})
        return tiny_model

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setenv("WINNOW_HF_TOKEN", "hf_environment")
    monkeypatch.setenv("WINNOW_REVISION", "v2")
    for engine_kwargs in ({}, {"hf_token": "hf_given"}):
        create_engine(
            RerankerConfig("me/private-Qwen3-Reranker", engine="server", url="http://gpu", engine_kwargs=engine_kwargs)
        )
    assert [(call["name"], call["token"], call["revision"]) for call in asked] == [
        ("me/private-Qwen3-Reranker", "hf_environment", "v2"),
        ("me/private-Qwen3-Reranker", "hf_given", "v2"),
    ]


def test_rerankers_share_an_engine_if_all_of_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    explicit = Reranker("m", engine="vllm", max_length=99, engine_kwargs={"dtype": "float16"})
    assert explicit.engine_key != Reranker("m").engine_key
    monkeypatch.setenv("WINNOW_ENGINE", "vllm")
    monkeypatch.setenv("WINNOW_MAX_LENGTH", "99")
    monkeypatch.setenv("WINNOW_DTYPE", "float16")
    assert explicit.engine_key == Reranker("m").engine_key
    assert explicit.engine_key == Reranker("m", engine_kwargs={"max_model_len": 99}).engine_key
    assert Reranker("m", api_key="k").engine_key == Reranker("m").engine_key  # no server, no key
    assert Reranker("m", engine_kwargs={"dtype": "float32"}).engine_key != explicit.engine_key


def test_the_environment_is_read_when_a_reranker_is_made(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"engine": "transformers", "score_cache": 10}
    with Reranker(tiny_model, **options) as before:
        key, twin = before.engine_key, pickle.dumps(before)
        monkeypatch.setenv("WINNOW_DTYPE", "bfloat16")
        monkeypatch.setenv("WINNOW_MAX_LENGTH", "12x")
        assert before.engine_key == key  # it also reads no variable that is wrong now
        first, again = (before.rank("china", ["Beijing"]) for _ in range(2))
        assert again.stats.cache_hits == 1
        monkeypatch.delenv("WINNOW_MAX_LENGTH")
        with pickle.loads(twin) as after:  # noqa: S301 - a copy is made now
            assert after.engine_key != key
            assert after.rank("china", ["Beijing"])[0].score != first[0].score


def test_a_variable_that_sets_nothing_is_warned_about_once(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WINNOW_DTYP", "float16")
    monkeypatch.setenv("WINNOW_XYZZY", "1")
    monkeypatch.setenv("WINNOW_SERVE_API_KEYS", "read by winnow serve")
    for _ in range(2):
        create_engine(RerankerConfig(tiny_model, engine="transformers"))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "The environment variable WINNOW_DTYP matches no setting of Winnow; did you mean WINNOW_DTYPE?",
        "The environment variable WINNOW_XYZZY matches no setting of Winnow; docs/settings.md has the list.",
    ]


def test_the_environment_changes_what_vllm_computes(
    vllm_model: str, passages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = Reranker(vllm_model, engine="vllm").score("what is the capital of China?", passages)
    monkeypatch.setenv("WINNOW_ENABLE_PREFIX_CACHING", "off")
    monkeypatch.setenv("WINNOW_KV_CACHE_MEMORY_BYTES", str(1 << 26))
    monkeypatch.setenv("WINNOW_MAX_LENGTH", "256")
    monkeypatch.setenv("WINNOW_MAX_NUM_SEQS", "3")
    with Reranker(vllm_model, engine="vllm") as reranker:
        again = [reranker.rank("what is the capital of China?", passages) for _ in range(2)][1]
        assert again.stats.cached_tokens == 0
        assert [hit.score for hit in sorted(again, key=lambda hit: hit.index)] == pytest.approx(shared, abs=1e-5)
        engine = reranker._lease._shared.life._running.engine  # type: ignore[union-attr]
        found = engine._llm.vllm_config  # type: ignore[attr-defined]
        assert found.cache_config.kv_cache_memory_bytes == 1 << 26
        assert (found.scheduler_config.max_num_seqs, found.model_config.max_model_len) == (3, 256)
        [long] = reranker.rank("what is the capital of China?", ["word " * 400])
        assert long.truncated
        assert long.document_tokens < 256


def test_integrations_take_the_environment_and_do_not_save_it(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("haystack")
    pytest.importorskip("llama_index.core")
    pytest.importorskip("langchain_core")
    from haystack_integrations.components.rankers.winnow import WinnowRanker
    from winnow_langchain import WinnowRerank as LangChainRerank
    from winnow_llama_index import WinnowRerank as LlamaIndexRerank

    environment = {"WINNOW_URL": "http://127.0.0.1:9", "WINNOW_DTYPE": "float16", "WINNOW_MAX_LENGTH": "77"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    saved = (
        repr(WinnowRanker(tiny_model, engine="server").to_dict()),
        repr(LlamaIndexRerank(model=tiny_model, engine="server").to_dict()),
        repr(LangChainRerank(model=tiny_model, engine="server").model_dump()),
    )
    assert not [value for text in saved for value in environment.values() if value in text]
    monkeypatch.delenv("WINNOW_URL")
    with pytest.raises(ConfigurationError, match="WINNOW_URL"):
        WinnowRanker(tiny_model, engine="server")
