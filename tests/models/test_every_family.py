"""Each row of models/families.py has what CONTRIBUTING.md asks of a family.

tests/prompts/test_golden_prompts.py checks that it has a template and a golden prompt.
"""

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")  # the tiny models are made with it

from judges import FAMILIES, JUDGES
from winnow.models.families import RECIPES, ModelRecipe
from winnow.templates.score_template import built_in
from winnow.templates.segments import fields_of

# Lines of the first table in docs/models.md: its other cells, by family.
DOCUMENTED = {
    name: cells.split(" | ")
    for name, cells in re.findall(
        r"^\| `([\w-]+)` \| (.*) \|$",
        (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8").split("\n## ")[0],
        re.MULTILINE,
    )
}
# A published model of each family that has no pattern for names.
MODELS = {"cross-encoder": "gte-reranker-modernbert"}

rows = pytest.mark.parametrize("row", RECIPES, ids=lambda row: f"{row.family} {row.architectures[0]}")


@rows
def test_it_has_a_tiny_model_and_a_judge(row: ModelRecipe) -> None:
    pattern = row.names or MODELS.get(row.family, row.family)
    models = [name for name in FAMILIES if re.search(pattern, name)]
    same = [other for other in RECIPES if other.family == row.family]
    assert len(models) >= len(same), "put one in tests/tiny_<family>.py: FAMILIES"
    assert set(models) <= set(JUDGES), "put one in tests/tiny_<family>.py: JUDGES"


@rows
def test_it_has_a_line_in_the_docs(row: ModelRecipe) -> None:
    models, formula, instruction, _ = DOCUMENTED[row.family]
    assert re.search(row.names or MODELS.get(row.family, row.family), models.lower())
    taken = row.template is not None and "instruction" in fields_of(
        built_in(row.template).segments(with_instruction=True)
    )
    assert instruction == ("yes" if taken else "no")
    if row.labels:
        assert ("−" in formula) == (len(row.labels) == 2)
        assert all(f'"{label}"' in formula or "token 0" in formula for label in row.labels)
    assert row.temperature == 1 or formula.endswith(f"/ {row.temperature:g}")
    assert row.shift == 0 or formula.endswith(f"− {row.shift:g}")


def test_the_docs_name_no_family_that_is_gone() -> None:
    assert set(DOCUMENTED) == {row.family for row in RECIPES} | {"sentence-transformers"}
