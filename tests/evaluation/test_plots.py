"""Pictures of evaluations."""

import re
from pathlib import Path

import pytest

from winnow import Reranker
from winnow.evaluation import Collection, Evaluation, evaluate, plot


def evaluation(queries: int) -> Evaluation:
    names = [f"q{at}" for at in range(queries)]
    texts = {name: f"word {name}" for name in names}
    # What a query's text may hold that plots and pages take for their own: formulas, HTML, letters that fonts lack.
    asked = {name: f"{name} <b>costs</b> $5 & $x_1^{{$ 巴黎?" for name in names}
    run = {name: {other: -float(at) for at, other in enumerate(names)} for name in names}
    collection = Collection("c $a", asked, texts, {name: {name: 1} for name in names})
    with Reranker("f", engine="fake") as reranker:
        return evaluate(reranker, collection, run, against=[run])


@pytest.mark.parametrize(
    ("queries", "ending", "begin"), [(3, ".png", b"\x89PNG"), (60, ".svg", b"<?xml"), (1, ".pdf", b"%PDF")]
)
def test_a_picture_is_written_without_a_warning(queries: int, ending: str, begin: bytes, tmp_path: Path) -> None:
    file = tmp_path / f"plot{ending}"
    plot(evaluation(queries), file)
    assert file.read_bytes().startswith(begin)


def test_a_page_has_the_picture_and_the_queries(tmp_path: Path) -> None:
    found = evaluation(6)
    plot([found, found], tmp_path / "plot.html")
    page = (tmp_path / "plot.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 1
    assert page.count("q5 &lt;b&gt;costs&lt;/b&gt; $5 &amp; $x_1^{$ 巴黎?") >= 2  # among the winners
    assert "<b>" not in page
    assert "<script" not in page
    assert re.search(
        r"nDCG@10 against run: \+0\.\d{3} \(p = 0\.\d+\): better on 5, worse on 0, equal on 1 queries", page
    )


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"plot\.jpg: a plot's name must end with \.png, \.svg, \.pdf or \.html"):
        plot(evaluation(1), tmp_path / "plot.jpg")
