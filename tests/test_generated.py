"""docs/generate.py writes the settings' sentences into the docs and the integrations: it finds what is stale, and makes it fresh."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cogapp")  # `make test` installs it with the tools of `make lint`

ROOT = Path(__file__).parents[1]


def generate(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "docs" / "generate.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_nothing_is_stale() -> None:
    done = generate("--check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "docs/settings.md",
        "docs/haystack.md",
        "docs/langchain.md",
        "docs/llama_index.md",
        "integrations/haystack_integrations/components/rankers/winnow/ranker.py",
        "integrations/winnow_langchain/settings.py",
        "integrations/winnow_llama_index/settings.py",
    ],
)
def test_a_stale_sentence_is_found_and_made_fresh(name: str, tmp_path: Path) -> None:
    fresh = (ROOT / name).read_text(encoding="utf-8")
    copy = tmp_path / Path(name).parent.name / Path(name).name
    copy.parent.mkdir()
    copy.write_text(fresh.replace("Most tokens of a prompt", "The longest prompt"), encoding="utf-8")
    assert copy.read_text(encoding="utf-8") != fresh
    assert generate("--check", copy).returncode != 0
    assert generate(copy).returncode == 0
    assert copy.read_text(encoding="utf-8") == fresh
