"""Images and videos of LangChain documents: what reaches the core, and what different models make of it."""

import base64
import copy
import importlib.util
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from five_texts import BEST_FIRST, QUERY
from langchain_core.documents import Document
from langchain_kit import Call, call_async, call_sync, every_call, fake, ids, make_documents, record_handed_over

import winnow
from winnow import DocumentError, Reranker
from winnow_langchain import WinnowRerank

DATA_URI = "data:image/png;base64,AAAA"
ADDRESS = "https://example.com/a.png"


@every_call
@pytest.mark.parametrize(
    ("image", "handed_over"),
    [
        (DATA_URI, DATA_URI),
        (ADDRESS, ADDRESS),
        ({"type": "image", "base64": "AAAA", "mime_type": "image/png"}, DATA_URI),
        ({"type": "image", "url": ADDRESS}, ADDRESS),
        ({"type": "image", "source_type": "base64", "data": "AAAA", "mime_type": "image/png"}, DATA_URI),
        (b"\x89PNG", b"\x89PNG"),
        ("folder/a.png", "folder/a.png"),  # the core refuses it, unless it lies below root_path
    ],
)
def test_images_are_handed_over(call: Call, monkeypatch: pytest.MonkeyPatch, image: Any, handed_over: Any) -> None:
    handed = record_handed_over(monkeypatch)
    documents = [
        Document("a caption", metadata={"image": image}),
        Document("", metadata={"image": image}),
        Document("text", metadata={"image": None}),
        Document("text", metadata={"image": ""}),
    ]
    before = copy.deepcopy(documents)
    call(fake(on_error="skip"), documents, QUERY)
    assert handed == [winnow.Document("a caption", handed_over), winnow.Document(None, handed_over), "text", "text"]
    assert documents == before


NO_MEDIA = [None, False, True, 0, 3, 0.0, math.nan, np.int64(0), "", " ", b"", [], {}, {"id": 7, "width": 640}]


