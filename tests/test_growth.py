"""benchmarks/growth.py, over its small sizes: cost grows with none of them faster than linearly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux"),
    pytest.mark.slow,  # many processes
]

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "growth.py"


def growth(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


def test_cost_grows_no_faster_than_linearly(tmp_path: Path) -> None:
    done = growth("--quick", "--json", tmp_path / "found.json", "--plot", tmp_path / "found.svg")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert set(found["points"]) == set(found["exponents"]) == {"pairs", "tokens", "callers", "windows"}
    # The last size is four times the first one, or more.
    assert all(points[-1]["cpu_s"] > 2 * points[0]["cpu_s"] > 0 for points in found["points"].values())
    picture = (tmp_path / "found.svg").read_text(encoding="utf-8")
    assert "pairs, from a generator" in picture
    assert "processor time, s" in picture


def test_what_grows_too_fast_is_named() -> None:
    done = growth("--quick", "--only", "callers", "--limit", "0.2")
    assert done.returncode == 1
    assert "callers: processor time grows with exponent" in done.stderr
