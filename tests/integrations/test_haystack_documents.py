"""What the Haystack integration hands to the core: metadata, prefixes, images."""

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from five_texts import QUERY, TEXTS
from haystack import Document, Pipeline
from haystack.components.converters.image import ImageFileToDocument
from haystack.dataclasses import ByteStream
from haystack_help import BEST_FIRST, documents, fake, ids

import winnow
from winnow import DocumentError, Ranking, Reranker

PNG = b"\x89PNG\r\n\x1a\n the rest of a picture"


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[Any]]]:
    """The queries and documents that reach the core; nothing is scored."""
    seen: list[tuple[str, list[Any]]] = []

    def rank(self: Reranker, query: str, documents: list[Any], **_: Any) -> Ranking:
        seen.append((query, documents))
        return Ranking()

    async def arank(self: Reranker, query: str, documents: list[Any], **kwargs: Any) -> Ranking:
        return rank(self, query, documents, **kwargs)

    monkeypatch.setattr(Reranker, "rank", rank)
    monkeypatch.setattr(Reranker, "arank", arank)
    return seen


def given(handed_over: list[tuple[str, list[Any]]], *found: Document, **settings: Any) -> list[Any]:
    """What the core was given for these documents, by `run` and by `run_async`."""
    ranker = fake(**settings)
    ranker.run(QUERY, list(found))
    asyncio.run(ranker.run_async(QUERY, list(found)))
    (_, sync), (_, native) = handed_over[-2:]
    assert sync == native
    return sync


# --- text -------------------------------------------------------------------------------------------------------------


def test_metadata_stands_before_the_text(handed_over: list[Any]) -> None:
    found = [Document(content=f"text {at}", meta={"title": f"title {at}", "other": "no"}) for at in range(2)]
    assert given(handed_over, *found, meta_fields_to_embed=["title"]) == ["title 0\ntext 0", "title 1\ntext 1"]
    assert given(handed_over, *found, meta_fields_to_embed=["other", "title"], embedding_separator=" | ") == [
        "no | title 0 | text 0",
        "no | title 1 | text 1",
    ]
    assert given(handed_over, *found) == ["text 0", "text 1"]


def test_only_missing_metadata_is_left_out(handed_over: list[Any]) -> None:
    fields = ["rating", "available", "empty", "missing", "none"]
    found = Document(content="text", meta={"rating": 0, "available": False, "empty": "", "none": None})
    assert given(handed_over, found, meta_fields_to_embed=fields) == ["0\nFalse\n\ntext"]


def test_metadata_alone_is_a_text(handed_over: list[Any]) -> None:
    found = Document(content=None, meta={"title": "A title"})
    assert given(handed_over, found, meta_fields_to_embed=["title"]) == ["A title"]


def test_prefixes_and_suffixes(handed_over: list[Any]) -> None:
    found = [Document(content="text", meta={"title": "A title"}), Document(content=" ")]
    settings = {"query_prefix": "query: ", "query_suffix": "?", "document_prefix": "passage: ", "document_suffix": "!"}
    # Prefix and suffix alone are nothing to judge a document by.
    assert given(handed_over, *found, **settings, meta_fields_to_embed=["title"]) == ["passage: A title\ntext!", None]
    assert handed_over[-1][0] == f"query: {QUERY}?"


# --- images -----------------------------------------------------------------------------------------------------------


def test_an_image_blob_is_handed_over_with_the_text(handed_over: list[Any]) -> None:
    blob = ByteStream(data=PNG, mime_type="image/png")
    found = [
        Document(content=None, blob=blob),
        Document(content="A map of China", blob=blob),
        Document(content=None, blob=blob, meta={"title": "A map"}),
    ]
    assert given(handed_over, *found, meta_fields_to_embed=["title"]) == [
        winnow.Document(text=None, image=PNG),
        winnow.Document(text="A map of China", image=PNG),
        winnow.Document(text="A map", image=PNG),
    ]


@pytest.mark.parametrize("mime_type", ["application/pdf", None])
def test_other_blobs_are_no_images(handed_over: list[Any], mime_type: str | None) -> None:
    blob = ByteStream(data=b"%PDF-1.7", mime_type=mime_type)
    assert given(handed_over, Document(content="text", blob=blob), Document(content=None, blob=blob)) == ["text", None]


def test_a_document_that_is_only_an_image_file(handed_over: list[Any], tmp_path: Path) -> None:
    found = [
        Document(content=None, meta={"file_path": "maps/china.png"}),
        Document(content="", meta={"file_path": str(tmp_path / "china.JPG")}),
        Document(content=None, meta={"file_path": "scan", "mime_type": "image/tiff"}),
    ]
    paths = [tmp_path / "maps" / "china.png", tmp_path / "china.JPG", tmp_path / "scan"]
    assert given(handed_over, *found, root_path=tmp_path) == [winnow.Document(image=str(path)) for path in paths]


