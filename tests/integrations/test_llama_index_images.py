"""Nodes with images, in the LlamaIndex integration: what of them reaches the core, and in which order."""

import asyncio
import base64
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from five_texts import QUERY
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.schema import Document as LlamaDocument
from llama_index.core.schema import (
    ImageDocument,
    ImageNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeWithScore,
    QueryBundle,
)
from llama_index_helpers import Call, fake, ids, scored, text_nodes

from winnow import Document, DocumentError, RankedDocument, Ranking, Reranker
from winnow_llama_index import WinnowRerank

pytest_plugins = ["llama_index_helpers"]

# A red pixel.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/iZk9HQAAAABJRU5ErkJggg=="
)
BASE64 = base64.b64encode(PNG).decode()
DATA_URI = f"data:image/png;base64,{BASE64}"
URL = "http://localhost/a.png"

CASES: dict[str, tuple[Any, Document]] = {
    "path": (ImageNode(image_path="maps/a.png"), Document(image="maps/a.png")),
    "path and caption": (ImageNode(text="A map.", image_path="a.png"), Document("A map.", "a.png")),
    "address": (ImageNode(image_url=URL), Document(image=URL)),
    "base64": (ImageNode(image=BASE64), Document(image=DATA_URI)),
    "base64 as bytes": (ImageNode(image=base64.b64encode(PNG)), Document(image=DATA_URI)),
    "base64 and type": (
        ImageNode(image=BASE64, image_mimetype="image/webp"),
        Document(image=f"data:image/webp;base64,{BASE64}"),
    ),
    "data URI": (ImageNode(image=DATA_URI), Document(image=DATA_URI)),
    "base64 before path": (ImageNode(image=BASE64, image_path="a.png", image_url=URL), Document(image=DATA_URI)),
    "path before address": (ImageNode(image_path="a.png", image_url=URL), Document(image="a.png")),
    "ImageNode from resource": (
        ImageNode(text="A map.", image_resource=MediaResource(path="a.png")),
        Document("A map.", "a.png"),
    ),
    "resource with bytes": (Node(image_resource=MediaResource(data=PNG)), Document(image=DATA_URI)),
    "resource with path": (Node(image_resource=MediaResource(path="maps/a.png")), Document(image="maps/a.png")),
    "resource with address": (Node(image_resource=MediaResource(url=URL)), Document(image=URL)),
    "resource and text": (
        Node(text_resource=MediaResource(text="A map."), image_resource=MediaResource(data=PNG)),
        Document("A map.", DATA_URI),
    ),
    "document": (
        LlamaDocument(text="A map.", image_resource=MediaResource(path="a.png")),
        Document("A map.", "a.png"),
    ),
    "ImageDocument": (ImageDocument(text="A map.", image=PNG), Document("A map.", DATA_URI)),
}


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """In place of a core with a multimodal model: keeps the documents it is given and ranks them in reverse."""
    seen: list[Any] = []

    def rank(self: Reranker, query: str, documents: Iterable[Any], **kwargs: Any) -> Ranking:
        seen.extend(documents)
        return Ranking(
            tuple(
                RankedDocument(index=at, score=at / 10, logit=float(at), text=None) for at in reversed(range(len(seen)))
            )
        )

    async def arank(self: Reranker, query: str, documents: Iterable[Any], **kwargs: Any) -> Ranking:
        return rank(self, query, documents, **kwargs)

    monkeypatch.setattr(Reranker, "rank", rank)
    monkeypatch.setattr(Reranker, "arank", arank)
    return seen


@pytest.mark.parametrize("name", CASES)
def test_image_and_caption_reach_the_core(call: Call, handed: list[Any], name: str) -> None:
    node, expected = CASES[name]
    before = node.model_copy(deep=True)
    hit = NodeWithScore(node=node, score=0.5)
    (found,) = call(fake(), [hit], query_str=QUERY)
    assert handed == [expected]
    assert found.node is node
    assert node == before


def test_texts_and_images_in_one_call_keep_their_places(call: Call, handed: list[Any]) -> None:
    first, second = text_nodes(["one", "two"])
    image = ImageNode(id_="5", text="A map.", image_path="a.png")
    found = call(fake(), scored([first, image, second]), query_str=QUERY)
    assert handed == ["one", Document("A map.", "a.png"), "two"]
    assert ids(found) == [1, 5, 0]


