"""An engine that is registered from outside ranks through every integration, with cache keys of its own."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_contract import ADAPTERS, Adapter

from winnow import ConfigurationError, EngineScore, Prompt, Reranker
from winnow.engines import EngineRecord, EngineSettings, Setting, Values, register_engine
from winnow.models import Checkpoint

QUERY = "capital of China"
TEXTS = ["Paris is a large city, but it is not in China at all.", "Beijing.", "Shanghai is in China."]

NUMBER = Values("a whole number", lambda value: type(value) is int, int)


class Shortest:
    """The shorter a prompt, the better."""

    name = "shortest"

    def __init__(self, checkpoint: Checkpoint, settings: EngineSettings):
        self.checkpoint = checkpoint
        self._scale = settings.given.get("scale", 1)

    async def start(self) -> None: ...

    async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
        return [EngineScore(-len(prompt.ids) * self._scale / 100) for prompt in prompts]

    async def aclose(self) -> None: ...

    def abandon(self) -> None: ...


def record(**changes: Any) -> EngineRecord:
    options: dict[str, Any] = {
        "name": "shortest",
        "make": Shortest,
        "settings": ("revision", Setting("scale", NUMBER), Setting("workers", NUMBER, changes_scores=False), "style"),
        "packages": ("shortest_kernels",),
    }
    return EngineRecord(**{**options, **changes})


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch, registered_engines: None) -> ModuleType:
    """The package that the engine computes with."""
    kernels = ModuleType("shortest_kernels")
    kernels.__dict__["__version__"] = "1"
    monkeypatch.setitem(sys.modules, "shortest_kernels", kernels)
    register_engine(record())
    return kernels


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
def test_it_ranks_through_every_integration(adapter: Adapter, tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    items = adapter.items(TEXTS, [{} for _ in TEXTS])
    options = {**adapter.raw, adapter.top: None}
    plain, doubled = (
        adapter.make(tiny_model, engine="shortest", engine_kwargs=kwargs, **options)
        for kwargs in ({"workers": 3}, {"scale": 2})
    )
    ranked = [adapter.read(hit)[:2] for hit in adapter.call(plain, QUERY, items)]
    assert [name for name, _ in ranked] == ["1", "2", "0"]
    twice = [(name, 2 * score) for name, score in ranked]
    assert [adapter.read(hit)[:2] for hit in adapter.call(doubled, QUERY, items)] == twice
    monkeypatch.setenv("WINNOW_SCALE", "2")
    by_variable = adapter.make(tiny_model, engine="shortest", **options)
    assert [adapter.read(hit)[:2] for hit in adapter.call(by_variable, QUERY, items)] == twice


def test_its_cache_keys_hold_its_settings_and_the_version_of_its_package(
    tiny_model: str, tmp_path: Path, package: ModuleType
) -> None:
    def hits(**kwargs: Any) -> int:
        with Reranker(tiny_model, engine="shortest", engine_kwargs=kwargs, score_cache=tmp_path) as reranker:
            return reranker.rank(QUERY, TEXTS).stats.cache_hits

    assert [hits(), hits(), hits(workers=8)] == [0, 3, 3]
    assert [hits(scale=2), hits(style="plain"), hits()] == [0, 0, 3]
    package.__dict__["__version__"] = "2"
    assert [hits(), hits()] == [0, 3]


def test_errors_list_it() -> None:
    with pytest.raises(ConfigurationError, match=r"engine must be one of 'auto', .*, 'shortest', but got 'shortes'"):
        Reranker("m", engine="shortes")
    with pytest.raises(ConfigurationError, match=r"fallback must be one of .*'shortest', 'retrieval order', but got"):
        Reranker("m", fallback="shortes")
    with pytest.raises(ConfigurationError, match="takes no 'scale': it is a setting of engine='shortest'"):
        Reranker("m", engine="transformers", engine_kwargs={"scale": 2})
    with pytest.raises(ConfigurationError, match="engine_kwargs scale must be a whole number, but got 'two'"):
        Reranker("m", engine="shortest", engine_kwargs={"scale": "two"})
    with pytest.raises(ConfigurationError, match="no 'scales'; did you mean 'scale'"):
        Reranker("m", engine="shortest", engine_kwargs={"scales": 2})


def test_it_can_be_registered_again_but_replaces_no_other(tiny_model: str) -> None:
    class Longest(Shortest):
        async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
            return [EngineScore(-one.logit) for one in await super().score(prompts)]

    with Reranker(tiny_model, engine="shortest") as shortest:
        assert shortest.rank(QUERY, TEXTS)[0].index == 1
        register_engine(record(make=Longest))
        with Reranker(tiny_model, engine="shortest") as longest:
            assert longest.rank(QUERY, TEXTS)[0].index == 0
        assert shortest.rank(QUERY, TEXTS)[0].index == 1
    for name in ("auto", "vllm", "fake", "retrieval order"):
        with pytest.raises(ConfigurationError, match=f"the engine's name '{name}' is one of Winnow's own"):
            register_engine(record(name=name))
    with pytest.raises(ConfigurationError, match="cannot have a setting 'dtype' of its own: it is one of transformers"):
        register_engine(record(settings=[Setting("dtype", NUMBER)]))
