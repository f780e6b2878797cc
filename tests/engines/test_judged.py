"""One token of a prompt is judged, the same one on every engine, whatever the padding token is."""

from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tiny_families
from winnow import ModelRecipe, Reranker
from winnow.cli.doctor import examine

QUERY = "what is the capital of China?"
DOCUMENTS = ["Beijing is the capital of China.", "x", "The tide falls twice a day. " * 12, "naïve café 日本語 🙂!"]
RECIPE = ModelRecipe(family="mine")
TEMPLATE = "Question: {{ query }}\nAnswer: {{ document }}<|im_end|>"


def classifier(folder: Path, pad_token: str | None, kind: str = "Qwen3") -> Path:
    """A causal model with a score head, as published."""
    tokenizer = tiny_families.qwen_like()
    size = tiny_families.save_tokenizer(
        tokenizer, folder, "Qwen2Tokenizer", eos_token="<|im_end|>", pad_token=pad_token
    )
    pad = None if pad_token is None else tokenizer.token_to_id(pad_token)
    torch.manual_seed(0)
    fields = {**tiny_families.DECODER, "vocab_size": size, "num_labels": 1, "pad_token_id": pad}
    if kind == "GPT2":
        fields = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": size, "num_labels": 1, "pad_token_id": pad}
        fields |= {"bos_token_id": None, "eos_token_id": None, "initializer_range": 0.08}
    config = getattr(transformers, f"{kind}Config")(**fields)
    return tiny_families.save_model(getattr(transformers, f"{kind}ForSequenceClassification")(config), folder)


def reference(folder: Path, documents: list[str]) -> list[float]:
    """transformers' own classifier on the whole text, one prompt at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    texts = [f"Question: {QUERY}\nAnswer: {document}<|im_end|>" for document in documents]
    with torch.inference_mode():
        return [model(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts]


def logits(folder: Path, engine: str) -> list[float]:
    with Reranker(str(folder), engine=engine, recipe=RECIPE, template=TEMPLATE) as reranker:
        return [hit.logit for hit in sorted(reranker.rank(QUERY, DOCUMENTS), key=lambda hit: hit.index)]


@pytest.mark.parametrize("pad_token", ["<|im_end|>", "<|endoftext|>", None])
@pytest.mark.parametrize("kind", ["Qwen3", "GPT2"])
def test_transformers_judges_what_its_classifier_judges(tmp_path: Path, kind: str, pad_token: str | None) -> None:
    folder = classifier(tmp_path, pad_token, kind)
    assert logits(folder, "transformers") == pytest.approx(reference(folder, DOCUMENTS), abs=1e-4)


def test_vllm_judges_the_same_token_though_the_template_ends_in_padding(
    tmp_path: Path, needs_vllm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    folder = classifier(tmp_path, "<|im_end|>")
    expected = reference(folder, DOCUMENTS)
    assert max(expected) - min(expected) > 0.05
    assert logits(folder, "vllm") == pytest.approx(expected, abs=1e-4)


def test_doctor_shows_which_token_is_judged(tmp_path: Path) -> None:
    found = examine(str(classifier(tmp_path, "<|im_end|>")), recipe=RECIPE, template=TEMPLATE, document="It is 7")
    assert not found.problems
    assert found.judged == "7"
    assert [warning for warning in found.warnings if "The prompt ends with '<|im_end|>', which is padding" in warning]
    assert examine(str(classifier(tmp_path / "other", None)), recipe=RECIPE, template=TEMPLATE).judged == "<|im_end|>"
