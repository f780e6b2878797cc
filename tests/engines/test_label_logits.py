"""Judges whose labels vLLM would score otherwise than the model does: it is not asked to."""

import re
from pathlib import Path
from typing import Any

import pytest

from tiny_families import judge
from winnow import ModelRecipe, Reranker
from winnow.cli.doctor import examine
from winnow.engines.choose import create_engine
from winnow.errors import ModelError

JUDGE = ModelRecipe(family="judge", labels=("Bad", "Good"))
TEMPLATE = "Question: {{ query }}\nAnswer: {{ document }}\nVerdict: "
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "GPTNeoX": ({"tie_word_embeddings": False}, "vLLM looks for the labels in lm_head, which .* under another name"),
    "Bloom": ({}, "vLLM looks for the labels in embed_tokens, which .* another name"),
    "Phi": ({"tie_word_embeddings": False}, "vLLM leaves out the bias of the output embedding"),
    "Gemma2": ({"final_logit_softcapping": 1.0}, r"does not change the logits .*\(final_logit_softcapping = 1.0 in"),
    "Cohere": ({}, r"does not change the logits .*\(logit_scale = 0.0625 in"),  # its class says so
}


@pytest.mark.parametrize("kind", KINDS)
def test_labels_that_vllm_scores_otherwise_go_to_transformers(kind: str, tmp_path: Path, needs_vllm: None) -> None:
    fields, reason = KINDS[kind]
    folder = str(judge(tmp_path / "judge", kind, **fields))
    for engine, url in (("vllm", None), ("server", "http://127.0.0.1:9")):
        reranker = Reranker(folder, engine=engine, url=url, recipe=JUDGE, template=TEMPLATE)
        with reranker, pytest.raises(ModelError, match=f'{reason}.*Use engine="transformers"'):
            reranker.start()
    assert create_engine(Reranker(folder, recipe=JUDGE)).name == "transformers"
    found = examine(folder, recipe=JUDGE, template=TEMPLATE)
    assert found.problems == []
    assert found.serve is None
    assert any(re.search(reason, warning) for warning in found.warnings)
