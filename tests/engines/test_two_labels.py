"""Score heads with two labels, on every engine: the logit is the positive label's less the other's."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from vllm_servers import API_KEY, VllmServer

from tiny_families import FAMILIES, save_model
from winnow import ModelRecipe, Reranker
from winnow.errors import ModelError

pytestmark = pytest.mark.slow

QUERY = "what is the capital of China?"
DOCUMENTS = ["Beijing is the capital of China.", "Bread rises.", "x", "The tide falls twice a day. " * 12]
RECIPE = ModelRecipe(family="mine", positive_label="relevant")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An XLM-RoBERTa with two labels, the positive one first."""
    folder = FAMILIES["bge-reranker-v2-m3"](tmp_path_factory.mktemp("models") / "two-labels")
    names = {0: "relevant", 1: "irrelevant"}
    config = transformers.AutoConfig.from_pretrained(
        folder, id2label=names, label2id={name: index for index, name in names.items()}
    )
    torch.manual_seed(0)
    return save_model(transformers.XLMRobertaForSequenceClassification(config), folder)


@pytest.fixture(scope="module")
def expected(model: Path) -> list[float]:
    """As transformers computes it, a pair at a time; `softmax` of the two is the sigmoid of this."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(model)
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        outputs = [classifier(**tokenizer(QUERY, text, return_tensors="pt")).logits[0] for text in DOCUMENTS]
    logits = [(output[0] - output[1]).item() for output in outputs]
    assert max(logits) - min(logits) > 0.01
    shares = [torch.softmax(output, 0)[0].item() for output in outputs]
    assert torch.sigmoid(torch.tensor(logits)).tolist() == pytest.approx(shares, abs=1e-6)
    return logits


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    pytest.importorskip("vllm")
    running = VllmServer(str(model), tmp_path_factory.mktemp("server") / "log", RECIPE)
    yield running
    running.kill()


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_the_difference_is_the_logit(
    engine: str, model: Path, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "vllm":
        pytest.importorskip("vllm")
        monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    with Reranker(str(model), engine=engine, recipe=RECIPE, raw_scores=True) as reranker:
        assert reranker.score(QUERY, DOCUMENTS) == pytest.approx(expected, abs=1e-5)


def test_the_difference_is_the_logit_of_a_server(model: Path, expected: list[float], server: VllmServer) -> None:
    server.wait_until_up()
    with Reranker(
        str(model), engine="server", url=server.url, api_key=API_KEY, recipe=RECIPE, raw_scores=True
    ) as reranker:
        assert reranker.score(QUERY, DOCUMENTS) == pytest.approx(expected, abs=1e-5)


def test_the_negative_label_in_its_place_turns_the_order_around(model: Path, expected: list[float]) -> None:
    recipe = ModelRecipe(family="mine", positive_label=1)
    with Reranker(str(model), engine="transformers", recipe=recipe, raw_scores=True) as reranker:
        assert reranker.score(QUERY, DOCUMENTS) == pytest.approx([-logit for logit in expected], abs=1e-5)


def test_without_it_the_model_is_refused_with_the_labels(model: Path) -> None:
    with pytest.raises(ModelError, match=r"2 labels, 0 \('relevant'\) and 1 \('irrelevant'\).*positive_label="):
        Reranker(str(model), engine="transformers").start()
