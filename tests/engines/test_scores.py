"""Real engines: vLLM's scores are transformers' scores are the formula by hand."""

import asyncio
import logging
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_children import command_line, engine_cores

from winnow import ConfigurationError, Reranker, RerankerConfig
from winnow.engines.choose import create_engine

pytestmark = pytest.mark.slow

QUERY = "what is the capital of China?"
INSTRUCTION = "Given a question, retrieve passages that answer it"


def by_hand(model: str, query: str, document: str, instruction: str) -> float:
    """The model card's computation, without a line of Winnow: sigmoid(logit_yes − logit_no) of the last position."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    causal = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    prompt = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    with torch.inference_mode():
        logits = causal(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
    yes, no = (tokenizer.convert_tokens_to_ids(label) for label in ("yes", "no"))
    return torch.sigmoid(logits[yes] - logits[no]).item()


@pytest.fixture(scope="module")
def reference(tiny_model: str) -> Reranker:
    return Reranker(tiny_model, engine="transformers", instruction=INSTRUCTION)


def test_transformers_gives_the_formula_by_hand(reference: Reranker, tiny_model: str, passages: list[str]) -> None:
    scores = reference.score(QUERY, passages[:6])
    expected = [by_hand(tiny_model, QUERY, passage, INSTRUCTION) for passage in passages[:6]]
    assert scores == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 3) for score in scores}) > 3  # the model tells them apart


def test_vllm_gives_the_scores_of_transformers(reference: Reranker, vllm_model: str, passages: list[str]) -> None:
    documents = [*passages, "short", " ".join(passages), "é🙂 日本\n\n" * 20]
    with Reranker(vllm_model, engine="vllm", instruction=INSTRUCTION) as reranker:
        found, expected = (ranker.rank(QUERY, documents) for ranker in (reranker, reference))
    logits = [{hit.index: hit.logit for hit in ranking} for ranking in (found, expected)]
    assert logits[0] == pytest.approx(logits[1], abs=1e-4)
    assert [hit.score for hit in found] == pytest.approx([1 / (1 + math.exp(-hit.logit)) for hit in found])
    assert found.stats.prompt_tokens == expected.stats.prompt_tokens


@pytest.mark.parametrize(
    ("setting", "cores", "workers"), [("data_parallel_size", 2, 2), ("tensor_parallel_size", 1, 2)]
)
def test_a_model_that_runs_twice_or_is_split_gives_the_same_scores(
    setting: str, cores: int, workers: int, reference: Reranker, tiny_model: str, passages: list[str]
) -> None:
    of_others = engine_cores()
    with Reranker(tiny_model, engine="vllm", instruction=INSTRUCTION, engine_kwargs={setting: 2}) as reranker:
        scores = reranker.score(QUERY, passages)
        names = [command_line(process) for process in engine_cores() - of_others]
    assert scores == pytest.approx(reference.score(QUERY, passages), abs=1e-4)
    assert sum("EngineCore" in name for name in names) == cores
    assert sum("Worker" in name for name in names) == workers


def test_the_instruction_changes_the_score(vllm_model: str, passages: list[str]) -> None:
    with Reranker(vllm_model, engine="vllm") as reranker:
        default = reranker.score(QUERY, passages)
        spelled_out = "Given a web search query, retrieve relevant passages that answer the query"
        assert reranker.score(QUERY, passages, instruction=spelled_out) == pytest.approx(default, abs=1e-5)
        other = reranker.score(QUERY, passages, instruction="Find recipes for bread")
        assert max(abs(a - b) for a, b in zip(default, other, strict=True)) > 1e-3


def test_callers_from_threads_and_loops_get_the_scores_of_a_lone_caller(vllm_model: str, passages: list[str]) -> None:
    queries = [f"question number {number} about {passages[number][:20]}" for number in range(12)]
    with Reranker(vllm_model, engine="vllm") as reranker:
        alone = [reranker.score(query, passages) for query in queries]

        async def together(some: list[str]) -> list[list[float]]:
            return await asyncio.gather(*(reranker.ascore(query, passages) for query in some))

        with ThreadPoolExecutor(8) as threads:
            from_threads = list(threads.map(lambda query: reranker.score(query, passages), queries))
            from_loops = list(threads.map(lambda some: asyncio.run(together(some)), [queries[:6], queries[6:]]))
        many = reranker.rank_many([(query, passages) for query in queries])
    flat = [scores for part in from_loops for scores in part]
    from_many = [[hit.score for hit in sorted(ranking, key=lambda hit: hit.index)] for ranking in many]
    for other in (from_threads, flat, from_many):
        for scores, expected in zip(other, alone, strict=True):
            assert scores == pytest.approx(expected, abs=1e-5)


def test_the_shared_prefix_is_computed_once(vllm_model: str, passages: list[str]) -> None:
    # vLLM's cache holds whole blocks, of 128 tokens on a CPU.
    instruction = "Given a question, retrieve passages that answer it, and nothing else but such passages. " * 12
    with Reranker(vllm_model, engine="vllm", instruction=instruction) as reranker:
        stats = reranker.rank(QUERY, passages).stats
    assert stats.cached_tokens >= 128 * (len(passages) - 1)


def test_long_documents_are_cut_and_the_verdict_stays(vllm_model: str, reference: Reranker) -> None:
    long = "Beijing is the capital of China. " * 500
    with Reranker(vllm_model, engine="vllm") as reranker:
        whole = reranker.rank(QUERY, [long, "short"], instruction=INSTRUCTION)
    [hit] = [hit for hit in whole if hit.index == 0]
    assert hit.truncated
    assert whole.stats.truncated == 1
    assert 800 < hit.document_tokens < 1024  # the tiny model takes 1024 tokens in all
    expected = reference.rank(QUERY, [long])[0]
    assert hit.logit == pytest.approx(expected.logit, abs=1e-4)


def test_windows_take_the_best_piece(vllm_model: str) -> None:
    long = "Bread rises. " * 300 + "Beijing is the capital of China. " * 30 + "Tides fall. " * 300
    with Reranker(vllm_model, engine="vllm", on_overflow="window", max_document_tokens=200) as reranker:
        [hit] = reranker.rank(QUERY, [long])
        assert hit.windows > 5
        assert not hit.truncated
        cut = Reranker(vllm_model, engine="vllm", max_document_tokens=200).rank(QUERY, [long])[0]
        first = Reranker(
            vllm_model, engine="vllm", on_overflow="window", window_score="first", max_document_tokens=200
        ).rank(QUERY, [long])[0]
        assert hit.logit >= cut.logit
        assert first.logit == pytest.approx(cut.logit, abs=1e-5)
        assert hit.best_window != 0 or hit.logit == pytest.approx(first.logit, abs=1e-5)


def test_raw_scores_are_the_logits(vllm_model: str, passages: list[str]) -> None:
    with Reranker(vllm_model, engine="vllm", raw_scores=True) as raw:
        assert all(hit.score == hit.logit for hit in raw.rank(QUERY, passages))


def test_auto_takes_vllm_and_says_why(vllm_model: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="winnow"):
        engine = create_engine(RerankerConfig(vllm_model))
    assert engine.name == "vllm"
    assert f"engine='auto' takes vllm for {vllm_model}: it is installed and runs here" in caplog.text


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_an_unknown_engine_keyword_names_the_nearest(tiny_model: str, engine: str) -> None:
    wrong = {"vllm": "max_num_seq", "transformers": "devise"}[engine]
    right = {"vllm": "max_num_seqs", "transformers": "device"}[engine]
    with pytest.raises(ConfigurationError, match=f"no '{wrong}'; did you mean '{right}'"):
        Reranker(tiny_model, engine=engine, engine_kwargs={wrong: 1}).start()
