"""Every Python snippet of the README and the docs runs, page by page, on real vLLM."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from winnow import Reranker

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODEL = "Qwen/Qwen3-Reranker-0.6B"


def snippets(page: Path) -> str:
    """The page's Python blocks as one program, each at its own line so that tracebacks point into the page."""
    lines, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        fence = line.strip().startswith("```")
        inside = line.strip() == "```python" if fence else inside
        lines.append(line if inside and not fence else "")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def model(tiny_model: str) -> Iterator[str]:
    """The tiny model, with the engine running that users get who choose none."""
    with Reranker(tiny_model).start():
        yield tiny_model


# These pages need a server, and Ray: tests/service/test_service_page.py and tests/bulk/test_ray.py run them.
RUN_HERE = [page for page in PAGES if snippets(page).strip() and page.name not in ("service.md", "bulk.md")]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_HERE, ids=lambda page: page.name)
def test_the_snippets_of_a_page_run(
    page: Path,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    registered_engines: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    program = snippets(page).replace(MODEL, model)
    exec(compile(program, str(page), "exec"), {"__name__": "__main__"})  # noqa: S102


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    """`tests/file.py::name`, or `::name` for another test of the file named last."""
    source = ""
    for file, name in re.findall(r"`(tests/[\w/]+\.py|)(?:::(\w+))?`", page.read_text(encoding="utf-8")):
        source = (ROOT / file).read_text(encoding="utf-8") if file else source
        assert not name or f"def {name}(" in source, f"{page.name} names {name}"
