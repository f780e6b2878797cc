"""`winnow serve` in a process of its own, and what a client must have understood of its answers."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

QUERY = "capital of China"
DOCUMENTS = ["Rice.", "Beijing is the capital of China.", "A capital."]
MODEL = "tiny"
PRESET = "legal"
"""The same model with an instruction, with which its scores are others."""

_PATIENCE = 120.0


@dataclass(frozen=True)
class Service:
    """A server that runs.

    Attributes:
        url: Its address.
        key: The key that it asks for; None without one.
        scores: What it gives `DOCUMENTS` for `QUERY`, by the name of the model.
    """

    url: str
    key: str | None
    scores: dict[str, list[float]]

    def check(self, found: Iterable[tuple[int, float | None]], count: int | None = None, *, model: str = MODEL) -> None:
        """Check indices and scores that a client returned: the service's, best first."""
        scores = self.scores[model]
        best_first = sorted(range(len(scores)), key=lambda at: -scores[at])[:count]
        indices, given = zip(*found, strict=True)
        assert list(indices) == best_first
        assert list(given) == pytest.approx([scores[at] for at in best_first])


@contextlib.contextmanager
def serving(folder: Path, key: str | None) -> Iterator[Service]:
    """Run the command; `WINNOW_PYTHON` names the Python that has it, if this one has not."""
    log, preset, keys = folder / "log", folder / "legal.toml", folder / "keys"
    preset.write_text('instruction = "Find Beijing and rice"\n')
    options = ["--engine", "fake", "--port", "0", "--preset", f"{PRESET}={preset}"]
    if key is not None:
        keys.write_text(key)
        options += ["--api-key-file", str(keys)]
    python = os.environ.get("WINNOW_PYTHON", sys.executable)
    with log.open("w") as stderr:
        process = subprocess.Popen([python, "-m", "winnow_command", "serve", MODEL, *options], stderr=stderr)
    try:
        end = time.monotonic() + _PATIENCE
        while "requests are answered" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        address = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        assert address is not None, log.read_text()
        yield Service(address[0], key, {model: _scores(address[0], key, model) for model in (MODEL, PRESET)})
    finally:
        process.terminate()
        process.wait(_PATIENCE)


def _scores(url: str, key: str | None, model: str) -> list[float]:
    body = {"queries": QUERY, "documents": DOCUMENTS, "model": model}
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    with httpx.Client(trust_env=False, timeout=_PATIENCE) as client:
        answer = client.post(f"{url}/score", json=body, headers=headers).raise_for_status().json()
    return [pair["score"] for pair in answer["data"]]