def test_metadata_mode_holds_for_images_too(handed: list[Any]) -> None:
    hidden: dict[str, Any] = {
        "metadata": {"title": "Asia", "file_size": 9},
        "excluded_embed_metadata_keys": ["file_size"],
    }
    nodes = scored(
        [
            ImageNode(text="A map.", image_path="a.png", **hidden),
            ImageNode(image_path="a.png", **hidden),
            Node(image_resource=MediaResource(path="a.png"), **hidden),
        ]
    )
    fake().postprocess_nodes(nodes, query_str=QUERY)
    assert [document.text for document in handed] == ["title: Asia\n\nA map.", "title: Asia", "title: Asia"]
    handed.clear()
    fake(metadata_mode=MetadataMode.NONE).postprocess_nodes(nodes, query_str=QUERY)
    assert [document.text for document in handed] == ["A map.", None, None]


def test_a_text_model_reads_the_caption(call: Call) -> None:
    captions = [
        ImageNode(id_="0", text="Paris.", image=BASE64),
        ImageNode(id_="1", text=QUERY, image_url=URL),
        Node(id_="2", text_resource=MediaResource(text="China."), image_resource=MediaResource(data=PNG)),
        Node(id_="3", text_resource=MediaResource(text="Rice."), video_resource=MediaResource(path="a.mp4")),
    ]
    found = call(fake(), scored(captions), query_str=QUERY)
    expected = call(fake(), scored(text_nodes(["Paris.", QUERY, "China.", "Rice."])), query_str=QUERY)
    assert ids(found) == ids(expected)
    assert [hit.score for hit in found] == [hit.score for hit in expected]
    assert all("rerank_error" not in hit.node.metadata for hit in found)


def test_a_text_model_says_which_node_it_cannot_score(call: Call) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    nodes = scored([text_nodes()[0], ImageNode(id_="1", image=BASE64)])
    with pytest.raises(DocumentError, match=r"(?i)document 1 .*image") as caught:
        call(fake(callback_manager=CallbackManager([debug])), nodes, query_str=QUERY)
    assert caught.value.index == 1
    assert len(debug.get_event_pairs(CBEventType.RERANKING)[0]) == 2


def test_skipping_what_a_text_model_cannot_score(call: Call, events: list[BaseEvent]) -> None:
    nodes = scored([ImageNode(id_="9", image=BASE64), *text_nodes()])
    found = call(fake(on_error="skip"), nodes, query_str=QUERY)
    assert ids(found)[-1] == 9
    assert found[-1].score == 0.0
    assert "image" in found[-1].node.metadata["rerank_error"]
    assert isinstance(found[-1].node, ImageNode)
    assert found[-1].node.image == BASE64
    assert nodes[0].node.metadata == {}
    assert events[-1].tags["winnow"]["failed"] == 1


def test_the_image_of_a_query_is_not_read(call: Call) -> None:
    with pytest.raises(ValueError, match="query must be a text"):
        call(fake(), scored(text_nodes()), query_bundle=QueryBundle("", image_path="a.png"))


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="Qwen3-VL's processor needs torchvision")
def test_text_only_on_a_multimodal_model(tmp_path: Path) -> None:
    from tiny_families import build_qwen3_vl
    from tiny_vision import encoded, picture

    model = str(build_qwen3_vl(tmp_path / "qwen3-vl-reranker-2b"))
    data = encoded(picture(320, 200, "lightblue", "Beijing"))
    node = NodeWithScore(node=ImageNode(id_="0", text="A map.", image=base64.b64encode(data)))
    with Reranker(model, engine="transformers") as core:
        seen, unseen = core.score(QUERY, [Document("A map.", data), "A map."])
        assert seen != pytest.approx(unseen, abs=1e-3)
        for text_only, expected in ((False, seen), (True, unseen)):
            reranker = WinnowRerank(model=model, engine="transformers", text_only=text_only)
            for (found,) in (
                reranker.postprocess_nodes([node], query_str=QUERY),
                asyncio.run(reranker.apostprocess_nodes([node], query_str=QUERY)),
            ):
                assert found.score == pytest.approx(expected, abs=1e-5)
            reranker.close()
