"""Templates as users give them: every accepted form, what they may read, and what is wrong with the others."""

import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tokenizer_kinds import tokenizer_of_kind
from winnow.errors import TemplateError
from winnow.prompts import Limits, PromptBuilder, PromptLayout
from winnow.templates import jinja_sandbox
from winnow.templates.score_template import ScoreTemplate, TemplateLike, built_in, built_in_names, from_user
from winnow.templates.segments import Content, PlainText, Segment, fields_of
from winnow.tokenizer import PromptTokenizer

QUERY, DOCUMENT, INSTRUCTION = Content("query"), Content("document"), Content("instruction")


def segments(template: TemplateLike, *, instruction: bool = False, **options: Any) -> tuple[Segment, ...]:
    return from_user(template).segments(with_instruction=instruction, **options)


# --- forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", built_in_names())
@pytest.mark.parametrize("instruction", [False, True])
def test_every_built_in_places_query_and_document(name: str, instruction: bool) -> None:
    placed = segments(name, instruction=instruction)
    assert placed == built_in(name).segments(with_instruction=instruction)
    assert sorted(set(fields_of(placed)) - {"instruction"}) == ["document", "query"]


@pytest.mark.parametrize("as_path", [str, Path])
def test_a_path(tmp_path: Path, as_path: type, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.jinja").write_text("Frage: {{ query }} Stück: {{ document }}!\n", encoding="utf-8")
    template = from_user(as_path(tmp_path / "mine.jinja"))
    assert template.origin == f"the file {tmp_path / 'mine.jinja'}"
    assert template.drops_final_newline
    assert template.segments(with_instruction=False) == ("Frage: ", QUERY, " Stück: ", DOCUMENT, "!")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert from_user(as_path("~/mine.jinja")).source == template.source


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ query }}{{ document }}", (QUERY, DOCUMENT)),
        ("{{ document }}\n{{ query }} ", (DOCUMENT, "\n", QUERY, " ")),
        ("{{ query|trim }}{{ document }}", (Content("query", strip=True), DOCUMENT)),
        ("{{ query }} {{ query }}: {{ document }}", (QUERY, " ", QUERY, ": ", DOCUMENT)),
        ("{{ messages[0].content }}{{ messages[1]['content'] }}", (QUERY, DOCUMENT)),
        (
            "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}",
            ("[query]", QUERY, "[document]", DOCUMENT),
        ),
    ],
)
def test_jinja_source(source: str, expected: tuple[Segment, ...]) -> None:
    assert segments(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ instruction }}{{ query }}{{ document }}",
        "{{ prompt }}{{ query }}{{ document }}",
        "{{ messages[2].content }}{{ query }}{{ document }}",
        "{{ (messages | selectattr('role', 'eq', 'system') | first).content }}{{ query }}{{ document }}",
    ],
)
def test_an_instruction_is_a_variable_a_prompt_and_a_system_message(source: str) -> None:
    assert segments(source, instruction=True) == (INSTRUCTION, QUERY, DOCUMENT)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({}, (QUERY, DOCUMENT)),
        ({"prefix": "<p>", "suffix": "<s>"}, ("<p>", QUERY, DOCUMENT, "<s>")),
        (
            {"query_template": "Q: {query}\n", "document_template": "D: {document}"},
            ("Q: ", QUERY, "\n", "D: ", DOCUMENT),
        ),
        ({"document_template": "D: {doc}"}, (QUERY, "D: ", DOCUMENT)),
        (
            {"query_template": "{prefix}<Instruct>: {instruction} {query}", "document_template": "{doc}{suffix}"}
            | {"prefix": "{a}", "suffix": "}"},
            ("{a}", "<Instruct>: ", INSTRUCTION, " ", QUERY, DOCUMENT, "}"),
        ),
        ({"query_template": "{{json}} {query}"}, ("{json} ", QUERY, DOCUMENT)),
        ("Q: {query} D: {document}", ("Q: ", QUERY, " D: ", DOCUMENT)),
        ("{instruct}\nQ: {query}\nD: {doc}", (INSTRUCTION, "\nQ: ", QUERY, "\nD: ", DOCUMENT)),
    ],
)
def test_format_strings(parts: Mapping[str, str] | str, expected: tuple[Segment, ...]) -> None:
    merged: list[Segment] = []
    for part in expected:  # neighbouring literals may come in one piece or several
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    found: list[Segment] = []
    for part in segments(parts, instruction=INSTRUCTION in expected):
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    assert found == merged


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("no_such_thing", r"template= 'no_such_thing' is neither a file, .* built-in template \(.*qwen3_reranker"),
        ("", "neither a file"),
        (Path("missing.jinja"), "'missing.jinja' is neither a file"),
        ({"query": "Q"}, "have the parts prefix, query_template, document_template, suffix; template= has 'query'"),
        ({"document_template": "{text}"}, r"\{text\} in the format strings .* is not a placeholder"),
        ({"document_template": "{document:>9}"}, "plain placeholder"),
        ({"document_template": "{document"}, "is broken: .* Write literal braces as {{ and }}"),
        ({"document_template": "D"}, "places the document 0 times instead of once. Use {query}"),
        ({"query_template": "Q"}, "does not place the query"),
        ({"query_template": "{query}{instruction}"}, "needs an instruction"),
        ("only text\non two lines", "does not place the query. A score template uses {{ query }}"),
        ("{{ query }}", "places the document 0 times"),
        ("{{ query }}{{ document }}{{ document }}", "places the document 2 times"),
    ],
)
def test_what_is_no_template(template: TemplateLike, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        segments(template)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "x.jinja").write_bytes(b"\xff\xfe{{")
    with pytest.raises(TemplateError, match=r"x\.jinja cannot be read: 'utf-8' codec"):
        from_user(tmp_path / "x.jinja")


