"""What `Reranker` promises beside its scores: order, cuts, bad input, windows, stats, errors that say what to do."""

import asyncio
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from winnow import ConfigurationError, Document, DocumentError, EngineError, EngineScore, FakeEngine, Prompt, Reranker

QUERY = "capital of China"
texts = st.text(alphabet="abc \n", max_size=6)


@pytest.fixture(scope="module")
def fake() -> Reranker:
    return Reranker("fake", engine="fake")


@given(st.lists(st.none() | texts, max_size=12), st.none() | st.integers(1, 15), st.none() | st.floats(0, 1))
def test_a_ranking_is_sorted_stable_cut_and_complete(
    fake: Reranker, documents: list[str | None], top_k: int | None, threshold: float | None
) -> None:
    ranking = fake.rank("a b c", documents, top_k=top_k, score_threshold=threshold)
    everything = fake.rank("a b c", documents)
    assert sorted(hit.index for hit in everything) == list(range(len(documents)))
    assert [(-hit.logit, hit.index) for hit in everything] == sorted((-hit.logit, hit.index) for hit in everything)
    kept = [hit for hit in everything if threshold is None or hit.score >= threshold]
    assert list(ranking) == kept[:top_k]
    assert all(hit.text == documents[hit.index] for hit in everything)
    scored = {text for text in documents if text and text.strip()}
    assert ranking.stats.unique == len(scored)
    assert ranking.stats.documents == len(documents)
    for hit in everything:
        assert (hit.logit == -math.inf) == (documents[hit.index] not in scored)
        assert hit.score == (0.0 if hit.logit == -math.inf else pytest.approx(1 / (1 + math.exp(-hit.logit))))


@given(st.lists(texts, max_size=8))
def test_every_way_to_ask_gives_the_same(fake: Reranker, documents: list[str]) -> None:
    ranking = fake.rank("a b", documents, instruction="c")
    scores = fake.score("a b", documents, instruction="c")
    assert [scores[hit.index] for hit in ranking] == [hit.score for hit in ranking]
    [many] = fake.rank_many([("a b", documents, "c")])
    assert many.hits == ranking.hits
    assert asyncio.run(fake.arank("a b", documents, instruction="c")).hits == ranking.hits
    assert asyncio.run(fake.ascore("a b", documents, instruction="c")) == scores
    assert asyncio.run(fake.arank_many([("a b", documents, "c")]))[0].hits == ranking.hits


def test_rank_many_is_ragged_and_in_order(fake: Reranker) -> None:
    rankings = fake.rank_many([("a", ["a", "b"]), ("b", []), ("b", ["a", "b", "c"], "c")], top_k=1)
    assert [[hit.index for hit in ranking] for ranking in rankings] == [[0], [], [1]]


def test_the_same_text_is_sent_once() -> None:
    engine = FakeEngine()
    with Reranker("fake", engine=engine) as reranker:
        ranking = reranker.rank(QUERY, ["China", "Paris", "China", Document("China"), None, " "])
    assert engine.prompts == 2
    assert (ranking.stats.unique, ranking.stats.documents) == (2, 6)
    assert [hit.index for hit in ranking] == [0, 2, 3, 1, 4, 5]


def test_no_documents_leave_the_engine_alone() -> None:
    engine = FakeEngine()
    with Reranker("fake", engine=engine) as reranker:
        assert len(reranker.rank(QUERY, [])) == len(reranker.rank(QUERY, [None, " "], top_k=5)) - 2 == 0
        assert reranker.score(QUERY, ["", None]) == [0.0, 0.0]
    assert engine.started == 0


@pytest.mark.parametrize("query", ["", " \n", None, 3])
def test_a_blank_query_is_an_error(fake: Reranker, query: Any) -> None:
    with pytest.raises(ValueError, match="query must be a text that is not blank"):
        fake.rank(query, ["a"])


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_below_one_is_an_error(fake: Reranker, top_k: int) -> None:
    with pytest.raises(ValueError, match=f"top_k must be > 0, but got {top_k}"):
        fake.rank(QUERY, ["a"], top_k=top_k)


def test_a_single_text_instead_of_a_list_is_an_error(fake: Reranker) -> None:
    with pytest.raises(TypeError, match="put it into a list"):
        fake.rank(QUERY, "a document")


