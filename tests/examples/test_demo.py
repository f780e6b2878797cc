"""The demo ranks sensibly, and shows what it says: its output is read as a user reads it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import demo
import demo_model
from winnow import Reranker

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the demo draws."""
    return tmp_path_factory.mktemp("demo") / "picture.svg"


@pytest.fixture(scope="module")
def shown(picture: Path) -> str:
    """What the demo prints with the model that it takes by default, on a wide screen."""
    pytest.importorskip("vllm")
    command = [sys.executable, DEMO, "--picture", picture]
    environment = {**os.environ, "COLUMNS": "300"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout
    assert not done.stderr
    return done.stdout


def first_rows(table: str) -> list[str]:
    """The first two rows of a table of the demo."""
    return [line for line in table.splitlines() if re.match(r"[│|] [12] ", line)][:2]


def test_the_picture_of_the_readme_shows_the_weights_that_are_here() -> None:
    picture = (DEMO.parents[1] / "docs" / "demo.svg").read_text(encoding="utf-8")
    assert f"{demo.DEFAULT_MODEL} {demo_model.version_of(demo.DEFAULT_MODEL)}" in picture, "run make examples"


@pytest.mark.slow
def test_what_answers_the_query_moves_to_the_first_places(shown: str) -> None:
    before, after = (first_rows(table) for table in shown.split("After: reranked"))
    assert "water at the tap" in before[0]
    assert all("Tides come from" in row or "a spring tide" in row for row in after)


@pytest.mark.slow
def test_the_integrations_agree(shown: str) -> None:
    assert "The three integrations agree." in shown
    score = re.findall(r"0\.\d{4}", first_rows(shown.split("After: reranked")[1])[0])
    assert len(score) == 3
    assert len(set(score)) == 1


@pytest.mark.slow
def test_both_engines_give_the_demos_models_the_same_scores(shown: str) -> None:
    row = first_rows(shown.split("After: reranked")[1])[0]
    with Reranker(**demo_model.settings_of(demo.DEFAULT_MODEL), engine="transformers") as reranker:
        [score] = reranker.score(demo.QUERY, [row.split("│")[-2].strip()])
    assert float(re.findall(r"0\.\d{4}", row)[0]) == pytest.approx(score, abs=1e-3)


@pytest.mark.slow
def test_a_long_document_is_cut_or_read_in_windows(shown: str) -> None:
    truncated, windowed = (
        next(re.split(r"\s*[│|]\s*", line) for line in shown.splitlines() if re.match(rf"[│|] {name} ", line))
        for name in ("truncated", "windowed")
    )
    assert (truncated[3], truncated[5]) == ("True", "1")
    assert windowed[3] == "False"
    assert int(windowed[5]) > 1
    assert float(windowed[2]) > float(truncated[2])  # its end answers the query


@pytest.mark.slow
def test_the_picture_shows_the_same_ranking(shown: str, picture: Path) -> None:
    texts = re.findall(r"<text [^>]*>([^<]+)</text>", picture.read_text(encoding="utf-8"))
    assert texts[-3:] == ["What BM25 found", "Reranked by Winnow", demo.QUERY]
    first = first_rows(shown.split("After: reranked")[1])[0].split("│")[-2].split()
    assert any(text.split()[:4] == first[:4] for text in texts)
    assert sum(text.startswith("Tides come from") for text in texts) == 2  # before and after
