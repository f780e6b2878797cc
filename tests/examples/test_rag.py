"""The small pipelines of examples/, one for each framework, run as a reader runs them."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

import demo_model

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["haystack", "llama_index", "langchain"])
def test_the_prompt_has_the_passages_that_answer(framework: str, capsys: pytest.CaptureFixture[str]) -> None:
    if demo_model.missing_packages():
        pytest.skip("the packages with the weights are not installed")
    importlib.import_module(f"rag_{framework}").main()
    shown = capsys.readouterr().out
    found, kept = re.findall(r"(?:found first|keeps): (.*)", shown)
    assert not found.startswith(("tides", "spring-tides")) or framework != "haystack"  # words alone mislead
    assert {"tides", "spring-tides"} <= set(re.sub(r" \(0\.\d\d\)", "", kept).split())
    prompt = shown[shown.index("\n\n") :]
    assert "the sea comes up higher than usual" in prompt
    assert "Why does the water at the coast come and go?" in prompt
    assert "Take one tablet" not in prompt


def test_bm25s_run_is_what_bm25_finds() -> None:
    import retrieve
    from winnow.evaluation import read_run

    found, kept = retrieve.retrieve(), read_run(retrieve.RUN)
    assert found.scores.keys() == kept.scores.keys()
    for query, documents in kept.scores.items():
        assert found.ranked(query)[:3] == kept.ranked(query)[:3]
        assert found.scores[query] == pytest.approx(documents, abs=1e-3)


def test_the_options_of_a_demo_model_are_those_of_the_command() -> None:
    if demo_model.missing_packages():
        pytest.skip("the packages with the weights are not installed")
    command = [sys.executable, EXAMPLES / "demo_model.py"]
    done = [
        subprocess.run([*command, name], capture_output=True, text=True, check=True).stdout
        for name in ("winnow-demo-cross-encoder", "org/another reranker")
    ]
    assert re.fullmatch(r"--model \S+/winnow-demo-cross-encoder --base-model \S+/model\n", done[0])
    assert done[1] == "--model 'org/another reranker'\n"
