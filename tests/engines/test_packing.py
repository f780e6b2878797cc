"""The transformers engine computes what prompts begin with in common once, where that is exact, and nowhere else."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tiny_families import build_nemotron, build_qwen3_seq_cls, judge
from winnow import ModelRecipe, Reranker
from winnow.engines.transformers import TransformersEngine, packing
from winnow.models.checkpoint import open_checkpoint

JUDGE = ModelRecipe(family="judge", labels=("Bad", "Good"))
TEMPLATE = "Question: {{ query }}\nAnswer: {{ document }}\nVerdict: "
QUERIES = [
    "what is the capital of China, and why is it not Shanghai, which has more people and is nearer to the sea?",
    "what is the capital of China, and since when has it been in the north, where winters are cold and dry?",
    "tides",
]
DOCUMENTS = [
    "Beijing is the capital of China.",
    "Beijing",
    "The tide falls twice a day. " * 12,
    "naïve café 日本語 🙂",
    "Rice grows in the south. " * 16,
]
# Causal models whose own code changes the logits, or that have other kinds of layers.
PACKED: dict[str, dict[str, Any]] = {
    "Qwen3": {},
    "Qwen2": {"tie_word_embeddings": False},
    "Llama": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    "Gemma": {"head_dim": 16},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 4.0},
    "Phi": {"tie_word_embeddings": False},
}
PLAIN: dict[str, dict[str, Any]] = {
    "Gemma2": {"final_logit_softcapping": 1.0, "query_pre_attn_scalar": 32, "sliding_window": 16},
    "Mistral": {"sliding_window": 16},
    "Llama": {
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
        "max_position_embeddings": 512,
    },
    "Rwkv": {"attention_hidden_size": 64, "context_length": 512},
}


def ids_of(folder: Path, query: str, document: str) -> torch.Tensor:
    prompt = f"Question: {query}\nAnswer: {document}\nVerdict: "
    ids: torch.Tensor = AutoTokenizer.from_pretrained(folder)(prompt, return_tensors="pt")["input_ids"]
    return ids


def by_hand(folder: Path) -> list[list[float]]:
    """The logits of all pairs, each prompt alone, as transformers computes it."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    good, bad = tokenizer.convert_tokens_to_ids(["Good", "Bad"])
    with torch.inference_mode():
        found = [[model(ids_of(folder, query, one)).logits[0, -1] for one in DOCUMENTS] for query in QUERIES]
    return [[(one[good] - one[bad]).item() for one in each] for each in found]


class Counted:
    """A reranker on the transformers engine, and how many tokens its model computed."""

    def __init__(self, folder: Path, **settings: Any):
        kwargs = {"device": "cpu", **settings.pop("engine_kwargs", {})}
        self.engine = TransformersEngine(open_checkpoint(str(folder), recipe=settings.get("recipe")), kwargs)
        self.reranker = Reranker(str(folder), engine=self.engine, template=TEMPLATE, **settings).start()
        self.computed = 0
        embedding = self.engine._forward.model.get_input_embeddings()
        embedding.register_forward_hook(self._count)

    def _count(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...], __: torch.Tensor) -> None:
        self.computed += inputs[0].numel()

    def logits(self, query: str, documents: list[str] = DOCUMENTS) -> list[float]:
        """The logits of documents; and what the stats say about tokens is right."""
        self.computed = 0
        ranking = self.reranker.rank(query, documents)
        if self.packs:
            assert ranking.stats.prompt_tokens - ranking.stats.cached_tokens == self.computed
        else:
            assert ranking.stats.cached_tokens == 0
        return [hit.logit for hit in sorted(ranking, key=lambda hit: hit.index)]

    @property
    def packs(self) -> bool:
        return self.engine._forward._packed is not None

    def close(self) -> None:
        self.reranker.close()


@pytest.mark.parametrize("kind", PACKED)
def test_what_prompts_begin_with_is_computed_once(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = judge(tmp_path / "judge", kind, **PACKED[kind])
    expected = by_hand(folder)
    assert max(expected[0]) - min(expected[0]) > 0.01
    monkeypatch.setattr(packing, "_LARGEST_MASK", 9000)  # so that a prompt here is too long for one
    counted = Counted(folder, recipe=JUDGE)
    assert counted.packs
    begin = ids_of(folder, QUERIES[0], "").shape[1] - 8
    for _ in range(2):  # then the beginning that is kept is another query's
        for query, logits in zip(QUERIES, expected, strict=True):
            assert counted.logits(query) == pytest.approx(logits, abs=1e-5)
    whole = sum(ids_of(folder, QUERIES[0], one).shape[1] for one in DOCUMENTS)
    counted.logits(QUERIES[0])
    assert counted.computed < whole - 3 * begin
    counted.logits(QUERIES[0])
    assert counted.computed < whole - 4 * begin  # nor again in the next call
    assert counted.logits(QUERIES[0], DOCUMENTS[:1]) == pytest.approx(expected[0][:1], abs=1e-5)
    counted.close()


def test_a_score_head_reads_the_last_token_of_each_packed_prompt(tmp_path: Path) -> None:
    folder = build_qwen3_seq_cls(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    counted = Counted(folder, recipe=ModelRecipe(family="mine"))
    assert counted.packs
    for query in QUERIES:
        with torch.inference_mode():
            expected = [model(ids_of(folder, query, one)).logits.item() for one in DOCUMENTS]
        assert counted.logits(query) == pytest.approx(expected, abs=1e-5)
    counted.close()


@pytest.mark.filterwarnings("ignore::UserWarning")  # of transformers: RWKV without its CUDA kernel
@pytest.mark.parametrize("kind", PLAIN)
def test_other_attention_is_not_packed(tmp_path: Path, kind: str) -> None:
    folder = judge(tmp_path / "judge", kind, **PLAIN[kind])
    expected = by_hand(folder)
    counted = Counted(folder, recipe=JUDGE)
    assert not counted.packs
    for query, logits in zip(QUERIES, expected, strict=True):
        assert counted.logits(query) == pytest.approx(logits, abs=1e-5)
    counted.close()


def test_a_model_that_reads_both_ways_is_not_packed(tmp_path: Path) -> None:
    counted = Counted(build_nemotron(tmp_path / "model"))
    assert not counted.packs
    counted.close()


def test_the_users_own_attention_is_kept(tmp_path: Path) -> None:
    folder = judge(tmp_path / "judge")
    counted = Counted(folder, recipe=JUDGE, engine_kwargs={"attn_implementation": "eager"})
    assert not counted.packs
    assert counted.logits(QUERIES[0]) == pytest.approx(by_hand(folder)[0], abs=1e-5)
    counted.close()


def test_a_model_whose_scores_change_when_packed_is_not_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first prompts tell, whatever the configuration says."""
    folder = judge(tmp_path / "judge", "Mistral", sliding_window=16)
    monkeypatch.setattr("winnow.engines.transformers.forward.may_pack", lambda _: True)
    with caplog.at_level(logging.DEBUG, "winnow"):
        counted = Counted(folder, recipe=JUDGE)
    assert not counted.packs
    assert "does not take packed prompts" in caplog.text  # the attention is told of the window
    counted.close()