def test_paths_are_handed_over_for_the_core_to_check(handed_over: list[Any], tmp_path: Path) -> None:
    found = Document(content=None, meta={"file_path": "../secret.png"})
    (outside,) = given(handed_over, found, root_path=tmp_path)
    assert Path(outside.image).resolve() == tmp_path.parent.resolve() / "secret.png"
    assert given(handed_over, found) == [winnow.Document(image="../secret.png")]


def test_a_relative_root_path_and_one_from_home_are_taken_once(
    handed_over: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = Document(content=None, meta={"file_path": "china.png"})
    monkeypatch.setenv("HOME", str(tmp_path))
    for root in ("maps", "~/maps"):
        assert given(handed_over, found, root_path=root) == [
            winnow.Document(image=str(tmp_path / "maps" / "china.png"))
        ]


def test_an_address_stays_an_address(handed_over: list[Any], tmp_path: Path) -> None:
    found = Document(content=None, meta={"file_path": "https://example.org/china.png"})
    assert given(handed_over, found, root_path=tmp_path) == [winnow.Document(image="https://example.org/china.png")]


@pytest.mark.parametrize("path", ["paper.pdf", "notes.txt", "noext", "", " ", None, 7, 0, False, [], {}])
def test_files_that_are_no_images(handed_over: list[Any], path: Any) -> None:
    assert given(handed_over, Document(content=None, meta={"file_path": path})) == [None]
    titled = Document(content=None, meta={"file_path": path, "mime_type": path, "title": "A title"})
    assert given(handed_over, titled, meta_fields_to_embed=["title"], root_path="files") == ["A title"]


def test_a_blob_without_data_is_no_image(handed_over: list[Any]) -> None:
    blob = ByteStream(data=b"", mime_type="image/png")
    assert given(handed_over, Document(content="text", blob=blob), Document(content=None, blob=blob)) == ["text", None]


def test_text_made_from_an_image_file_stands_for_it(handed_over: list[Any], tmp_path: Path) -> None:
    found = Document(content="What OCR read.", meta={"file_path": "scan.png"})
    assert given(handed_over, found, root_path=tmp_path) == ["What OCR read."]


def test_what_haystacks_converter_makes_of_image_files(handed_over: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "china.png"
    file.write_bytes(PNG)
    pipeline = Pipeline()
    pipeline.add_component("converter", ImageFileToDocument(store_full_path=True))
    pipeline.add_component("ranker", fake(root_path=tmp_path))
    pipeline.connect("converter.documents", "ranker.documents")
    pipeline.run({"converter": {"sources": [file]}, "ranker": {"query": QUERY}})
    assert handed_over[-1][1] == [winnow.Document(image=str(file))]


def test_a_text_model_refuses_images_and_says_which() -> None:
    image = Document(id="a-map", content=None, blob=ByteStream(data=PNG, mime_type="image/png"))
    with pytest.raises(DocumentError, match=r"Document 5 has an image.*'a-map'"):
        fake().run(QUERY, [*documents(), image])
    skipped = fake(on_error="skip").run(QUERY, [image, *documents()])
    assert ids(skipped)[-1] == "a-map"
    assert skipped["documents"][-1].score == 0.0
    assert list(skipped["meta"]["failed"]) == ["a-map"]


def test_a_text_model_reads_the_text_of_documents_with_images(tmp_path: Path) -> None:
    blob = ByteStream(data=PNG, mime_type="image/png")
    texts = documents()
    shop = [  # image addresses that are not to be opened
        Document(id="1", content=None, meta={"title": TEXTS[1], "file_path": "https://example.org/1.png"}),
        Document(id="4", content="", meta={"title": TEXTS[4], "file_path": "no/such/4.jpg"}),
    ]
    seen = [texts[0], shop[0], dataclasses.replace(texts[2], blob=blob), texts[3], shop[1]]
    result = fake(meta_fields_to_embed=["title"]).run(QUERY, seen)
    assert [(each.id, each.score) for each in result["documents"]] == [
        (each.id, each.score) for each in fake().run(QUERY, texts)["documents"]
    ]
    assert result["meta"]["failed"] == {}


def test_text_only_leaves_images_alone() -> None:
    image = Document(id="a-map", content=None, blob=ByteStream(data=PNG, mime_type="image/png"))
    result = fake(text_only=True).run(QUERY, [image, *documents()])
    assert ids(result) == [*BEST_FIRST, "a-map"]
    assert result["meta"]["failed"] == {}


def test_image_settings_reach_the_core(tmp_path: Path) -> None:
    ranker = fake(root_path=tmp_path, allow_remote_images=True, text_only=True)
    ranker.warm_up()
    assert ranker._reranker is not None
    assert (ranker._reranker.root_path, ranker._reranker.allow_remote_images) == (str(tmp_path), True)
    assert ranker._reranker.text_only
