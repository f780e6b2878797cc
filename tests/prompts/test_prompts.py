"""Prompts against the tokenizers themselves: exactness, budget, windows, control tokens."""

import asyncio
import json
import tracemalloc
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Encoding, Tokenizer, normalizers

from tokenizer_kinds import KINDS, prompt_tokenizer_of_kind, tokenizer_of_kind
from winnow.errors import DocumentError, TemplateError
from winnow.prompts import Limits, PromptBuilder, PromptLayout
from winnow.templates.rendering import Layout, Origin, rendered
from winnow.templates.score_template import ScoreTemplate, built_in, built_in_names
from winnow.templates.segments import Content, FieldName
from winnow.tokenizer import PromptTokenizer

# Templates with every kind of edge: control tokens around contents, words around contents, contents at the ends.
TEMPLATES = {
    "bare": "{{ query }}{{ document }}",
    "words": "Instruction: {{ instruction or 'none' }}\nA: {{ query }}\nB: {{ document }}\nIs B an answer to A?",
    "document_first": "<Document> {{ document }}\n<Query> {{ query }} {{ instruction }} ??",
    "stripped": "Q:{{ query | trim }} D:{{ document | trim }}!",
}

PIECES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.sampled_from(
        [
            "the capital of China",
            "Beijing",
            " leading",
            "trailing ",
            "\n",
            "\n\n",
            "\r\n",
            "\t",
            "  ",
            "don't",
            "'s",
            "2023",
            "1,000",
            "日本語",
            "👨‍👩‍👧",
            "🙂",
            "é",
            "ﬁ",
            "＜",
            "a_b",
            "://",
            "...",
            "—",
            "\u200b",
            "\u00a0",
        ]
    ),
)
TEXTS = st.lists(PIECES, max_size=8).map("".join)


def with_control_tokens(kind: str, template: str) -> str:
    """The template, dressed in the kind's own control tokens."""
    first, last = {
        "qwen3": ("<|im_start|>user\n", "<|im_end|>\n<think>\n\n</think>\n\n"),
        "bert": ("[MASK] judge [SEP]", "[SEP] so? [MASK]"),
        "llama3_like": ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        "gemma_like": ("<start_of_turn>user\n", "<end_of_turn>\n"),
        "llama2_like": ("<start_of_turn>user\n", "<end_of_turn>\n"),
        "xlm_roberta_like": ("judge <mask> ", " <mask> so?<mask>"),
    }[kind]
    return first + template + last + '{{ "\n" }}'


def render(source: str, values: Mapping[FieldName, str]) -> str:
    return rendered(source, Origin("test", trusted=True), values, {}, Layout())


def mentions_control_token(tokenizer: PromptTokenizer, *texts: str) -> bool:
    return any(token in text for token in tokenizer.control_tokens for text in texts)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    tokenizer_of_kind(request.param)  # skips here where the data is absent
    return str(request.param)


def check_ids_equal_tokenising_the_whole(
    kind: str,
    templates: Sequence[ScoreTemplate],
    instructions: st.SearchStrategy[str],
    examples: int,
    texts: st.SearchStrategy[str] = TEXTS,
) -> None:
    """Check each example in all templates: to draw it takes longer than to tokenise it."""
    own = tokenizer_of_kind(kind)
    tokenizer = prompt_tokenizer_of_kind(kind)
    builders = {
        (template, given_one): PromptBuilder(
            PromptLayout(tokenizer, template.segments(with_instruction=given_one), Limits(max_length=10**6))
        )
        for template in templates
        for given_one in (False, True)
    }

    @settings(max_examples=examples)
    @given(query=texts, document=texts, instruction=st.none() | instructions)
    def check(query: str, document: str, instruction: str | None) -> None:
        assume(not mentions_control_token(tokenizer, query, document, instruction or ""))
        values = {"query": query, "document": document} | ({"instruction": instruction} if instruction else {})
        for template in templates:
            whole = own.encode(render(str(template.source), values)).ids
            ids = builders[template, bool(instruction)].prompt(query, document, instruction).ids
            assert ids == whole, template.source

    check()


