"""What the command line prints, and how it ends, whatever it reads, whoever reads it, and whenever Ctrl-C comes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from winnow import EngineError, Reranker
from winnow.cli.documents import read_documents
from winnow.cli.main import app
from winnow.cli.terminal import shown

COMMAND = [sys.executable, "-m", "winnow_command"]
QUERY = "What is the capital of China?"
# Colours, the window's title, a reversed line, a line that overwrites the one before.
EVIL = "\x1b[31mred\x1b]0;title\x07 \u202eesrever\u2066 \x9b2J\rover\u2028\x00"


def in_shell(redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command with its output redirected, in the shell that users have."""
    line = f'"$@" {redirection}'
    return subprocess.run(
        ["/bin/bash", "-c", line, "bash", *COMMAND, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("arguments", [("--version",), ("rank", "--help"), ("doctor", "./nowhere")])
def test_a_full_device_is_one_line(arguments: tuple[str, ...]) -> None:
    done = in_shell(">/dev/full", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("winnow: ")
    assert done.stderr.endswith("No space left on device\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [("--version",), ("--help",)])  # what Winnow writes, and what Typer writes
def test_a_reader_that_goes_is_no_error(arguments: tuple[str, ...]) -> None:
    done = in_shell("| true; exit ${PIPESTATUS[0]}", *arguments)
    assert (done.returncode, done.stderr) == (141, "")


def test_nowhere_to_print_to_at_all() -> None:
    assert in_shell(">&-", "--version").stderr == "winnow: standard output is closed\n"
    full = in_shell(">/dev/full 2>&1", "--version")
    assert (full.returncode, full.stderr) == (1, "")


def test_an_output_of_another_encoding_gets_escapes(tiny_model: str) -> None:
    query = "naïve 🙂 \u202e"
    runner = CliRunner(charset="ascii")
    people = runner.invoke(app, ["doctor", tiny_model, "--query", query])
    assert rb"na\xefve \U0001f642 \u202e" in people.stdout_bytes
    machines = runner.invoke(app, ["doctor", tiny_model, "--query", query, "--json"])
    assert query in json.loads(machines.stdout_bytes.decode("ascii"))["prompt"]


# --- documents that others wrote --------------------------------------------------------------------------------------


@pytest.fixture
def rank(vllm_model: str) -> Any:
    """`winnow rank` of some bytes, on the running engine."""

    def run_rank(data: bytes, *arguments: str) -> Any:
        command = ["rank", "--engine", "vllm", "--model", vllm_model, "--query", QUERY, *arguments, "-"]
        return CliRunner().invoke(app, command, input=data)

    return run_rank


def test_text_is_shown_escaped_and_is_exact_in_json(rank: Any, vllm_model: str) -> None:
    line = json.dumps({"text": EVIL, "title": EVIL, "half": "\ud83d", "deep": [[EVIL]], "no": float("nan")}).encode()
    people = rank(line)
    assert people.exit_code == 0, people.output
    assert people.stdout.split("\t")[-1] == (r"\x1b[31mred\x1b]0;title\x07 \u202eesrever\u2066 \x9b2J over \x00" + "\n")
    machines = rank(line, "--json")
    assert machines.exit_code == 0, machines.output
    [hit] = json.loads(machines.stdout)["results"]
    assert (hit["text"], hit["title"], hit["half"], hit["deep"]) == (EVIL, EVIL, "\ud83d", [[EVIL]])
    assert hit["no"] is None  # JSON has no NaN
    with Reranker(vllm_model, engine="vllm") as reranker:
        assert hit["score"] == pytest.approx(reranker.score(QUERY, [EVIL])[0], abs=1e-4)


MARK = b"\xef\xbb\xbf"


def test_byte_order_marks_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "documents"
    line = json.dumps({"text": "a", "id": 1}).encode() + b"\r\n"
    file.write_bytes(MARK + line + line + MARK + line)  # as `cat` joins two such files
    assert read_documents(str(file)) == [{"text": "a", "id": 1}] * 3
    file.write_bytes(MARK + "Füße\n".encode())
    assert read_documents(str(file)) == [{"text": "Füße"}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"text": "a"}\n'.encode("utf-16"), "FILE is UTF-16, and Winnow reads UTF-8. Convert it"),
        (b"\xfe\xff" + "a\n".encode("utf-16-be"), "FILE is UTF-16"),
        ("a\n".encode("utf-32"), "FILE is UTF-32"),
        ("a\n".encode("utf-16-le"), "FILE, line 1: a NUL byte, which no text holds. If the file is UTF-16, convert it"),
        ("a\nnaïve\n".encode("latin-1"), "FILE, line 2: the byte 0xef after 2 characters is no UTF-8. Convert"),
        (b'{"text": "a"}\n{"text": "\xed\xa0\xbd"}\n', "FILE, line 2: the byte 0xed"),
        (b'{"text": "a"}\n{"text": "\\ud83d"}\n', r"FILE, line 2: the text holds the lone surrogate '\ud83d'"),
        (b'{"text": "a", "n": ' + b"1" * 5000 + b"}", "FILE, line 1: not JSON (Exceeds the limit"),
        (b'{"text": "a", "x": ' + b"[" * 200 + b"]" * 200 + b"}", "FILE, line 1: nested more than 100 deep"),
        (b'{"text": "a", "x": ' + b'{"x":' * 100_000, "FILE, line 1: nested more than 100 deep"),
        (b'[\n{"text": "a"}]', "FILE begins as a JSON array. Write an object a line"),
        (b'[{"text": "a"}]', "FILE begins as a JSON array"),
    ],
)
def test_a_file_that_cannot_be_read_right_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "documents"
    file.write_bytes(data)
    for name in (str(file), "-"):
        result = CliRunner().invoke(app, ["rank", "-m", "m", "-q", "q", name], input=data)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("winnow: " + message.replace("FILE", "stdin" if name == "-" else name))
        assert result.stderr.count("\n") == 1


def test_nothing_that_moves_a_cursor_or_turns_a_line_is_shown() -> None:
    controls = [*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
    halves = range(0xD800, 0xE000)  # of surrogate pairs, which no terminal's encoding has
    assert [code for code in range(0x110000) if shown(chr(code)) != chr(code)] == [*controls, *halves]


# --- errors -----------------------------------------------------------------------------------------------------------


def test_errors_are_one_line_and_shown_escaped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(error: Exception) -> Any:
        def raises(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr("winnow.ranking.reranker.Reranker.rank", raises)
        return CliRunner().invoke(app, ["rank", "-m", "m", "-q", "q", "-"], input="a")

    ours = fails(EngineError(f"It died:\n  {EVIL}\n  see above."))
    assert ours.exit_code == 1
    assert ours.stderr == (
        r"winnow: It died: \x1b[31mred\x1b]0;title\x07 \u202eesrever\u2066 \x9b2J over \x00 see above." + "\n"
    )
    unexpected = fails(TypeError("'int' is no 'str'"))
    assert unexpected.exit_code == 1
    assert unexpected.stderr.startswith("winnow: unexpected TypeError: 'int' is no 'str'. This is a fault of Winnow")
    assert unexpected.stderr.count("\n") == 1
    assert "report it" in unexpected.stderr
    assert fails(MemoryError()).stderr == "winnow: There is not enough memory.\n"
    missing = CliRunner().invoke(app, ["rank", "-m", "m", "-q", "q", str(tmp_path / "\x1b[31m")])
    assert missing.stderr == f"winnow: {tmp_path}/\\x1b[31m: No such file or directory\n"
    wrong = CliRunner().invoke(app, ["rank", "-m", "m", "-q", "q", "-", "--engine", "\x1b[31m"])
    assert wrong.exit_code == 2
    assert "\x1b" not in wrong.stderr
    assert wrong.stderr.count("\n") == 1
    assert "--help'." in wrong.stderr


def test_an_unexpected_error_has_a_traceback_for_the_report() -> None:
    script = (
        "import winnow.cli.main, winnow.cli.documents\n"
        "def raises(file): raise TypeError('\\x1b[31m')\n"
        "winnow.cli.main.read_documents = raises\n"
        "winnow.cli.main.app(['--verbose', 'rank', '-m', 'm', '-q', 'q', '-'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "TypeError: \\x1b[31m" in done.stderr
    assert "\x1b" not in done.stderr


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------

# Sends Ctrl-C to the whole group, as a terminal does, when Python tells its auditors of a certain event.
INTERRUPTING = """
import os, signal, sys

def watch(event, arguments, to_come=[True]):
    if to_come and event == {event!r} and str(arguments[0]).endswith({subject!r}):
        to_come.clear()
        os.killpg(0, signal.SIGINT)

sys.addaudithook(watch)
signal.signal(signal.SIGINT, signal.default_int_handler)
from winnow_command import main
main()
"""


def interrupted(event: str, subject: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", INTERRUPTING.format(event=event, subject=subject), *arguments],
        input="a\nb",
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        "winnow",  # the command's first own import
        "typer",
        "winnow.ranking.reranker",
        "torch",  # in the engine's thread
        "winnow.engines.transformers.forward",
    ],
)
def test_ctrl_c_is_one_line_whenever_it_comes(module: str, tiny_model: str) -> None:
    done = interrupted("import", module, "rank", "-m", tiny_model, "-q", QUERY, "--engine", "transformers", "-")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "winnow: interrupted\n")


@pytest.mark.slow
def test_ctrl_c_leaves_no_half_of_a_conversion(tiny_model: str, tmp_path: Path) -> None:
    done = interrupted("open", "model.safetensors", "convert", tiny_model, str(tmp_path / "out"))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "winnow: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_does_not_reach_the_processes_of_vllm(vllm_model: str) -> None:
    """They print tracebacks where they are interrupted in an import; the process that started them ends them."""
    with Reranker(vllm_model, engine="vllm").start():
        children = psutil.Process().children(recursive=True)
        # Servers that other tests started have a session of their own.
        engines = [child for child in children if "VLLM" in child.name() and os.getsid(child.pid) == os.getsid(0)]
        assert len(engines) >= 2  # the core and a worker
        for engine in engines:
            status = Path(f"/proc/{engine.pid}/status").read_text(encoding="ascii")
            assert int(status.split("SigBlk:")[1].split()[0], 16) & 1 << (signal.SIGINT - 1)
