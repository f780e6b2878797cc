"""What an output is noted to be made by: all that changes scores, and nothing else."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from winnow.bulk.made_by import made_by, with_whole_paths
from winnow.bulk.row_ranker import bulk_config

TEMPLATE = "<i>{{ instruction }}<q>{{ query }}<d>{{ document }}<e>"


def of(model: str = "any", **settings: Any) -> dict[str, Any]:
    return made_by(with_whole_paths(bulk_config(model, {"engine": "fake", **settings})))


def test_a_template_file_that_changed_is_another_template(tmp_path: Path) -> None:
    file = tmp_path / "score.jinja"
    file.write_text(TEMPLATE)
    before = of(template=file)
    assert before == of(template=str(file))
    assert TEMPLATE not in str(before)  # its hash, which is short
    file.write_text(TEMPLATE.replace("<q>", "<query>"))
    after = of(template=file)
    assert before.pop("template") != after.pop("template")
    assert before == after


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"raw_scores": True}, "raw_scores"),
        ({"instruction": "Find code."}, "instruction"),
        ({"max_length": 100}, "max_length"),
        ({"on_overflow": "error"}, "on_overflow"),
    ],
)
def test_what_changes_scores_is_noted(settings: dict[str, Any], name: str) -> None:
    assert of(**settings).get(name) != of().get(name)


def test_where_it_runs_is_not_noted(tiny_model: str, tmp_path: Path) -> None:
    assert of(score_cache=tmp_path) == of()
    one = of(tiny_model, engine="server", url="http://a:1", api_key="secret")
    assert one == of(tiny_model, engine="server", url=["http://b:2", "http://c:3"])
    assert "secret" not in str(one)


def test_weights_that_changed_are_another_model(tiny_model: str, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / Path(tiny_model).name)
    before = of(str(model), engine="transformers")
    assert before["template"]  # of its family
    assert before == of(str(model), engine="transformers")
    with (model / "model.safetensors").open("ab") as weights:
        weights.write(b" ")
    after = of(str(model), engine="transformers")
    assert before.pop("model_files") != after.pop("model_files")
    assert before == after