def test_ids_equal_tokenising_the_whole_rendered_prompt(kind: str) -> None:
    sources = [*TEMPLATES.values(), *(with_control_tokens(kind, source) for source in TEMPLATES.values())]
    check_ids_equal_tokenising_the_whole(
        kind, [ScoreTemplate(source, "test") for source in sources], TEXTS.filter(bool), 200
    )


def test_ids_of_every_built_in_equal_tokenising_the_whole(kind: str) -> None:
    templates = [built_in(name) for name in built_in_names()]
    check_ids_equal_tokenising_the_whole(kind, templates, TEXTS.filter(str.strip), 20)


RUNS = st.sampled_from([" " * 300, "a" * 500, "é" * 80, "👨‍👩‍👧" * 30, "word " * 100])
LONG = st.lists(TEXTS | RUNS, max_size=6).map("".join)


def test_ids_of_long_texts_equal_tokenising_the_whole(kind: str) -> None:
    sources = [TEMPLATES["words"], with_control_tokens(kind, TEMPLATES["bare"])]
    templates = [ScoreTemplate(source, "test") for source in sources]
    check_ids_equal_tokenising_the_whole(kind, templates, TEXTS.filter(bool), 60, LONG.filter(str.strip))


def test_ids_after_a_run_of_blanks_equal_tokenising_the_whole(kind: str) -> None:
    """Some normalisers read two blanks as one, so that it matters how many there are."""
    own, template = tokenizer_of_kind(kind), ScoreTemplate(TEMPLATES["words"], "test")
    segments = template.segments(with_instruction=False)
    builder = PromptBuilder(PromptLayout(prompt_tokenizer_of_kind(kind), segments, Limits(max_length=10**6)))
    for blanks in range(100):
        query = "0" + " " * blanks
        whole = own.encode(render(str(template.source), {"query": query, "document": "0"})).ids
        assert builder.prompt(query, "0").ids == whole, blanks


def qwen_like_builder(kind: str, template: str = "words", **limits: object) -> tuple[PromptTokenizer, PromptBuilder]:
    tokenizer = prompt_tokenizer_of_kind(kind)
    segments = ScoreTemplate(with_control_tokens(kind, TEMPLATES[template]), "test").segments(with_instruction=False)
    return tokenizer, PromptBuilder(PromptLayout(tokenizer, segments, Limits(**limits)))  # type: ignore[arg-type]


def test_a_prompt_is_never_too_long_and_little_shorter_than_it_could_be(kind: str) -> None:
    own = tokenizer_of_kind(kind)
    tokenizer = prompt_tokenizer_of_kind(kind)
    sources = [with_control_tokens(kind, TEMPLATES[template]) for template in ("words", "document_first")]
    bound = {source: ScoreTemplate(source, "test").segments(with_instruction=False) for source in sources}
    lengths = {source: len(own.encode(render(source, {"query": "", "document": ""})).ids) for source in sources}

    @settings(max_examples=75)
    @given(query=LONG, document=LONG, room=st.integers(8, 120))
    def check(query: str, document: str, room: int) -> None:
        assume(not mentions_control_token(tokenizer, query, document))
        for source, segments in bound.items():
            max_length = lengths[source] + room
            built = PromptBuilder(PromptLayout(tokenizer, segments, Limits(max_length=max_length))).build(
                query, [document]
            )[0]
            [prompt] = built.prompts
            assert len(prompt.ids) <= max_length
            whole = own.encode(render(source, {"query": query, "document": document})).ids
            if len(whole) <= max_length - room // 4 - 2:  # the query fits its share for sure
                assert prompt.ids == whole
                assert not built.truncated
            if built.truncated:
                # An uncut grapheme cluster may take many tokens, so allow for the longest one here.
                assert len(prompt.ids) >= max_length - 30

    check()


