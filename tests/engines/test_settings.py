"""Settings of the engines: checked early, also from the environment, and written down."""

import dataclasses
import logging
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from winnow import ConfigurationError, FakeEngine, Reranker, RerankerConfig
from winnow.engines import settings
from winnow.engines.choose import create_engine
from winnow.engines.settings import RERANKER_SETTINGS, SETTINGS, EngineSettings, parse_argument, resolve

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WINNOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(settings, "_warned_about", set())


def resolved(environment: Mapping[str, str], **config: Any) -> EngineSettings:
    return resolve(RerankerConfig("m", **config), environment)


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("gpu_memory_utilization", 90, "must be a number above 0, at most 1, but got 90"),
        ("gpu_memory_utilization", 0, "number above 0"),
        ("gpu_memory_utilization", float("nan"), "number above 0"),
        ("gpu_memory_utilization", "0.5", "number above 0, at most 1, but got '0.5'"),
        ("dtype", "fp8x", "must be one of auto, half, float16, bfloat16, float, float32, but got 'fp8x'"),
        ("tensor_parallel_size", 0, "whole number from 1, but got 0"),
        ("tensor_parallel_size", True, "whole number from 1, but got True"),
        ("tensor_parallel_size", 2.0, "whole number from 1, but got 2.0"),
        ("max_num_seqs", "many", "whole number from 1, but got 'many'"),
        ("max_num_batched_tokens", -1, "whole number from 1"),
        ("kv_cache_memory_bytes", "4GiB", "whole number from 1"),
        ("enforce_eager", "yes", "true or false, but got 'yes'"),
        ("enable_prefix_caching", 1, "true or false, but got 1"),
        ("trust_remote_code", "False", "true or false, but got 'False'"),
        ("hf_overrides", [("a", 1)], "must be a mapping"),
        ("runner", "generate", "one of auto, pooling, but got 'generate'"),
        ("convert", "embed", "one of auto, none, classify"),
        ("revision", " ", "a text that is not blank"),
        ("quantization", 8, "a text that is not blank, but got 8"),
        ("timeout", 0, "a number of seconds from 0.001, but got 0"),
        ("max_model_len", "8k", "whole number from 1, but got '8k'"),
    ],
)
def test_a_wrong_value_is_refused_at_once_by_name(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^engine_kwargs {name} must be .*{re.escape(message[8:])}"):
        Reranker("m", engine_kwargs={name: value})


def test_a_wrong_token_is_not_shown() -> None:
    with pytest.raises(ConfigurationError, match="engine_kwargs hf_token must be a text") as error:
        Reranker("m", engine_kwargs={"hf_token": b"hf_secret"})
    assert "secret" not in str(error.value)


def test_what_is_right_is_taken() -> None:
    import torch

    right: dict[str, Any] = {
        "dtype": torch.bfloat16,
        "gpu_memory_utilization": 1,
        "tensor_parallel_size": 8,
        "hf_overrides": {"a": {"b": 1}},
        "enforce_eager": None,
        "device": torch.device("cpu"),
    }
    assert RerankerConfig("m", engine_kwargs=right).engine_kwargs == right


@pytest.mark.parametrize("name", ["model", "url", "api_key", "max_length", "engine"])
def test_arguments_of_the_reranker_are_none_of_the_engine(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"engine_kwargs holds '{name}', which is an argument of the reranker"):
        Reranker("m", engine_kwargs={name: "x"})


def test_two_names_of_the_length_must_agree(tiny_model: str) -> None:
    with pytest.raises(ConfigurationError, match=r"max_length=512 and engine_kwargs max_model_len=256 .* differ"):
        Reranker("m", max_length=512, engine_kwargs={"max_model_len": 256})
    for given in ({"max_length": 256}, {}):
        config = RerankerConfig(tiny_model, engine="transformers", engine_kwargs={"max_model_len": 256}, **given)
        assert create_engine(config).checkpoint.max_length == 256


def test_a_setting_of_another_engine_says_whose_it_is(tiny_model: str) -> None:
    with pytest.raises(ConfigurationError, match="engine='transformers' takes no 'max_num_seqs'.*engine='vllm'"):
        create_engine(RerankerConfig(tiny_model, engine="transformers", engine_kwargs={"max_num_seqs": 4}))
    with pytest.raises(ConfigurationError, match="engine_kwargs has no 'delays'; did you mean 'delay'"):
        create_engine(RerankerConfig("fake", engine="fake", engine_kwargs={"delays": 1}))


# --- vLLM's own fields -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gpu_memory_utilisation": 0.5}, "no 'gpu_memory_utilisation'; did you mean 'gpu_memory_utilization'"),
        ({"kv_cache_dtype": "fp9"}, "engine_kwargs kv_cache_dtype must be one of auto, .*fp8.*, but got 'fp9'"),
        ({"block_size": "16"}, "engine_kwargs block_size must be a whole number or None, but got '16'"),
        ({"cpu_offload_gb": "4"}, "engine_kwargs cpu_offload_gb must be a number, but got '4'"),
        ({"disable_log_stats": 1}, "engine_kwargs disable_log_stats must be true or false, but got 1"),
        ({"attention_backend": "FLASHINFR"}, "attention_backend 'FLASHINFR' is unknown; did you mean 'FLASHINFER'"),
        ({"quantization": "fb8"}, "quantization 'fb8' is unknown; did you mean 'fp8'"),
    ],
)
def test_what_vllm_would_refuse_late_is_refused_before_it_starts(
    tiny_model: str, wrong: dict[str, Any], message: str
) -> None:
    pytest.importorskip("vllm")
    with pytest.raises(ConfigurationError, match=message):
        create_engine(RerankerConfig(tiny_model, engine="vllm", engine_kwargs=wrong))


