"""Videos with texts, on a tiny Qwen3-VL: vLLM, transformers and the model card give the same logits, everywhere."""

import asyncio
import importlib.util
from pathlib import Path

import pytest
from haystack import Document as HaystackDocument
from haystack.dataclasses import ByteStream
from llama_index.core.schema import MediaResource, Node, NodeWithScore

from haystack_integrations.components.rankers.winnow import WinnowRanker
from tiny_families import LENGTH, build_qwen3_vl
from tiny_vision import INSTRUCTION, by_hand, clip, load_video, logits, model_card_inputs, picture, video_file
from winnow import ConfigurationError, Document, DocumentError, Reranker
from winnow.engines.server.engine import ServerEngine
from winnow.media.images import MediaLoader
from winnow.models.checkpoint import open_checkpoint
from winnow.prompts import Prompt
from winnow_llama_index import WinnowRerank as LlamaIndexRerank

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("torchvision") is None,
        reason="Qwen3-VL's processors and vLLM need torchvision: `make test` installs it, see tests/cpu",
    ),
    pytest.mark.slow,
]

QUERY = "a disc that moves to the right"
MOVES = clip(4)
FILE = video_file(clip(18, color="lightblue"))
DOCUMENTS: list[str | Document] = [
    "A disc moves to the right.",
    Document(video=MOVES),
    Document("A disc.", video=MOVES[::-1]),
    Document("A picture of a disc.", picture(97, 233, "green", "disc")),
    Document("A disc at rest.", video=MOVES[:1] * 3),
    Document("From a file.", video=FILE),
]
QUERIES: list[str | Document] = [QUERY, Document("like this", video=MOVES[:2]), Document(image=picture(64, 64, "red"))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-VL with room for videos, which have at least 128 tokens for two frames."""
    folder = build_qwen3_vl(tmp_path_factory.mktemp("models") / "qwen3-vl-reranker-2b")
    for name in ("config.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        assert f": {LENGTH}" in text
        (folder / name).write_text(text.replace(f": {LENGTH}", ": 2048"))
    return folder


@pytest.mark.parametrize("query", QUERIES, ids=["text", "video", "image"])
def test_scores_and_tokens_are_those_of_the_model_card(model: Path, engine: str, query: str | Document) -> None:
    with Reranker(str(model), engine=engine) as reranker:
        ranking = reranker.rank(query, DOCUMENTS)
    found = [hit.logit for hit in sorted(ranking, key=lambda hit: hit.index)]
    assert found == pytest.approx([by_hand(model, query, document) for document in DOCUMENTS], abs=1e-4)
    assert max(found) - min(found) > 0.1  # the model tells the documents apart
    inputs = [model_card_inputs(model, query, one, INSTRUCTION)["input_ids"] for one in DOCUMENTS]
    assert ranking.stats.prompt_tokens == sum(ids.shape[1] for ids in inputs)


def test_resized_frames_score_as_close_as_roundings_allow(model: Path, engine: str) -> None:
    """Pillow resizes here and torchvision there: they round some pixels to the next of 256 values."""
    documents = [Document(video=clip(4, 160, 96)), Document(video=clip(2, 1000, 900, "red")), Document(video=clip(30))]
    with Reranker(str(model), engine=engine) as reranker:
        found = logits(reranker, QUERY, documents[:2])
        assert found == pytest.approx([by_hand(model, QUERY, one) for one in documents[:2]], abs=1e-3)
        with pytest.raises(
            DocumentError, match=r"Document 0 has a video of 2\d\d\d tokens \(30 frames of 512 x 320 pix"
        ):
            reranker.rank(QUERY, documents[2:])


def test_the_frames_decide_and_their_order(model: Path, engine: str) -> None:
    same_text = [Document("Look.", video=video) for video in (MOVES, MOVES[::-1], clip(4, color="red"), clip(2))]
    with Reranker(str(model), engine=engine) as reranker:
        found = logits(reranker, QUERY, ["Look.", *same_text])
    assert len({round(logit, 4) for logit in found}) == 5


def test_equal_videos_are_scored_once(model: Path, engine: str, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(FILE)
    same = [
        Document("a", video=FILE),
        Document("a", video=bytes(FILE)),
        Document("b", video=FILE),
        Document("a", video=MOVES),
        Document("a", video=tuple(MOVES)),
        Document("a", video="clip.mp4"),
        "a",
    ]
    with Reranker(str(model), engine=engine, root_path=tmp_path, score_cache=100) as reranker:
        ranking = reranker.rank(QUERY, same)
        again = reranker.rank(QUERY, [*same, Document("a", video=MOVES[::-1])])
    found = [hit.logit for hit in sorted(ranking, key=lambda hit: hit.index)]
    assert ranking.stats.unique == 5
    assert found[0] == found[1] != found[2]
    assert found[3] == found[4] != found[0]
    assert found[5] == pytest.approx(found[0], abs=1e-5)
    assert len({found[0], found[2], found[3], found[6]}) == 4
    assert (again.stats.unique, again.stats.cache_hits) == (6, 5)  # the other order of frames is not in the cache


def test_skipping_bad_videos_scores_the_others(model: Path, engine: str) -> None:
    bad = [Document("a", video=b"no video"), Document("b", video=[]), Document("c", video=MOVES), "d"]
    with Reranker(str(model), engine=engine, on_error="skip") as reranker:
        ranking = reranker.rank(QUERY, bad)
    assert {hit.index for hit in ranking[:2]} == {2, 3}
    for hit in ranking[2:]:
        assert f"Document {hit.index} has a video that cannot be used" in str(hit.error)
    with Reranker(str(model), engine=engine) as reranker, pytest.raises(DocumentError, match="Document 0 has a video"):
        reranker.rank(QUERY, bad)


def test_vllm_without_room_for_videos_says_so(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm", minversion="0.32")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    images_only = {"limit_mm_per_prompt": {"image": 2, "video": 0}}
    with Reranker(str(model), engine="vllm", engine_kwargs=images_only) as reranker:
        assert logits(reranker, QUERY, DOCUMENTS[3:4]) == pytest.approx([by_hand(model, QUERY, DOCUMENTS[3])], abs=1e-4)
        with pytest.raises(DocumentError, match=r"Document 0 .*vLLM refused its prompt: .*At most 0 video"):
            reranker.rank(QUERY, [Document(video=MOVES)])


def test_models_that_read_refuse_videos(tiny_model: str) -> None:
    with Reranker(tiny_model, engine="transformers") as reranker:
        with pytest.raises(DocumentError, match="The query has a video, but the model only reads text"):
            reranker.rank(Document(video=MOVES), ["a"])
        with pytest.raises(DocumentError, match="Document 1 has a video, but the model only reads text"):
            reranker.rank("x", ["a", Document(video=MOVES)])


def test_servers_take_no_videos(model: Path) -> None:
    engine = ServerEngine(open_checkpoint(str(model)), "http://localhost:1", None, {})
    with pytest.raises(ConfigurationError, match="servers take no videos"):
        asyncio.run(engine.score([Prompt([1], videos=(load_video(MOVES),))]))
    with pytest.raises(DocumentError, match="Document 3 has a video that cannot be used: vLLM servers take no videos"):
        asyncio.run(MediaLoader().load_video(engine.checkpoint.vision, MOVES, "Document 3", 3))


# --- integrations -----------------------------------------------------------------------------------------------------


def test_haystack(model: Path, engine: str, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(FILE)
    ranker = WinnowRanker(str(model), engine=engine, root_path=str(tmp_path), scale_score=False, top_k=None)
    documents = [
        HaystackDocument(id="0", content=None, meta={"file_path": "clip.mp4"}),
        HaystackDocument(id="1", content="From a file.", blob=ByteStream(FILE, mime_type="video/mp4")),
        HaystackDocument(id="2", content="The text of a film.", meta={"file_path": "clip.mp4"}),
    ]
    found = {document.id: document.score for document in ranker.run(query=QUERY, documents=documents)["documents"]}
    expected = [Document(video=FILE), DOCUMENTS[5], "The text of a film."]
    assert [found[name] for name in "012"] == pytest.approx([by_hand(model, QUERY, one) for one in expected], abs=1e-4)
    ranker.close()


def test_llama_index(model: Path, engine: str, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(FILE)
    rerank = LlamaIndexRerank(model=str(model), engine=engine, root_path=str(tmp_path), raw_scores=True, top_n=None)
    text = MediaResource(text="From a file.")
    nodes = [
        Node(id_="0", video_resource=MediaResource(path=Path("clip.mp4"))),
        Node(id_="1", text_resource=text, video_resource=MediaResource(data=FILE, mimetype="video/mp4")),
    ]
    hits = rerank.postprocess_nodes([NodeWithScore(node=node) for node in nodes], query_str=QUERY)
    found = {hit.node.node_id: hit.score for hit in hits}
    expected = [by_hand(model, QUERY, one) for one in (Document(video=FILE), DOCUMENTS[5])]
    assert [found[name] for name in "01"] == pytest.approx(expected, abs=1e-4)
