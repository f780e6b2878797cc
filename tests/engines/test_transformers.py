"""What the transformers engine does with batches: heads, precision, padding, memory."""

import asyncio
import json
import logging
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import tiny_families
from tiny_families import judge
from winnow import ModelRecipe, Ranking, Reranker
from winnow.convert.conversion import convert
from winnow.engines import FakeEngine, cpu_dtype
from winnow.engines.transformers.engine import TransformersEngine
from winnow.models.checkpoint import open_checkpoint
from winnow.prompts import Prompt

QUERY = "what is the capital of China?"
DOCUMENTS = ["Beijing is the capital of China.", "x", "The tide falls twice a day. " * 12, "naïve café 日本語 🙂"]
JUDGE = ModelRecipe(family="judge", labels=("Bad", "Good"))
TEMPLATE = "Question: {{ query }}\nAnswer: {{ document }}\nVerdict: "
CAUSAL: dict[str, dict[str, Any]] = {
    "Gemma2": {"final_logit_softcapping": 1.0, "query_pre_attn_scalar": 32},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 4.0},
    "RecurrentGemma": {
        "head_dim": 16,
        "num_key_value_heads": 1,
        "lru_width": 64,
        "attention_window_size": 64,
        "block_types": ("recurrent", "attention"),
    },
    "GPTNeoX": {"tie_word_embeddings": False},  # its output embedding is called embed_out
    "Phi": {"tie_word_embeddings": False},  # and this one's has a bias
    "Rwkv": {"attention_hidden_size": 64, "context_length": 512},
}


def logits(ranking: Ranking) -> list[float]:
    return [hit.logit for hit in sorted(ranking, key=lambda hit: hit.index)]


@pytest.mark.filterwarnings("ignore::UserWarning")  # of transformers: RWKV without its CUDA kernel
@pytest.mark.parametrize("kind", CAUSAL)
def test_batches_score_as_single_prompts_do(tmp_path: Path, kind: str) -> None:
    """Softcapping and scaling of logits are the model's own, and padding does not reach a recurrent state."""
    folder = judge(tmp_path / "judge", kind, **CAUSAL[kind])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    good, bad = tokenizer.convert_tokens_to_ids(["Good", "Bad"])
    expected = []
    for document in DOCUMENTS:
        ids = tokenizer(f"Question: {QUERY}\nAnswer: {document}\nVerdict: ", return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            found = model(ids).logits[0, -1]
        expected.append((found[good] - found[bad]).item())
    assert max(expected) - min(expected) > 0.01
    with Reranker(str(folder), engine="transformers", recipe=JUDGE, template=TEMPLATE) as reranker:
        assert logits(reranker.rank(QUERY, DOCUMENTS)) == pytest.approx(expected, abs=1e-5)


# --- precision --------------------------------------------------------------------------------------------------------

MANY = [f"Passage {number}: the tide falls {number % 17} times, and bread rises." for number in range(200)]


@pytest.fixture(scope="module")
def near_18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 judge whose two logits are near 18, as those of Qwen3-Reranker are."""
    folder = judge(tmp_path_factory.mktemp("near18") / "judge", tie_word_embeddings=False)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(f"Question: {QUERY}\nAnswer: {MANY[0]}\nVerdict: ", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        state = model.model(ids).last_hidden_state[0, -1]
        for label in ("Good", "Bad"):
            row = model.lm_head.weight[tokenizer.convert_tokens_to_ids(label)]
            row += state * ((18 - row @ state) / (state @ state))
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def near_18_converted(near_18: Path) -> Path:
    converted = near_18.with_name("converted")
    convert(near_18, converted, recipe=JUDGE, template=TEMPLATE)
    return converted


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
@pytest.mark.parametrize("form", ["near_18", "near_18_converted"])
def test_bfloat16_tells_documents_apart(
    form: str, engine: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last state is bfloat16, the head is not: it was 68 different scores of 200, 121 with a converted head."""
    if engine == "vllm":
        pytest.importorskip("vllm")
        monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.delenv("WINNOW_DTYPE")
    monkeypatch.setattr(cpu_dtype, "multiplies_bfloat16", lambda: True)  # then bfloat16 is the default on a CPU, too
    settings = {"recipe": JUDGE, "template": TEMPLATE} if form == "near_18" else {"template": TEMPLATE}
    folder = str(request.getfixturevalue(form))
    with Reranker(folder, engine=engine, **settings) as reranker:
        found = logits(reranker.rank(QUERY, MANY))
    with Reranker(folder, engine="transformers", engine_kwargs={"dtype": "float32"}, **settings) as reranker:
        exact = logits(reranker.rank(QUERY, MANY))
    assert len(set(exact)) > 190  # near 18 float32 has steps of 2e-6, so a few are equal by chance
    assert found != exact
    assert len(set(found)) > 190
    assert found == pytest.approx(exact, abs=0.1)


def test_on_a_cpu_that_does_not_multiply_bfloat16_it_is_float32(near_18: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WINNOW_DTYPE")
    monkeypatch.setattr(cpu_dtype, "multiplies_bfloat16", lambda: False)
    scores = []
    for chosen in ({}, {"dtype": "float32"}):
        kwargs = {"device": "cpu", **chosen}
        with Reranker(
            str(near_18), engine="transformers", engine_kwargs=kwargs, recipe=JUDGE, template=TEMPLATE
        ) as made:
            scores.append(made.score(QUERY, MANY[:20]))
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "bfloat16"}, "bfloat16"),  # written by transformers before version 5
        ({"text_config": {"dtype": "bfloat16"}}, "bfloat16"),
        ({"dtype": "float32", "text_config": {"dtype": "bfloat16"}}, "float32"),
        ({"dtype": "float16"}, "float32"),
        ({}, "float32"),
    ],
)
def test_the_type_on_a_cpu_is_that_of_the_checkpoint(
    config: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_dtype, "multiplies_bfloat16", lambda: True)
    assert cpu_dtype.dtype_on_cpu(replace(FakeEngine().checkpoint, config=config)) == expected


