"""A reranker's settings: kept as plain data, checked at once, and with hints for what does not exist."""

import asyncio
import inspect
import json
import logging
import pickle
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from winnow import ConfigurationError, Document, FakeEngine, ModelRecipe, Reranker, RerankerConfig
from winnow.engines.choose import create_engine
from winnow.plain import plain

QUERY = "capital of China"


# --- plain data -------------------------------------------------------------------------------------------------------


def test_plain_data() -> None:
    numpy = pytest.importorskip("numpy")
    torch = pytest.importorskip("torch")
    given = {
        "dtype": torch.bfloat16,
        "device": torch.device("cuda", 1),
        "folder": Path("/models"),
        "nested": {"size": (1, numpy.int64(2)), "share": numpy.float32(0.5), "on": numpy.bool_(True)},
        "text": "x",
        "nothing": None,
    }
    assert plain(given) == {
        "dtype": "bfloat16",
        "device": "cuda:1",
        "folder": "/models",
        "nested": {"size": [1, 2], "share": 0.5, "on": True},
        "text": "x",
        "nothing": None,
    }
    assert json.loads(json.dumps(plain(given))) == plain(given)
    thing = object()
    assert plain(thing) is thing


def test_settings_come_back_equal_from_json_and_pickle(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    config = RerankerConfig(
        tmp_path,  # type: ignore[arg-type]
        engine="server",
        url=("http://a:1", "http://b:1"),
        engine_kwargs={"hf_overrides": {"sizes": (1, 2)}, "mm_processor_kwargs": {}},
        template_kwargs={"path": tmp_path, "dtype": torch.float16},
        template={"prefix": "x"},
        recipe=ModelRecipe(family="mine", labels=("no", "yes"), pixels=(1, 2)),
        cache_dir=tmp_path,
        root_path=tmp_path,
        score_cache=tmp_path / "scores",
        deadline=1.5,
        text_only=True,
    )
    assert RerankerConfig(**json.loads(json.dumps(asdict(config)))) == config
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301
    copied = Reranker(**asdict(config))
    assert copied.engine_key == config.engine_key
    assert (copied.model, copied.recipe) == (str(tmp_path), config.recipe)


def test_changing_what_was_given_changes_no_settings() -> None:
    given: dict[str, Any] = {"hf_overrides": {"a": {"b": 1}}}
    config = RerankerConfig("m", engine="transformers", engine_kwargs=given)
    given["hf_overrides"]["a"]["b"] = 2
    assert config.engine_kwargs["hf_overrides"] == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": "512"}, "max_length must be a whole number > 0, but got '512'"),
        ({"window_overlap": "0.1"}, "window_overlap must be at least 0 and below 1, but got '0.1'"),
        ({"raw_scores": "false"}, "raw_scores must be True or False, but got 'false'"),
        ({"text_only": 1}, "text_only must be True or False, but got 1"),
        ({"deadline": 0}, "deadline must be a number of seconds > 0, but got 0"),
        ({"deadline": float("nan")}, "deadline must be a number of seconds > 0, but got nan"),
        ({"deadline": "5"}, "deadline must be a number of seconds > 0, but got '5'"),
        ({"device": " "}, "device must be a PyTorch device"),
        ({"model": None}, "model must be a folder, or a name on the Hugging Face Hub, but got None"),
        ({"engine": None}, "engine must be one of 'auto', .* or an Engine, but got None"),
        ({"engine": "server", "url": 80}, "url must be a text, or a list of texts, but got 80"),
        ({"recipe": 3}, "recipe must be the name of a family, .* but got 3"),
        ({"recipe": {"labels": ["a"]}}, "does not make a ModelRecipe: .*family"),
        ({"instruction": 3}, "instruction must be a text, but got 3"),
        ({"template_kwargs": ["a"]}, r"template_kwargs must be a mapping, but got \['a'\]"),
        ({"engine_kwargs": "dtype"}, "engine_kwargs must be a mapping, but got 'dtype'"),
        ({"engine_kwargs": {"dtype": "torch.float16"}}, "dtype must be one of auto, half, float16"),
        ({"root_path": 3}, "root_path must be a folder, but got 3"),
        ({"calibration": 3}, "calibration must be a Calibration, its file, .* but got 3"),
        ({"calibration": {"knots": []}}, "does not make a Calibration: .*method"),
        ({"score_cache": 1.5}, "score_cache must be a number of pairs > 0, or a folder, but got 1.5"),
        ({"fallback": {"engine": "fake"}}, "fallback must be one of 'vllm', .* or a Reranker, but got {'engine'"),
        ({"cache_dir": ""}, "cache_dir must be a text that is not blank"),
        ({"device": "cpu", "engine_kwargs": {"device": "cuda"}}, "device='cpu' and engine_kwargs device 'cuda' differ"),
        ({"engine": "server", "url": "http://a", "device": "cpu"}, "engine='server' takes no 'device'"),
        ({"engine": FakeEngine(), "device": "cpu"}, "device cannot be set here: the engine is an object"),
        ({"engine": FakeEngine(), "engine_kwargs": {"dtype": "auto"}}, "dtype cannot be set here"),
    ],
)
def test_what_is_wrong_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        RerankerConfig(**{"model": "m", **options})


