"""Models that cannot be used: the error names the file and the cure, in both engines."""

import shutil
from pathlib import Path

import pytest
import safetensors.torch

from tiny_families import FAMILIES, patch_config
from winnow import ModelRecipe, Reranker
from winnow.errors import EngineLoadError, ModelError

engines = pytest.mark.parametrize("engine", ["vllm", "transformers"])


@pytest.fixture
def folder(tiny_model: str, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be broken."""
    return Path(shutil.copytree(tiny_model, tmp_path / "qwen3-reranker-tiny"))


@engines
def test_a_label_of_several_tokens(folder: Path, engine: str) -> None:
    recipe = ModelRecipe(family="judge", labels=("no", "certainly yes"))
    message = "label 'certainly yes' of the recipe 'judge' is not one token .* give a recipe with other labels"
    with pytest.raises(ModelError, match=message):
        Reranker(str(folder), engine=engine, recipe=recipe, template="{{ query }}{{ document }}").start()


@engines
def test_a_weight_file_cut_short(folder: Path, engine: str) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=rf"{weights} .* is damaged or cut short: .*Download it again"):
        Reranker(str(folder), engine=engine).start()


@engines
def test_a_weight_file_with_a_damaged_header(folder: Path, engine: str) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[8:40] = b"x" * 32
    weights.write_bytes(content)
    with pytest.raises(ModelError, match=rf"{weights} .* is damaged or cut short"):
        Reranker(str(folder), engine=engine).start()


@engines
def test_a_missing_shard(folder: Path, engine: str) -> None:
    index = '{"metadata": {}, "weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(
        ModelError, match=r"model-00002-of-00002.safetensors is missing, though model.safetensors.index"
    ):
        Reranker(str(folder), engine=engine).start()


@engines
def test_no_weights(folder: Path, engine: str) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=rf"has no weights: there is no model.safetensors in {folder}"):
        Reranker(str(folder), engine=engine).start()


@engines
def test_a_missing_tokenizer(folder: Path, engine: str) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=rf"no tokenizer.json in {folder}. Save the tokenizer beside the model"):
        Reranker(str(folder), engine=engine).start()


@pytest.mark.slow
def test_an_architecture_that_vllm_lacks(tmp_path: Path) -> None:
    folder = FAMILIES["ms-marco-minilm-l6-v2"](tmp_path / "model")
    patch_config(folder, architectures=["RocBertForSequenceClassification"], model_type="roc_bert")
    message = r"(?s)could not load .*vLLM does not have the architecture RocBert.* Use engine='transformers'"
    with pytest.raises(EngineLoadError, match=message):
        Reranker(str(folder), engine="vllm", recipe=ModelRecipe(family="mine")).start()


def test_an_architecture_that_transformers_lacks(folder: Path) -> None:
    patch_config(folder, architectures=["Qwen9ForCausalLM"], model_type="qwen9")
    recipe = ModelRecipe(family="judge", labels=("no", "yes"))
    message = r"(?s)could not load .* \(Qwen9ForCausalLM\).*newer than your transformers"
    with pytest.raises(EngineLoadError, match=message):
        Reranker(str(folder), engine="transformers", recipe=recipe, template="{{ query }}{{ document }}").start()


def test_weights_that_are_not_the_architectures(tmp_path: Path) -> None:
    folder = FAMILIES["ms-marco-minilm-l6-v2"](tmp_path / "model")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights["classifier.weight"]
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        EngineLoadError, match=r"not those of a BertForSequenceClassification: classifier.weight are miss"
    ):
        Reranker(str(folder), engine="transformers").start()
