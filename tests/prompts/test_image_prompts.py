"""Prompts with images: where they stand, what they take of the budget, and what is cut."""

from typing import Any

import pytest

from tiny_vision import TOKENIZER, VISION, encoded, load, picture
from winnow import DocumentError, Prompt
from winnow.prompts import PromptBuilder, PromptLayout, Source
from winnow.prompts.limits import Limits
from winnow.templates.score_template import built_in

SMALL = load(picture(64, 64, "red"))
LARGE = load(picture(320, 200, "lightblue", "Beijing"))


def builder(**limits: Any) -> PromptBuilder:
    segments = built_in("qwen3_vl_reranker").segments(
        with_instruction=False, special_tokens={}, control_tokens=TOKENIZER.control_tokens
    )
    return PromptBuilder(PromptLayout(TOKENIZER, segments, Limits(**{"max_length": 400, **limits}), VISION))


def text_of(prompt: Prompt) -> str:
    return TOKENIZER.decode(VISION.collapsed(prompt.ids))


def test_the_placeholder_stands_before_the_text_as_often_as_the_image_has_tokens() -> None:
    (document,) = builder().build(Source("a query", SMALL), [Source("a text", LARGE, 0)])
    (prompt,) = document.prompts
    mark = "<|vision_start|><|image_pad|><|vision_end|>"
    assert f"<Query>:{mark}a query\n<Document>:{mark}a text<|im_end|>" in text_of(prompt)
    assert prompt.ids.count(VISION.token_id) == 4 + 60
    assert prompt.images == (SMALL, LARGE)
    assert VISION.expanded(VISION.collapsed(prompt.ids), prompt.images) == prompt.ids
    plain = builder().build("a query", ["a text"])[0]
    assert len(prompt.ids) == len(plain.prompts[0].ids) + 4 + 60 + 2 * 2
    assert document.document_tokens == plain.document_tokens + 60 + 2


def test_placeholders_that_a_text_spells_are_text() -> None:
    spelled = "<|vision_start|><|image_pad|><|vision_end|>"
    (prompt,) = builder().build(spelled, [Source(spelled, SMALL, 0)])[0].prompts
    assert prompt.ids.count(VISION.token_id) == 4


def test_prompts_with_other_images_are_other_prompts() -> None:
    other = load(picture(64, 64, "blue"))
    ids = builder().build("q", [Source("d", SMALL, 0)])[0].prompts[0].ids
    assert Prompt(ids, images=(SMALL,)).key != Prompt(ids, images=(other,)).key != Prompt(ids).key
    assert Prompt(ids, images=(SMALL,)) != Prompt(ids, images=(other,))
    assert Prompt(ids, images=(SMALL,)).key == Prompt(list(ids), images=(load(encoded(picture(64, 64, "red"))),)).key


@pytest.mark.parametrize("length", [440, 450, 501])
def test_texts_are_cut_to_what_images_leave(length: int) -> None:
    texts = ["word " * 1000, "word " * 1000, "short", ""]
    built = builder(max_length=length).build(
        Source("query " * 100, SMALL), [*map(Source, texts, [LARGE, None, LARGE, SMALL])]
    )
    assert [len(document.prompts) for document in built] == [1, 1, 1, 1]
    sizes = [len(document.prompts[0].ids) for document in built]
    assert all(size <= length for size in sizes)
    assert min(sizes[:2]) >= length - 2
    assert [document.truncated for document in built] == [True, True, False, False]
    for document, tokens in zip(built, (64, 4, 64, 8), strict=True):
        assert document.prompts[0].ids.count(VISION.token_id) == tokens
    assert all(document.query_truncated for document in built)


def test_most_tokens_of_a_document_and_a_query_count_their_images() -> None:
    built = builder(max_document_tokens=70).build("q", [Source("word " * 99, LARGE), "word " * 99])
    assert [document.document_tokens for document in built] == [70, 70]
    assert built[0].truncated
    whole = builder().build(Source("", SMALL), ["d"])[0].prompts[0]
    capped = builder(max_query_tokens=9).build(Source("query " * 50, SMALL), ["d"])[0]
    assert capped.query_truncated
    assert len(capped.prompts[0].ids) == len(whole.ids) + 3  # nine, less four of the image and its two marks


def test_images_without_room_are_errors_and_not_cut() -> None:
    with pytest.raises(DocumentError, match=r"Document 0 has an image of 60 tokens \(320 x 192 .*room for 48;"):
        builder(max_document_tokens=50).build("q", [Source("d", LARGE, 0)])
    with pytest.raises(DocumentError, match=r"The query has an image of 60 tokens .*room for 48;"):
        builder(max_query_tokens=50).build(Source("q", LARGE), ["d"])
    built = builder(max_document_tokens=50).build("q", [Source("a", LARGE, 8), Source("b", SMALL, 9)], on_error="skip")
    errors = [document.error.index for document in built if document.error is not None]
    assert errors == [8]
    assert [len(document.prompts) for document in built] == [0, 1]
    exact = builder(max_document_tokens=62).build("q", [Source("cut away", LARGE, 0)])[0]
    assert (exact.document_tokens, exact.truncated) == (62, True)


def test_an_overflow_beside_an_image_is_an_error_or_makes_windows() -> None:
    text = " ".join(f"word{number}" for number in range(100))
    with pytest.raises(DocumentError, match=r"Document 0 \(\d+ characters\) does not fit: the prompt leaves 38 tokens"):
        builder(max_document_tokens=100, on_overflow="error").build("q", [Source(text, LARGE, 0)])
    document = builder(max_document_tokens=100, on_overflow="window").build("q", [Source(text, LARGE, 0)])[0]
    assert len(document.prompts) > 3
    assert all(prompt.images == (LARGE,) and prompt.ids.count(VISION.token_id) == 60 for prompt in document.prompts)
    assert text_of(document.prompts[-1]).count("word99<|im_end|>") == 1