def test_a_cut_prompt_is_the_prompt_of_the_cut_text(kind: str) -> None:
    own = tokenizer_of_kind(kind)
    source = with_control_tokens(kind, TEMPLATES["words"])
    _, builder = qwen_like_builder(kind, max_length=120)
    document = "The capital of China is Beijing 🙂, don't you know? " * 20
    [built] = builder.build("what is the capital?", [document])
    assert built.truncated
    assert len(built.prompts[0].ids) in range(115, 121)
    cuts = [{"query": "what is the capital?", "document": document[:end]} for end in range(len(document))]
    assert built.prompts[0].ids in (own.encode(render(source, cut)).ids for cut in cuts)


def test_the_query_keeps_three_quarters_and_the_document_gets_the_rest(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, builder = qwen_like_builder(kind, max_length=200)
    empty = len(qwen_like_builder(kind, max_length=10**6)[1].prompt("", "").ids)
    [built] = builder.build("query " * 500, ["document " * 500])
    left = 200 - empty
    assert built.document_tokens == pytest.approx(left / 4, abs=4)
    assert len(built.prompts[0].ids) in range(194, 201)
    assert "The query was cut" in caplog.text
    assert built.query_truncated
    [short] = builder.build("query", ["document " * 500])
    assert short.document_tokens > left * 0.8
    assert not short.query_truncated


def test_explicit_limits_of_query_and_document(kind: str) -> None:
    _, builder = qwen_like_builder(kind, max_length=400, max_query_tokens=20, max_document_tokens=30)
    [built] = builder.build("query " * 500, ["document " * 500])
    assert 25 <= built.document_tokens <= 30
    empty = len(qwen_like_builder(kind, max_length=10**6)[1].prompt("", "").ids)
    assert len(built.prompts[0].ids) - empty - built.document_tokens <= 20


def test_the_next_query_with_an_instruction_is_laid_out_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """How much the template and an instruction leave is known from the query before."""
    segments = ScoreTemplate(TEMPLATES["words"], "test").segments(with_instruction=True)
    builder = PromptBuilder(PromptLayout(prompt_tokenizer_of_kind("qwen3"), segments, Limits(max_length=100)))
    laid_out: list[str] = []
    lay_out = PromptLayout.scaffold

    def noted(layout: PromptLayout, query: str, instruction: str, medium: None = None) -> object:
        laid_out.append(query)
        return lay_out(layout, query, instruction, medium)

    monkeypatch.setattr(PromptLayout, "scaffold", noted)
    for query, instruction in [("one", "short"), ("two", "short"), ("three", "much longer than the other")]:
        builder.build(query, ["document"], instruction)
    assert laid_out == ["", "one", "two", "", "three"]
    assert builder.max_query_tokens("short") > builder.max_query_tokens("much longer than the other")


def test_windows_cover_the_whole_text_and_overlap(kind: str) -> None:
    tokenizer, builder = qwen_like_builder(kind, max_length=120, on_overflow="window", window_overlap=0.2)
    words = [f"w{number}" for number in range(300)]
    [built] = builder.build("q", [" ".join(words)])
    assert not built.truncated
    assert len(built.prompts) > 3
    texts = [tokenizer.decode(prompt.ids) for prompt in built.prompts]
    assert all(len(prompt.ids) <= 120 for prompt in built.prompts)
    found = [{word for word in words if word in text.split()} for text in texts]
    assert set.union(*found) == set(words)
    assert all(earlier & later for earlier, later in pairwise(found))


def test_windows_of_any_text_fit(kind: str) -> None:
    tokenizer, whole = qwen_like_builder(kind, max_length=10**6)
    builders = [
        qwen_like_builder(kind, max_length=90, on_overflow="window", window_overlap=overlap)[1]
        for overlap in (0.0, 0.1, 0.9)
    ]

    @settings(max_examples=20)
    @given(document=LONG)
    def check(document: str) -> None:
        assume(not mentions_control_token(tokenizer, document))
        for builder in builders:
            [built] = builder.build("q", [document])
            assert all(len(prompt.ids) <= 90 for prompt in built.prompts)
            assert not built.truncated
            if len(built.prompts) == 1:
                assert built.prompts[0] == whole.prompt("q", document)

    check()


def test_windows_without_overlap_are_the_text() -> None:
    tokenizer, builder = qwen_like_builder("llama3_like", max_length=90, on_overflow="window", window_overlap=0.0)
    before, after = tokenizer.decode(builder.prompt("q", "\u2983").ids).split("\u2983")

    @settings(max_examples=100)
    @given(document=LONG)
    def check(document: str) -> None:
        assume(not mentions_control_token(tokenizer, document))
        [built] = builder.build("q", [document])
        texts = [tokenizer.decode(prompt.ids) for prompt in built.prompts]
        assert all(text.startswith(before) and text.endswith(after) for text in texts)
        assert "".join(text[len(before) : -len(after)] for text in texts) == document

    check()


def test_a_window_does_not_copy_the_rest_of_the_text() -> None:
    """Else the time for a long text would grow with its square."""
    _, builder = qwen_like_builder("llama3_like", max_length=90, on_overflow="window")
    text = "dull boy " * 2_000_000
    looks = 0  # one before the document, and one before each further window

    def is_over() -> bool:
        nonlocal looks
        looks += 1
        if looks == 1:
            tracemalloc.reset_peak()
        return looks > 4

    tracemalloc.start()
    try:
        with pytest.raises(asyncio.CancelledError):
            builder.build("q", [text], is_over=is_over)
        assert tracemalloc.get_traced_memory()[1] < len(text) / 10
    finally:
        tracemalloc.stop()


def test_windows_of_a_tenth_overlap_by_default() -> None:
    _, builder = qwen_like_builder("llama3_like", max_length=300, on_overflow="window")
    _, whole = qwen_like_builder("llama3_like", max_length=10**6)
    text = "All work and no play makes Jack a dull boy. " * 100
    [built] = builder.build("q", [text])
    length = len(whole.prompt("q", text).ids) - len(whole.prompt("q", "").ids)
    assert built.document_tokens / length == pytest.approx(1 / 0.9, abs=0.05)


def test_a_half_of_a_word_may_take_more_tokens_than_the_word() -> None:
    """WordPiece reads a word of more than 100 characters as one unknown token."""
    own = tokenizer_of_kind("bert")
    _, builder = qwen_like_builder("bert", max_length=60)
    document = " " * 300 + "a" * 500
    [built] = builder.build(document.strip(), [document])
    assert not built.truncated
    assert not built.query_truncated
    assert built.prompts[0].ids.count(own.token_to_id("[UNK]")) == 2


def test_a_template_that_fills_the_model_is_an_error_with_the_numbers() -> None:
    with pytest.raises(TemplateError, match=r"take \d+ tokens of the model's 20"):
        qwen_like_builder("llama3_like", max_length=20)[1].prompt("q", "d")
    tokenizer = prompt_tokenizer_of_kind("llama3_like")
    segments = ScoreTemplate("{{ instruction }}{{ query }}{{ document }}", "test").segments(with_instruction=True)
    with pytest.raises(TemplateError, match=r"The template and the instruction take \d{3,} tokens of the model's 99"):
        PromptBuilder(PromptLayout(tokenizer, segments, Limits(max_length=99))).prompt("q", "d", "do it " * 100)


def test_control_tokens_typed_in_content_stay_text(kind: str) -> None:
    own = tokenizer_of_kind(kind)
    tokenizer = prompt_tokenizer_of_kind(kind)
    segments = ScoreTemplate(with_control_tokens(kind, TEMPLATES["words"]), "test").segments(with_instruction=True)
    builder = PromptBuilder(PromptLayout(tokenizer, segments, Limits(max_length=10**6)))
    # What a tokenizer without byte tokens writes for odd characters is no control token of anybody's.
    unknown = {own.token_to_id(name) for name in ("<unk>", "[UNK]")}
    control = set(tokenizer.control_tokens.values()) - unknown
    expected = [index for index in builder.prompt("q", "d", "i").ids if index in control]
    assert expected
    for token in tokenizer.control_tokens:
        for text in (token, f"a{token}b", f" {token} ", token + token, f"<{token}>"):
            ids = builder.prompt(f"query {text}", f"{text} document", f"judge {text} well").ids
            assert [index for index in ids if index in control] == expected, text
            assert tokenizer.decode(ids).lower().replace(" ", "").count(token.lower().replace(" ", "")) >= 3


def test_control_tokens_in_windows_and_at_cuts_stay_text(kind: str) -> None:
    tokenizer, builder = qwen_like_builder(kind, max_length=100, on_overflow="window")
    unknown = {tokenizer.token_id(name) for name in ("<unk>", "[UNK]")}
    control = set(tokenizer.control_tokens.values()) - unknown
    expected = [index for index in builder.prompt("q", "d").ids if index in control]
    [built] = builder.build("q", [" and ".join([*tokenizer.control_tokens] * 10)])
    assert len(built.prompts) > 1
    for prompt in built.prompts:
        assert [index for index in prompt.ids if index in control] == expected


def test_content_cannot_complete_what_the_template_begins() -> None:
    tokenizer = prompt_tokenizer_of_kind("llama3_like")
    segments = ScoreTemplate("<|eot_{{ query }}{{ document }}", "test").segments(with_instruction=False)
    ids = PromptBuilder(PromptLayout(tokenizer, segments, Limits(max_length=100))).prompt("id|>", "x").ids
    assert tokenizer.control_tokens["<|eot_id|>"] not in ids


def test_pieces_above_the_added_tokens_keep_their_ids() -> None:
    state = json.loads(tokenizer_of_kind("gemma_like").to_str())
    pieces, size = state["model"]["vocab"], tokenizer_of_kind("gemma_like").get_vocab_size()
    for index, (left, right) in enumerate([("x", "z"), ("z", "x")], size):
        pieces[left + right] = index
        state["model"]["merges"].insert(0, [left, right])
    tokenizer = Tokenizer.from_str(json.dumps(state))
    text = "a xz zx b \n\n"
    expected = tokenizer.encode(text, add_special_tokens=False).ids
    assert {size, size + 1} <= set(expected)
    assert PromptTokenizer(tokenizer).encode(text) == expected


ADDED = ("<a>", "<b>", "Zq7", "[X]")
FLAGS = st.fixed_dictionaries({name: st.booleans() for name in ("single_word", "lstrip", "rstrip", "normalized")})
LITERALS = st.lists(
    st.sampled_from([*ADDED, "w", "a", " ", "\n", "-", "Q:", "zq7", "[x]", "<A>", "é"]), max_size=5
).map("".join)
CONTENTS = st.lists(st.sampled_from(["word", " ", "-", "1", "é", "\u0307x", "\n", " x ", "日", "'s"]), max_size=4).map(
    "".join
)


# Not Qwen3's and BERT's: a copy of their vocabularies for each example takes long, and llama3_like is of Qwen3's sort.
@pytest.mark.parametrize("kind", ["llama3_like", "gemma_like", "llama2_like", "xlm_roberta_like"])
def test_added_tokens_of_every_sort_are_read_in_a_template_as_in_the_whole_text(kind: str) -> None:
    """Or the template is refused: whether a single word is a token must not hang on the document beside it."""
    state = tokenizer_of_kind(kind).to_str()

    flagged = st.lists(FLAGS, min_size=4, max_size=4)

    @settings(max_examples=60)
    @given(flags=flagged, literals=st.lists(LITERALS, min_size=3, max_size=3), query=CONTENTS, document=CONTENTS)
    def check(flags: list[dict[str, bool]], literals: list[str], query: str, document: str) -> None:
        own = Tokenizer.from_str(state)
        own.add_tokens([AddedToken(text, **flag) for text, flag in zip(ADDED, flags, strict=True)])
        segments = (literals[0], Content("query"), literals[1], Content("document"), literals[2])
        kept = tuple(segment for segment in segments if segment)
        try:
            builder = PromptBuilder(PromptLayout(PromptTokenizer(own), kept, Limits(max_length=10**6)))
        except TemplateError:
            event("refused")
            return
        whole = own.encode(literals[0] + query + literals[1] + document + literals[2]).ids
        assert builder.prompt(query, document).ids == whole

    check()


def test_a_name_of_a_control_token_never_reaches_the_prompt() -> None:
    """Two single words side by side, and an accent behind a token that is read after the normaliser composed it."""
    own = Tokenizer.from_str(tokenizer_of_kind("llama3_like").to_str())
    own.normalizer = normalizers.NFC()
    own.add_tokens([AddedToken("<a>", single_word=True), AddedToken("<b>", single_word=True)])
    own.add_tokens([AddedToken("<n>", normalized=True)])
    tokenizer = PromptTokenizer(own)
    builder = PromptBuilder(
        PromptLayout(tokenizer, ("<a><b> ", Content("query"), " <n>", Content("document")), Limits(max_length=999))
    )
    for accent in map(chr, range(0x300, 0x370)):
        assert tokenizer.decode(builder.prompt("q", accent).ids) == (
            "<|begin_of_text|><a><b> q <n>" + unicodedata.normalize("NFC", accent)
        )
    with pytest.raises(TemplateError, match="right beside a query, document or instruction"):
        PromptBuilder(PromptLayout(tokenizer, ("<a>", Content("query"), Content("document")), Limits(max_length=999)))


def test_bos_that_the_template_writes_is_not_doubled() -> None:
    tokenizer = PromptTokenizer(tokenizer_of_kind("llama3_like"), {"bos_token": "<|begin_of_text|>"})
    segments = ScoreTemplate("{{ bos_token }}{{ query }} {{ document }}", "test").segments(
        with_instruction=False, special_tokens=tokenizer.special_tokens
    )
    ids = PromptBuilder(PromptLayout(tokenizer, segments, Limits(max_length=100))).prompt("q", "d").ids
    assert ids.count(tokenizer.control_tokens["<|begin_of_text|>"]) == 1


def test_pairs_are_encoded_as_the_tokenizer_does_it(kind: str) -> None:
    own = tokenizer_of_kind(kind)
    tokenizer = PromptTokenizer(own, token_types=True) if kind == "bert" else prompt_tokenizer_of_kind(kind)
    builder = PromptBuilder(PromptLayout(tokenizer, None, Limits(max_length=10**6)))
    for query, document in [("what is gravity?", "Gravity is a force."), (" q", "d "), ("日本", "naïve café\n\nx")]:
        encoding = own.encode(query, document)
        prompt = builder.prompt(query, document)
        assert prompt.ids == encoding.ids
        from_second = len(prompt.ids) if prompt.second_type_from is None else prompt.second_type_from
        types = [int(at >= from_second) for at in range(len(prompt.ids))]
        assert types == (encoding.type_ids if kind == "bert" else [0] * len(types))


def test_a_pair_without_a_template_is_never_too_long(kind: str) -> None:
    own = tokenizer_of_kind(kind)
    tokenizer = prompt_tokenizer_of_kind(kind)
    empty = len(own.encode("", "").ids)

    @settings(max_examples=40)
    @given(query=LONG, document=LONG, room=st.integers(8, 120))
    def check(query: str, document: str, room: int) -> None:
        assume(not mentions_control_token(tokenizer, query, document))
        [built] = PromptBuilder(PromptLayout(tokenizer, None, Limits(max_length=empty + room))).build(query, [document])
        [prompt] = built.prompts
        assert len(prompt.ids) <= empty + room
        whole = own.encode(query, document).ids
        if len(own.encode(query, "").ids) - empty <= room * 3 // 4 and len(whole) <= empty + room:
            assert prompt.ids == whole
        if built.truncated:
            assert len(prompt.ids) >= empty + room - 30

    check()


def test_a_pair_is_cut_in_the_document() -> None:
    own = tokenizer_of_kind("xlm_roberta_like")
    builder = PromptBuilder(PromptLayout(PromptTokenizer(own), None, Limits(max_length=40)))
    [built] = builder.build("what is gravity?", ["gravity " * 100])
    assert built.truncated
    assert 37 <= len(built.prompts[0].ids) <= 40
    assert built.prompts[0].ids[-1] == own.token_to_id("</s>")


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["truncate", "window"])
def test_ten_megabytes_are_no_trouble(policy: str) -> None:
    limits = {"max_length": 512, "on_overflow": policy}
    _, builder = qwen_like_builder("llama3_like", **limits)
    text = "All work and no play makes Jack a dull boy. " * 230_000 if policy == "truncate" else "dull boy " * 20_000
    [built] = builder.build(text, [text])
    assert built.query_truncated
    assert built.truncated == (policy == "truncate")