def test_none_is_as_good_as_left_out() -> None:
    written_out = dict.fromkeys(asdict(RerankerConfig("m", engine="fake", engine_kwargs={})))
    left = ("url", "api_key", "recipe", "instruction", "template", "template_kwargs", "engine_kwargs", "score_cache")
    assert RerankerConfig("m", **{name: written_out[name] for name in left}) == RerankerConfig("m")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("model_name", "here it is 'model'"),
        ("model_name_or_path", "here it is 'model'"),
        ("cache_folder", "here it is 'cache_dir'"),
        ("base_url", "here it is 'url'"),
        ("max_model_len", "here it is 'max_length'"),
        ("use_fp16", "engine_kwargs={'dtype': 'float16'}"),
        ("torch_dtype", "engine_kwargs={'dtype': 'bfloat16'}"),
        ("dtype", "engine_kwargs={'dtype': ...}"),
        ("gpu_memory_utilization", "engine_kwargs={'gpu_memory_utilization': ...}"),
        ("hf_token", "engine_kwargs={'hf_token': ...}"),
        ("batch_size", "max_num_seqs (vllm), batch_tokens (transformers) and chunk_size (server)"),
        ("top_n", "rank(..., top_k=...)"),
        ("fallbak", "did you mean 'fallback'?"),
        ("zzz", "it takes model, base_model, engine, url"),
    ],
)
def test_an_unknown_argument_has_a_hint(name: str, hint: str) -> None:
    for owner in (Reranker, RerankerConfig):
        with pytest.raises(TypeError) as caught:
            owner("m", **{name: 1})
        assert str(caught.value).startswith(f"{owner.__name__} has no argument {name!r}: ")
        assert hint in str(caught.value)


def test_a_reranker_has_a_config_and_its_arguments() -> None:
    assert inspect.signature(Reranker).parameters == inspect.signature(RerankerConfig).parameters
    reranker = Reranker("m", engine="fake", deadline=2, fallback=RerankerConfig("n", engine="fake"))
    assert not isinstance(reranker, RerankerConfig)
    assert reranker.config == RerankerConfig(**{name: getattr(reranker, name) for name in asdict(reranker.config)})
    assert reranker == Reranker(**vars(reranker.config)) != Reranker("m", engine="fake")
    assert repr(reranker) == repr(reranker.config).replace("RerankerConfig", "Reranker", 1)
    for name in ("deadline", "config", "spelt_wrongly"):
        with pytest.raises(AttributeError, match=name):
            setattr(reranker, name, None)
    assert reranker.deadline == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Reranker: missing a required argument: 'model'"),
        (("m", "vllm"), "Reranker: too many positional arguments"),
    ],
)
def test_missing_and_surplus_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Reranker(*arguments)


