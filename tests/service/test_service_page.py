"""The examples of docs/service.md run, on a server on a free port."""

import gc
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from running import Running, running
from winnow import Reranker

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs" / "service.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(Reranker("Qwen/Qwen3-Reranker-0.6B", engine="fake")) as server:
        yield server


@pytest.mark.filterwarnings("ignore")  # of the clients
@pytest.mark.parametrize("program", blocks("python"), ids=lambda program: program.split()[1])
def test_the_python_of_the_page_runs(server: Running, program: str, capsys: pytest.CaptureFixture[str]) -> None:
    """LiteLLM's runs in tests/clients/test_litellm.py."""
    for package in re.findall(r"^(?:import|from) ([\w.]+)", program, re.MULTILINE):
        pytest.importorskip(package)
    assert ADDRESS in program
    exec(compile(program.replace(ADDRESS, server.url), "service.md", "exec"), {})  # noqa: S102
    gc.collect()  # clients leave sockets open
    assert "Beijing" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("command", [block for block in blocks("bash") if block.startswith("curl")])
def test_the_curl_of_the_page_is_answered(server: Running, command: str) -> None:
    silent = command.replace(ADDRESS, server.url).replace("curl ", "curl --silent --show-error --fail ", 1)
    done = subprocess.run(["/bin/bash", "-c", silent], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["pieces"] if answer["object"] == "prompt" else answer["results"][0]["index"] == 0
