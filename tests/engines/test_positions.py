"""The longest prompt that a model takes is asked of the model: a document that is too long is cut, and scored."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny_families
from winnow import Document, ModelRecipe, Reranker
from winnow.models.checkpoint import open_checkpoint

HEAD = ModelRecipe(family="head")
# Architecture, how many of its positions are before the first token, and what its config calls them.
KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "MPNet": (2, {"max_position_embeddings": 66}),
    "Roberta": (2, {"max_position_embeddings": 66, "type_vocab_size": 1}),
    "Data2VecText": (2, {"max_position_embeddings": 66}),
    "Bert": (0, {"max_position_embeddings": 64, "type_vocab_size": 2}),
    "GPT2": (0, {"max_position_embeddings": 64, "n_embd": 64, "n_layer": 2, "n_head": 2}),
}


def build(folder: Path, kind: str) -> Path:
    tokenizer = tiny_families.roberta_like()  # "<pad>" is 1
    fields = {**tiny_families.ENCODER, **KINDS[kind][1], "pad_token_id": 1}
    size = tiny_families.save_tokenizer(tokenizer, folder, "PreTrainedTokenizerFast", pad_token="<pad>")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["model_max_length"]  # many folders name none, or a wrong one
    path.write_text(json.dumps(settings))
    config = getattr(transformers, f"{kind}Config")(**{**fields, "vocab_size": size})
    torch.manual_seed(0)
    return tiny_families.save_model(getattr(transformers, f"{kind}ForSequenceClassification")(config), folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_document_is_cut_to_the_positions_of_the_model(kind: str, tmp_path: Path) -> None:
    folder = build(tmp_path / "model", kind)
    assert open_checkpoint(str(folder), recipe=HEAD).max_length == 64
    with Reranker(str(folder), recipe=HEAD, engine="transformers") as reranker:
        [hit] = reranker.rank("who?", [Document("the tide falls " * 99)])
    assert hit.truncated


@pytest.mark.parametrize(("said", "length"), [(32, 32), (512, 64), (None, 64)])
def test_the_length_that_sentence_transformers_saved_is_a_limit_too(
    said: int | None, length: int, tmp_path: Path
) -> None:
    folder = build(tmp_path / "model", "Bert")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": said}))
    assert open_checkpoint(str(folder), recipe=HEAD).max_length == length


def test_what_config_leaves_out_is_the_default_of_its_class(tmp_path: Path) -> None:
    folder = tiny_families.patch_config(build(tmp_path / "model", "GPT2"), n_positions=None)
    assert open_checkpoint(str(folder), recipe=HEAD).max_length == transformers.GPT2Config().n_positions


def test_code_of_the_folder_is_read_and_not_run(tmp_path: Path) -> None:
    folder = tiny_families.patch_config(build(tmp_path / "model", "MPNet"), model_type="mine")
    (folder / "modeling_mine.py").write_text("raise SystemExit('run')\ncreate_position_ids_from_input_ids\n")
    assert open_checkpoint(str(folder), recipe=HEAD).max_length == 64
