"""Config.json against the weights: faults that are found before anything is loaded, and families without any."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tokenizers import AddedToken, Tokenizer
from transformers import AutoModelForCausalLM

from tiny_families import FAMILIES, build_qwen3_seq_cls, patch_config
from winnow import ModelRecipe, Reranker
from winnow.cli.doctor import examine
from winnow.convert.conversion import convert
from winnow.engines import Engine
from winnow.engines.choose import create_engine
from winnow.errors import ConfigurationError, EngineLoadError, ModelError
from winnow.models.checkpoint import open_checkpoint
from winnow.models.weight_files import INDEX
from winnow.models.weights import check_weights, faults_of


@pytest.fixture
def causal(tiny_model: str, tmp_path: Path) -> Path:
    """A causal reranker with tied embeddings, to be broken."""
    return Path(shutil.copytree(tiny_model, tmp_path / "qwen3-reranker-tiny"))


@pytest.fixture(scope="module")
def whole_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_qwen3_seq_cls(tmp_path_factory.mktemp("models") / "qwen3-reranker-seq-cls")


@pytest.fixture
def head(whole_head: Path, tmp_path: Path) -> Path:
    """A reranker with a score head, to be broken."""
    return Path(shutil.copytree(whole_head, tmp_path / whole_head.name))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    change(weights)
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def untie(folder: Path) -> None:
    patch_config(folder, tie_word_embeddings=False)


def untie_silently(folder: Path) -> None:
    patch_config(folder, tie_word_embeddings=None)  # Qwen3's default is False


def shrink(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(100)
    model.save_pretrained(folder)


def add_token(folder: Path, **flags: Any) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("<extra>", **flags)])
    tokenizer.save(str(folder / "tokenizer.json"))


def add_a_piece(folder: Path) -> None:
    """A token that text is split into, as in a tokenizer that was trained anew."""
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    vocabulary, added = state["model"]["vocab"], state["added_tokens"]
    size = max([*vocabulary.values(), *(token["id"] for token in added)]) + 1
    vocabulary["zqzq"] = size
    path.write_text(json.dumps(state))


def without_head(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.pop("score.weight"))


def two_rows(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.update({"score.weight": torch.zeros(2, 64)}))


UNTIED = r"tie_word_embeddings is false\), but there is no lm_head in the weights: scores would come from random"
CAUSAL: dict[str, tuple[Callable[[Path], Any], str]] = {
    "untied without lm_head": (untie, UNTIED),
    "untied by default without lm_head": (untie_silently, UNTIED),
    "label beyond the embedding": (shrink, r"label 'no' is token \d+, but \S+ of \S+ has 100 rows"),
    "another vocabulary": (
        lambda folder: patch_config(folder, vocab_size=999),
        r"says that its vocabulary has 999 tokens, but model.embed_tokens.weight has \d+ rows",
    ),
    "tokenizer beyond the embedding": (add_a_piece, r"can hold token \d+ of the tokenizer of \S+, but model.embed_tok"),
}
HEADS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no score head": (without_head, "Qwen3ForSequenceClassification, but there is no score head in the weights"),
    "two labels": (two_rows, r"says that it has 1 label, but score.weight has 2 rows"),
}


def start(folder: Path, engine: str) -> None:
    url = "http://127.0.0.1:9" if engine == "server" else None
    with Reranker(str(folder), engine=engine, url=url).start():
        pass


@pytest.mark.parametrize("engine", ["vllm", "transformers", "server"])
@pytest.mark.parametrize("fault", [*CAUSAL, *HEADS])
def test_every_engine_refuses_weights_that_config_json_does_not_describe(
    fault: str, engine: str, request: pytest.FixtureRequest
) -> None:
    if engine == "vllm":
        request.getfixturevalue("needs_vllm")
    folder = request.getfixturevalue("causal" if fault in CAUSAL else "head")
    damage, message = (CAUSAL | HEADS)[fault]
    damage(folder)
    with pytest.raises(ModelError, match=message):
        start(folder, engine)


@pytest.mark.parametrize("fault", [*CAUSAL, *HEADS])
def test_doctor_says_so(fault: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue("causal" if fault in CAUSAL else "head")
    assert examine(str(folder)).verdict == "ready"
    damage, message = (CAUSAL | HEADS)[fault]
    damage(folder)
    found = examine(str(folder))
    assert found.verdict.startswith("not usable as it is")
    with pytest.raises(ModelError, match=message):
        raise ModelError("\n".join(found.problems))


@pytest.mark.parametrize("fault", CAUSAL)
def test_convert_says_so(fault: str, causal: Path, tmp_path: Path) -> None:
    damage, message = CAUSAL[fault]
    damage(causal)
    with pytest.raises(ModelError, match=message):
        convert(causal, tmp_path / "out")


def test_doctor_finds_a_template_token_beyond_the_embedding(causal: Path, tmp_path: Path) -> None:
    add_token(causal)
    assert examine(str(causal)).problems == [], "no text can hold a control token, so the model is sound"
    found = examine(str(causal), template="<extra>{{ query }}{{ document }}")
    assert len(found.problems) == 1
    assert "but model.embed_tokens.weight has" in found.problems[0]


def test_the_index_alone_shows_that_lm_head_is_missing(causal: Path) -> None:
    """As in the cache of a Hub model whose weights are not downloaded yet, or beside a server."""
    names = dict.fromkeys(safetensors.torch.load_file(causal / "model.safetensors"), "model-00001-of-00002.safetensors")
    (causal / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (causal / "model.safetensors").unlink()
    assert faults_of(open_checkpoint(str(causal))) == []
    untie(causal)
    [fault] = faults_of(open_checkpoint(str(causal)))
    assert "no lm_head in the weights" in fault
    assert examine(str(causal)).problems == [fault]


def test_small_files_alone_are_no_fault(causal: Path) -> None:
    (causal / "model.safetensors").unlink()
    assert examine(str(causal)).verdict == "ready"
    check_weights(open_checkpoint(str(causal)), required=False)


def test_the_way_out_of_the_message_works(causal: Path) -> None:
    def scores(**engine_kwargs: Any) -> list[float]:
        with Reranker(str(causal), engine="transformers", engine_kwargs=engine_kwargs) as reranker:
            return reranker.score("capital of China?", ["Beijing", "Paris"])

    expected = scores()
    untie(causal)
    assert scores(hf_overrides={"tie_word_embeddings": True}) == expected


def test_transformers_names_the_flag_where_weights_are_pickled(causal: Path) -> None:
    """Names in a pickle are not looked at before it is loaded."""
    weights = safetensors.torch.load_file(causal / "model.safetensors")
    torch.save(weights, causal / "pytorch_model.bin")
    (causal / "model.safetensors").unlink()
    untie(causal)
    with pytest.raises(EngineLoadError, match=r"lm_head.weight are missing. .*tie_word_embeddings is false") as failed:
        start(causal, "transformers")
    assert "trust_remote_code" not in str(failed.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_has_a_fault(name: str, tmp_path: Path) -> None:
    folder = FAMILIES[name](tmp_path / name)
    recipe: Any = None
    if name == "judge":
        recipe = ModelRecipe(family="judge", labels=("Bad", "Good"))
    assert faults_of(open_checkpoint(str(folder), recipe=recipe)) == []


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_vllm_takes_no_enable_lora(causal: Path, needs_vllm: None) -> None:
    def made(enabled: bool) -> Engine:
        return create_engine(Reranker(str(causal), engine="vllm", engine_kwargs={"enable_lora": enabled}))

    with pytest.raises(ConfigurationError, match=r"enable_lora: .* Name the adapter as the model"):
        made(True)
    assert made(False).name == "vllm"
