"""The notebooks run in a real Jupyter kernel, and what they show is in them."""

import json
import platform
import re
from pathlib import Path
from typing import Any

import pytest

import demo_model

nbformat = pytest.importorskip("nbformat")

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
MOST_BYTES = 100_000


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def check(notebook: Any) -> None:
    """What a reader should see is there, and nothing else."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    shown = outputs(notebook)
    assert not [output for output in shown if output.output_type == "error" or output.get("name") == "stderr"]
    text = "".join(
        output.get("text", "") + "".join(part for kind, part in output.get("data", {}).items() if "image" not in kind)
        for output in shown
    )
    for alien in (str(EXAMPLES.parent), str(Path.home()), platform.node(), "Warning", "site-packages"):
        assert alien not in text
    assert len(json.dumps(notebook)) < MOST_BYTES


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_holds_what_it_shows(file: Path) -> None:
    """`make examples` writes it."""
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    check(notebook)
    kinds = {kind for output in outputs(notebook) for kind in output.get("data", {})}
    assert "text/html" in kinds
    assert "image/png" in kinds or file.stem == "integrations"


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_shows_the_weights_that_are_here(file: Path) -> None:
    pytest.importorskip("nbclient")
    import run_notebooks

    notebook = nbformat.read(file, as_version=4)
    assert notebook.metadata.get("models") == run_notebooks.models_of(notebook), "run make examples"


def test_a_notebooks_links_lead_somewhere() -> None:
    for file in NOTEBOOKS:
        cells = nbformat.read(file, as_version=4).cells
        text = "".join(cell.source for cell in cells if cell.cell_type == "markdown")
        for target in re.findall(r"\]\(([^)#]+)", text):
            assert (EXAMPLES / target).exists(), f"{file.name} links to {target}"


@pytest.mark.slow
def test_the_notebooks_run() -> None:
    """All of them in one kernel, because a kernel imports PyTorch for longer than most notebooks run."""
    pytest.importorskip("nbclient")
    pytest.importorskip("torch")
    if demo_model.missing_packages():
        pytest.skip("the packages with the weights are not installed")
    import run_notebooks

    ran = {}
    for file, notebook in run_notebooks.run(NOTEBOOKS):
        check(notebook)
        ran[file.stem] = outputs(notebook)
    assert len(ran) == len(NOTEBOOKS) >= 6
    scores = next(output for output in ran["integrations"][::-1] if "data" in output)
    assert "NaN" not in scores.data["text/html"]  # the three frameworks rank the same documents first
