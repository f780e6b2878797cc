"""The command line, run as users run it."""

import dataclasses
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tiny_families import FAMILIES
from winnow import RankedDocument, RankStats, Reranker
from winnow.cli.main import app
from winnow.engines.server.engine import serve_command
from winnow.models.checkpoint import open_checkpoint

QUERY = "What is the capital of China?"
DOCUMENTS = ["Beijing is the capital of China.", "Paris is the capital of France.", "Rice and noodles."]


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=stdin)


@pytest.fixture
def rank(vllm_model: str) -> Any:
    """`winnow rank` on the running engine."""

    def run_rank(*arguments: str, stdin: str | None = None) -> Result:
        return run("rank", "--engine", "vllm", "--model", vllm_model, "--query", QUERY, *arguments, stdin=stdin)

    return run_rank


def expected(model: str, **options: Any) -> list[tuple[int, float]]:
    with Reranker(model, engine="vllm") as reranker:
        return [(hit.index, hit.score) for hit in reranker.rank(QUERY, DOCUMENTS, **options)]


def test_lines_of_text_in_and_a_ranking_out(rank: Any, vllm_model: str, tmp_path: Path) -> None:
    file = tmp_path / "documents.txt"
    file.write_text("\n\n".join(DOCUMENTS), encoding="utf-8")
    result = rank(str(file), "--top-k", "2", "--instruction", "Find capitals")
    assert result.exit_code == 0, result.output
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    best = expected(vllm_model, instruction="Find capitals", top_k=2)
    assert [row[0] for row in rows] == ["1", "2"]
    assert [int(row[2].strip("[]")) for row in rows] == [index for index, _ in best]
    assert [float(row[1]) for row in rows] == pytest.approx([score for _, score in best], abs=1e-4)
    assert [row[3] for row in rows] == [DOCUMENTS[index] for index, _ in best]


def test_jsonl_from_stdin_and_json_out(rank: Any, vllm_model: str) -> None:
    lines = "".join(json.dumps({"text": text, "id": f"d{at}"}) + "\n" for at, text in enumerate(DOCUMENTS))
    result = rank("--json", "-", stdin=lines)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["query"] == QUERY
    assert found["stats"]["documents"] == 3
    best = expected(vllm_model)
    assert [hit["id"] for hit in found["results"]] == [f"d{index}" for index, _ in best]
    assert [hit["score"] for hit in found["results"]] == pytest.approx([score for _, score in best], abs=1e-4)


def test_raw_scores_and_threshold(rank: Any, vllm_model: str) -> None:
    text = "\n".join(DOCUMENTS)
    threshold = expected(vllm_model)[1][1]
    assert len(rank("-", "--threshold", str(threshold), stdin=text).stdout.splitlines()) == 2
    found = json.loads(rank("-", "--raw-scores", "--json", stdin=text).stdout)
    assert all(hit["score"] == hit["logit"] for hit in found["results"])


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        ('{"text": "a"}\nnot json\n', "stdin, line 2: not JSON"),
        ('{"content": "a"}\n', 'stdin, line 1: each JSON line must be an object with a string in "text"'),
    ],
)
def test_bad_lines_are_named(rank: Any, stdin: str, message: str) -> None:
    result = rank("-", stdin=stdin)
    assert result.exit_code == 1
    assert message in result.stderr


def test_errors_are_one_line_without_a_traceback(tmp_path: Path) -> None:
    file = tmp_path / "documents.txt"
    file.write_text("a", encoding="utf-8")
    for arguments, message in (
        ((str(file), "--model", "./none", "--query", "q"), "The model folder ./none does not exist"),
        ((str(file), "--model", "./none", "--query", " "), "query must be a text that is not blank"),
        ((str(file), "--model", "./none", "--query", "q", "--top-k", "0"), "top_k must be > 0, but got 0"),
        ((str(tmp_path / "none"), "--model", "m", "--query", "q"), "No such file"),
    ):
        result = run("rank", *arguments)
        assert result.exit_code == 1
        assert message in result.stderr
        assert "Traceback" not in result.output