@pytest.mark.parametrize("request_", ["ab", (QUERY,), (QUERY, ["a"], None, 3)])
def test_a_request_that_is_none_is_named(fake: Reranker, request_: Any) -> None:
    with pytest.raises(TypeError, match=r"request 1 must be \(query, documents\) or \(query, documents, instruction\)"):
        fake.rank_many([(QUERY, ["a"]), request_])


def test_a_bad_document_is_named_and_the_rest_goes_on_with_skip() -> None:
    documents: list[Any] = ["China", "half of a pair: \ud83d", 7, Document(image="photo.png"), "Paris"]
    with (
        Reranker("fake", engine="fake") as strict,
        pytest.raises(DocumentError, match="Document 2 is of type int"),
    ):
        strict.rank(QUERY, documents)
    with Reranker("fake", engine="fake", on_error="skip") as lenient:
        ranking = lenient.rank(QUERY, documents)
    assert [hit.index for hit in ranking] == [0, 4, 1, 2, 3]
    assert ranking.stats.failed == 3
    reasons = {hit.index: hit.error for hit in ranking}
    assert reasons[0] is reasons[4] is None
    assert "lone surrogate" in str(reasons[1])
    assert "Document 2 is of type int, not a text" in str(reasons[2])
    assert "only reads text" in str(reasons[3])


def test_long_documents_are_cut_and_say_so(fake: Reranker) -> None:
    ranking = fake.rank(QUERY, ["China " * 5000, "China"])
    cut = next(hit for hit in ranking if hit.index == 0)
    assert cut.truncated
    assert not next(hit for hit in ranking if hit.index == 1).truncated
    assert ranking.stats.truncated == 1
    assert 0 < cut.document_tokens < 4096
    assert cut.text == "China " * 5000


def test_windows_find_what_stands_at_the_end() -> None:
    document = "word " * 2000 + QUERY
    logits = {}
    for how in ("max", "mean", "first"):
        with Reranker("fake", engine="fake", on_overflow="window", window_score=how) as reranker:  # type: ignore[arg-type]
            [hit] = reranker.rank(QUERY, [document])
        logits[how] = hit.logit
        assert hit.windows > 1
        assert hit.best_window == hit.windows - 1
        assert not hit.truncated
    assert logits["max"] > logits["mean"] > logits["first"]


class Broken(FakeEngine):
    """An engine that answers wrongly."""

    def __init__(self, answers: list[EngineScore]):
        super().__init__()
        self.answers = answers

    async def score(self, prompts: Any, *, priority: int = 0) -> list[EngineScore]:
        return self.answers


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([EngineScore(math.nan), EngineScore(math.nan)], "returned the logit nan.*bfloat16"),
        ([EngineScore(1e308), EngineScore(1e308)], r"returned the logit 1e\+308.*bfloat16"),  # in fp32 it is infinite
        ([EngineScore(1.0)], "returned 1 scores for 2 prompts"),
    ],
)
def test_a_wrong_answer_of_the_engine_is_never_a_score(answers: list[EngineScore], message: str) -> None:
    with Reranker("fake", engine=Broken(answers)) as reranker, pytest.raises(EngineError, match=message):
        reranker.rank(QUERY, ["a", "b"])


def test_an_engine_of_ones_own_gets_token_ids() -> None:
    seen: list[Prompt] = []

    class Counting(FakeEngine):
        async def score(self, prompts: Any, *, priority: int = 0) -> list[EngineScore]:
            seen.extend(prompts)
            return [EngineScore(float(len(prompt.ids))) for prompt in prompts]

    with Reranker("mine", engine=Counting(), raw_scores=True) as reranker:
        assert reranker.score("q", ["d", "dd"]) == [float(len(prompt.ids)) for prompt in seen]


# --- models and settings that cannot be used --------------------------------------------------------------------------


