"""Templates, instructions, presets, lengths and priorities of requests."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gated_engine import PATIENCE, wait_until
from reading_engine import ReadingEngine
from running import Running, running
from winnow import ConfigurationError, Reranker, TemplateError
from winnow.service import Preset, read_preset

QUERY = "capital of China"
DOCUMENTS = ["Rice.", "Beijing is the capital of China.", "A capital."]
JINJA = "Q {{ query }} D {{ document }} I {{ instruction or 'none' }} V {{ v }}"


@pytest.fixture(scope="module")
def engine() -> ReadingEngine:
    return ReadingEngine()


PRESET = Preset(template="P {query} {document} {instruction}", instruction="of the preset")


@pytest.fixture(scope="module")
def server(engine: ReadingEngine) -> Iterator[Running]:
    with running(
        Reranker("tiny", engine=engine, instruction="of the server"),
        served_names=["main", "second"],
        presets={"legal": PRESET, "plain": Preset(instruction="plain")},
        max_priority=5,
    ) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def prompt(client: httpx.Client, engine: ReadingEngine) -> Any:
    """The prompt that a request with one document makes."""

    def of(path: str = "/rerank", **fields: Any) -> str:
        before = len(engine.read)
        body = {"query": "q", "documents": ["d"], **fields}
        answer = client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        [text] = engine.read[before:]
        return text

    return of


@pytest.mark.slow
@pytest.mark.parametrize("name", ["score_template", "rerank_template", "chat_template"])
def test_a_request_brings_its_template(prompt: Any, name: str) -> None:
    kwargs = {f"{name}_kwargs": {"v": 7}}
    assert prompt(**{name: JINJA}, **kwargs) == "Q q D d I of the server V 7"
    assert prompt(**{name: JINJA}, **kwargs, instruction="mine") == "Q q D d I mine V 7"
    assert prompt(**{name: JINJA}, **kwargs, instruct="mine") == "Q q D d I mine V 7"
    assert prompt(**{name: JINJA}, **kwargs, instruction="") == "Q q D d I none V 7"
    assert prompt(**{name: "F {query} {document}"}) == "F q d"
    parts = {"prefix": "<", "query_template": "{query}|", "document_template": "{document}", "suffix": ">"}
    assert prompt(**{name: parts}) == "<q|d>"
    assert "<Query>: q" in prompt(**{name: "qwen3_reranker"})


@pytest.mark.slow
def test_scores_with_a_template_are_those_of_the_reranker(client: httpx.Client) -> None:
    with Reranker("tiny", engine="fake", instruction="of the server") as reranker:
        expected = reranker.rank(QUERY, DOCUMENTS, template=JINJA)
    found = client.post("/rerank", json={"query": QUERY, "documents": DOCUMENTS, "score_template": JINJA}).json()
    assert [result["index"] for result in found["results"]] == [hit.index for hit in expected]
    scores = [result["relevance_score"] for result in found["results"]]
    assert scores == pytest.approx([hit.score for hit in expected])


@pytest.mark.slow
def test_vllms_clients_give_the_instruction_among_the_variables(prompt: Any) -> None:
    given = prompt(instruction="field", chat_template_kwargs={"instruction": "variable"})
    assert given == "<i>variable<q>q<d>d<e>"


@pytest.mark.slow
def test_score_and_ranking_take_templates_too(client: httpx.Client, engine: ReadingEngine) -> None:
    before = len(engine.read)
    pairs = {"queries": ["a", "b"], "documents": ["c", "d"], "score_template": JINJA, "instruction": "mine"}
    assert client.post("/score", json=pairs).status_code == 200
    assert sorted(engine.read[before:]) == ["Q a D c I mine V ", "Q b D d I mine V "]
    passages = {"query": {"text": "e"}, "passages": [{"text": "f"}], "score_template": JINJA}
    assert client.post("/v1/ranking", json=passages).status_code == 200
    assert engine.read[-1] == "Q e D f I of the server V "


@pytest.mark.slow
def test_a_preset_has_its_own_template_and_instruction(prompt: Any, client: httpx.Client) -> None:
    assert prompt(model="legal") == "P q d of the preset"
    assert prompt(model="legal", instruction="mine") == "P q d mine"
    assert prompt(model="plain") == "<i>plain<q>q<d>d<e>"
    assert prompt(model="legal", score_template="F {query} {document}") == "F q d"
    assert prompt(model="second") == prompt(model="main") == prompt(model=None) == "<i>of the server<q>q<d>d<e>"
    cards = client.get("/v1/models").json()["data"]
    assert [(card["id"], card["parent"]) for card in cards] == [
        ("main", None),
        ("second", None),
        ("legal", "main"),
        ("plain", "main"),
    ]
    assert {card["max_model_len"] for card in cards} == {4096}
    answer = client.post("/rerank", json={"query": "q", "documents": ["d"], "model": "legal"})
    assert answer.json()["model"] == "legal"


SLOW = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}{{ query }}{{ document }}"
BAD_TEMPLATES: list[tuple[dict[str, Any], str]] = [
    ({"score_template": "{{ query"}, "syntax error"),
    ({"score_template": "{{ query }}"}, "places the document 0 times"),
    ({"score_template": "{{ query | uper }}{{ document }}"}, "uper"),
    ({"score_template": "{{ ''.__class__.__mro__ }}{{ query }}{{ document }}"}, "sandbox"),
    ({"score_template": "{{ query }}{{ document }}" + "a" * 100_000}, "longer than 100,000"),
    ({"score_template": "{{ 'a'.ljust(7 * 10**9) }}{{ query }}{{ document }}"}, "memory"),
    ({"score_template": "/etc/passwd"}, "neither Jinja"),
    ({"score_template": 7}, "neither Jinja"),
    ({"score_template": {"query": "{query}"}}, "have the parts"),
    ({"score_template": JINJA, "score_template_kwargs": {"query": "other"}}, "may not set"),
    ({"score_template": JINJA, "score_template_kwargs": {"v": [[[[[[[[[[[[1]]]]]]]]]]]]}}, "nested"),
    ({"score_template_kwargs": "v"}, "valid dictionary"),
    ({"chat_template_kwargs": {"instruction": 7}}, "instruction must be a text"),
    ({"score_template": SLOW}, "ran for more than 2 s"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("fields", "message"), BAD_TEMPLATES)
def test_a_template_that_cannot_be_used_is_a_400(client: httpx.Client, fields: dict[str, Any], message: str) -> None:
    answer = client.post("/rerank", json={"query": "q", "documents": ["d"], **fields})
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["detail"]
    assert answer.json()["error"]["param"].startswith("body.")


@pytest.mark.slow
def test_large_variables_are_refused(client: httpx.Client) -> None:
    answer = client.post(
        "/rerank", json={"query": "q", "documents": ["d"], "chat_template_kwargs": {"v": "a" * 100_001}}
    )
    assert answer.status_code == 413


@pytest.mark.slow
def test_variables_alone_go_to_the_template_of_the_server(engine: ReadingEngine) -> None:
    with (
        running(Reranker("tiny", engine=engine, template=JINJA, template_kwargs={"v": "own"})) as server,
        server.client() as client,
    ):
        body = {"query": "q", "documents": ["d"]}
        for kwargs, v in ((None, "own"), ({"v": "theirs"}, "theirs"), ({"other": 1}, "own")):
            assert client.post("/rerank", json={**body, "chat_template_kwargs": kwargs}).status_code == 200
            assert engine.read[-1] == f"Q q D d I none V {v}"
        # They are not trusted, though the template is: a loop over them runs within the limits.
        answer = client.post("/rerank", json={**body, "chat_template_kwargs": {"v": "<e>"}})
        assert answer.status_code == 200
        assert engine.read[-1] == "Q q D d I none V <e>"


@pytest.mark.slow
def test_slow_templates_keep_no_other_request_waiting(server: Running) -> None:
    with server.client() as slow, server.client() as client:
        answers: list[httpx.Response] = []
        body = {"query": "q", "documents": ["d"], "score_template": SLOW}

        def ask(variable: int) -> None:
            answers.append(slow.post("/rerank", json={**body, "score_template_kwargs": {"v": variable}}))

        threads = [threading.Thread(target=ask, args=[at]) for at in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda: server.queue.inside == 4)
        assert client.post("/rerank", json={"query": "q", "documents": ["e"]}).status_code == 200
        assert not answers
        for thread in threads:
            thread.join(PATIENCE)
        assert [answer.status_code for answer in answers] == [400] * 4


@pytest.mark.slow
def test_a_server_may_take_no_templates(engine: ReadingEngine) -> None:
    with running(Reranker("tiny", engine=engine), request_templates=False) as server, server.client() as client:
        body = {"query": "q", "documents": ["d"]}
        for fields in ({"score_template": JINJA}, {"chat_template_kwargs": {"v": 1}}):
            refused = client.post("/rerank", json={**body, **fields})
            assert refused.status_code == 400
            assert "takes no templates" in refused.json()["detail"]
        for fields in ({"instruction": "mine"}, {"chat_template_kwargs": {"instruction": "mine"}}):
            assert client.post("/rerank", json={**body, **fields}).status_code == 200
            assert engine.read[-1] == "<i>mine<q>q<d>d<e>"


@pytest.mark.slow
def test_lengths_of_a_request(client: httpx.Client, engine: ReadingEngine) -> None:
    long = "first " + "night " * 100 + "last"

    def result(**fields: Any) -> dict[str, Any]:
        answer = client.post("/rerank", json={"query": "q", "documents": [long], **fields})
        assert answer.status_code == 200, answer.text
        [found] = answer.json()["results"]
        return found  # type: ignore[no-any-return]

    assert not result()["truncated"]
    for nothing in ({"max_tokens_per_doc": 0}, {"truncate_prompt_tokens": -1}, {"truncate_prompt_tokens": None}):
        assert not result(**nothing)["truncated"]
    assert result(max_tokens_per_doc=5)["truncated"]
    assert engine.read[-1].endswith("<d>first<e>")
    assert result(max_tokens_per_doc=4, truncation_side="left")["truncated"]
    assert engine.read[-1].endswith("<d>last<e>")
    assert result(max_tokens_per_doc=4, truncation_direction="Left")["truncated"]
    assert result(truncate_prompt_tokens=50)["truncated"]
    result(query="0123456789", max_tokens_per_query=3)
    assert "<q>012<d>" in engine.read[-1]
    for refusing in ({"truncation": False}, {"truncate": "false"}, {"truncate": "NONE"}):
        body = {"query": "q", "documents": [long], "max_tokens_per_doc": 5, **refusing}
        refused = client.post("/rerank", json=body)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "body.documents.0"
    passages = {"query": {"text": "q"}, "passages": [{"text": long}], "truncate": "END", "max_tokens_per_doc": 5}
    assert client.post("/v1/ranking", json=passages).status_code == 200


@pytest.mark.slow
def test_windows_are_reported() -> None:
    with (
        running(Reranker("tiny", engine="fake", max_length=200, on_overflow="window")) as server,
        server.client() as client,
    ):
        body = {"query": "q", "documents": ["night " * 200], "return_documents": False}
        [result] = client.post("/rerank", json=body).json()["results"]
    assert result["windows"] > 3
    assert not result["truncated"]


@pytest.mark.slow
def test_priorities_are_bounded_and_off_by_default(client: httpx.Client, engine: ReadingEngine) -> None:
    def priority(of: httpx.Client, text: str, **fields: Any) -> int:
        assert of.post("/rerank", json={"query": "q", "documents": [text], **fields}).status_code == 200
        return engine.priorities[-1]

    base = priority(client, "one")
    assert priority(client, "two", priority=999) - base >= 5000
    assert priority(client, "three", priority=999) - base < 6000
    assert priority(client, "four", priority=-5) < base
    with running(Reranker("tiny", engine=ReadingEngine())) as server, server.client() as other:
        engine = server.app.state.scorer.reranker.config.engine
        assert priority(other, "one", priority=999) < 1000


@pytest.mark.slow
def test_usage_counts_what_vllm_counts() -> None:
    with running(Reranker("tiny", engine="fake", score_cache=100)) as server, server.client() as client:
        body = {"query": "q", "documents": ["one"]}
        once = client.post("/rerank", json=body).json()["usage"]["total_tokens"]
        again = client.post("/rerank", json={**body, "documents": ["one", "one", ""]}).json()
    assert again["usage"]["total_tokens"] == 2 * once > 0


def test_a_preset_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{{ query }} {{ document }}")
    file = tmp_path / "legal.toml"
    file.write_text('template = "mine.jinja"\ninstruction = "Find the clause"\n[template_kwargs]\nv = 1\n')
    assert read_preset(file) == Preset(
        template=tmp_path / "mine.jinja", instruction="Find the clause", template_kwargs={"v": 1}
    )
    file.write_text('[template]\nquery_template = "{query}"\n')
    assert read_preset(file).template == {"query_template": "{query}"}


@pytest.mark.parametrize(
    ("text", "message"),
    [("template", "not TOML"), ("templat = 1", "has the field 'templat'"), ("instruction = 1", "must be a text")],
)
def test_a_wrong_preset_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "legal.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        read_preset(file)


@pytest.mark.slow
def test_a_preset_whose_template_is_broken_ends_the_service_at_its_start() -> None:
    broken = {"broken": Preset(template="{{ query")}
    with running(Reranker("tiny", engine="fake"), until_ready=False, presets=broken) as server:
        wait_until(lambda: not server.thread.is_alive())
        assert isinstance(server.life.failure, TemplateError)