def vllm_args(model: str, **config: Any) -> Any:
    pytest.importorskip("vllm")
    return create_engine(RerankerConfig(model, engine="vllm", **config))._engine_args  # type: ignore[attr-defined]


def test_settings_reach_vllm(tiny_model: str) -> None:
    given: dict[str, Any] = {
        "dtype": "bfloat16",
        "gpu_memory_utilization": 0.25,
        "kv_cache_memory_bytes": 1 << 28,
        "tensor_parallel_size": 2,
        "max_num_batched_tokens": 4096,
        "max_num_seqs": 7,
        "enable_prefix_caching": False,
        "enforce_eager": True,
        "attention_backend": "FLEX_ATTENTION",
        "convert": "classify",
        "quantization": "fp8",
        "revision": "main",
        "trust_remote_code": True,
        "hf_token": "hf_secret",
        "served_model_name": "reranker",
        "kv_cache_dtype": "fp8",
    }
    args = vllm_args(tiny_model, engine_kwargs={**given, "hf_overrides": {"note": 1}, "max_model_len": 512})
    assert {name: getattr(args, name) for name in given} == given
    assert args.hf_overrides["note"] == 1
    assert args.hf_overrides["classifier_from_token"] == ["no", "yes"]  # the family's own
    assert (args.max_model_len, args.runner, args.model) == (512, "pooling", tiny_model)


def test_safe_by_default(tiny_model: str) -> None:
    args = vllm_args(tiny_model, max_length=10**6, engine_kwargs={"attention_backend": "auto"})
    assert args.trust_remote_code is False
    assert args.attention_backend is None
    assert args.max_model_len == 1024  # the model's limit


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
        engine = reranker._lease._shared._running.engine  # type: ignore[union-attr]
        found = engine._llm.vllm_config  # type: ignore[attr-defined]
        assert found.cache_config.kv_cache_memory_bytes == 1 << 26
        assert (found.scheduler_config.max_num_seqs, found.model_config.max_model_len) == (3, 256)
        [long] = reranker.rank("what is the capital of China?", ["word " * 400])
        assert long.truncated
        assert long.document_tokens < 256


# --- the environment -------------------------------------------------------------------------------------------------


