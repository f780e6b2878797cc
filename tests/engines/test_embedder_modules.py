"""A classifier that was made of an embedder, with the embedder's modules.json still beside it."""

import json
from pathlib import Path

import pytest

from tiny_families import FAMILIES
from winnow import Reranker

pytestmark = pytest.mark.slow

QUERY = "what is the capital of China?"
DOCUMENTS = ["Beijing is the capital of China.", "Bread rises.", "x", "The tide falls twice a day. " * 12]


def test_its_pooling_is_not_the_classifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM would take the mean of all tokens, as the embedder does, where the classifier takes the first token."""
    pytest.importorskip("vllm")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    model = FAMILIES["ms-marco-minilm-l6-v2"](tmp_path / "model")
    with Reranker(str(model), engine="transformers", raw_scores=True) as reranker:
        expected = reranker.score(QUERY, DOCUMENTS)
    assert max(expected) - min(expected) > 0.01
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    (model / "modules.json").write_text(
        json.dumps([{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}])
    )
    for engine in ("transformers", "vllm"):
        with Reranker(str(model), engine=engine, raw_scores=True) as reranker:
            assert reranker.score(QUERY, DOCUMENTS) == pytest.approx(expected, abs=1e-4), engine
