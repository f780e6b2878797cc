"""Run the notebooks of this folder, and write what they show into them.

    python examples/run_notebooks.py [NOTEBOOK ...]      # or make examples: all of them, and the README's picture

All run in one kernel, so that PyTorch is imported once; each begins without the names of the one before.
"""

import base64
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

import demo_model

FOLDER = Path(__file__).parent
# Haystack sends nothing, adapters are merged without a progress bar, and tqdm does not say that ipywidgets, for bars in
# a notebook, is not installed.
ENVIRONMENT = {
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",
}
QUIET = ["--log-level=ERROR"]  # the kernel warns that others on this machine could listen
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def run(files: Sequence[Path]) -> Iterator[tuple[Path, Any]]:
    """Each notebook with its outputs; nothing is written.

    Raises:
        CellExecutionError: A cell failed. The message has the cell and its traceback.
    """
    client = NotebookClient(
        nbformat.v4.new_notebook(), timeout=None, startup_timeout=600, record_timing=False, extra_arguments=QUIET
    )
    with client.setup_kernel(cwd=str(FOLDER), env={**os.environ, **ENVIRONMENT}):
        for file in files:
            client.nb = nbformat.read(file, as_version=4)
            client.reset_execution_trackers()
            for place, cell in enumerate(client.nb.cells):
                client.execute_cell(cell, place)
            tidy(client.nb)
            client.nb.metadata["models"] = models_of(client.nb)
            yield file, client.nb
            client.execute_cell(nbformat.v4.new_code_cell("%reset -f"), 0)


def models_of(notebook: Any) -> dict[str, str]:
    """The rerankers of `examples/models` that a notebook names, and which weights they have."""
    source = "".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return {name: demo_model.version_of(name) for name in demo_model.ABOUT if name in source}


def tidy(notebook: Any) -> None:
    """Leave out what no reader sees: times, and plain text where there is a table or a picture."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(cells, 1):
        cell.execution_count = count
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
            data = output.get("data", {})
            if len(data) > 1:
                data.pop("text/plain", None)
            if "image/png" in data:
                data["image/png"] = smaller(data["image/png"])


def smaller(png: str) -> str:
    """A picture with 64 colours, which are enough for plots; in base64, as notebooks have it."""
    file = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.quantize(64, dither=Image.Dither.NONE).save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def main() -> None:
    for file, notebook in run([Path(name) for name in sys.argv[1:]] or NOTEBOOKS):
        nbformat.write(notebook, file)
        print(f"{file.name}: {file.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