# --- variables --------------------------------------------------------------------------------------------------------


def test_template_kwargs_reach_the_template() -> None:
    source = "{{ style.name }}{% if strict %}!{% endif %}{{ tags | join(',') }}{{ query }}{{ document }}"
    kwargs = {"style": {"name": "terse"}, "strict": True, "tags": ["a", "b"]}
    assert segments(source, template_kwargs=kwargs) == ("terse!a,b", QUERY, DOCUMENT)


@pytest.mark.parametrize("name", ["query", "document", "instruction", "prompt", "messages", "chat_template", "tools"])
def test_reserved_names_are_refused(name: str) -> None:
    with pytest.raises(TemplateError, match=f"template_kwargs may not set {name}: Winnow fills"):
        segments("{{ query }}{{ document }}", template_kwargs={name: "x"})


def test_format_strings_take_no_kwargs() -> None:
    with pytest.raises(TemplateError, match="template_kwargs need a Jinja template"):
        segments({"prefix": "x"}, template_kwargs={"a": 1})


def test_half_characters_in_a_template_or_its_kwargs() -> None:
    with pytest.raises(
        TemplateError, match=r"in template= does not render text\. It holds the lone surrogate '\\ud83d'"
    ):
        segments("\ud83d{{ query }}{{ document }}")
    with pytest.raises(TemplateError, match="lone surrogate"):
        segments("{{ x }}{{ query }}{{ document }}", template_kwargs={"x": "\udc00"})


def test_special_tokens_reach_the_template_and_kwargs_win() -> None:
    source = "{{ bos_token }}{{ query }}{{ document }}"
    assert segments(source, special_tokens={"bos_token": "<s>"})[0] == "<s>"
    assert segments(source, special_tokens={"bos_token": "<s>"}, template_kwargs={"bos_token": "!"})[0] == "!"


def test_control_tokens_typed_in_template_kwargs_stay_text() -> None:
    tokenizer = PromptTokenizer(tokenizer_of_kind("llama3_like"))
    bound = segments(
        "<|eot_id|>{{ meta.title }}<|eot_id|>{{ query }}{{ document }}",
        template_kwargs={"meta": {"title": "a <|eot_id|> b", "more": ("<|eot_id|>",)}},
        control_tokens=tokenizer.control_tokens,
    )
    assert bound == ("<|eot_id|>a ", PlainText("<|eot_id|>"), " b<|eot_id|>", QUERY, DOCUMENT)
    ids = PromptBuilder(PromptLayout(tokenizer, bound, Limits(max_length=200))).prompt("q", "d").ids
    assert ids.count(tokenizer.control_tokens["<|eot_id|>"]) == 2
    assert tokenizer.decode(ids).count("<|eot_id|>") == 3


