"""`winnow eval`, run as users run it."""

import inspect
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

import winnow.evaluation
from winnow.cli.evaluation import evaluate_files
from winnow.cli.main import app
from winnow.evaluation import Run, read_run
from winnow.ranking.disk_scores import _SLOT

TEXTS = ["Rice and noodles.", "Paris is the capital of France.", "Shanghai is in China.", "Beijing, capital of China."]
QUERIES = ["capital of China", "rice or noodles", "capital of France"]
RELEVANT = {"q0": 3, "q1": 0, "q2": 1}


def write_collection(folder: Path, queries: list[str], texts: list[str], relevant: dict[str, int]) -> Path:
    def lines(records: list[dict[str, Any]]) -> str:
        return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)

    (folder / "corpus.jsonl").write_text(
        lines([{"_id": f"d{at}", "title": "", "text": text} for at, text in enumerate(texts)]), encoding="utf-8"
    )
    (folder / "queries.jsonl").write_text(
        lines([{"_id": f"q{at}", "text": text} for at, text in enumerate(queries)]), encoding="utf-8"
    )
    judged = "".join(f"{query}\td{at}\t1\n" for query, at in relevant.items())
    (folder / "qrels.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}", encoding="utf-8")
    found = {f"q{at}": {f"d{to}": float(-to) for to in range(len(texts))} for at in range(len(queries))}
    Run("bm25", found).write(folder / "bm25.trec")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_collection(tmp_path, QUERIES, TEXTS, RELEVANT)


def evaluate(folder: Path, *arguments: str | Path) -> Result:
    command = ["eval", "-m", "fake", "--engine", "fake", "--collection", folder, "--run", folder / "bm25.trec"]
    return CliRunner().invoke(app, [str(word) for word in [*command, *arguments]])


def test_long_work_has_a_progress_bar(folder: Path) -> None:
    done = evaluate(folder, "--engine-arg", "delay=1.5")  # it appears after a second
    assert "reranking:" in done.stderr
    assert "12/12" in done.stderr


def test_it_prints_what_a_person_wants_to_know(folder: Path) -> None:
    done = evaluate(folder)
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    own = sum(1 / (at + 1) for at in RELEVANT.values()) / 3
    assert f"{folder.name}, 3 queries" in lines
    assert "run nDCG@10 RR@10" in lines
    assert any(line.startswith("bm25 ") and line.endswith(f" {own:.4f}") for line in lines)
    assert "bm25 + fake 1.0000 1.0000" in lines
    assert f"RR@10 against bm25: +{1 - own:.3f} (p = 0.5): better on 2, worse on 0, equal on 1 queries" in lines
    assert any(line.endswith("→ 1.000 [q0] capital of China") for line in lines)
    assert "lost most by nDCG@10: none" in lines
    assert any(line.startswith("12 pairs in ") and " pairs/s; " in line for line in lines)
    assert "documents: 0 cut, 0 in windows, 0 failed" in lines


def test_it_writes_json_runs_and_a_plot(folder: Path) -> None:
    out = {name: folder / name for name in ("all.json", "first.trec", "second.trec", "plot.html")}
    Run("other", {query: {f"d{at}": 1.0} for query, at in RELEVANT.items()}).write(folder / "dense.trec")
    done = evaluate(
        folder,
        *("--run", folder / "dense.trec", "--output", out["first.trec"], "--output", out["second.trec"]),
        *("--json", out["all.json"], "--plot", out["plot.html"], "--metrics", "RR@10 P@1", "--top-k", "2"),
    )
    assert done.exit_code == 0, done.output
    first, second = json.loads(out["all.json"].read_text(encoding="utf-8"))["evaluations"]
    assert first["metrics"].keys() == {"RR@10", "P@1"}
    assert first["costs"]["bm25 + fake"]["documents"] == 6
    assert [one["against"] for one in second["comparisons"][::2]] == ["dense", "bm25 + fake"]
    assert second["metrics"]["RR@10"]["dense + fake"] == 1.0
    assert read_run(out["first.trec"]).ranked("q2") == ["d1", "d0", "d2", "d3"]
    assert len(read_run(out["second.trec"]).scores) == 3
    assert "<svg" in out["plot.html"].read_text(encoding="utf-8")


def test_json_alone_on_stdout(folder: Path) -> None:
    done = evaluate(folder, "--json", "-", "--limit", "2", "--against", folder / "bm25.trec")
    [found] = json.loads(done.stdout)["evaluations"]
    assert [one["query_id"] for one in found["per_query"]] == ["q0", "q1"]
    assert list(found["metrics"]["RR@10"]) == ["bm25", "bm25 (2)", "bm25 + fake"]