def test_every_setting_is_read_from_its_variable() -> None:
    texts = {
        "trust_remote_code": "Yes",
        "hf_overrides": '{"a": 1}',
        "dtype": " float16 ",
        "gpu_memory_utilization": "0.5",
        "enable_prefix_caching": "0",
        "enforce_eager": "on",
        "runner": "pooling",
        "convert": "classify",
        "timeout": "2.5",
    }
    expected: dict[str, Any] = {
        "trust_remote_code": True,
        "hf_overrides": {"a": 1},
        "dtype": "float16",
        "gpu_memory_utilization": 0.5,
        "enable_prefix_caching": False,
        "enforce_eager": True,
        "timeout": 2.5,
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


def test_no_secret_of_the_environment_is_logged_or_kept(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WINNOW_HF_TOKEN", "hf_secret")
    monkeypatch.setenv("WINNOW_DTYPE", "float32")
    reranker = Reranker(tiny_model, engine="vllm")
    with caplog.at_level(logging.INFO, logger="winnow"):
        assert vllm_args(tiny_model).hf_token == "hf_secret"
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


def test_a_variable_that_sets_nothing_is_warned_about_once(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WINNOW_DTYP", "float16")
    monkeypatch.setenv("WINNOW_XYZZY", "1")
    for _ in range(2):
        create_engine(RerankerConfig(tiny_model, engine="transformers"))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "The environment variable WINNOW_DTYP matches no setting of Winnow; did you mean WINNOW_DTYPE?",
        "The environment variable WINNOW_XYZZY matches no setting of Winnow; docs/settings.md has the list.",
    ]


# --- the command line's NAME=VALUE -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dtype=float16", ("dtype", "float16")),
        ("tensor-parallel-size=2", ("tensor_parallel_size", 2)),
        ("enforce_eager=true", ("enforce_eager", True)),
        ('hf_overrides={"a": "b=c"}', ("hf_overrides", {"a": "b=c"})),
        ("block_size=16", ("block_size", 16)),
        ("kv_cache_dtype=fp8", ("kv_cache_dtype", "fp8")),
        ("revision=1", ("revision", "1")),
    ],
)
def test_an_argument_of_the_command_line(text: str, expected: tuple[str, Any]) -> None:
    assert parse_argument(text) == expected


@pytest.mark.parametrize("text", ["dtype", "=1", "dtype=", "dtype=fp8x", "max_num_seqs=2.5"])
def test_a_malformed_argument_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(text.partition("=")[0])):
        parse_argument(text)


# --- the page --------------------------------------------------------------------------------------------------------


def rows_of(heading: str) -> list[list[str]]:
    """Cells of the table under a heading row, without back-ticks."""
    lines = iter(DOCS.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line == heading:
            break
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows


def test_the_page_lists_every_argument_with_its_default_and_variable() -> None:
    rows = rows_of("| name | variable | default | |")
    fields = dataclasses.fields(RerankerConfig)
    assert [row[0] for row in rows] == [field.name for field in fields]
    variables = {setting.name: setting.variable for setting in RERANKER_SETTINGS}
    for (name, variable, default, _), field in zip(rows, fields, strict=True):
        assert variable == variables.get(name, "")
        expected = "{}" if field.default_factory is dict else repr(field.default).replace("'", '"')
        assert default == ("" if field.default is dataclasses.MISSING and expected != "{}" else expected), name


def test_the_page_lists_every_setting_of_the_engines() -> None:
    rows = rows_of("| name | variable | engines | values |")
    assert [row[:3] for row in rows] == [
        [name, setting.variable, ", ".join(setting.engines)] for name, setting in SETTINGS.items()
    ]
    for name, _, _, values in rows:
        text = SETTINGS[name].values.text
        assert values.startswith(text) or text == "a text that is not blank", name


def test_the_settings_are_those_of_vllm() -> None:
    pytest.importorskip("vllm")
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    assert {name for name, setting in SETTINGS.items() if "vllm" in setting.engines} <= known
    assert not {name for name, setting in SETTINGS.items() if "vllm" not in setting.engines} & known
