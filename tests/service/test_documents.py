"""The forms of queries and documents, images among them."""

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given as given_by
from hypothesis import strategies as st

from running import running
from winnow import Document, Reranker
from winnow.service.documents import document_in_answer, document_of
from winnow.service.errors import Json, ServiceError
from winnow.service.pieces import pieces

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
URI = f"data:image/png;base64,{PNG}"


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (None, None),
        ("text", "text"),
        ({"text": "text", "title": "t"}, "text"),
        ({"text": None}, None),
        ({}, None),
        ({"content": "text"}, "text"),
        ({"content": []}, None),
        (["one", {"type": "text", "text": "two"}], "one\ntwo"),
        ({"image": URI}, Document(image=URI)),
        ({"image": PNG}, Document(image=f"data:;base64,{PNG}")),  # as Jina's clients send it
        ({"image": "https://a.example/b.png", "text": "t"}, Document("t", image="https://a.example/b.png")),
        ([{"type": "image_url", "image_url": {"url": URI}}], Document(image=URI)),
        (
            {"content": [{"type": "text", "text": "t"}, {"type": "image_url", "image_url": URI}]},
            Document("t", image=URI),
        ),
        ([{"type": "video_url", "video_url": {"url": URI}}], Document(video=URI)),
        ({"image": "/etc/passwd"}, Document(image="data:;base64,/etc/passwd")),  # never a path
        ({"image": "file:///etc/passwd"}, Document(image="data:;base64,file:///etc/passwd")),
    ],
)
def test_a_document_is_read(given: Any, read: str | Document | None) -> None:
    assert document_of(given, "body.query") == read


@pytest.mark.parametrize("given", [7, True, {"text": 7}, {"image": 7}, {"image": {}}, [7], [{"type": "audio"}], [[]]])
def test_other_forms_are_refused(given: Any) -> None:
    with pytest.raises(ServiceError, match="must") as caught:
        document_of(given, "body.query")
    assert caught.value.status == 400


def test_a_document_goes_back_as_an_object_with_a_text() -> None:
    assert document_in_answer(None, None) == {"text": ""}
    image = Document(image=URI)
    part = {"type": "image_url", "image_url": {"url": URI}}
    assert document_in_answer({"image": URI}, image) == {"text": "", "multi_modal": [part]}


def test_what_json_cannot_hold_does_not_break_an_answer() -> None:
    assert Json({"text": "a\ud800"}).body == b'{"text":"a?"}'
    assert Json({"text": "ä", "weight": math.nan}).body == '{"text":"ä","weight":null}'.encode()
    assert Json({"text": "a\ud800", "weight": math.inf}).body == b'{"text":"a?","weight":null}'


@given_by(st.integers(0, 3000))
def test_other_work_goes_on_between_the_pieces_of_a_long_answer(count: int) -> None:
    async def main() -> None:
        done, others = [], 0

        async def other() -> None:
            nonlocal others
            while True:
                others += 1
                await asyncio.sleep(0)

        working = asyncio.ensure_future(other())
        async for piece in pieces(range(count)):
            done += piece
            assert len(done) <= 500 * (others + 1)
        working.cancel()
        assert done == list(range(count))

    asyncio.run(main())


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with running(Reranker("tiny", engine="fake", on_error="skip")) as server, server.client() as client:
        yield client


@pytest.mark.slow
def test_images_follow_the_rules_of_the_reranker(client: httpx.Client, tmp_path: Path) -> None:
    """A text model reads the text of a document with an image, and none of one without."""
    body = {"query": "a", "documents": [{"text": "a", "image": PNG}, {"image": PNG}]}
    results = client.post("/rerank", json=body).json()["results"]
    assert [result["index"] for result in results] == [0, 1]
    assert results[0]["relevance_score"] > 0.9
    assert "error" not in results[0]
    assert results[0]["document"]["multi_modal"][0]["type"] == "image_url"
    assert "only reads text" in results[1]["error"]