@pytest.mark.parametrize("kind", ["bert", "llama3_like", "gemma_like", "llama2_like", "xlm_roberta_like"])
def test_megabytes_that_make_few_tokens_are_cut_unread(kind: str) -> None:
    """WordPiece makes one token of a word without end, and none of blanks: such a text is not read to its end."""
    segments = ScoreTemplate("Q: {{ query }} D: {{ document }}", "test").segments(with_instruction=False)
    read: list[int] = []

    class Counting(PromptTokenizer):
        """Counts the characters that it tokenises."""

        def encode(self, text: str) -> list[int]:
            read.append(len(text))
            return super().encode(text)

        def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
            read.extend(map(len, texts))
            return super().encode_batch(texts)

        def encode_with_offsets(self, texts: Sequence[str]) -> list[Encoding]:
            read.extend(map(len, texts))
            return super().encode_with_offsets(texts)

    counting = Counting(tokenizer_of_kind(kind))
    builders = [PromptBuilder(PromptLayout(counting, bound, Limits(max_length=512))) for bound in (segments, None)]
    for text in (character * 10_000_000 for character in ("a", " ", "\n", "🙂", "\u0301", "\u200b")):
        read.clear()
        for builder in builders:
            [built] = builder.build("q", [text])
            assert built.truncated
            [built] = builder.build(text, ["d"])
            assert built.query_truncated
            assert len(built.prompts[0].ids) <= 512
        assert sum(read) < 10_000_000
        for builder in builders:
            part = builder.query_part(text)
            read.clear()  # the slices of a call all come with this part
            assert builder.build(part, ["d"]) == builder.build(part, ["d"])
            assert sum(read) < 1_000_000