def test_a_float32_head_of_a_bfloat16_model_is_not_rounded(near_18_converted: Path) -> None:
    engine = TransformersEngine(open_checkpoint(str(near_18_converted)), {"dtype": "bfloat16"})
    asyncio.run(engine.start())
    saved = load_file(near_18_converted / "model.safetensors")["score.weight"]
    assert saved.dtype == torch.float32
    assert not torch.equal(saved, saved.bfloat16().float())
    assert torch.equal(engine._forward.model.score.weight, saved)
    asyncio.run(engine.aclose())


# --- padding ----------------------------------------------------------------------------------------------------------


def encoder(folder: Path, kind: str, **fields: Any) -> Path:
    size = tiny_families.save_tokenizer(
        tiny_families.bert_like(), folder, "BertTokenizer", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        **{**tiny_families.ENCODER, "vocab_size": size, "pad_token_id": 0, **fields}
    )
    return tiny_families.save_model(getattr(transformers, f"{kind}ForSequenceClassification")(config), folder)


@pytest.mark.parametrize(
    ("kind", "fields", "leaks"),
    [
        ("ConvBert", {"head_ratio": 1, "embedding_size": 64, "conv_kernel_size": 5}, True),
        ("Electra", {"embedding_size": 64}, False),
        ("EuroBert", {"num_key_value_heads": 2, "classifier_pooling": "late"}, False),  # pools the answers of its head
    ],
)
def test_prompts_of_one_length_go_together_where_padding_leaks(
    tmp_path: Path, kind: str, fields: dict[str, Any], leaks: bool, caplog: pytest.LogCaptureFixture
) -> None:
    folder = encoder(tmp_path, kind, **fields)
    model, tokenizer = (auto.from_pretrained(folder) for auto in (AutoModelForSequenceClassification, AutoTokenizer))
    with torch.inference_mode():
        expected = [model.eval()(**tokenizer(QUERY, one, return_tensors="pt")).logits.item() for one in DOCUMENTS]
    with Reranker(str(folder), engine="transformers", recipe=ModelRecipe(family="mine")) as reranker:
        assert logits(reranker.rank(QUERY, DOCUMENTS)) == pytest.approx(expected, abs=1e-4)
        reranker.rank(QUERY, DOCUMENTS[:2])
    assert caplog.text.count("another score when it is padded") == int(leaks)


