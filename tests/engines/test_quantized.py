"""Checkpoints with quantised weights: what they compute in is not Winnow's choice."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tiny_families import FAMILIES, patch_config
from winnow import Reranker, RerankerConfig
from winnow.engines.choose import create_engine

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def chosen_by_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data type is not the one that tests set elsewhere."""
    monkeypatch.delenv("WINNOW_DTYPE")


QUERY = "what is the capital of China?"
DOCUMENTS = ["Beijing is the capital", "Bread rises.", "a b c " * 40]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reranker with weights and activations of 8 bits, as llm-compressor saves it (W8A8 of compressed-tensors)."""
    folder = FAMILIES["zerank-2"](tmp_path_factory.mktemp("models") / "zerank-2")
    tensors = {}
    for name, weight in safetensors.torch.load_file(folder / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            scale = weight.abs().amax(1, keepdim=True) / 127
            tensors[name] = (weight / scale).round().clamp(-127, 127).to(torch.int8)
            tensors[f"{name}_scale"] = scale.to(torch.bfloat16)
        else:
            tensors[name] = weight.to(torch.bfloat16)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    eight: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**eight, "strategy": "channel", "dynamic": False},
        "input_activations": {**eight, "strategy": "token", "dynamic": True},
    }
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "score"],
    }
    return patch_config(folder, dtype="bfloat16", quantization_config=quantization)


def test_the_dtype_is_left_to_vllm(model: Path, tiny_model: str) -> None:
    pytest.importorskip("vllm")
    from vllm.platforms import current_platform

    def dtype(folder: str, **engine_kwargs: Any) -> str:
        engine: Any = create_engine(RerankerConfig(folder, engine="vllm", engine_kwargs=engine_kwargs))
        return str(engine._engine_args.dtype)

    assert dtype(str(model)) == "auto"
    assert dtype(str(model), dtype="bfloat16") == "bfloat16"
    assert dtype(tiny_model, quantization="fp8") == "auto"
    assert dtype(tiny_model) == ("float32" if current_platform.is_cpu() else "auto")


def test_scores_of_eight_bits(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    pytest.importorskip("compressed_tensors")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    with Reranker(str(model), engine="transformers", raw_scores=True) as reranker:
        expected = reranker.score(QUERY, DOCUMENTS)
    assert max(expected) - min(expected) > 0.05
    with Reranker(str(model), engine="vllm", raw_scores=True) as reranker:
        assert reranker.score(QUERY, DOCUMENTS) == pytest.approx(expected, abs=0.01)  # in bfloat16
