"""Settings of the Haystack ranker: what they take, saved pipelines, arguments that others call otherwise."""

import dataclasses
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from five_texts import QUERY
from haystack import Pipeline
from haystack.core.component.component import _hook_component_init
from haystack.core.errors import SerializationError
from haystack.core.serialization import component_from_dict, component_to_dict
from haystack.utils import ComponentDevice, DeviceMap, Secret
from haystack_help import BEST_FIRST, documents, fake, ids

from haystack_integrations.components.rankers.winnow import WinnowRanker
from winnow import Calibration, ConfigurationError, FakeEngine, ModelRecipe, RerankerConfig

TYPE = "haystack_integrations.components.rankers.winnow.ranker.WinnowRanker"


def pipeline_of(ranker: WinnowRanker) -> Pipeline:
    pipeline = Pipeline()
    pipeline.add_component("ranker", ranker)
    return pipeline


def saved_and_loaded(ranker: WinnowRanker) -> WinnowRanker:
    saved = pipeline_of(ranker).dumps()
    assert "!!python" not in saved  # plain YAML, for readers other than Haystack
    loaded = Pipeline.loads(saved).get_component("ranker")
    assert isinstance(loaded, WinnowRanker)
    return loaded


# --- saved pipelines --------------------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "model": "some/model",
    "base_model": "some/base",
    "top_k": 3,
    "query_prefix": "q: ",
    "query_suffix": "?",
    "document_prefix": "d: ",
    "document_suffix": ".",
    "instruction": "instruction",
    "template": {"prefix": "", "query_template": "{query}", "document_template": "{document}", "suffix": ""},
    "template_kwargs": {"language": "en", "levels": [1, 2]},
    "meta_fields_to_embed": ["title"],
    "embedding_separator": " | ",
    "scale_score": False,
    "calibration": Calibration(method="platt", slope=2.0, intercept=0.5, model="model"),
    "score_threshold": -1.5,
    "max_length": 512,
    "max_query_tokens": 64,
    "max_document_tokens": 256,
    "on_overflow": "window",
    "window_overlap": 0.25,
    "window_score": "mean",
    "on_error": "skip",
    "deadline": 2.5,
    "recipe": "qwen3-reranker",
    "engine": "server",
    "engine_kwargs": {"revision": "main"},
    "cache_dir": "hub",
    "url": ["http://localhost:1", "http://localhost:2"],
    "api_key": Secret.from_env_var(["MY_KEY", "OTHER_KEY"]),
    "token": Secret.from_env_var("MY_TOKEN"),
    "text_only": True,
    "root_path": "images",
    "allow_remote_images": True,
    "score_cache": 1000,
    "fallback": "retrieval order",
    "max_restarts": 3,
}


def test_every_parameter_survives_a_saved_pipeline() -> None:
    parameters = inspect.signature(WinnowRanker.__init__).parameters
    assert set(EVERYTHING) == set(parameters) - {"self", "device"}  # which servers do not take; see below
    assert all(EVERYTHING[name] != parameters[name].default for name in EVERYTHING)
    loaded = saved_and_loaded(WinnowRanker(**EVERYTHING))
    assert {name: getattr(loaded, name) for name in EVERYTHING} == EVERYTHING


def test_the_dictionary_of_a_ranker() -> None:
    data = component_to_dict(WinnowRanker(Path("some/model")), "ranker")
    assert data["type"] == TYPE
    assert data["init_parameters"]["model"] == "some/model"
    assert data["init_parameters"]["api_key"] == {"type": "env_var", "env_vars": ["WINNOW_API_KEY"], "strict": False}
    assert component_from_dict(WinnowRanker, data, "ranker").to_dict() == data


def test_a_dictionary_with_the_model_alone_has_the_defaults() -> None:
    ranker = WinnowRanker.from_dict({"type": TYPE, "init_parameters": {"model": "fake"}})
    assert ranker.to_dict() == WinnowRanker("fake").to_dict()


