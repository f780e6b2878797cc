"""Every setting of every engine acts: a number, the load or a request is another one than without it.

`SHOWN` says of each setting of each engine how that is shown: here, or by the name of another test. A setting that is
not in it fails the first test.
"""

import ast
import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers

from tiny_families import FAMILIES, patch_config
from winnow import ConfigurationError, Reranker, RerankerConfig
from winnow.engines.choose import create_engine
from winnow.engines.registry import settings_of
from winnow.engines.setting_table import RERANKER_SETTINGS, SETTINGS
from winnow.errors import EngineLoadError

QUERY = "what is the capital of China?"
DOCUMENTS = ["Beijing is the capital of China.", "Bread rises in the oven because yeast makes gas. " * 3]
URL = "http://127.0.0.1:9"


class Way(NamedTuple):
    """How a setting is shown to act: with `value`, `read` gives `expected`, and without it something else."""

    value: Any
    read: Callable[[Any], Any]
    expected: Any = None  # None: `value`


def _config(*path: str) -> Callable[[Any], Any]:
    """A field of the configuration that vLLM makes of the engine's arguments, before it loads."""

    def read(engine: Any) -> Any:
        found = engine._engine_args.create_engine_config()
        for name in path:
            found = getattr(found, name)
        return found

    return read


def _model_of(engine: Any) -> Any:
    """The PyTorch model that the engine loads."""

    async def load() -> Any:
        await engine.start()
        model = engine._forward.model
        await engine.aclose()
        return model

    return asyncio.run(load())