# --- memory -----------------------------------------------------------------------------------------------------------


def with_limit(engine: TransformersEngine, tokens: int) -> list[int]:
    """Let PyTorch's allocator fail for larger batches; returns the sizes of all that are tried."""
    tried: list[int] = []

    def before(_: torch.nn.Module, __: tuple[()], inputs: dict[str, torch.Tensor]) -> None:
        tried.append(inputs["input_ids"].numel())
        if tried[-1] > tokens:
            torch.empty(1 << 60, dtype=torch.uint8)

    engine._forward.model.register_forward_pre_hook(before, with_kwargs=True)
    return tried


def test_a_batch_that_needs_too_much_memory_is_halved(tiny_model: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = TransformersEngine(open_checkpoint(tiny_model), {})
    prompts = [Prompt([index % 100 + 5 for index in range(length)]) for length in range(20, 60)]

    async def scenario() -> None:
        await engine.start()
        expected = await engine.score(prompts)
        tried = with_limit(engine, 300)
        assert [score.logit for score in await engine.score(prompts)] == pytest.approx(
            [score.logit for score in expected], abs=1e-5
        )
        assert max(tried) > 300
        tried.clear()
        await engine.score(prompts)
        assert max(tried) <= 300  # it remembers
        [short, long] = await engine.score([prompts[0], Prompt([7] * 400)])
        assert short.error is None
        assert math.isnan(long.logit)
        assert "ran out of memory on this prompt of 400 tokens alone" in str(long.error)
        await engine.aclose()

    with caplog.at_level(logging.WARNING, logger="winnow"):
        asyncio.run(scenario())
    assert "ran out of memory. From now on its batches have" in caplog.text


def test_a_token_beyond_the_embedding_is_named(tiny_model: str) -> None:
    engine = TransformersEngine(open_checkpoint(tiny_model), {})
    size = json.loads((Path(tiny_model) / "config.json").read_text())["vocab_size"]

    async def scenario() -> None:
        await engine.start()
        engine._forward._rows -= 1
        [good, bad] = await engine.score([Prompt([5, 6, 7]), Prompt([5, size - 1, 7])])
        assert good.error is None
        assert f"has token {size - 1} (" in str(bad.error)
        await engine.aclose()

    asyncio.run(scenario())


# --- documents that cannot be scored ----------------------------------------------------------------------------------

GOOD = ["Beijing is the capital of China.", "Rice grows in the south."]


def ranked_without_the_second(reranker: Reranker, bad: str, message: str) -> None:
    expected = reranker.score(QUERY, GOOD)
    ranking = reranker.rank(QUERY, [GOOD[0], bad, GOOD[1]])
    scores = {hit.index: hit.score for hit in ranking if hit.error is None}
    assert scores == pytest.approx({0: expected[0], 2: expected[1]}, abs=1e-5)
    assert ranking[2].index == 1
    assert re.search(f"Document 1 cannot be scored: {message}", str(ranking[2].error))
    assert ranking.stats.failed == 1


def test_a_document_that_does_not_fit_the_memory_is_left_out(tiny_model: str) -> None:
    engine = TransformersEngine(open_checkpoint(tiny_model), {})
    with Reranker("m", engine=engine, on_error="skip") as reranker:
        longest = max(reranker.rank(QUERY, [one]).stats.prompt_tokens for one in GOOD)
        with_limit(engine, longest + 50)
        ranked_without_the_second(reranker, "word " * 200, r".* ran out of memory on this prompt of \d+ tokens alone")


def test_a_document_with_a_token_beyond_the_embedding_is_left_out(tiny_model: str, tmp_path: Path) -> None:
    """Where weights are pickled, only the loaded model tells how many tokens it knows."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "qwen3-reranker-tiny"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["\t\t\t"])  # of blanks alone, so it is text
    tokenizer.save(str(folder / "tokenizer.json"))
    with Reranker(str(folder), engine="transformers", on_error="skip") as reranker:
        ranked_without_the_second(reranker, "a\t\t\tb", r"the prompt has token \d+ .*, but the embedding of .* rows")
