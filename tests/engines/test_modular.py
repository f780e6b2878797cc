"""Cross encoders whose head is a chain of modules (ettin-reranker): the logits are those of sentence-transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sentence_transformers", minversion="6.2")

from sentence_transformers import CrossEncoder

import tiny_modular
from winnow import ModelRecipe, Reranker, RerankerConfig
from winnow.cli.doctor import examine
from winnow.engines.choose import create_engine
from winnow.errors import EngineLoadError, ModelError
from winnow.models.checkpoint import open_checkpoint

pytestmark = pytest.mark.slow

QUERY = "what is the capital of China?"
DOCUMENTS = ["Beijing is the capital of China.", "Bread rises.", "x", "The tide falls twice a day. " * 12]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_modular.save_modular(tmp_path_factory.mktemp("modular") / "my-reranker", tiny_modular.ettin())


def expected_logits(folder: Path) -> list[float]:
    """What sentence-transformers computes, before its activation function."""
    model = CrossEncoder(str(folder), device="cpu")
    return model.predict([(QUERY, text) for text in DOCUMENTS], activation_fn=torch.nn.Identity()).tolist()


MODELS: dict[str, Callable[[Path], Path]] = {
    "ettin": lambda folder: tiny_modular.save_modular(folder, tiny_modular.ettin()),
    "bert": lambda folder: tiny_modular.save_modular(folder, tiny_modular.ettin("mean"), kind="Bert"),
    "two poolings": lambda folder: tiny_modular.save_modular(folder, tiny_modular.ettin(("max", "lasttoken"))),
    "residual": lambda folder: tiny_modular.save_modular(folder, tiny_modular.others("mean_sqrt_len_tokens")),
    "weighted": lambda folder: tiny_modular.save_modular(folder, tiny_modular.others("weightedmean")),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_sentence_transformers(name: str, tmp_path: Path) -> None:
    folder = MODELS[name](tmp_path / "my-reranker")
    expected = expected_logits(folder)
    assert max(expected) - min(expected) > 0.01
    with Reranker(str(folder), raw_scores=True) as reranker:  # engine="auto"
        found = reranker.score(QUERY, DOCUMENTS)
        alone = [reranker.score(QUERY, [text])[0] for text in DOCUMENTS]
    assert found == pytest.approx(expected, abs=1e-5)
    assert alone == pytest.approx(expected, abs=1e-5)


def test_auto_takes_transformers_and_the_others_refuse(folder: Path) -> None:
    assert create_engine(RerankerConfig(str(folder))).name == "transformers"
    message = r"modules of sentence-transformers \(Pooling, Dense, LayerNorm, Dense\), which vLLM does not run"
    for settings in ({"engine": "vllm"}, {"engine": "server", "url": "http://localhost:1"}):
        if settings["engine"] == "vllm":
            pytest.importorskip("vllm")
        with pytest.raises(ModelError, match=message):
            create_engine(RerankerConfig(str(folder), **settings))  # type: ignore[arg-type]


def test_the_doctor_knows_it(folder: Path) -> None:
    found = examine(str(folder))
    assert (found.verdict, found.family, found.serve) == ("ready", "sentence-transformers", None)
    assert found.formula == "output of the score head"


def test_two_scores_need_a_positive_label(tmp_path: Path) -> None:
    *modules, last = tiny_modular.ettin()
    last = type(last)(tiny_modular.SIZE, 2, module_output_name="scores", activation_function=torch.nn.Identity())  # type: ignore[call-arg]
    folder = tiny_modular.save_modular(tmp_path / "two", [*modules, last])
    with pytest.raises(ModelError, match="classifier with 2 labels"):
        open_checkpoint(str(folder))
    rows = expected_logits(folder)
    recipe = ModelRecipe(family="mine", positive_label=0)
    with Reranker(str(folder), recipe=recipe, raw_scores=True) as reranker:
        found = reranker.score(QUERY, DOCUMENTS)
    assert found == pytest.approx([row[0] - row[1] for row in rows], abs=1e-5)  # type: ignore[index]


def changed(folder: Path, name: str, change: Callable[[Any], None]) -> Path:
    path = folder / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("modules.json", lambda listed: listed[1].update(type="sentence_transformers.models.LSTM"), "module .*LSTM"),
        ("modules.json", lambda listed: listed[2].update(type="my_code.Dense"), "has the module my_code.Dense"),
        ("modules.json", lambda listed: listed.pop(), "ends with the module LayerNorm, which gives no scores"),
        ("sentence_bert_config.json", lambda own: own.update(transformer_task="fill-mask"), "task 'fill-mask'"),
        ("1_Pooling/config.json", lambda own: own.update(pooling_mode="median"), "pooling mode 'median'"),
        ("2_Dense/config.json", lambda own: own.update(activation_function="os.system"), "function 'os.system'"),
    ],
)
def test_other_modules_are_refused_by_name(
    name: str, change: Callable[[Any], None], message: str, tmp_path: Path
) -> None:
    folder = changed(tiny_modular.save_modular(tmp_path / "m", tiny_modular.ettin()), name, change)
    with pytest.raises(ModelError, match=rf"CrossEncoder that .*{message}.*Winnow does not run it"):
        open_checkpoint(str(folder))


def test_weights_of_a_module_that_are_missing(tmp_path: Path) -> None:
    folder = tiny_modular.save_modular(tmp_path / "m", tiny_modular.ettin())
    (folder / "4_Dense" / "model.safetensors").unlink()
    with pytest.raises(EngineLoadError, match="4_Dense"):
        Reranker(str(folder), engine="transformers").start()