def _asked(name: str) -> Callable[[Any], Any]:
    """What the Hub, or transformers in its place, was asked with for the model's weights."""

    def read(engine: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            asked: dict[str, Any] = {}
            load = transformers.AutoModelForCausalLM.from_pretrained

            def record(model: str, **kwargs: Any) -> Any:
                asked.update(kwargs)
                return load(model, output_loading_info=True)

            patch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", record)
            _model_of(engine)
        return asked.get(name)

    return read


SHOWN: Mapping[tuple[str, str], Way | str] = {
    # --- vLLM
    ("vllm", "revision"): Way("v2", _config("model_config", "revision")),
    ("vllm", "trust_remote_code"): Way(True, _config("model_config", "trust_remote_code")),
    ("vllm", "hf_token"): Way("hf_given", _config("model_config", "hf_token")),
    ("vllm", "cache_dir"): Way("/models", _config("load_config", "download_dir")),
    ("vllm", "hf_overrides"): Way({"rms_norm_eps": 1.0}, _config("model_config", "hf_config", "rms_norm_eps"), 1.0),
    ("vllm", "mm_processor_kwargs"): "test_multimodal.py::test_max_pixels_makes_images_smaller_in_both_engines",
    ("vllm", "dtype"): Way("bfloat16", _config("model_config", "dtype"), torch.bfloat16),
    ("vllm", "quantization"): Way("fp8", _config("model_config", "quantization")),
    ("vllm", "max_model_len"): Way(256, _config("model_config", "max_model_len")),
    ("vllm", "gpu_memory_utilization"): Way(0.2, _config("cache_config", "gpu_memory_utilization")),
    ("vllm", "kv_cache_memory_bytes"): Way(1 << 26, _config("cache_config", "kv_cache_memory_bytes")),
    ("vllm", "tensor_parallel_size"): Way(2, _config("parallel_config", "tensor_parallel_size")),
    ("vllm", "max_num_batched_tokens"): Way(3072, _config("scheduler_config", "max_num_batched_tokens")),
    ("vllm", "max_num_seqs"): Way(3, _config("scheduler_config", "max_num_seqs")),
    ("vllm", "enable_prefix_caching"): Way(False, _config("cache_config", "enable_prefix_caching")),
    ("vllm", "enable_sleep_mode"): "test_sleep.py::test_vllm_refuses_its_sleep_mode_without_a_gpu",
    ("vllm", "enforce_eager"): Way(False, _config("model_config", "enforce_eager")),
    ("vllm", "attention_backend"): Way(
        "CPU_ATTN", lambda engine: getattr(_config("attention_config", "backend")(engine), "name", None)
    ),
    ("vllm", "runner"): Way("auto", _config("model_config", "runner")),
    ("vllm", "convert"): Way("none", _config("model_config", "convert_type")),
    ("vllm", "device"): "test_settings_act.py::test_a_device_that_vllm_does_not_run_on",
    ("vllm", "stall_timeout"): Way(5, lambda engine: engine.stall_timeout, 5.0),
    ("vllm", "served_model_name"): Way("mine", _config("model_config", "served_model_name")),
    # --- a server: what Winnow itself reads and sends
    ("server", "revision"): "test_settings_environment.py::test_the_hub_is_asked_with_the_token",
    ("server", "trust_remote_code"): "test_settings_act.py::test_small_files_are_looked_for_as_set",
    ("server", "hf_token"): "test_settings_environment.py::test_the_hub_is_asked_with_the_token",
    ("server", "cache_dir"): "test_settings_act.py::test_small_files_are_looked_for_as_set",
    ("server", "hf_overrides"): Way(
        {"rms_norm_eps": 1.0}, lambda engine: '"rms_norm_eps": 1.0' in engine._command, True
    ),
    ("server", "mm_processor_kwargs"): "test_server_images.py::test_smaller_images_than_the_server_takes_are_an_error",
    ("server", "max_model_len"): Way(256, lambda engine: engine._max_length),
    ("server", "timeout"): "test_server_settings.py::test_a_server_that_hangs_is_named_at_the_start",
    (
        "server",
        "max_retries",
    ): "test_server_faults.py::test_the_error_of_a_fault_that_stays_names_the_server_and_quotes_it",
    ("server", "chunk_size"): "test_server.py::test_requests_and_their_prompts_are_bounded",
    ("server", "concurrency"): "test_server.py::test_requests_and_their_prompts_are_bounded",
    ("server", "served_model_name"): "test_server.py::test_another_model_is_refused_unless_it_is_said_to_be_the_same",
    # --- transformers
    ("transformers", "revision"): Way("v2", _asked("revision")),
    ("transformers", "trust_remote_code"): "test_settings_act.py::test_code_of_the_repository_runs_where_it_is_trusted",
    ("transformers", "hf_token"): Way("hf_given", _asked("token"), "hf_given"),
    ("transformers", "cache_dir"): Way("/models", _asked("cache_dir")),
    ("transformers", "hf_overrides"): Way(
        {"rms_norm_eps": 1.0}, lambda engine: _model_of(engine).model.norm.variance_epsilon, 1.0
    ),
    ("transformers", "mm_processor_kwargs"): "test_multimodal.py::test_max_pixels_makes_images_smaller_in_both_engines",
    ("transformers", "dtype"): Way("bfloat16", lambda engine: _model_of(engine).dtype, torch.bfloat16),
    ("transformers", "max_model_len"): Way(256, lambda engine: engine.checkpoint.max_length),
    ("transformers", "device"): Way("cpu:0", lambda engine: str(engine._device)),
    ("transformers", "batch_tokens"): "test_settings_act.py::test_batch_tokens_limits_what_one_forward_takes",
    ("transformers", "attn_implementation"): Way("eager", lambda engine: _model_of(engine).config._attn_implementation),
    # --- fake
    ("fake", "max_length"): Way(99, lambda engine: engine.checkpoint.max_length),
    ("fake", "delay"): Way(0.5, lambda engine: engine.delay),
}
# Arguments of the reranker that the environment sets as well.
SHOWN_OF_RERANKER: Mapping[str, Way | str] = {
    "engine": "test_settings_environment.py::test_the_environment_chooses_where_auto_would",
    "url": "test_settings_environment.py::test_a_server_of_the_environment",
    "api_key": "test_settings_environment.py::test_a_server_of_the_environment",
    "max_length": Way(256, lambda engine: engine.checkpoint.max_length),
    "base_model": "../models/test_adapters.py::test_the_environment_names_the_base",
}


def test_every_setting_has_a_test_that_it_acts() -> None:
    settings = {(engine, name) for name, setting in SETTINGS.items() for engine in setting.engines}
    fake = {("fake", name) for name in settings_of("fake")}
    assert set(SHOWN) == settings | fake
    assert set(SHOWN_OF_RERANKER) == set(RERANKER_SETTINGS)


@pytest.mark.parametrize(
    ("name", "test"),
    [
        *((name, way) for (_, name), way in SHOWN.items() if isinstance(way, str)),
        *((name, way) for name, way in SHOWN_OF_RERANKER.items() if isinstance(way, str)),
    ],
)
def test_a_test_that_is_named_is_there_and_names_the_setting(name: str, test: str) -> None:
    file, _, function = test.partition("::")
    source = (Path(__file__).parent / file).read_text(encoding="utf-8")
    [found] = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == function]
    assert name in (ast.get_source_segment(source, found) or "")


