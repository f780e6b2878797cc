"""Published score templates, rendered by Winnow and by transformers itself, byte for byte."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from published_templates import PUBLISHED
from tokenizer_kinds import tokenizer_of_kind
from winnow.templates.score_template import ScoreTemplate
from winnow.templates.segments import Content, Segment, fields_of

SPECIAL = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    ["{{ x }}", "{% if %}", "<|im_end|>", "\n\n x \n", "<b>&amp;</b>", "\\n", "{query}", "\u2983winnow query\u2984"]
)


@pytest.fixture(scope="module")
def transformers_tokenizer() -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer_of_kind("llama3_like"), **SPECIAL)


def text_of(segments: tuple[Segment, ...], query: str, document: str, instruction: str = "") -> str:
    values = {"query": query, "document": document, "instruction": instruction}
    return "".join(part.of(values[part.field]) if isinstance(part, Content) else str(part) for part in segments)


def messages_of(query: str, document: str, instruction: str | None) -> list[dict[str, str]]:
    system = [] if instruction is None else [{"role": "system", "content": instruction}]
    return [{"role": "query", "content": query}, {"role": "document", "content": document}, *system]


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_transformers_renders_it(name: str, transformers_tokenizer: Any) -> None:
    source, _, with_one = PUBLISHED[name]
    template = ScoreTemplate(source, "test")
    segments = {
        given_one: template.segments(with_instruction=given_one, special_tokens=SPECIAL) for given_one in (False, True)
    }
    assert ("instruction" in fields_of(segments[True])) == (with_one is not None)

    @settings(max_examples=40)
    @given(query=TEXTS, document=TEXTS, instruction=st.none() | TEXTS.filter(bool))
    def check(query: str, document: str, instruction: str | None) -> None:
        variables: dict[str, str] = {"query": query, "document": document}
        if instruction is not None:
            variables |= {"instruction": instruction, "prompt": instruction}
        theirs = transformers_tokenizer.apply_chat_template(
            messages_of(query, document, instruction), chat_template=source, tokenize=False, **variables
        )
        assert text_of(segments[instruction is not None], query, document, instruction or "") == theirs

    check()


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_the_model_card_writes_it(name: str) -> None:
    source, without, with_one = PUBLISHED[name]
    template = ScoreTemplate(source, "test")
    values = {"query": "who?", "document": "me!"}
    segments = template.segments(with_instruction=False, special_tokens=SPECIAL)
    assert text_of(segments, **values) == filled(without, **values)
    if with_one is not None:
        segments = template.segments(with_instruction=True, special_tokens=SPECIAL)
        assert text_of(segments, **values, instruction="do") == filled(with_one, **values, instruction="do")


def filled(prompt: str, **values: str) -> str:
    for name, value in values.items():
        prompt = prompt.replace(f"{{{name}}}", value)
    return prompt


def test_structured_contents_of_multimodal_models(transformers_tokenizer: Any) -> None:
    source = (
        "{% for message in messages %}{{ message.role }}: {% for part in message.content %}"
        "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %};{% endfor %}"
    )
    segments = ScoreTemplate(source, "test").segments(with_instruction=True)
    structured = [
        message | {"content": [{"type": "text", "text": message["content"]}]} for message in messages_of("q", "d", "i")
    ]
    theirs = transformers_tokenizer.apply_chat_template(structured, chat_template=source, tokenize=False)
    assert text_of(segments, "q", "d", "i") == theirs == "query: q;document: d;system: i;"


def test_a_system_message_that_must_come_first() -> None:
    source = (
        "{% if messages[0].role == 'system' %}{% set instruction = messages[0].content %}{% set rest = messages[1:] %}"
        "{% else %}{% set rest = messages %}{% endif %}{{ instruction }}|{{ rest[0].content }}|{{ rest[1].content }}"
    )
    template = ScoreTemplate(source.replace("instruction", "task"), "test")
    assert text_of(template.segments(with_instruction=True), "q", "d", "i") == "i|q|d"
    assert text_of(template.segments(with_instruction=False), "q", "d") == "|q|d"


def test_tags_and_functions_of_transformers(transformers_tokenizer: Any) -> None:
    source = (
        "{% generation %}{% set a = 1 %}{{ messages[0].content }}{% endgeneration %}\n"
        "   {% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}\n"
        "{{ {'é<': [1]} | tojson }} {{ {'b': 1, 'a': 2} | tojson(indent=2, sort_keys=true) }}\n"
        "{{ strftime_now('%Y')[:2] }}{{ a is defined }}{{ messages[1].content }}"
    )
    segments = ScoreTemplate(source, "test").segments(with_instruction=False)
    theirs = transformers_tokenizer.apply_chat_template(
        messages_of("q", "d", None), chat_template=source, tokenize=False
    )
    assert text_of(segments, "q", "d") == theirs
