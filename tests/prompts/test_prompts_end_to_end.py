"""Long and bad documents through the whole reranker, on the engine that needs no model."""

from collections.abc import Sequence

import pytest

from winnow import DocumentError, FakeEngine, Prompt, Ranking, Reranker
from winnow.engines import EngineScore
from winnow.errors import TemplateError

BAD = ["the capital of China", "half\ud83d", "nul\x00byte", "", "Beijing is the capital of China"]


class LengthEngine(FakeEngine):
    """The logit of a prompt is the number of times it says "gold"."""

    async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
        return [EngineScore(float(self.checkpoint.tokenizer.decode(prompt.ids).count("gold"))) for prompt in prompts]


def test_a_bad_document_is_named_or_skipped() -> None:
    with (
        Reranker("fake", engine="fake") as reranker,
        pytest.raises(DocumentError, match=r"Document 1 holds the lone surrogate '\\ud83d' at character 4") as caught,
    ):
        reranker.rank("capital of China", BAD)
    assert caught.value.index == 1
    with Reranker("fake", engine="fake", on_error="skip") as reranker:
        ranking = reranker.rank("capital of China", BAD)
    assert sorted(hit.index for hit in ranking) == [0, 1, 2, 3, 4]
    assert {hit.index for hit in ranking[:2]} == {0, 4}
    by_index = {hit.index: hit for hit in ranking}
    assert "lone surrogate" in (by_index[1].error or "")
    assert by_index[1].score == 0.0
    assert [by_index[at].error for at in (0, 2, 3, 4)] == [None] * 4
    assert by_index[2].windows == 1
    assert ranking.stats.failed == 1


def test_documents_that_are_too_long_for_error_are_skipped_and_the_rest_goes_on() -> None:
    documents = ["China " * 200, "China", "China " * 10_000]
    settings = {"engine": "fake", "engine_kwargs": {"max_length": 300}, "on_overflow": "error"}
    with Reranker("fake", **settings, on_error="skip") as reranker:  # type: ignore[arg-type]
        ranking = reranker.rank("China", documents)
    assert [hit.index for hit in ranking] == [1, 0, 2]
    assert "does not fit: the prompt leaves" in (ranking[1].error or "")
    assert ranking.stats.failed == 2
    with Reranker("fake", **settings) as reranker:  # type: ignore[arg-type]
        with pytest.raises(DocumentError, match=r"Document 0 \(1200 characters\) does not fit"):
            reranker.rank("China", documents)
        with pytest.raises(DocumentError, match=r"The query \(2000 characters\) does not fit: it may take \d+ tokens"):
            reranker.rank("x" * 2000, ["China"])


def test_ten_megabytes_beside_a_short_document() -> None:
    with Reranker("fake", engine="fake") as reranker:
        ranking = reranker.rank("gold", ["word " * 2_000_000, "gold"])
    assert [hit.index for hit in ranking] == [1, 0]
    assert ranking[1].truncated
    assert not ranking[0].truncated
    assert 4000 < ranking[1].document_tokens < 4096
    assert ranking.stats.truncated == 1


def windows(window_score: str) -> Ranking:
    document = " ".join(["dirt"] * 60 + ["gold"] * 5 + ["dirt"] * 60)
    settings = {"on_overflow": "window", "window_score": window_score}
    with Reranker("fake", engine=LengthEngine(max_length=200), **settings) as reranker:  # type: ignore[arg-type]
        return reranker.rank("q", [document])


def test_windows_make_one_score() -> None:
    best = windows("max")[0]
    assert best.windows > 3
    assert best.logit == 5
    assert 0 < best.best_window < best.windows - 1
    assert not best.truncated
    assert windows("first")[0].logit == 0
    assert 0 < windows("mean")[0].logit < 5
    assert {windows(how)[0].best_window for how in ("max", "mean", "first")} == {best.best_window}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ query }}\n{% for %}\n{{ document }}", r"syntax error in line 2 \(`\{% for %\}`\)"),
        ("{{ query.__class__.__mro__ }}{{ document }}", "sandbox forbids in line 1"),
        ("{{ document }}\n", "does not place the query"),
    ],
)
def test_a_bad_template_is_an_error_whatever_on_error_says(template: str, message: str) -> None:
    with (
        Reranker("fake", engine="fake", on_error="skip") as reranker,
        pytest.raises(TemplateError, match=message),
    ):
        reranker.rank("q", ["d"], template=template)