def broken_copy(model: str, folder: Path, **changes: Any) -> str:
    """A copy of the model's folder with changed values in config.json."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    return str(folder)


def failure(model: str, **options: Any) -> str:
    with Reranker(model, engine="transformers", **options) as reranker, pytest.raises(ConfigurationError) as caught:
        reranker.rank(QUERY, ["a"])
    return str(caught.value)


def test_a_path_that_does_not_exist() -> None:
    assert "The model folder ./no/such/model does not exist" in failure("./no/such/model")


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    message = failure(str(tmp_path))
    assert "has no config.json" in message
    assert "not a model folder, or the download is incomplete" in message


def test_a_damaged_config(tiny_model: str, tmp_path: Path) -> None:
    model = broken_copy(tiny_model, tmp_path / "qwen3-reranker")
    Path(model, "config.json").write_text("{", encoding="utf-8")
    assert "config.json" in (message := failure(model))
    assert "damaged" in message


def test_a_model_that_is_no_reranker_says_which_there_are(tiny_model: str, tmp_path: Path) -> None:
    message = failure(broken_copy(tiny_model, tmp_path / "chat", architectures=["WhisperForConditionalGeneration"]))
    assert "WhisperForConditionalGeneration, which is not a reranker that Winnow knows" in message
    assert "qwen3-reranker" in message
    message = failure(broken_copy(tiny_model, tmp_path / "chat-model"))
    assert "its name does not say which reranker it is" in message
    assert "recipe=" in message


def test_no_tokenizer(tiny_model: str, tmp_path: Path) -> None:
    model = broken_copy(tiny_model, tmp_path / "qwen3-reranker")
    Path(model, "tokenizer.json").unlink()
    assert "has no tokenizer" in failure(model)


def test_a_template_that_is_none(tiny_model: str) -> None:
    message = failure(tiny_model, template="no_such_template")
    assert "neither a file, nor Jinja source" in message
    assert "qwen3_reranker" in message
    assert "places the document 0 times instead of once" in failure(tiny_model, template="{{ query }}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "wrong", "near"),
    [
        ("transformers", "batch_token", "batch_tokens"),
        ("server", "time_out", "timeout"),
        ("fake", "delays", "delay"),
        ("auto", "batch_token", "batch_tokens"),
        ("auto", "gpu_memory_utilisation", "gpu_memory_utilization"),
        ("vllm", "kv_cache_dtyp", "kv_cache_dtype"),
    ],
)
def test_an_unknown_engine_setting_is_refused_at_once_with_the_nearest(engine: str, wrong: str, near: str) -> None:
    if engine in ("auto", "vllm"):  # whose fields are read from vLLM's source
        pytest.importorskip("vllm")
    url = "http://localhost:8000" if engine == "server" else None
    with pytest.raises(ConfigurationError, match=f"engine_kwargs has no '{wrong}'; did you mean '{near}'"):
        Reranker("no/such-model", engine=engine, url=url, engine_kwargs={wrong: 3})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "vlm"}, "engine must be one of 'auto', 'vllm'"),
        ({"max_length": 0}, "max_length must be a whole number > 0, but got 0"),
        ({"window_overlap": 1.0}, "window_overlap must be at least 0 and below 1"),
        ({"on_overflow": "cut"}, "on_overflow must be one of 'truncate', 'error', 'window'"),
        ({"on_error": "ignore"}, "on_error must be one of 'raise', 'skip'"),
        ({"window_score": "sum"}, "window_score must be one of 'max', 'mean', 'first'"),
        ({"url": "http://localhost:8000"}, 'url and engine="server" belong together'),
        ({"engine": "server"}, 'url and engine="server" belong together'),
    ],
)
def test_settings_out_of_range_fail_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Reranker("any", **options)


def test_the_key_of_a_server_is_not_shown() -> None:
    reranker = Reranker("any", engine="server", url="http://localhost:8000", api_key="sesame")
    assert "sesame" not in repr(reranker)


@pytest.mark.parametrize(
    "template", ["Q: {{ query }} D: {{ document }}", "<d>{{ query }}<q>{{ document }}", "{{ document }}{{ query }}<e>"]
)
def test_the_fake_takes_any_template(template: str) -> None:
    with Reranker("m", engine="fake", template=template) as reranker:
        [best, other] = reranker.rank("capital of China", ["Rice and noodles.", "The capital of China is Beijing."])
    assert (best.index, other.index) == (1, 0)


def test_the_fakes_own_marks_may_be_typed_in_a_document() -> None:
    with Reranker("m", engine="fake") as reranker:
        plain, typed = reranker.score("capital of China", ["x  y capital of China", "<e> capital of China"])
    assert typed == pytest.approx(plain, abs=1e-4)