@every_call
@pytest.mark.parametrize("value", NO_MEDIA, ids=repr)
def test_values_that_are_no_media_are_left_alone(call: Call, monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    handed = record_handed_over(monkeypatch)
    (found,) = call(fake(video_key="video"), [Document("text", metadata={"image": value, "video": value})], QUERY)
    assert handed == ["text"]
    assert found.metadata["image"] is value


@every_call
def test_a_text_model_reads_the_text(call: Call) -> None:
    """Product data have an image's address more often than not."""
    bare = call(fake(), make_documents(), QUERY)
    with_image = make_documents()
    images = [ADDRESS, DATA_URI, b"no image", {"type": "image", "file_id": "7"}, "a.png"]
    for document, image in zip(with_image, images, strict=True):
        document.metadata |= {"image": image, "video": image}
    found = call(fake(video_key="video"), with_image, QUERY)
    assert ids(found) == BEST_FIRST
    assert [document.metadata["relevance_score"] for document in found] == [
        document.metadata["relevance_score"] for document in bare
    ]


@every_call
def test_an_image_alone_is_an_error_for_a_text_model(call: Call) -> None:
    """It is not scored as a blank text."""
    documents = [*make_documents(), Document("", metadata={"image": DATA_URI})]
    with pytest.raises(DocumentError, match=r"Document 5 .*image"):
        call(fake(), documents, QUERY)
    last = call(fake(on_error="skip"), documents, QUERY)[-1]
    assert last.metadata["image"] == DATA_URI
    assert "image" in last.metadata["rerank_error"]


def test_image_key(monkeypatch: pytest.MonkeyPatch) -> None:
    handed = record_handed_over(monkeypatch)
    documents = [Document("a", metadata={"image": DATA_URI}), Document("b", metadata={"picture": DATA_URI})]
    fake(image_key=None).compress_documents(documents, QUERY)
    fake(image_key="picture").compress_documents(documents, QUERY)
    assert handed == ["a", "b", "a", winnow.Document("b", DATA_URI)]


VIDEO_URI = "data:video/mp4;base64,AAAA"


@every_call
@pytest.mark.parametrize(
    ("video", "handed_over"),
    [
        (VIDEO_URI, VIDEO_URI),
        ({"type": "video", "base64": "AAAA", "mime_type": "video/mp4"}, VIDEO_URI),
        ({"type": "video", "url": "https://example.com/a.mp4"}, "https://example.com/a.mp4"),
        ([DATA_URI, DATA_URI], [DATA_URI, DATA_URI]),
    ],
)
def test_videos_are_handed_over_on_demand(
    call: Call, monkeypatch: pytest.MonkeyPatch, video: Any, handed_over: Any
) -> None:
    handed = record_handed_over(monkeypatch)
    documents = [Document("a caption", metadata={"video": video}), Document("", metadata={"video": video})]
    call(fake(on_error="skip", video_key="video"), documents, QUERY)
    assert handed == [winnow.Document("a caption", video=handed_over), winnow.Document(None, video=handed_over)]
    handed.clear()
    call(fake(), documents, QUERY)
    assert handed == ["a caption", ""]


# --- on a multimodal model --------------------------------------------------------------------------------------------

with_vision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="Qwen3-VL's processor needs torchvision"
)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Path of a tiny Qwen3-VL, with transformers running on it."""
    from tiny_families import build_qwen3_vl

    model = str(build_qwen3_vl(tmp_path_factory.mktemp("models") / "qwen3-vl-reranker-2b"))
    with Reranker(model, engine="transformers").start():
        yield model


def png() -> bytes:
    from tiny_vision import encoded, picture

    return encoded(picture(320, 200, "lightblue", "Beijing"))


@with_vision
def test_blocks_are_seen_and_records_are_not(seeing: str) -> None:
    reranker = WinnowRerank(model=seeing, engine="transformers", top_n=None)
    core = Reranker(seeing, engine="transformers")
    data = base64.b64encode(png()).decode()
    blocks = [
        {"type": "image", "base64": data, "mime_type": "image/png"},
        {"type": "image", "base64": data},  # the type is a label only
        *({"id": 7}, False, math.nan),
    ]
    documents = [Document("A map.", id=str(at), metadata={"image": block}) for at, block in enumerate(blocks)]
    seen, unseen = core.score(QUERY, [winnow.Document("A map.", png()), "A map."])
    assert seen != pytest.approx(unseen, abs=1e-3)
    found = {one["index"]: one["relevance_score"] for one in reranker.rerank(documents, QUERY)}
    assert [found[at] for at in range(5)] == pytest.approx([seen, seen, unseen, unseen, unseen], abs=1e-5)


@with_vision
def test_text_only(seeing: str) -> None:
    reranker = WinnowRerank(model=seeing, engine="transformers", top_n=None, text_only=True)
    expected = Reranker(seeing, engine="transformers").score(QUERY, ["A map.", "A map."])
    documents = [Document("A map.", metadata={"image": png()}), Document("A map.", metadata={"image": ADDRESS})]
    for call in (call_sync, call_async):
        found = [document.metadata["relevance_score"] for document in call(reranker, documents, QUERY)]
        assert found == pytest.approx(expected, abs=1e-5)


@with_vision
@pytest.mark.parametrize("block", [{"type": "image", "file_id": "file-1"}, {"type": "image"}])
def test_blocks_that_cannot_be_read(seeing: str, block: dict[str, str]) -> None:
    documents = [Document("A map.", id="0"), Document("A map.", id="1", metadata={"image": block})]
    settings: dict[str, Any] = {"model": seeing, "engine": "transformers", "top_n": None}
    for call in (call_sync, call_async):
        with pytest.raises(DocumentError, match=r"Document 1 .*give a path") as caught:
            call(WinnowRerank(**settings), documents, QUERY)
        assert caught.value.index == 1
        found = call(WinnowRerank(**settings, on_error="skip"), documents, QUERY)
        assert ids(found) == [0, 1]
        assert found[1].metadata["relevance_score"] == 0.0
        assert "image" in found[1].metadata["rerank_error"]
