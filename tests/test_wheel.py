"""A built wheel holds all files of the packages, also those that are no Python."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_every_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    expected = {
        path.relative_to(ROOT / source).as_posix()
        for source in ("core", "integrations", "templates")
        for path in (ROOT / source).rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    assert {"winnow/service/page/index.html", "winnow/service/page/main.js"} <= expected
    assert expected - held == set()
