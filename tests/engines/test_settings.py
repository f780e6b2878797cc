"""Settings of the engines: checked early, passed on, and written down."""

import dataclasses
import re
from typing import Any

import pytest

from winnow import ConfigurationError, Reranker, RerankerConfig
from winnow.engines.choose import create_engine
from winnow.engines.setting_table import SETTINGS, parse_argument
from winnow.engines.vllm.fields import field_names

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
    stored = {**right, "dtype": "bfloat16", "device": "cpu"}
    assert RerankerConfig("m", engine_kwargs=right).engine_kwargs == stored


@pytest.mark.parametrize("name", ["model", "url", "api_key", "max_length", "engine"])
def test_arguments_of_the_reranker_are_none_of_the_engine(name: str) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"engine_kwargs holds '{name}', which is an argument of the reranker"
    ):
        Reranker("m", engine_kwargs={name: "x"})


def test_two_names_of_the_length_must_agree(tiny_model: str) -> None:
    with pytest.raises(ConfigurationError, match=r"max_length=512 and engine_kwargs max_model_len=256 .* differ"):
        Reranker("m", max_length=512, engine_kwargs={"max_model_len": 256})
    for given in ({"max_length": 256}, {}):
        config = RerankerConfig(tiny_model, engine="transformers", engine_kwargs={"max_model_len": 256}, **given)
        assert create_engine(config).checkpoint.max_length == 256


def test_a_setting_of_another_engine_says_whose_it_is(tiny_model: str) -> None:
    with pytest.raises(ConfigurationError, match=r"engine='transformers' takes no 'max_num_seqs'.*engine='vllm'"):
        RerankerConfig(tiny_model, engine="transformers", engine_kwargs={"max_num_seqs": 4})


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cudaa", r"device must be one that PyTorch .* can use, such as cpu or cuda:1, but got 'cudaa'"),
        ("cuda:first", "but got 'cuda:first'"),
        ("meta", "but got 'meta'"),
        (True, "but got True"),
        ("cuda:99", r"device='cuda:99' is not there: PyTorch .* finds \d+ of type 'cuda'"),
        ("cpu:1", r"device='cpu:1' is not there: PyTorch .* finds 1 of type 'cpu'"),
    ],
)
def test_a_device_that_is_not_there(device: Any, message: str, tiny_model: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        create_engine(RerankerConfig(tiny_model, engine="transformers", engine_kwargs={"device": device}))
    with pytest.raises(ConfigurationError, match="engine_kwargs has no 'delays'; did you mean 'delay'"):
        RerankerConfig("fake", engine="fake", engine_kwargs={"delays": 1})


# --- vLLM's own fields -----------------------------------------------------------------------------------------------


@pytest.mark.slow
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


@pytest.mark.slow
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
        "data_parallel_size": 4,
        "pipeline_parallel_size": 2,
        "kv_cache_dtype": "fp8",
    }
    args = vllm_args(tiny_model, engine_kwargs={**given, "hf_overrides": {"note": 1}, "max_model_len": 512})
    assert {name: getattr(args, name) for name in given} == given
    assert args.hf_overrides["note"] == 1
    assert args.hf_overrides["classifier_from_token"] == ["no", "yes"]  # the family's own
    assert (args.max_model_len, args.runner, args.model) == (512, "pooling", tiny_model)


@pytest.mark.slow
def test_safe_by_default(tiny_model: str) -> None:
    args = vllm_args(tiny_model, max_length=10**6, engine_kwargs={"attention_backend": "auto"})
    assert args.trust_remote_code is False
    assert args.attention_backend is None
    assert args.max_model_len == 1024  # the model's limit


# --- the command line's NAME=VALUE -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dtype=float16", ("dtype", "float16")),
        ("tensor-parallel-size=2", ("tensor_parallel_size", 2)),
        ("enforce_eager=true", ("enforce_eager", True)),
        ('hf_overrides={"a": "b=c"}', ("hf_overrides", {"a": "b=c"})),
        ("block_size=16", ("block_size", 16)),
        ("data-parallel-size=2", ("data_parallel_size", 2)),
        ("kv_cache_dtype=fp8", ("kv_cache_dtype", "fp8")),
        ("revision=1", ("revision", "1")),
    ],
)
def test_an_argument_of_the_command_line(text: str, expected: tuple[str, Any]) -> None:
    assert parse_argument(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dtype", "looks like dtype=float16, but got 'dtype'"),
        ("=1", "looks like dtype=float16, but got '=1'"),
        ("dtype=", "dtype must be one of auto"),
        ("dtype=fp8x", "dtype must be one of auto.* got 'fp8x'"),
        ("max_num_seqs=2.5", "max_num_seqs must be a whole number from 1, but got '2.5'"),
    ],
)
def test_a_malformed_argument_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_argument(text)


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_setting_says_in_a_sentence_what_it_does() -> None:
    assert [name for name, setting in SETTINGS.items() if not re.match(r"\S.*\.$", setting.text)] == []


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if setting.default is not None])
def test_a_default_is_a_value_that_the_setting_takes(name: str) -> None:
    SETTINGS[name].check(SETTINGS[name].default, "the default")


@pytest.mark.slow
def test_the_settings_are_those_of_vllm() -> None:
    pytest.importorskip("vllm")
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    own = {"device", "cache_dir", "stall_timeout"}  # which vLLM has no fields of these names for
    assert {name for name, setting in SETTINGS.items() if "vllm" in setting.engines} - own <= known
    assert set(field_names()) == known  # read from the source
    assert not {name for name, setting in SETTINGS.items() if "vllm" not in setting.engines} & known