@pytest.fixture(autouse=True)
def _all_is_local(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub has the tiny model under every name and revision."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: tiny_model)


def made(model: str, engine: str, **config: Any) -> Any:
    url = URL if engine == "server" else None
    return create_engine(RerankerConfig(model, engine=engine, url=url, **config))


HERE = [(engine, name) for (engine, name), way in SHOWN.items() if isinstance(way, Way)]


@pytest.mark.parametrize(("engine", "name"), HERE)
def test_a_setting_acts(engine: str, name: str, tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WINNOW_DTYPE")  # float32 here, which does not go with quantization
    if engine == "vllm":
        pytest.importorskip("vllm")
    way = SHOWN[engine, name]
    assert isinstance(way, Way)
    expected = way.value if way.expected is None else way.expected
    assert way.read(made(tiny_model, engine)) != expected
    assert way.read(made(tiny_model, engine, engine_kwargs={name: way.value})) == expected


@pytest.mark.slow
def test_a_step_of_vllm_on_a_cpu_is_short_but_takes_a_whole_prompt_that_cannot_be_split(
    tiny_model: str, tmp_path: Path
) -> None:
    pytest.importorskip("vllm")
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext

    if not current_platform.is_cpu():
        pytest.skip("vLLM's own batch sizes hold on a GPU")
    encoder = FAMILIES["ms-marco-minilm-l6-v2"](tmp_path / "encoder")
    patch_config(encoder, max_position_embeddings=2048)
    tokenizer = encoder / "tokenizer_config.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"model_max_length": 2048}))
    for model, tokens in ((tiny_model, 1280), (str(encoder), 2048)):
        config = made(model, "vllm", max_length=tokens)._engine_args.create_engine_config(UsageContext.LLM_CLASS)
        assert config.scheduler_config.max_num_batched_tokens == tokens


@pytest.mark.parametrize("engine", ["vllm", "server", "transformers"])
def test_the_length_acts(engine: str, tiny_model: str) -> None:
    if engine == "vllm":
        pytest.importorskip("vllm")
    way = SHOWN_OF_RERANKER["max_length"]
    assert isinstance(way, Way)
    assert way.read(made(tiny_model, engine)) == 1024
    assert way.read(made(tiny_model, engine, max_length=way.value)) == way.value


@pytest.mark.parametrize("engine", ["vllm", "server", "transformers"])
def test_small_files_are_looked_for_as_set(engine: str, tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine == "vllm":
        pytest.importorskip("vllm")
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(name=name, **options)
        return tiny_model

    load = transformers.AutoTokenizer.from_pretrained

    def load_tokenizer(*args: Any, **options: Any) -> Any:
        asked["trust_remote_code"] = options["trust_remote_code"]
        return load(*args, **options)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", load_tokenizer)
    given = {"revision": "v2", "hf_token": "hf_given", "cache_dir": "/models", "trust_remote_code": True}
    made("me/my-Qwen3-Reranker", engine, engine_kwargs=given)
    expected = {**given, "name": "me/my-Qwen3-Reranker", "token": given.pop("hf_token")}
    del expected["hf_token"]
    assert {name: asked[name] for name in expected} == expected


def test_batch_tokens_limits_what_one_forward_takes(tiny_model: str) -> None:
    sizes: dict[int, list[tuple[int, int]]] = {}
    for batch_tokens in (400, 100000):
        shapes = sizes.setdefault(batch_tokens, [])
        engine = made(tiny_model, "transformers", engine_kwargs={"batch_tokens": batch_tokens})
        with Reranker(tiny_model, engine=engine).start() as reranker:
            model = engine._forward.model
            hook = model.register_forward_pre_hook(
                lambda _model, _args, kwargs, shapes=shapes: shapes.append(tuple(kwargs["input_ids"].shape)),
                with_kwargs=True,
            )
            reranker.score(QUERY, [f"{number} {DOCUMENTS[1]}" for number in range(8)])
            hook.remove()
    assert max(rows * width for rows, width in sizes[400]) <= 400
    assert len(sizes[100000]) < len(sizes[400])


@pytest.mark.slow
def test_a_device_that_vllm_does_not_run_on(tiny_model: str) -> None:
    pytest.importorskip("vllm")
    from vllm.platforms import current_platform

    assert made(tiny_model, "vllm", engine_kwargs={"device": current_platform.device_type}).name == "vllm"
    other = "cuda" if current_platform.device_type == "cpu" else "cpu"
    with pytest.raises(ConfigurationError, match=f"device='{other}'.*not for '{other}'"):
        made(tiny_model, "vllm", engine_kwargs={"device": other})


# --- hf_overrides -----------------------------------------------------------------------------------------------------

OVERRIDES = [
    {"rms_norm_eps": 1.0},
    {"rope_theta": 50.0},
    {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
]


@pytest.fixture(scope="module")
def zerank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES["zerank-2"](tmp_path_factory.mktemp("models") / "zerank-2")


def logits(model: Path, engine: str, overrides: Mapping[str, Any]) -> list[float]:
    with Reranker(str(model), engine=engine, raw_scores=True, engine_kwargs={"hf_overrides": overrides}) as reranker:
        return reranker.score(QUERY, DOCUMENTS)


@pytest.mark.parametrize("overrides", OVERRIDES, ids=lambda one: next(iter(one)))
def test_an_override_gives_what_its_value_in_the_file_gives(
    overrides: dict[str, Any], zerank: Path, tmp_path: Path
) -> None:
    own = logits(zerank, "transformers", {})
    found = logits(zerank, "transformers", overrides)
    rope = json.loads((zerank / "config.json").read_text())["rope_parameters"]
    in_file = {
        "rms_norm_eps": {"rms_norm_eps": 1.0},
        "rope_theta": {"rope_parameters": {**rope, "rope_theta": 50.0}},
        "rope_scaling": {"rope_parameters": {**rope, "rope_type": "yarn", "factor": 4.0}},
    }[next(iter(overrides))]
    if "rope_scaling" in overrides:
        in_file["rope_parameters"]["original_max_position_embeddings"] = 64
    changed = patch_config(FAMILIES["zerank-2"](tmp_path / "zerank-2"), **in_file)
    assert found == logits(changed, "transformers", {})
    assert max(abs(one - other) for one, other in zip(own, found, strict=True)) > 1e-4


@pytest.mark.slow
def test_overrides_act_alike_on_vllm_and_transformers(zerank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    together = {name: value for one in OVERRIDES for name, value in one.items()}
    found = logits(zerank, "vllm", together)
    assert found == pytest.approx(logits(zerank, "transformers", together), abs=1e-5)
    assert found != pytest.approx(logits(zerank, "transformers", {}), abs=1e-4)


def test_nested_overrides_act(tmp_path: Path) -> None:
    folder = FAMILIES["qwen3-vl-reranker-2b"](tmp_path / "qwen3-vl-reranker-2b")
    own, found = (
        logits(folder, "transformers", overrides) for overrides in ({}, {"text_config": {"rms_norm_eps": 1.0}})
    )
    assert found != pytest.approx(own, abs=1e-4)


def test_code_of_the_repository_runs_where_it_is_trusted(tmp_path: Path) -> None:
    """Also with overrides, for which Winnow makes the configuration."""
    folder = FAMILIES["zerank-2"](tmp_path / "zerank-2")
    expected = logits(folder, "transformers", {"rms_norm_eps": 1.0})
    (folder / "own_code.py").write_text(
        "from transformers import Qwen3Config, Qwen3ForCausalLM\n"
        "class OwnConfig(Qwen3Config):\n    model_type = 'own'\n"
        "class OwnForCausalLM(Qwen3ForCausalLM):\n    config_class = OwnConfig\n"
    )
    auto_map = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnForCausalLM"}
    patch_config(folder, model_type="own", auto_map=auto_map)
    kwargs: dict[str, Any] = {"hf_overrides": {"rms_norm_eps": 1.0}}
    with pytest.raises(EngineLoadError, match="trust_remote_code"):
        Reranker(str(folder), engine="transformers", engine_kwargs=kwargs).start()
    kwargs["trust_remote_code"] = True
    with Reranker(str(folder), engine="transformers", raw_scores=True, engine_kwargs=kwargs) as reranker:
        assert reranker.score(QUERY, DOCUMENTS) == expected


def test_a_server_says_what_overrides_cannot_change(tiny_model: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="winnow"):
        made(tiny_model, "server", engine_kwargs={"hf_overrides": {"score_template": "{{ query }} {{ document }}"}})
        assert not caplog.messages
        made(tiny_model, "server", engine_kwargs={"hf_overrides": {"rms_norm_eps": 1.0}})
    assert "rms_norm_eps" in caplog.text
    assert "a running server keeps its own" in caplog.text
    assert "vllm serve" in caplog.text


def test_sizes_of_images_are_no_setting_of_a_model_that_reads(
    tiny_model: str, caplog: pytest.LogCaptureFixture
) -> None:
    made(tiny_model, "transformers", engine_kwargs={"mm_processor_kwargs": {"max_pixels": 65536}})
    assert "mm_processor_kwargs changes nothing" in caplog.text