# --- length -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def long_model(tiny_model: str, tmp_path: Path) -> str:
    """The tiny Qwen3 reranker with positions for 12,000 tokens; the reference code of its family stops at 8,192."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "qwen3-reranker"))
    for name, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps({**content, key: 12000}), encoding="utf-8")
    return str(folder)


def length(model: str, **options: Any) -> int:
    return create_engine(RerankerConfig(model, engine="transformers", **options)).checkpoint.max_length


def test_a_length_beyond_the_reference_is_taken_with_a_warning(
    long_model: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert (length(long_model), caplog.messages) == (8192, [])
    assert length(long_model, max_length=10000) == 10000
    assert "reference code of qwen3-reranker stops at 8192" in caplog.text
    with Reranker(long_model, engine="transformers", max_length=10000) as reranker:
        [hit] = reranker.rank(QUERY, ["word " * 8500])
    assert hit.document_tokens > 8192


def test_a_length_beyond_the_model_is_lowered_with_a_warning(long_model: str, caplog: pytest.LogCaptureFixture) -> None:
    assert length(long_model, engine_kwargs={"max_model_len": 50000}) == 12000
    assert "max_length=50000 becomes 12000" in caplog.text
    caplog.clear()
    with Reranker("m", engine=FakeEngine(max_length=100), max_length=200) as reranker:
        assert reranker.rank(QUERY, ["word " * 200])[0].truncated
    assert caplog.messages == ["max_length=200 becomes 100, the limit of the engine fake."]


# --- device and cache -------------------------------------------------------------------------------------------------


def test_device(tiny_model: str, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("torch")
    for device in ("cpu", "cuda:99"):
        config = RerankerConfig(tiny_model, engine="transformers", device=device)
        if device == "cpu":
            assert str(create_engine(config)._device) == device  # type: ignore[attr-defined]
        else:
            with pytest.raises(ConfigurationError, match="device='cuda:99' is not there"):
                create_engine(config)
    assert (
        RerankerConfig(tiny_model, device="cpu").engine_key
        == RerankerConfig(tiny_model, engine_kwargs={"device": "cpu"}).engine_key
    )


@pytest.mark.slow
def test_device_of_vllm(tiny_model: str, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("vllm")
    from vllm.platforms import current_platform

    own = current_platform.device_type
    other = "cuda" if own == "cpu" else "cpu"
    create_engine(RerankerConfig(tiny_model, engine="vllm", device=own))
    with pytest.raises(ConfigurationError, match=f"built for '{own}', not for '{other}'. Use engine='transformers'"):
        create_engine(RerankerConfig(tiny_model, engine="vllm", device=other))
    with pytest.raises(ConfigurationError, match="CUDA_VISIBLE_DEVICES=1 before Python starts"):
        create_engine(RerankerConfig(tiny_model, engine="vllm", device=f"{own}:1"))
    caplog.set_level(logging.INFO, "winnow")
    if own == "cuda":
        assert create_engine(RerankerConfig(tiny_model, device="cpu")).name == "transformers"
    else:
        with pytest.raises(ConfigurationError, match="device='cuda' is not there"):
            create_engine(RerankerConfig(tiny_model, device="cuda"))
    assert f"engine='auto' takes transformers for {tiny_model}: this vLLM was built for" in caplog.text


@pytest.fixture
def cached(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the Hub that holds a model, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "cache" / "models--winnow--qwen3-reranker-tiny"
    shutil.copytree(tiny_model, repository / "snapshots" / "c0ffee")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    return tmp_path / "cache"


def test_files_come_from_the_cache(cached: Path, tiny_model: str) -> None:
    pytest.importorskip("torch")
    name = "winnow/qwen3-reranker-tiny"
    with Reranker(name, engine="transformers", cache_dir=cached) as reranker:
        found = reranker.score(QUERY, ["Beijing"])
    with Reranker(tiny_model, engine="transformers") as reranker:
        assert found == pytest.approx(reranker.score(QUERY, ["Beijing"]))
    with (
        Reranker(name, engine="transformers") as reranker,
        pytest.raises(ConfigurationError, match="is not a local folder"),
    ):
        reranker.start()


@pytest.mark.slow
def test_vllm_downloads_to_the_cache(tiny_model: str) -> None:
    pytest.importorskip("vllm")
    config: dict[str, Any] = {"engine": "vllm", "cache_dir": Path("/models")}
    engine = create_engine(RerankerConfig(tiny_model, **config))
    assert engine._engine_args.download_dir == "/models"  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="two names of one setting"):
        create_engine(RerankerConfig(tiny_model, engine_kwargs={"download_dir": "/x"}, **config))


# --- calls ------------------------------------------------------------------------------------------------------------


def test_the_deadline_of_the_settings_and_of_the_call() -> None:
    with Reranker("m", engine=FakeEngine(delay=60), deadline=0.1) as reranker:
        for ask in (reranker.rank, reranker.score):
            with pytest.raises(TimeoutError, match="The deadline passed"):
                ask(QUERY, ["a"])
        with pytest.raises(TimeoutError, match="The deadline passed"):
            reranker.rank_many([(QUERY, ["a"])])
    with Reranker("m", engine=FakeEngine(delay=0.3), deadline=0.01) as reranker:
        assert len(reranker.rank(QUERY, ["a"], deadline=60)) == len(reranker.score(QUERY, ["a"], deadline=60)) == 1
    with Reranker("m", engine=FakeEngine(delay=60), deadline=60, fallback="retrieval order") as reranker:
        assert reranker.rank(QUERY, ["a"], deadline=-1).stats.error == "The deadline passed."
        with pytest.raises(ValueError, match="deadline must be a number of seconds, but got 'soon'"):
            reranker.rank(QUERY, ["a"], deadline="soon")  # type: ignore[arg-type]


HUGE = 10**400  # a whole number that no float can hold


@pytest.mark.parametrize(
    "settings",
    [
        {"deadline": HUGE},
        {"window_overlap": HUGE},
        {"engine": "vllm", "engine_kwargs": {"gpu_memory_utilization": HUGE}},
        {"engine": "vllm", "engine_kwargs": {"stall_timeout": HUGE}},
        {"recipe": {"family": "mine", "temperature": HUGE}},
        {"recipe": {"family": "mine", "temperature": float("nan")}},
        {"recipe": {"family": "mine", "shift": HUGE}},
    ],
)
def test_a_number_that_no_float_can_hold_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="must be "):
        Reranker("m", **settings)


def test_a_deadline_that_no_float_can_hold_is_refused_and_one_beyond_all_time_is_taken() -> None:
    with Reranker("m", engine="fake", deadline=1e300) as reranker:
        with pytest.raises(ValueError, match="deadline must be a number of seconds"):
            reranker.rank(QUERY, ["a"], deadline=HUGE)
        for seconds in (None, 1e300, float("inf")):
            assert len(reranker.rank(QUERY, ["a"], deadline=seconds)) == 1


@pytest.mark.parametrize(
    "options", [{"on_error": "skip"}, {"fallback": "retrieval order"}, {"fallback": "transformers"}]
)
def test_a_blank_query_leaves_the_documents_as_they_came(options: dict[str, Any]) -> None:
    engine = FakeEngine()
    with Reranker("m", engine=engine, **options) as reranker:
        ranking = reranker.rank(" ", ["a", "b", "c"], top_k=2)
        many = reranker.rank_many([(QUERY, ["a"]), ("", ["b", "a"])])
        with pytest.raises(ValueError, match="must be a text that is not blank"):
            reranker.score("", ["a"])  # plain numbers cannot say so
        with pytest.raises(ValueError, match="must be a text that is not blank, but got 3"):
            reranker.rank(3, ["a"])  # type: ignore[arg-type]
    why = "query must be a text that is not blank, but got ' '"
    assert [(hit.index, hit.score, hit.error) for hit in ranking] == [(0, 0.0, why), (1, 0.0, why)]
    assert (ranking.stats.fallback, ranking.stats.error) == ("retrieval order", why)
    assert [[hit.index for hit in one] for one in many] == [[0], [0, 1]]
    assert [one.degraded for one in many] == [False, True]
    assert "query of request 1" in (many[1].stats.error or "")
    assert engine.prompts == 1


def test_a_blank_query_of_many_is_named() -> None:
    with Reranker("m", engine="fake") as reranker, pytest.raises(ValueError, match="query of request 1 must be a text"):
        reranker.rank_many([("a", ["a"]), ("", ["a"])])


def test_counts_and_thresholds() -> None:
    numpy = pytest.importorskip("numpy")
    with Reranker("m", engine="fake") as reranker:
        assert len(reranker.rank("a", ["a", "b", "c"], top_k=numpy.int64(2))) == 2
        assert len(reranker.rank("a", ["a", "b"], score_threshold=numpy.float32(0.5))) == 1
        for wrong in (True, 2.0, "2"):
            with pytest.raises(TypeError, match="top_k must be an integer"):
                reranker.rank("a", ["a"], top_k=wrong)  # type: ignore[arg-type]
        for bad in ("0.5", float("nan"), float("inf"), True, HUGE):
            with pytest.raises(ValueError, match="score_threshold must be a finite number, but got"):
                reranker.rank("a", ["a"], score_threshold=bad)  # type: ignore[arg-type]


def test_an_unknown_argument_of_a_call_has_a_hint() -> None:
    call: dict[str, Any] = {"query": QUERY, "documents": ["a"]}
    with Reranker("m", engine="fake") as reranker:
        with pytest.raises(TypeError, match=r"Reranker.rank has no argument 'top_n': here it is 'top_k'"):
            reranker.rank(**call, top_n=3)
        with pytest.raises(TypeError, match=r"Reranker.arank has no argument 'top_n': here it is 'top_k'"):
            asyncio.run(reranker.arank(**call, top_n=3))
        for name, hint in (("docs", "here it is 'documents'"), ("topk", "did you mean 'top_k'?")):
            with pytest.raises(TypeError, match=hint):
                reranker.rank(QUERY, **{name: ["a"]})
        with pytest.raises(TypeError, match=r"an argument of each call: rank\(..., top_k=...\)"):
            reranker.score(**call, top_k=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"documents": {"id": "text"}}, "documents must be several texts, as in a list, but got {'id': 'text'}"),
        ({"documents": None}, "documents must be several texts, as in a list, but got None"),
        ({"documents": 3}, "documents must be several texts, as in a list, but got 3"),
        ({"documents": Document("text")}, "documents must be several texts, but got a single one"),
        ({"instruction": 3}, "instruction must be a text, but got 3"),
        ({"template_kwargs": ["a"]}, r"template_kwargs must be a mapping, but got \['a'\]"),
    ],
)
def test_arguments_of_another_type_are_refused(arguments: dict[str, Any], message: str) -> None:
    with Reranker("m", engine="fake") as reranker, pytest.raises(TypeError, match=message):
        reranker.rank(QUERY, **{"documents": ["a"], **arguments})


def test_a_query_and_documents_are_scored_as_they_are(tiny_model: str) -> None:
    pytest.importorskip("torch")
    with Reranker(tiny_model, engine="transformers") as reranker:
        scores = {text: reranker.score(text, ["Beijing"])[0] for text in (QUERY, f"{QUERY}\n", f" {QUERY}")}
        assert len(set(scores.values())) == 3
        assert reranker.score(QUERY, ["Beijing"]) != reranker.score(QUERY, ["Beijing\n"])


# --- images and models that only read ---------------------------------------------------------------------------------


def test_a_model_that_reads_takes_the_text(caplog: pytest.LogCaptureFixture) -> None:
    seen = [Document("China", image="http://x/a.png"), Document("Paris", video="b.mp4"), "Rome"]
    with Reranker("m", engine="fake") as reranker:
        expected = reranker.score(QUERY, ["China", "Paris", "Rome"])
        assert caplog.messages == []
        assert reranker.score(QUERY, seen) == expected
        assert reranker.score(Document(QUERY, image=b""), seen) == expected
    [message] = caplog.messages
    assert "does not take the images or videos of 2 documents" in message


@pytest.mark.parametrize("image", [False, 0, [], {}, "http://x/a.png"])
def test_text_only_leaves_images_alone(image: Any, caplog: pytest.LogCaptureFixture) -> None:
    with Reranker("m", engine="fake", text_only=True) as reranker:
        ranking = reranker.rank(QUERY, ["x", Document("China", image=image), Document(image=image)])
    assert [(hit.index, hit.error) for hit in ranking] == [(1, None), (0, None), (2, None)]
    assert caplog.messages == []
