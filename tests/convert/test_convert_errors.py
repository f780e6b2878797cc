"""`winnow convert` on what it cannot convert: an error that names the file and the cure, and nothing written."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

import winnow.convert.conversion as module
import winnow.convert.files as files
from tiny_families import patch_config, sharded
from tiny_model import build_tiny_reranker
from winnow import ModelRecipe
from winnow.convert.conversion import convert


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_reranker(tmp_path_factory.mktemp("models") / "qwen3-reranker-tiny")


# --- nothing is left half done ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_conversion_leaves_nothing(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sharded(tmp_path / "qwen3-reranker-untied")
    copied = []
    original = files.write_tensors

    def stop_at_the_third(file: Path, *arguments: Any) -> int:
        copied.append(file)
        if len(copied) == 3:
            assert copied[1].is_file()
            raise error
        return original(file, *arguments)

    monkeypatch.setattr(files, "write_tensors", stop_at_the_third)
    with pytest.raises(error):
        convert(folder, tmp_path / "out")
    assert len(copied) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == [folder.name]


# --- bad input --------------------------------------------------------------------------------------------------------


def test_the_output_is_never_overwritten(qwen: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    convert(qwen, tmp_path / "out")  # an empty folder is as good as none
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(ValueError, match="out already exists"):
        convert(qwen, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before


def test_a_full_disk_is_noticed_first(qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match=r"new/out needs 0.6 MB, and 0.0 MB are free there. Make room"):
        convert(qwen, tmp_path / "new" / "out")
    assert not list(tmp_path.iterdir())


def test_a_classifier_is_not_converted_again(qwen: Path, tmp_path: Path) -> None:
    convert(qwen, tmp_path / "out")
    with pytest.raises(ValueError, match="Qwen3ForSequenceClassification: it has a score head already"):
        convert(tmp_path / "out", tmp_path / "again")


def cut_short(folder: Path) -> None:
    file = max(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-10])


def as_pickle(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")


def without_a_shard(folder: Path) -> None:
    max(folder.glob("*.safetensors")).unlink()


def with_a_wrong_index(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.layers.9.mlp.up_proj.weight"] = max(index["weight_map"].values())
    path.write_text(json.dumps(index))


def with_a_small_vocabulary(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(100)
    model.save_pretrained(folder, max_shard_size="200KB")


def patched(**changes: Any) -> Callable[[Path], Any]:
    return lambda folder: patch_config(folder, **changes)


def without(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "damaged shard": (cut_short, r"model-0000\d-of-0000\d.safetensors .* is damaged or cut short"),
    "missing shard": (without_a_shard, r"model-0000\d-of-0000\d.safetensors is missing, though .*index.json names it"),
    "wrong index": (with_a_wrong_index, r"index.json says that model.layers.9.mlp.up_proj.weight is in"),
    "pickle": (as_pickle, r"pytorch_model.bin, which is a pickle.*save_pretrained"),
    "no tokenizer": (without("tokenizer.json"), "has no tokenizer: there is no tokenizer.json"),
    "no config": (without("config.json"), "has no config.json"),
    "no layer": (
        patched(num_hidden_layers=3, layer_types=["full_attention"] * 3),
        r"model.layers.2.\S+ .*are not in model-0",
    ),
    "tokenizer of another model": (with_a_small_vocabulary, r"label 'no' is token \d+, but lm_head.weight .* 100 rows"),
    "tied in name only": (
        patched(tie_word_embeddings=True),
        r"model.embed_tokens.weight and lm_head.weight .* differ, but tie_word_embeddings",
    ),
    "quantised": (patched(quantization_config={"quant_method": "gptq"}), r"quantised \(gptq\)"),
    "capped logits": (patched(final_logit_softcapping=30.0), "final_logit_softcapping = 30.0"),
    "no causal model": (patched(architectures=["Qwen3VLForConditionalGeneration"]), "Only causal language models"),
    "unknown to transformers": (patched(model_type="granite"), "transformers has no sequence classifier"),
}


@pytest.fixture(scope="module")
def several_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharded(tmp_path_factory.mktemp("models") / "qwen3-reranker-untied")


@pytest.mark.parametrize("name", DAMAGE)
def test_a_broken_model_is_named_with_the_cure(name: str, several_files: Path, tmp_path: Path) -> None:
    folder = tmp_path / several_files.name
    folder.mkdir()
    for file in several_files.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    damage, message = DAMAGE[name]
    damage(folder)
    with pytest.raises(ValueError, match=message):
        convert(folder, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": ["no", "yes indeed"]}, r"'yes indeed' .* is not one token of .* \(it is split into \['yes', "),
        ({"labels": ["yes", "yes"]}, "two different tokens"),
        ({"labels": ["a", "b", "c"]}, "two different tokens"),
        ({"method": "no_post_processing"}, r"takes one label, the positive one, but got \('no', 'yes'\)"),
        ({"method": "from_2_way_softmax", "labels": ["yes"]}, r"takes two labels, negative and positive, but got"),
        ({"method": "softmax"}, "method must be one of from_2_way_softmax, no_post_processing, but got 'softmax'"),
        ({"recipe": ModelRecipe(family="m0", labels=("yes",), shift=2.6)}, "cannot be a score head"),
        ({"recipe": "qwen4"}, "'qwen4' is not a family"),
        ({"template": "{{ query }}\n"}, "places the document 0 times"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str, qwen: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        convert(qwen, tmp_path / "out", **settings)
    assert not list(tmp_path.iterdir())


def test_a_conversion_that_scores_otherwise_is_thrown_away(
    qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = module.score_head
    monkeypatch.setattr(module, "score_head", lambda *given: original(*given) + np.float32(1e-3))
    with pytest.raises(ValueError, match=r"gives other scores than .* a logit differs by .* Nothing was written"):
        convert(qwen, tmp_path / "out", verify=True)
    assert not list(tmp_path.iterdir())