def test_text_that_is_no_text_is_refused_by_position() -> None:
    _, builder = qwen_like_builder("llama3_like", max_length=512)
    with pytest.raises(DocumentError, match=r"Document 1 holds the lone surrogate '\\ud83d' at character 4") as caught:
        builder.build("q", ["fine", "half\ud83d"])
    assert caught.value.index == 1
    with pytest.raises(DocumentError, match="The query holds"):
        builder.build("\udc00", ["fine"])
    built = builder.build("q", ["fine", "half\ud83d", "nul\x00byte"], on_error="skip")
    assert [len(document.prompts) for document in built] == [1, 0, 1]
    errors = [document.error.index for document in built if document.error is not None]
    assert errors == [1]


def test_overflow_can_be_an_error() -> None:
    _, builder = qwen_like_builder("llama3_like", max_length=100, on_overflow="error")
    builder.prompt("q", "fits")
    with pytest.raises(DocumentError, match=r"Document 1 \(3500 characters\) does not fit: .* leaves \d+ tokens"):
        builder.build("q", ["fits", "too long" * 437 + "long"])
    with pytest.raises(DocumentError, match=r"The query .* does not fit"):
        builder.build("q " * 300, ["fits"])


def test_an_event_loop_goes_on_while_prompts_are_built() -> None:
    _, builder = qwen_like_builder("llama3_like", max_length=2000)
    documents = [f"{number} All work and no play makes Jack a dull boy. " * 60 for number in range(1500)]

    async def ticks_meanwhile() -> int:
        building = asyncio.create_task(asyncio.to_thread(builder.build, "q", documents))
        ticks = 0
        while not building.done():
            await asyncio.sleep(0.001)
            ticks += 1
        return ticks

    assert asyncio.run(ticks_meanwhile()) > 10