def test_the_default_instruction_of_a_model_is_part_of_its_template() -> None:
    template = ScoreTemplate("{{ instruction }}:{{ query }}{{ document }}", "test", instruction="find it")
    assert template.segments(with_instruction=False) == ("find it", ":", QUERY, DOCUMENT)
    assert template.segments(with_instruction=True) == (INSTRUCTION, ":", QUERY, DOCUMENT)


# --- the probe --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expression",
    [
        "{{ document | upper }}",
        "{{ document[:100] }}",
        "{{ document | truncate(100) }}",
        "{{ document | tojson }}",
        "{{ document | e }}",
        "{{ document.lstrip() }}",
        "{{ document.replace('  ', ' ') }}",
        "{% if document | length > 200 %}long{% else %}{{ document }}{% endif %}",
    ],
)
def test_a_template_that_changes_contents_is_refused(expression: str) -> None:
    with pytest.raises(TemplateError, match=r"changes the query|places the document 0 times"):
        segments("{{ query }}: " + expression)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ query }}\n{% if x %}\n{{ document }}", r"syntax error in line 3 \(`\{\{ document \}\}`\): Unexpected end"),
        ("{{ query }}\n\n{{ document | nope }}", r"syntax error in line 3 \(`.*nope.*`\): No filter named 'nope'"),
        (
            "a\n{{ ''.__class__.__mro__ }}",
            r"sandbox forbids in line 2 \(`.*__mro__.*`\): access to attribute '__class__'",
        ),
        ("{{ messages.append(1) }}", r"sandbox forbids in line 1"),
        ("{{ cycler.__init__.__globals__ }}", "sandbox forbids in line 1"),
        ("\n{{ 'a' * 100000000000 }}", r"sandbox forbids in line 2 .* the result of \* is too large"),
        ("{{ [0] * 10000000 }}", "too large"),
        ("{{ 9 ** 999999999 }}", r"the result of \*\* is too large"),
        ("{{ range(10000000) | list }}", "Range too big"),
        ("{{ raise_exception('no such role') }}", r"failed to render in line 1 .*: no such role"),
        ("\n{{ nothing.at.all }}", r"failed to render in line 2 \(`.*`\): UndefinedError: 'nothing' is undefined"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end in line 1"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "is nested too deeply"),
    ],
)
def test_broken_and_hostile_templates(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        segments(source + "\n{{ query }}{{ document }}" if "query" not in source else source)


FOREVER = {
    "loops in loops": "{% for i in range(99999) %}" * 4 + "{% endfor %}" * 4,
    "a macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "a recursive loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 90 }}{% endfor %}",
}


@pytest.mark.parametrize("kind", FOREVER)
def test_a_template_that_never_ends(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("winnow.templates.rendering._RENDER_SECONDS", 0.2)
    with pytest.raises(TemplateError, match=r"ran for more than 0\.2 s: does it loop forever\?"):
        segments(FOREVER[kind] + "{{ query }}{{ document }}")


def test_the_time_limit_leaves_debuggers_and_coverage_alone() -> None:
    tracer = sys.gettrace()
    segments("{{ query }}{% for x in range(1000) %}.{% endfor %}{{ document }}")
    assert sys.gettrace() is tracer


def test_messages_name_the_origin(tmp_path: Path) -> None:
    path = tmp_path / "broken.jinja"
    path.write_text("{{ query }}", encoding="utf-8")
    with pytest.raises(TemplateError, match=re.escape(f"The template from the file {path} places")):
        segments(path)
    with pytest.raises(TemplateError, match="from the Jinja source in template= places"):
        segments("{{ query }}")


def test_binding_logs_nothing_for_a_template_without_faults(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        segments("qwen3_reranker", instruction=True)
    assert not caplog.records


def test_one_file_knows_jinja() -> None:
    folder = Path(jinja_sandbox.__file__).parents[1]
    knowing = {
        path.name for path in folder.rglob("*.py") if re.search(r"(import|from) jinja2", path.read_text("utf-8"))
    }
    assert knowing == {"jinja_sandbox.py"}
