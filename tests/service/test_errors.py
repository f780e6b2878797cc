"""What is wrong with a request is said in one shape, without its texts."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gated_engine import wait_until
from running import running
from winnow import Reranker

pytestmark = pytest.mark.slow

SECRET = "the-patient-is-called-Smith"
GOOD = {"query": SECRET, "documents": [SECRET]}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    reranker = Reranker("tiny", engine="fake")
    with running(reranker, max_documents=3, max_characters=1000, max_body_bytes=20_000) as server:

        @server.app.get("/fails")
        async def fails() -> None:
            raise RuntimeError(SECRET)

        with server.client() as client:
            yield client


def check_shape(answer: httpx.Response, status: int, param: str | None = None) -> str:
    """The error in the shape of OpenAI, with the fields that other clients read; and its message."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    message = body["detail"]
    assert isinstance(message, str)
    assert body["message"] == body["error"]["message"] == message
    assert body["error"]["code"] == status
    assert body["error"]["param"] == param
    assert SECRET not in answer.text
    assert answer.headers["x-request-id"]
    return message


BAD_BODIES: list[tuple[str, dict[str, Any], str | None]] = [
    ("/rerank", {"query": SECRET}, "body.documents"),
    ("/rerank", {"documents": [SECRET]}, "body.query"),
    ("/rerank", {"query": " ", "documents": [SECRET]}, "body.query"),
    ("/rerank", {"query": 3, "documents": [SECRET]}, "body.query"),
    ("/rerank", {"query": SECRET, "documents": SECRET}, "body.documents"),
    ("/rerank", {"query": SECRET, "documents": [SECRET, 7]}, "body.documents.1"),
    ("/rerank", {"query": SECRET, "documents": [{"text": [SECRET]}]}, "body.documents.0.text"),
    ("/rerank", {"query": SECRET, "documents": [{"content": [{"type": SECRET}]}]}, "body.documents.0.content.0"),
    ("/rerank", {"query": SECRET, "documents": [{"image": "x", "video": "y"}]}, "body.documents.0"),
    ("/rerank", {"query": SECRET, "texts": [{"image": 3}]}, "body.texts.0"),
    ("/rerank", {**GOOD, "top_n": SECRET}, "body.top_n"),
    ("/rerank", {**GOOD, "top_n": -1}, "body.top_n"),
    ("/rerank", {**GOOD, "return_documents": SECRET}, "body.return_documents"),
    ("/rerank", {**GOOD, "deadline": 0}, "body.deadline"),
    ("/rerank", {**GOOD, "instruction": [SECRET]}, "body.instruction"),
    ("/rerank", {"query": SECRET, "documents": [SECRET + "\ud800"]}, "body.documents.0"),
    ("/rerank", {"query": SECRET + "\ud800", "documents": [SECRET]}, "body.query"),
    ("/score", {"queries": SECRET, "data_2": SECRET}, "body"),
    ("/score", {"text_1": SECRET}, "body.documents"),
    ("/score", {"text_1": [SECRET, SECRET], "text_2": [SECRET]}, "body.text_1"),
    ("/v1/ranking", {"query": {"text": SECRET}}, "body.passages"),
]


@pytest.mark.parametrize(("path", "body", "param"), BAD_BODIES)
def test_a_wrong_field_is_named(client: httpx.Client, path: str, body: dict[str, Any], param: str | None) -> None:
    written = json.dumps(body)  # with escapes: half of a surrogate pair is JSON, but no text
    check_shape(client.post(path, content=written, headers={"Content-Type": "application/json"}), 400, param)


@pytest.mark.parametrize(
    "body", ["", "{", f'["{SECRET}"]', '{"query": 1e999999', "[" * 5000, '{"top_n": ' + "9" * 5000 + "}"]
)
def test_a_body_that_is_no_json_object_is_refused(client: httpx.Client, body: str) -> None:
    answer = client.post("/rerank", content=body, headers={"Content-Type": "application/json"})
    check_shape(answer, 400, answer.json()["error"]["param"])


def test_a_body_that_a_web_page_could_send_is_refused(client: httpx.Client) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = client.post("/rerank", content=b'{"query": "a"}', headers={"Content-Type": kind})
        assert "Content-Type: application/json" in check_shape(answer, 415)


def test_unknown_models_paths_and_methods(client: httpx.Client) -> None:
    check_shape(client.post("/rerank", json={**GOOD, "model": SECRET}), 404, "body.model")
    check_shape(client.post(f"/{SECRET}", json=GOOD), 404)
    check_shape(client.get("/rerank"), 405)


def test_what_is_too_large_is_413(client: httpx.Client) -> None:
    message = check_shape(client.post("/rerank", json={"query": "a", "documents": ["b"] * 4}), 413, "body.documents")
    assert "4 documents, and may have 3" in message
    check_shape(client.post("/rerank", json={"query": "a", "documents": ["b" * 1001]}), 413)
    check_shape(client.post("/rerank", json={"query": "a" * 1001, "documents": ["b"]}), 413)
    check_shape(client.post("/rerank", json={**GOOD, "instruction": "a" * 1001}), 413)
    check_shape(client.post("/rerank", json={**GOOD, "unknown": "a" * 20_001}), 413)
    pieces = (b'{"query": "', *[b"a" * 1000] * 30, b'"}')  # chunked, so that no length is declared
    check_shape(client.post("/rerank", content=iter(pieces), headers={"Content-Type": "application/json"}), 413)
    assert client.post("/rerank", json={"query": "a", "documents": ["b"] * 3}).status_code == 200


def test_an_unexpected_error_is_a_500_whose_message_stays_inside(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    answer = client.get("/fails")
    check_shape(answer, 500)
    assert answer.headers["x-request-id"] in caplog.text
    assert "RuntimeError" in caplog.text
    assert SECRET not in caplog.text


def test_the_log_has_a_line_for_each_request_and_none_of_its_text(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="winnow.service")
    named = client.post(f"/rerank?q={SECRET}", json=GOOD, headers={"X-Request-ID": "bench-7"})
    assert named.headers["x-request-id"] == "bench-7"
    assert named.json()["id"] == "rerank-bench-7"
    client.post("/rerank", json={**GOOD, "top_n": SECRET})
    forged = client.post("/rerank", json=GOOD, headers={"X-Request-ID": "a b"})
    assert forged.headers["x-request-id"] != "a b"

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "winnow.service.request_log"]

    wait_until(lambda: len(lines()) == 3)  # each is written when the answer is sent
    assert lines()[0].startswith("POST /rerank 200 in ")
    assert lines()[0].endswith("tokens id=bench-7")
    assert lines()[1].startswith("POST /rerank 400 in ")
    assert SECRET not in caplog.text
