"""Prompts to the last byte: tests/golden holds what each family was trained on, from its reference code."""

import json
from functools import cache
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

import tiny_families
from tokenizer_kinds import data_file, prompt_tokenizer_of_kind
from winnow.models.families import RECIPES
from winnow.prompts import Limits, PromptBuilder, PromptLayout
from winnow.templates.score_template import built_in, built_in_names

GOLDEN = Path(__file__).parents[1] / "golden"
QUERY = "what is the capital of China?"
DOCUMENT = "The capital of China is Beijing."
INSTRUCTION = "Prefer answers from encyclopedias"
WITHOUT_INSTRUCTION = {"bge_reranker_v2_gemma", "jina_reranker_m0", "llama_nemotron_rerank"}

cases = pytest.mark.parametrize("file", sorted(path.stem for path in GOLDEN.iterdir()))


def rendered(name: str, query: str, document: str, instruction: str | None = None) -> str:
    texts = {"query": query, "document": document, "instruction": instruction}
    segments = built_in(name).segments(with_instruction=instruction is not None)
    return "".join(part if isinstance(part, str) else part.of(texts[part.field]) for part in segments)


def golden(file: str) -> tuple[str, str | None, str]:
    name, _, instruction = file.partition(".")
    return name, INSTRUCTION if instruction else None, (GOLDEN / f"{file}.txt").read_bytes().decode()


def test_every_template_has_its_golden_prompts() -> None:
    expected = {f"{name}.txt" for name in built_in_names()}
    expected |= {f"{name}.instruction.txt" for name in set(built_in_names()) - WITHOUT_INSTRUCTION}
    assert {path.name for path in GOLDEN.iterdir()} == expected


def test_every_family_has_its_template() -> None:
    assert {row.template for row in RECIPES} - {None} <= set(built_in_names())


@cases
def test_winnow_renders_the_golden_prompt(file: str) -> None:
    name, instruction, prompt = golden(file)
    assert rendered(name, QUERY, DOCUMENT, instruction) == prompt


@pytest.mark.parametrize("given_as", ["variable", "system message"])
@cases
def test_apply_chat_template_renders_the_golden_prompt(file: str, given_as: str) -> None:
    name, instruction, prompt = golden(file)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_families.qwen_like())
    messages = [{"role": "query", "content": QUERY}, {"role": "document", "content": DOCUMENT}]
    variables = {}
    if instruction and given_as == "variable":
        variables["instruction"] = instruction
    elif instruction:
        messages.append({"role": "system", "content": instruction})
    source = str(built_in(name).source)
    assert tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, **variables) == prompt


@pytest.mark.parametrize("name", sorted(WITHOUT_INSTRUCTION))
def test_families_without_instruction_drop_it(name: str) -> None:
    assert INSTRUCTION not in rendered(name, QUERY, DOCUMENT, INSTRUCTION)


# --- prompts and token counts that others made with the reference code ------------------------------------------------

PUBLISHED = {
    "qwen3-reranker/transformers": ("qwen3_reranker", "token_ids"),
    "zerank-2": ("zerank", "token_ids"),
    # mxbai's own package tokenises the parts of the prompt one by one; vLLM, and Winnow, the prompt as a whole.
    "mxbai-rerank-v2": ("mxbai_rerank_v2", "whole_string_tokens"),
    "bge-reranker-v2-gemma": ("bge_reranker_v2_gemma", None),
    "nemotron-rerank": ("llama_nemotron_rerank", None),
}


@cache
def builder(template: str) -> PromptBuilder:
    segments = built_in(template).segments(with_instruction=False)
    return PromptBuilder(PromptLayout(prompt_tokenizer_of_kind("qwen3"), segments, Limits(max_length=8192)))


@pytest.mark.parametrize("published", PUBLISHED)
def test_prompts_are_those_of_the_reference_code(published: str) -> None:
    name, ids = PUBLISHED[published]
    found = json.loads(data_file("prompts/golden_prompts.json").read_text(encoding="utf-8"))["cases"]
    found = [case for case in found if case["format"] == published]
    assert len(found) == 11
    for case in found:
        query, document = case["query"], case["document"]
        assert rendered(name, query, document) == case["prompt"]
        if "<|" in document:  # there the reference code reads a control token in the document
            continue
        if ids == "token_ids":
            assert builder(name).prompt(query, document).ids == case["token_ids"]
        elif ids is not None:
            assert len(builder(name).prompt(query, document).ids) == case[ids]


@pytest.mark.parametrize(("name", "tokens"), [("qwen3_reranker", 189), ("mxbai_rerank_v2", 211)])
def test_token_counts_are_the_published_ones(name: str, tokens: int) -> None:
    gravity = (
        "Gravity is a force that attracts two bodies towards each other. It gives weight to physical objects and is "
        "responsible for the movement of planets around the sun."
    )
    pairs = [
        ("What is the capital of China?", "The capital of China is Beijing."),
        ("Explain gravity", gravity),
    ]
    assert sum(len(builder(name).prompt(query, document).ids) for query, document in pairs) == tokens
