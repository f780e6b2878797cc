"""The lower bounds of pyproject.toml are the versions that `make test-lowest` runs on."""

import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# Their builds differ from machine to machine, and vLLM chooses torch.
ENGINES = {"vllm", "torch"}


def bound(requirement: Requirement, operator: str) -> Version:
    """The version of a requirement that consists of one comparison."""
    (comparison,) = requirement.specifier
    assert comparison.operator == operator, f"{requirement} must be one {operator}"
    return Version(comparison.version)


def dependencies() -> list[Requirement]:
    """What the project needs and what its extras bring, but for the extra that names the others."""
    brought = [entry for extra, entries in EXTRAS.items() if extra != "all" for entry in entries]
    return [Requirement(entry) for entry in [*PROJECT["dependencies"], *brought]]


def test_the_lowest_versions_are_the_bounds_of_the_project() -> None:
    lines = (ROOT / "tests" / "lowest-versions.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(pin) for line in lines if (pin := line.partition("#")[0].strip())]
    tested = {pin.name: bound(pin, "==") for pin in pins}
    assert len(tested) == len(pins)
    assert tested == {entry.name: bound(entry, ">=") for entry in dependencies() if entry.name not in ENGINES}


def test_no_dependency_has_an_upper_bound() -> None:
    for entry in dependencies():
        bound(entry, ">=")