def test_help_teaches() -> None:
    result = run("rank", "--help")
    assert result.exit_code == 0
    for word in ("--model", "--query", "--instruction", "--top-k", "--json", "JSONL", "Examples"):
        assert word in result.stdout

    for word in ("--engine-arg", "NAME=VALUE", "--url", "server", "WINNOW_API_KEY", "WINNOW_DTYPE"):
        assert word in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine-arg", "dtype=fp8x"], "dtype must be one of auto, half, float16"),
        (["--engine-arg", "dtype"], "an engine setting looks like dtype=float16, but got 'dtype'"),
        (["--engine-arg", "batch_token=64"], "no 'batch_token'; did you mean 'batch_tokens'"),
        (["--engine-arg", "max_num_seqs=64"], "engine='transformers' takes no 'max_num_seqs'"),
        (
            ["--engine-arg", "max-model-len=64", "--max-length", "65"],
            "max_length=65 and engine_kwargs max_model_len=64",
        ),
        (["--url", "http://gpu"], 'url and engine="server" belong together'),
        (["--threshold", "nan"], "score_threshold must be a finite number, but got nan"),
    ],
)
def test_a_wrong_setting_is_one_line(tiny_model: str, arguments: list[str], message: str) -> None:
    result = run("rank", "--engine", "transformers", "-m", tiny_model, "-q", QUERY, *arguments, "-", stdin="a\nb")
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_engine_settings_reach_the_engine(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("rank", "-m", tiny_model, "-q", QUERY, "--json", "-")
    text = "word " * 120
    full = json.loads(run(*command, "--engine", "transformers", stdin=text).stdout)
    short = json.loads(
        run(*command, "--engine", "transformers", "--engine-arg", "max_model_len=256", stdin=text).stdout
    )
    assert (full["results"][0]["truncated"], short["results"][0]["truncated"]) == (False, True)
    hit = short["results"][0]
    assert {field.name for field in dataclasses.fields(RankedDocument)} <= hit.keys()  # nothing is dropped
    assert hit["error"] is None
    assert set(short["stats"]) == {field.name for field in dataclasses.fields(RankStats)}
    assert short["stats"]["prompt_tokens"] == 256
    monkeypatch.setenv("WINNOW_ENGINE", "transformers")
    monkeypatch.setenv("WINNOW_MAX_LENGTH", "300")
    found = json.loads(run(*command, stdin=text).stdout)
    assert found["stats"]["prompt_tokens"] == 300


def test_servers_by_address_and_key_from_the_environment(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_API_KEY", "sk-secret")
    got: list[tuple[str, str | None]] = []

    class Server(BaseHTTPRequestHandler):
        """Serves no request, and counts the requests."""

        def do_GET(self) -> None:
            got.append((self.headers["Host"], self.headers["Authorization"]))
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Server) for _ in range(2)]
    hosts = [f"127.0.0.1:{server.server_port}" for server in servers]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    urls = [word for host in hosts for word in ("--url", f"http://{host}")]
    done = run("rank", "-m", tiny_model, "-q", QUERY, *urls, "-", stdin="a\nb")
    for server in servers:
        server.shutdown()
        server.server_close()
    assert sorted(set(got)) == sorted((host, "Bearer sk-secret") for host in hosts)
    assert done.exit_code == 1
    assert all(host in done.stderr for host in hosts), done.stderr
    assert "secret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_prints_the_command_that_serves_the_model(tiny_model: str, tmp_path: Path) -> None:
    expected_command = serve_command(open_checkpoint(tiny_model))
    assert expected_command in run("doctor", tiny_model).stdout.splitlines()
    assert json.loads(run("doctor", tiny_model, "--json").stdout)["serve"] == expected_command
    bad = run("doctor", str(tmp_path), "--json")
    assert (bad.exit_code, json.loads(bad.stdout)["serve"]) == (1, None)


def test_doctor_serves_no_model_that_needs_token_types(tmp_path: Path) -> None:
    folder = tmp_path / "ms-marco-minilm-l6-v2"
    FAMILIES[folder.name](folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "unk_token": "[UNK]"}), encoding="utf-8")
    result = run("doctor", str(folder))
    assert result.exit_code == 0, result.output
    assert "vllm serve" not in result.stdout


def test_the_installed_command_knows_its_version() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("winnow"), "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("winnow-rerank ")


def test_a_progress_bar_on_long_work_and_none_on_short() -> None:
    command = [sys.executable, "-m", "winnow_command", "rank", "-m", "any", "--engine", "fake", "-q", QUERY, "-"]
    lines = "\n".join(map(str, range(400)))
    slow = [*command, "--engine-arg", "delay=1.5"]  # it appears after a second
    long = subprocess.run(slow, input=lines, capture_output=True, text=True, check=True)
    assert "reranking:" in long.stderr
    assert "400/400" in long.stderr
    assert "reranking" not in long.stdout
    short = subprocess.run(command, input="a\nb", capture_output=True, text=True, check=True)
    assert "reranking:" not in short.stderr


def test_the_output_says_what_was_cut_and_that_a_deadline_passed(tiny_model: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    file = tmp_path / "passages.txt"
    file.write_text("word " * 300 + "\nshort\n", encoding="utf-8")
    options = [
        "rank",
        "-m",
        tiny_model,
        "-q",
        "word " * 300,
        "--engine",
        "transformers",
        "--max-length",
        "200",
        str(file),
    ]
    done = run(*options)
    assert done.exit_code == 0, done.output
    assert "winnow: The query was cut" in done.stderr
    assert "winnow: 1 of 2 documents were cut" in done.stderr
    late = run(*options, "--deadline", "0.0001")
    assert (late.exit_code, late.stderr) == (1, "winnow: The deadline passed.\n")
