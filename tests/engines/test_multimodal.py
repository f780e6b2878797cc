"""Images with texts, on a tiny Qwen3-VL: vLLM, transformers and the model card give the same logits, everywhere."""

import base64
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from haystack import Document as HaystackDocument
from haystack.dataclasses import ByteStream
from langchain_core.documents import Document as LangChainDocument
from llama_index.core.schema import ImageNode, MediaResource, Node, NodeWithScore, TextNode

from haystack_integrations.components.rankers.winnow import WinnowRanker
from tiny_families import build_qwen3_vl
from tiny_vision import INSTRUCTION, MAX_PIXELS, MIN_PIXELS, by_hand, encoded, logits, model_card_inputs, picture
from winnow import ConfigurationError, Document, DocumentError, Reranker
from winnow.models.checkpoint import open_checkpoint
from winnow_langchain import WinnowRerank as LangChainRerank
from winnow_llama_index import WinnowRerank as LlamaIndexRerank

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("torchvision") is None,
        reason="Qwen3-VL's processor and vLLM need torchvision: `make test` installs it, see tests/cpu",
    ),
    pytest.mark.slow,
]

QUERY = "a map of the capital of China"
MAP = picture(320, 200, "lightblue", "Beijing")
PHOTO = picture(97, 233, "green", "rice")
ICON = picture(20, 20, "red")
SCREEN = picture(410, 300, "white", "The capital of China is Beijing.")
DOCUMENTS: list[str | Document] = [
    "Beijing is the capital of China.",
    Document(image=MAP),
    Document("A field of rice.", PHOTO),
    Document("An icon.", ICON),
    Document(image=SCREEN),
    "Bread rises in the oven.",
    Document("A field of rice.", picture(97, 233, "brown", "mud")),
    Document("Only a text."),
    Document("A banner.", picture(600, 31, "yellow", "China")),
    Document("Not opaque.", picture(64, 96, (0, 0, 255, 90), "sea", "RGBA")),
]
QUERIES: list[str | Document] = [
    QUERY,
    Document(image=MAP),
    Document("Which capital is on this map?", MAP),
    Document("text"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_qwen3_vl(tmp_path_factory.mktemp("models") / "qwen3-vl-reranker-2b")


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", QUERIES, ids=["text", "image", "both", "document without image"])
def test_scores_are_those_of_the_model_card(model: Path, engine: str, query: str | Document) -> None:
    with Reranker(str(model), engine=engine) as reranker:
        found = logits(reranker, query, DOCUMENTS)
    assert found == pytest.approx([by_hand(model, query, document) for document in DOCUMENTS], abs=1e-4)
    assert max(found) - min(found) > 0.3  # the model tells the documents apart


def test_the_instruction_goes_with_images(model: Path, engine: str) -> None:
    instruction = "Find pictures of food"
    with Reranker(str(model), engine=engine, instruction=instruction) as reranker:
        found = logits(reranker, QUERY, DOCUMENTS[:4])
    assert found == pytest.approx([by_hand(model, QUERY, one, instruction) for one in DOCUMENTS[:4]], abs=1e-4)


def test_the_image_decides_and_not_only_the_text(model: Path, engine: str) -> None:
    same_text = [Document("Look.", image) for image in (MAP, PHOTO, ICON)]
    with Reranker(str(model), engine=engine) as reranker:
        found = logits(reranker, QUERY, ["Look.", *same_text])
    assert len({round(logit, 3) for logit in found}) == 4


@pytest.mark.parametrize("query", QUERIES, ids=["text", "image", "both", "document without image"])
def test_prompt_tokens_are_those_of_the_processor(model: Path, engine: str, query: str | Document) -> None:
    with Reranker(str(model), engine=engine) as reranker:
        stats = reranker.rank(query, DOCUMENTS).stats
    inputs = [model_card_inputs(model, query, one, INSTRUCTION)["input_ids"] for one in DOCUMENTS]
    assert stats.prompt_tokens == sum(ids.shape[1] for ids in inputs)


def test_equal_documents_are_scored_once(model: Path, engine: str) -> None:
    data = encoded(MAP)
    same = [
        Document("a", data),
        Document("a", bytes(data)),
        Document("b", data),
        Document("a", MAP),
        "a",
        Document("a"),
    ]
    with Reranker(str(model), engine=engine) as reranker:
        ranking = reranker.rank(QUERY, same)
        found = logits(reranker, QUERY, same)
    assert ranking.stats.unique == 4  # the file, the same with another text, Pillow's object, the text alone
    assert ranking.stats.reused <= 1  # the same pixels under way
    assert found[0] == found[1] != found[2]
    assert found[3] == pytest.approx(found[0], abs=1e-5)
    assert found[4] == found[5] != found[0]


def test_a_long_text_is_cut_and_its_image_is_not(model: Path, engine: str) -> None:
    long = Document("The tide falls twice a day. " * 200, MAP)
    with Reranker(str(model), engine=engine) as reranker:
        ranking = reranker.rank(QUERY, [long, "short"])
    (hit,) = (hit for hit in ranking if hit.index == 0)
    assert hit.truncated
    assert ranking.stats.prompt_tokens > 512
    alone = by_hand(model, QUERY, Document(image=MAP))
    assert abs(hit.logit - alone) > 1e-3  # some of the text is seen
    assert hit.document_tokens > 10 * 6 + 2 + 50


def test_windows_repeat_the_image(model: Path, engine: str) -> None:
    text = "The tide falls twice a day. " * 20
    settings: dict[str, Any] = {"on_overflow": "window", "max_document_tokens": 120, "window_overlap": 0.0}
    with Reranker(str(model), engine=engine, **settings) as reranker:
        (hit,) = reranker.rank(QUERY, [Document(text, MAP)])
        (without,) = reranker.rank(QUERY, [text])
    assert hit.windows > without.windows > 1
    assert not hit.truncated
    assert hit.document_tokens >= without.document_tokens + hit.windows * (10 * 6 + 2)


# --- what does not go -------------------------------------------------------------------------------------------------


def test_an_image_that_does_not_fit_says_by_how_much(model: Path, engine: str) -> None:
    large = picture(1000, 1000)
    with Reranker(str(model), engine=engine) as reranker:
        with pytest.raises(DocumentError, match=r"Document 1 has an image of 961 tokens \(992 x 992 .*room for 3\d\d;"):
            reranker.rank(QUERY, ["text", Document("x", large)])
        with pytest.raises(DocumentError, match=r"The query has an image of 961 tokens .*max_pixels"):
            reranker.rank(Document("x", large), ["text"])
    with Reranker(str(model), engine=engine, on_error="skip") as reranker:
        ranking = reranker.rank(QUERY, [Document("x", large), Document("y", MAP)])
    assert [hit.index for hit in ranking] == [1, 0]
    assert "961 tokens" in str(ranking[1].error)
    assert ranking.stats.failed == 1


def test_skipping_bad_images_scores_the_others(model: Path, engine: str) -> None:
    bad = [Document("a", b"no image"), Document("b", "x.png"), Document("c", 5), Document("d", MAP), "e"]
    with Reranker(str(model), engine=engine, on_error="skip") as reranker:
        ranking = reranker.rank(QUERY, bad)
    assert {hit.index for hit in ranking[:2]} == {3, 4}
    assert all(hit.error is None for hit in ranking[:2])
    for hit in ranking[2:]:
        assert f"Document {hit.index} has an image that cannot be used" in str(hit.error)
    with Reranker(str(model), engine=engine) as reranker, pytest.raises(DocumentError, match="Document 0 has an image"):
        reranker.rank(QUERY, bad)


def test_max_pixels_makes_images_smaller_in_both_engines(model: Path) -> None:
    settings = {"mm_processor_kwargs": {"max_pixels": 64 * 64}}
    with Reranker(str(model), engine="transformers", engine_kwargs=settings) as reranker:
        (hit,) = reranker.rank(QUERY, [Document(image=picture(1000, 1000))])
    assert hit.document_tokens == 4 + 2
    vision = open_checkpoint(str(model), mm_processor_kwargs=settings["mm_processor_kwargs"]).vision
    assert vision is not None
    assert (vision.min_pixels, vision.max_pixels) == (4096, 4096)
    for wrong in ({"max_pixel": 5}, {"max_pixels": 5}, {"min_pixels": 8192, "max_pixels": 4096}):
        with pytest.raises(ConfigurationError, match="min_pixels"):
            Reranker(str(model), engine="transformers", engine_kwargs={"mm_processor_kwargs": wrong}).start()


def test_vllm_without_room_for_images_reads_texts_and_says_why_it_takes_no_images(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    none = {"limit_mm_per_prompt": {"image": 0, "video": 0}}
    with Reranker(str(model), engine="vllm", engine_kwargs=none, on_error="skip") as reranker:
        read, seen = reranker.rank(QUERY, [Document(image=MAP), "Rice."])
    assert (read.index, read.logit) == (1, pytest.approx(by_hand(model, QUERY, "Rice."), abs=1e-4))
    assert re.search("Document 0 cannot be scored: vLLM refused its prompt: .*text-only", seen.error or "")


def test_models_that_read_refuse_images_of_queries_too(tiny_model: str) -> None:
    with Reranker(tiny_model, engine="transformers") as reranker:
        with pytest.raises(DocumentError, match=r"The query has an image, but the model only reads text"):
            reranker.rank(Document(image=MAP), ["a"])
        with pytest.raises(DocumentError, match=r"Document 1 has an image, but the model only reads text"):
            reranker.rank("x", ["a", Document(image=MAP)])
        assert reranker.rank(Document("x"), [Document("a")])[0].score > 0


def test_the_sizes_are_those_of_the_reference_code(model: Path) -> None:
    vision = open_checkpoint(str(model)).vision
    assert vision is not None
    assert (vision.side, vision.min_pixels, vision.max_pixels) == (32, MIN_PIXELS, MAX_PIXELS)
    assert vision.placeholder == "<|vision_start|><|image_pad|><|vision_end|>"


# --- integrations -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a picture."""
    (tmp_path / "maps").mkdir()
    MAP.save(tmp_path / "maps" / "china.png")
    return tmp_path


@pytest.fixture
def expected(model: Path) -> list[float]:
    """Logits of the three documents that every integration is given: a map, a map with a caption, a text."""
    return [by_hand(model, QUERY, one) for one in (Document(image=MAP), Document("China.", MAP), "Rice.")]


def test_haystack(model: Path, engine: str, folder: Path, expected: list[float]) -> None:
    ranker = WinnowRanker(str(model), engine=engine, root_path=str(folder), scale_score=False, top_k=None)
    blob = ByteStream(encoded(MAP), mime_type="image/png")
    documents = [
        HaystackDocument(id="0", content=None, meta={"file_path": "maps/china.png"}),
        HaystackDocument(id="1", content="China.", blob=blob),
        HaystackDocument(id="2", content="Rice."),
    ]
    found = {document.id: document.score for document in ranker.run(query=QUERY, documents=documents)["documents"]}
    assert [found[name] for name in "012"] == pytest.approx(expected, abs=1e-4)
    ranker.close()


def test_llama_index(model: Path, engine: str, folder: Path, expected: list[float]) -> None:
    rerank = LlamaIndexRerank(model=str(model), engine=engine, root_path=str(folder), raw_scores=True, top_n=None)
    nodes = [
        ImageNode(id_="0", image_path="maps/china.png"),
        Node(
            id_="1",
            text_resource=MediaResource(text="China."),
            image_resource=MediaResource(data=encoded(MAP), mimetype="image/png"),
        ),
        TextNode(id_="2", text="Rice."),
    ]
    hits = rerank.postprocess_nodes([NodeWithScore(node=node) for node in nodes], query_str=QUERY)
    found = {hit.node.node_id: hit.score for hit in hits}
    assert [found[name] for name in "012"] == pytest.approx(expected, abs=1e-4)


def test_langchain(model: Path, engine: str, folder: Path, expected: list[float]) -> None:
    rerank = LangChainRerank(model=str(model), engine=engine, root_path=str(folder), raw_scores=True, top_n=None)
    data = base64.b64encode(encoded(MAP)).decode()
    documents = [
        LangChainDocument("", id="0", metadata={"image": f"data:image/png;base64,{data}"}),
        LangChainDocument("China.", id="1", metadata={"image": "maps/china.png"}),
        LangChainDocument("Rice.", id="2"),
    ]
    found = {one.id: one.metadata["relevance_score"] for one in rerank.compress_documents(documents, QUERY)}
    assert [found[name] for name in "012"] == pytest.approx(expected, abs=1e-4)