def test_a_recipe_of_ones_own_survives() -> None:
    recipe = ModelRecipe(family="mine", architectures=("Qwen3ForCausalLM",), labels=("no", "yes"), max_length=99)
    loaded = saved_and_loaded(fake(recipe=recipe))
    assert loaded.recipe == recipe
    assert ids(loaded.run(QUERY, documents())) == BEST_FIRST


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"engine_kwargs": {"dtype": "torch.bfloat16"}}, {"engine_kwargs": {"dtype": "bfloat16"}}),
        ({"engine_kwargs": {"device": "torch.device"}}, {"engine_kwargs": {"device": "cpu"}}),
        (
            {"engine_kwargs": {"device": ComponentDevice.from_str("cuda:1")}},
            {"engine_kwargs": {"device": "cuda:1"}},
        ),
        (
            {"engine_kwargs": {"hf_overrides": MappingProxyType({"text_config": MappingProxyType({"a": (1, 2)})})}},
            {"engine_kwargs": {"hf_overrides": {"text_config": {"a": [1, 2]}}}},
        ),
        ({"template_kwargs": {"levels": np.int64(2), "at": Path("a")}}, {"template_kwargs": {"levels": 2, "at": "a"}}),
        ({"model": Path("some/model")}, {"model": "some/model"}),
        ({"cache_dir": Path("hub")}, {"cache_dir": "hub"}),
        ({"root_path": Path("images")}, {"root_path": "images"}),
        ({"score_cache": Path("scores")}, {"score_cache": "scores"}),
        ({"template": MappingProxyType({"suffix": "!"})}, {"template": {"suffix": "!"}}),
        ({"top_k": np.int64(3)}, {"top_k": 3}),
        ({"score_threshold": np.float32(0.5)}, {"score_threshold": 0.5}),
        ({"window_overlap": np.float64(0.25)}, {"window_overlap": 0.25}),
        ({"device": "cuda:1"}, {"device": ComponentDevice.from_str("cuda:1")}),
    ],
    ids=str,
)
def test_whatever_runs_can_be_saved(given: dict[str, Any], kept: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    kwargs = given.get("engine_kwargs", {})
    objects = {"torch.bfloat16": torch.bfloat16, "torch.device": torch.device("cpu")}
    if any(isinstance(value, str) and value in objects for value in kwargs.values()):
        given = {"engine_kwargs": {name: objects[value] for name, value in kwargs.items()}}
    ranker = WinnowRanker(**{"model": "model", "engine": "transformers", **given})
    loaded = saved_and_loaded(ranker)
    assert {name: getattr(loaded, name) for name in kept} == kept
    assert loaded.to_dict() == ranker.to_dict()
    assert loaded._ready() == ranker._ready()


class Thing:
    """Nothing that YAML holds."""


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"engine": FakeEngine()}, "engine is a FakeEngine"),
        ({"template_kwargs": {"a": {"b": [1, Thing()]}}}, r"template_kwargs\['a'\]\['b'\]\[1\] is a Thing"),
        ({"template_kwargs": {"names": {0: "no"}}}, r"template_kwargs\['names'\] has the key 0"),
        ({"fallback": RerankerConfig("fake", engine="fake")}, "fallback is a RerankerConfig"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_saved_is_named(given: dict[str, Any], named: str) -> None:
    ranker = fake(**given)
    for save in (ranker.to_dict, pipeline_of(ranker).dumps):
        with pytest.raises(SerializationError, match=named):
            save()


def test_saved_settings_are_not_those_the_caller_may_change() -> None:
    kwargs, fields = {"delay": 0.0}, ["title"]
    ranker = fake(engine_kwargs=kwargs, meta_fields_to_embed=fields)
    kwargs["nonsense"] = 1.0
    fields.append("other")
    assert (ranker.engine_kwargs, ranker.meta_fields_to_embed) == ({"delay": 0.0}, ["title"])


def test_every_parameter_is_documented() -> None:
    parameters = set(inspect.signature(WinnowRanker.__init__).parameters) - {"self"}
    described = set(re.findall(r"^ {4,8}(\w+): ", str(WinnowRanker.__doc__), re.MULTILINE))
    assert parameters - described == set()


def test_every_setting_of_the_core_is_offered_with_its_default() -> None:
    ours = inspect.signature(WinnowRanker.__init__).parameters
    core = {field.name: field.default for field in dataclasses.fields(RerankerConfig)}
    assert set(core) - set(ours) == {"raw_scores"}  # scale_score, per run
    same = set(core) & set(ours) - {"model", "api_key", "engine_kwargs"}
    assert {name: ours[name].default for name in same} == {name: core[name] for name in same}


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("model_name", "model"),
        ("model_name_or_path", "model"),
        ("cache_folder", "cache_dir"),
        ("top_n", "top_k"),
        ("api_base_url", "url"),
        ("hf_token", "token"),
        ("use_fp16", "engine_kwargs={'dtype': "),
        ("batch_size", "max_num_seqs"),
        ("gpu_memory_utilization", "engine_kwargs={'gpu_memory_utilization'"),
        ("topk", "top_k"),
    ],
)
def test_an_argument_that_others_call_otherwise_is_answered_with_our_name(theirs: str, ours: str) -> None:
    with pytest.raises(TypeError, match=f"WinnowRanker has no argument '{theirs}'") as error:
        fake(**{theirs: 1})
    assert ours in str(error.value)
    data = {"type": TYPE, "init_parameters": {"model": "fake", theirs: 1}}
    with pytest.raises(TypeError, match=f"WinnowRanker has no argument '{theirs}'"):
        WinnowRanker.from_dict(data)


def test_haystack_still_finds_the_parameters_of_the_constructor() -> None:
    parameters = inspect.signature(WinnowRanker.__init__).parameters
    assert [*parameters][:2] == ["self", "model"]
    assert all(each.kind is not inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    seen: list[dict[str, Any]] = []
    with _hook_component_init(lambda _, given: seen.append(dict(given))):
        WinnowRanker("fake", engine="fake")  # type: ignore[misc]  # its name is found by the signature
    assert seen == [{"model": "fake", "engine": "fake"}]


@pytest.mark.parametrize("device", [7, DeviceMap({})])
def test_a_device_of_another_type(device: Any) -> None:
    with pytest.raises(TypeError, match="device must be a ComponentDevice or a text such as 'cuda:1', but got "):
        WinnowRanker("model", device=device)


def test_a_device_map_is_no_device() -> None:
    devices = ComponentDevice.from_multiple(DeviceMap.from_hf({"model": "cpu"}))
    with pytest.raises(ValueError, match="device must be a single device"):
        WinnowRanker("model", device=devices)


@pytest.mark.parametrize("device", ["cpu", ComponentDevice.from_str("cpu")], ids=["text", "ComponentDevice"])
def test_the_model_computes_on_the_device(device: ComponentDevice | str, tiny_model: str) -> None:
    core = WinnowRanker(tiny_model, engine="transformers", device=device)._ready()
    assert core.device == "cpu"
    beside = WinnowRanker(tiny_model, engine="transformers", engine_kwargs={"device": "cpu"})._ready()
    assert core.engine_key == beside.engine_key


@pytest.mark.parametrize("kwargs", [{"gpu_memory_utilisation": 0.5}, {"nonsense": 1}])
def test_engine_settings_that_do_not_exist_are_refused_at_init(kwargs: Mapping[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(kwargs))):
        WinnowRanker("model", engine="transformers", engine_kwargs=kwargs)