def test_another_model_ranks_the_same_documents(folder: Path) -> None:
    done = evaluate(folder, "--json", "-", "--against", "other", "--max-length", "600")
    [found] = json.loads(done.stdout)["evaluations"]
    assert list(found["costs"]) == ["bm25 + other", "bm25 + fake"]
    assert [one["against"] for one in found["comparisons"][::2]] == ["bm25", "bm25 + other"]
    assert found["comparisons"][2]["difference"] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--metrics", "best"], 1, "'best' is no metric of ir_measures"),
        (["--plot", "plot.jpg"], 1, "plot.jpg: a plot's name must end with .png"),
        (["--json", "no/such/folder.json"], 1, "no/such: No such folder"),
        (["--output", "a", "--output", "b"], 1, "give one --output for each --run"),
        (["--qrels", "none.tsv"], 1, "none.tsv: No such file"),
        (["--collection", "."], 1, "no corpus.jsonl in this folder"),
        (["--top-k", "0"], 2, "Invalid value for '--top-k'"),
    ],
)
def test_a_mistake_is_one_line(
    folder: Path, arguments: list[str], code: int, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    done = evaluate(folder, *arguments)
    assert (done.exit_code, len(done.stderr.splitlines())) == (code, 1)
    assert message in done.stderr


def test_an_adapter_is_merged_into_the_base_that_it_is_given(folder: Path, tiny_model: str) -> None:
    """The demo's adapters name a base on the Hub, and run on one that a package carries."""
    pytest.importorskip("peft")
    import lora

    adapter = lora.train(tiny_model, folder / "adapter", target_modules=["q_proj"])
    lora.edit_config(adapter, {"base_model_name_or_path": None})
    reranking = ["eval", "-m", str(adapter), "--engine", "transformers", "--collection", str(folder), "--json", "-"]
    reranking += ["--run", str(folder / "bm25.trec"), "--recipe", "qwen3-reranker"]
    done = CliRunner().invoke(app, reranking)
    assert "Give the base" in done.stderr
    done = CliRunner().invoke(app, [*reranking, "--base-model", tiny_model, "--engine-arg", f"cache_dir={folder}"])
    assert done.exit_code == 0, done.output
    [found] = json.loads(done.stdout)["evaluations"]
    assert found["costs"]["bm25 + adapter"]["documents"] == 12


def test_help_teaches() -> None:
    done = CliRunner().invoke(app, ["eval", "--help"])
    for word in ("--collection", "--qrels", "--run", "--against", "--score-cache", "nDCG@10 RR@10", "Examples"):
        assert word in done.stdout


def test_its_defaults_are_those_of_the_function() -> None:
    def defaults(function: Any) -> list[Any]:
        parameters = inspect.signature(function).parameters
        return [parameters[name].default for name in ("metrics", "top_k", "limit", "instruction")]

    assert defaults(evaluate_files) == defaults(winnow.evaluation.evaluate)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # on a busy machine
def test_what_was_killed_goes_on_and_scores_nothing_twice(tiny_model: str, passages: list[str], tmp_path: Path) -> None:
    everything = " ".join(passages)
    texts = [f"{everything[at * 40 : at * 40 + 60]} {at}" for at in range(30)]
    asked = [f"{at} {passages[at % len(passages)][:40]}" for at in range(30)]  # more than are with the engine at once
    write_collection(tmp_path, asked, texts, {f"q{at}": at for at in range(30)})
    cache = tmp_path / "scores" / "scores-v1.bin"
    command = [sys.executable, "-m", "winnow_command", "eval", "-m", tiny_model, "--engine", "transformers"]
    command += ["--collection", str(tmp_path), "--run", str(tmp_path / "bm25.trec"), "--json", "-", "--score-cache"]

    def start() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*command, str(cache.parent)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    first = start()
    while first.poll() is None and not (cache.is_file() and cache.stat().st_size):
        time.sleep(0.05)
    first.kill()
    output, _ = first.communicate()
    assert output == ""  # it had not come to its end
    data = cache.read_bytes()
    pages = [data[begin : begin + 4096] for begin in range(0, len(data), 4096)]
    kept = sum(any(page[at : at + _SLOT]) for page in pages for at in range(0, 4096 - _SLOT + 1, _SLOT))
    assert 0 < kept < 900

    output, errors = start().communicate()
    [found] = json.loads(output)["evaluations"]
    costs = found["costs"]["bm25 + qwen3-reranker-tiny"]
    assert (costs["documents"], costs["cache_hits"], costs["pairs_per_second"]) == (900, kept, None), errors
