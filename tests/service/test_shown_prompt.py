"""POST /v1/prompt: the prompt of a pair as the model gets it, in its parts."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest

from running import Running, running
from winnow import EngineScore, FakeEngine, Prompt, Reranker
from winnow.cli.doctor import examine
from winnow.service import Preset

pytestmark = pytest.mark.slow

QUERY = "capital of China"
DOCUMENT = "Beijing <d> is the capital."


class Keeping(FakeEngine):
    """Keeps the ids of its prompts."""

    def __init__(self) -> None:
        super().__init__(max_length=200)
        self.ids: list[list[int]] = []

    async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
        self.ids += [prompt.ids for prompt in prompts]
        return await super().score(prompts, priority=priority)


@pytest.fixture(scope="module")
def engine() -> Keeping:
    return Keeping()


@pytest.fixture(scope="module")
def server(engine: Keeping) -> Iterator[Running]:
    presets = {"legal": Preset(template="P {query} {document} {instruction}", instruction="of the preset")}
    reranker = Reranker("tiny", engine=engine, instruction="of the server")
    with running(reranker, presets=presets, max_characters=10_000) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def shown(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/prompt", json={"query": QUERY, "document": DOCUMENT, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert sum(count for part, count in found["tokens"].items() if part != "total") == len(found["ids"])
    assert found["tokens"]["total"] == len(found["ids"])
    return found


def pieces(found: dict[str, Any]) -> list[tuple[str, str, bool]]:
    return [(piece["part"], piece["text"], piece["control"]) for piece in found["pieces"]]


def test_the_parts_are_told_apart_and_a_typed_control_token_is_text(client: httpx.Client) -> None:
    found = shown(client)
    assert pieces(found) == [
        ("before", "<i>", True),
        ("instruction", "of the server", False),
        ("before", "<q>", True),
        ("query", QUERY, False),
        ("between", "<d>", True),
        ("document", DOCUMENT, False),
        ("after", "<e>", True),
    ]
    assert found["tokens"] == {
        "before": 2,
        "instruction": len("of the server"),
        "query": len(QUERY),
        "between": 1,
        "document": len(DOCUMENT),
        "after": 1,
        "total": len(found["ids"]),
    }
    assert (found["model"], found["template"], found["max_length"]) == ("tiny", "FakeEngine", 200)
    assert (found["truncated"], found["query_truncated"], found["windows"]) == (False, False, 1)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"instruction": "of the request"},
        {"model": "legal"},
        {"score_template": "T {query} {document}"},
        {"score_template": "{{ query }}{{ document }}{{ x }}", "score_template_kwargs": {"x": "so?"}},
        {"document": {"text": "long " * 100}},
        {"document": "long " * 100, "truncation_side": "left"},
        {"document": "long " * 100, "max_tokens_per_doc": 7},
        {"query": "long " * 100, "document": "long " * 100},
    ],
)
def test_it_is_the_prompt_that_the_engine_gets(client: httpx.Client, engine: Keeping, fields: dict[str, Any]) -> None:
    body = {"query": QUERY, "document": DOCUMENT, **fields}
    found = shown(client, **body)
    engine.ids.clear()
    document = body.pop("document")
    answer = client.post("/rerank", json={**body, "documents": [document]})
    assert answer.json()["results"][0]["truncated"] == found["truncated"] == ("long" in str(document))
    assert engine.ids == [found["ids"]]
    assert "".join(text for _, text, _ in pieces(found)) == engine.checkpoint.tokenizer.decode(found["ids"])


def test_of_several_windows_the_first_is_shown() -> None:
    engine = Keeping()
    with running(Reranker("tiny", engine=engine, on_overflow="window")) as server, server.client() as client:
        found = shown(client, document="word " * 100)
        engine.ids.clear()
        client.post("/rerank", json={"query": QUERY, "documents": ["word " * 100]})
    assert found["windows"] == len(engine.ids) > 2
    assert found["ids"] == engine.ids[0]
    assert pieces(found)[-1] == ("after", "<e>", True)
    assert {text for part, text, _ in pieces(found) if part == "query"} == {QUERY}


def test_it_says_what_winnow_doctor_says(tiny_model: str) -> None:
    expected = examine(tiny_model, query=QUERY, document=DOCUMENT, instruction="Find facts").as_dict()
    with running(Reranker(tiny_model, engine="transformers")) as server, server.client() as client:
        found = shown(client, instruction="Find facts")
    for name in ("template", "pieces", "ids", "tokens", "judged"):
        assert found[name] == expected[name], name


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"query": " "}, 400, "body.query"),
        ({"document": None}, 400, "body.document"),
        ({"document": ""}, 400, "body.document"),
        ({"document": {"image": "aaaa"}}, 400, "body.document"),
        ({"document": "b" * 500, "truncate": "NONE"}, 400, "body.document"),
        ({"query": "b" * 500, "truncate": "NONE"}, 400, "body.query"),
        ({"document": "half \ud83d"}, 400, "body.document"),
        ({"document": "b" * 10_001}, 413, None),
        ({"score_template": "{{ query }}"}, 400, "body.score_template"),
        ({"model": "nobody's"}, 404, "body.model"),
    ],
)
def test_what_is_wrong_is_named(client: httpx.Client, fields: dict[str, Any], status: int, param: str | None) -> None:
    body = json.dumps({"query": QUERY, "document": DOCUMENT, **fields})
    answer = client.post("/v1/prompt", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param
    assert "bbb" not in answer.text
