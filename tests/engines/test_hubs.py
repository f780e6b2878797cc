"""Where files come from: a mirror of the Hub, which is a real HTTP server here, or ModelScope, its client stubbed."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from winnow import Reranker

pytestmark = pytest.mark.slow

NAME = "Qwen/Qwen3-Reranker-Tiny"
COMMIT = "c" * 40
PROGRAM = f"""
from winnow import Reranker
with Reranker({NAME!r}, engine="transformers") as reranker:
    print(reranker.score("who?", ["me", "the tide falls"]))
"""
# What vLLM calls of modelscope: `snapshot_download`, with these keywords.
CLIENT = """
import fnmatch, os, pathlib, shutil

def snapshot_download(model_id=None, revision=None, cache_dir=None, *, local_files_only=False, allow_patterns=None):
    source, target = (pathlib.Path(os.environ[name]) for name in ("STUB_SOURCE", "STUB_TARGET"))
    if model_id != "Qwen/Qwen3-Reranker-Tiny" or revision not in (None, "v1"):
        raise ValueError(f"The model {model_id} at {revision} is not found")
    target.mkdir(exist_ok=True)
    for file in source.iterdir():
        if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
            shutil.copy(file, target)
    return str(target)
"""


def run(program: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run in a process of its own: the Hub's client reads its environment when it is imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "VLLM_USE_"))}
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**kept, "HF_HOME": str(tmp_path / "home"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def expected(tiny_model: str) -> list[float]:
    with Reranker(tiny_model, engine="transformers") as reranker:
        return reranker.score("who?", ["me", "the tide falls"])


@pytest.fixture
def mirror(tiny_model: str) -> Iterator[tuple[str, list[str]]]:
    """Address of a server with the Hub's interface that has one model, and the paths it was asked for."""
    files = {file.name: file.read_bytes() for file in Path(tiny_model).iterdir()}
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append(path)
            tree = [{"type": "file", "path": name, "size": len(text), "oid": "0"} for name, text in files.items()]
            if path == f"/api/models/{NAME}/revision/main":
                named = [{"rfilename": name} for name in files]
                self.answer(json.dumps({"id": NAME, "sha": COMMIT, "siblings": named}).encode())
            elif path == "/api/models/Qwen/Hostile/revision/main":
                self.answer(json.dumps({"id": "Qwen/Hostile", "sha": COMMIT, "siblings": []}).encode())
            elif path == f"/api/models/Qwen/Hostile/tree/{COMMIT}":
                self.answer(
                    json.dumps([{"type": "file", "path": "../../../victim.json", "size": 2, "oid": "0"}]).encode()
                )
            elif path == f"/api/models/{NAME}/tree/{COMMIT}":
                self.answer(json.dumps(tree).encode())
            elif path.startswith(f"/{NAME}/resolve/") and path.rpartition("/")[2] in files:
                self.answer(files[path.rpartition("/")[2]])
            else:
                self.answer(b"{}", 404, {"X-Error-Code": "EntryNotFound" if "resolve" in path else "RepoNotFound"})

        def answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            tag = hashlib.sha1(content, usedforsecurity=False).hexdigest()
            own = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Content-Type": "application/json"}
            for name, value in {**own, "Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_all_files_come_from_a_mirror(mirror: tuple[str, list[str]], expected: list[float], tmp_path: Path) -> None:
    url, asked = mirror
    result = run(PROGRAM, tmp_path, HF_ENDPOINT=url)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == pytest.approx(expected, abs=1e-6)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        assert [path for path in asked if path.endswith(f"/{name}")], name


def test_a_mirror_without_the_model_is_named(mirror: tuple[str, list[str]], tmp_path: Path) -> None:
    result = run(PROGRAM.replace(NAME, "Qwen/nothing"), tmp_path, HF_ENDPOINT=mirror[0])
    assert f"the Hugging Face Hub at HF_ENDPOINT={mirror[0]} did not give it" in result.stderr


def test_files_of_a_repository_stay_in_the_cache(mirror: tuple[str, list[str]], tmp_path: Path) -> None:
    result = run(PROGRAM.replace(NAME, "Qwen/Hostile"), tmp_path, HF_ENDPOINT=mirror[0])
    assert "ModelError: 'Qwen/Hostile' cannot be downloaded from the Hugging Face Hub: " in result.stderr
    assert "victim.json" in result.stderr
    assert not list(tmp_path.rglob("victim.json"))


@pytest.fixture
def modelscope(tiny_model: str, tmp_path: Path) -> dict[str, str]:
    """The environment in which vLLM would use ModelScope, with a stub of its client, which copies the tiny model."""
    package = tmp_path / "packages" / "modelscope" / "hub"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "snapshot_download.py").write_text(CLIENT)
    return {
        "VLLM_USE_MODELSCOPE": "True",
        "HF_ENDPOINT": "http://127.0.0.1:9",  # where nothing answers
        "PYTHONPATH": os.pathsep.join([str(package.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "STUB_SOURCE": tiny_model,
        "STUB_TARGET": str(tmp_path / "Qwen3-Reranker-Tiny"),
    }


def test_all_files_come_from_modelscope_where_vllm_uses_it(
    modelscope: dict[str, str], expected: list[float], tmp_path: Path
) -> None:
    result = run(PROGRAM, tmp_path, **modelscope)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == pytest.approx(expected, abs=1e-6)


def test_small_files_alone_come_without_weights(modelscope: dict[str, str], tmp_path: Path) -> None:
    result = run(
        f"from winnow.models.checkpoint import open_checkpoint; open_checkpoint({NAME!r})", tmp_path, **modelscope
    )
    assert result.returncode == 0, result.stderr
    found = [path.name for path in Path(modelscope["STUB_TARGET"]).iterdir()]
    assert "tokenizer.json" in found
    assert "model.safetensors" not in found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("with_revision", "ModelScope (VLLM_USE_MODELSCOPE) did not give its revision 'v9' (ValueError: The model"),
        ("without_package", "pip install 'modelscope>=1.18.1'. To load models from the Hugging Face Hub, unset it."),
    ],
)
def test_what_modelscope_lacks_is_named(change: str, message: str, modelscope: dict[str, str], tmp_path: Path) -> None:
    program = f"from winnow.models.checkpoint import open_checkpoint; open_checkpoint({NAME!r}, revision='v9')"
    if change == "without_package":
        program = f"import sys; sys.modules['modelscope'] = None; {program}"
    result = run(program, tmp_path, **modelscope)
    assert "winnow.errors.ModelError" in result.stderr
    assert message in result.stderr
