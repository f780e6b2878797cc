"""jina's rerankers beyond test_families.py: images and the score token of jina-reranker-m0, and servers."""

import asyncio
import importlib.util
import shlex
from pathlib import Path

import pytest
from vllm_servers import API_KEY, VllmServer

from tiny_families import patch_config
from tiny_jina import MAX_PIXELS, MIN_PIXELS, SCORE_TOKEN, build_m0, build_v2, inputs_m0, judge_m0, judge_v2
from tiny_vision import picture
from winnow import Document, DocumentError, Reranker
from winnow.cli.doctor import examine
from winnow.engines.server.engine import serve_command
from winnow.errors import ModelError
from winnow.media.images import MediaLoader
from winnow.models import Checkpoint, bind_template, open_checkpoint
from winnow.prompts import Limits, PromptBuilder, PromptLayout

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("torchvision") is None,
        reason="Qwen2-VL's processor and vLLM need torchvision: `make test` installs it, see tests/cpu",
    ),
    pytest.mark.slow,
]

QUERY = "a map of the capital of China"
MAP, PHOTO, SAME_SIZE = picture(140, 90, "lightblue"), picture(60, 200, "green"), picture(140, 90, "brown", "mud")
DOCUMENTS: list[str | Document] = [
    "Beijing is the capital of China.",
    Document(image=MAP),
    Document(image=PHOTO),
    Document(image=picture(20, 30, "red")),
    "Bread rises in the oven.",
    Document(image=SAME_SIZE),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_m0(tmp_path_factory.mktemp("models") / "jina-reranker-m0")


@pytest.mark.parametrize("query", [QUERY, Document(image=MAP)], ids=["text", "image"])
def test_scores_of_images_are_those_of_the_models_own_code(model: Path, engine: str, query: str | Document) -> None:
    with Reranker(str(model), engine=engine) as reranker:
        ranking = reranker.rank(query, DOCUMENTS)
    found = [hit.logit for hit in sorted(ranking, key=lambda hit: hit.index)]
    assert found == pytest.approx([judge_m0(model, query, document) for document in DOCUMENTS], abs=1e-4)
    assert max(found) - min(found) > 0.1  # the model tells the documents apart
    assert ranking.stats.prompt_tokens == sum(
        inputs_m0(model, query, document)["input_ids"].shape[1] for document in DOCUMENTS
    )


def test_the_images_of_query_and_document_are_not_mistaken_for_each_other(model: Path, engine: str) -> None:
    pairs = [(MAP, SAME_SIZE), (SAME_SIZE, MAP)]
    with Reranker(str(model), engine=engine) as reranker:
        found = [reranker.rank(Document(image=query), [Document(image=image)])[0].logit for query, image in pairs]
    expected = [judge_m0(model, Document(image=query), Document(image=image)) for query, image in pairs]
    assert found == pytest.approx(expected, abs=1e-4)
    assert abs(found[0] - found[1]) > 1e-3


def builder(checkpoint: Checkpoint) -> PromptBuilder:
    segments = bind_template(checkpoint, None, None, with_instruction=False)
    return PromptBuilder(
        PromptLayout(checkpoint.tokenizer, segments, Limits(max_length=checkpoint.max_length), checkpoint.vision)
    )


@pytest.mark.parametrize("query", ["which one?", "which section: §", "long " * 400])
def test_the_score_token_is_always_last(model: Path, query: str) -> None:
    """ "§" ends with the byte that the score token stands for, and that is not the score token."""
    checkpoint = open_checkpoint(str(model))
    ids = builder(checkpoint).prompt(query, "x").ids
    text = ids[: ids.index(SCORE_TOKEN)] if "§" not in query else ids[:-1]
    assert ids == [*text, SCORE_TOKEN]
    if len(query) < 100:
        assert text == checkpoint.tokenizer.encode(f"**Document**:\nx\n**Query**:\n{query}")


def test_doctor_finds_nothing_wrong(model: Path) -> None:
    found = examine(str(model))
    assert (found.problems, found.warnings) == ([], [])
    assert found.ids[-1] == SCORE_TOKEN


def test_sizes_are_those_of_the_models_own_code(model: Path, tmp_path: Path) -> None:
    """The published config leaves out what is the default of transformers."""
    vision = open_checkpoint(str(model)).vision
    assert vision is not None
    assert (vision.side, vision.min_pixels, vision.max_pixels) == (28, MIN_PIXELS, MAX_PIXELS)
    bare = patch_config(build_m0(tmp_path / "jina-reranker-m0"), vision_start_token_id=None, image_token_id=None)
    assert open_checkpoint(str(bare)).vision == vision


def test_videos_are_refused(model: Path) -> None:
    vision = open_checkpoint(str(model)).vision
    with pytest.raises(DocumentError, match=r"Document 3 has a video .*: the model takes images, but no videos\."):
        asyncio.run(MediaLoader().load_video(vision, [MAP, MAP], "Document 3", 3))


def test_a_server_gives_the_same_scores_of_texts_and_no_others(model: Path, tmp_path: Path) -> None:
    """vLLM subtracts the shift there, too. Images travel as text, and no text spells the score token."""
    server = VllmServer(str(model), tmp_path / "log")
    try:
        server.wait_until_up()
        with Reranker(str(model), engine="server", url=server.url, api_key=API_KEY) as reranker:
            texts = [document for document in DOCUMENTS if isinstance(document, str)]
            found = [hit.logit for hit in sorted(reranker.rank(QUERY, texts), key=lambda hit: hit.index)]
            assert found == pytest.approx([judge_m0(model, QUERY, text) for text in texts], abs=1e-4)
            with pytest.raises(DocumentError, match=r"Document 0 cannot be scored.*use engine='vllm'"):
                reranker.rank(QUERY, [Document(image=MAP)])
    finally:
        server.kill()


def test_a_recipe_of_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    folder = patch_config(build_v2(tmp_path / "model"), model_type="llama")
    with (
        Reranker(str(folder), recipe="jina-reranker-v2", engine="transformers") as reranker,
        pytest.raises(ModelError, match=r"model_type 'llama', which does not belong to the recipe"),
    ):
        reranker.score("a", ["b"])


def test_v2_may_say_that_it_is_xlm_roberta(tmp_path: Path) -> None:
    folder = build_v2(tmp_path / "model")
    expected = judge_v2(folder, QUERY, "Beijing")
    patch_config(folder, model_type="xlm-roberta")
    with Reranker(str(folder), engine="transformers") as reranker:
        assert reranker.rank(QUERY, ["Beijing"])[0].logit == pytest.approx(expected, abs=1e-4)


def test_only_a_server_of_v2_is_told_to_trust_the_models_code(model: Path, tmp_path: Path) -> None:
    v2 = build_v2(tmp_path / "jina-reranker-v2-base-multilingual")
    trusting = ["--trust-remote-code" in shlex.split(serve_command(open_checkpoint(str(at)))) for at in (v2, model)]
    assert trusting == [True, False]
