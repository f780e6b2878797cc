"""docs/generate.py writes the settings' sentences into docs and integrations: it finds what is stale, and renews it."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cogapp")  # `make test` installs it with the tools of `make lint`

ROOT = Path(__file__).parents[1]
WRITTEN = [
    "docs/settings.md",
    "docs/haystack.md",
    "docs/langchain.md",
    "docs/llama_index.md",
    "integrations/haystack_integrations/components/rankers/winnow/ranker.py",
    "integrations/winnow_langchain/settings.py",
    "integrations/winnow_llama_index/settings.py",
]


def generate(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "docs" / "generate.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_nothing_is_stale() -> None:
    done = generate("--check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_stale_sentences_are_found_and_renewed(tmp_path: Path) -> None:
    copies = {}
    for name in WRITTEN:
        fresh = (ROOT / name).read_text(encoding="utf-8")
        copy = tmp_path / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(fresh.replace("Most tokens of a prompt", "The longest prompt"), encoding="utf-8")
        assert copy.read_text(encoding="utf-8") != fresh
        copies[copy] = fresh

    stale = generate("--check", *copies)
    assert stale.returncode != 0
    assert [copy for copy in copies if str(copy) not in stale.stdout + stale.stderr] == []
    assert generate(*copies).returncode == 0
    assert [copy for copy, fresh in copies.items() if copy.read_text(encoding="utf-8") != fresh] == []
