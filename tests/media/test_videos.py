"""Videos before they reach a model: what they may be, which frames are taken, what is refused, and their tokens."""

import asyncio
import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tiny_vision import FACTOR, TOKENIZER, VISION, clip, encoded, fetch_video, load, load_video, picture, video_file
from winnow import Document, DocumentError, Prompt
from winnow.media.images import MediaLoader, medium_identity
from winnow.media.videos import decoded, sampled
from winnow.prompts import PromptBuilder, PromptLayout, Source
from winnow.prompts.limits import Limits
from winnow.ranking.results import contents_of
from winnow.templates.score_template import built_in

FRAMES = clip(20, 256, 128)
FILE = video_file(FRAMES)


def as_it_is(width: int, height: int, frames: int) -> tuple[int, int]:
    return width, height


def refused(video: Any, reason: str, root: Path | None = None) -> None:
    with pytest.raises(DocumentError, match=rf"(?s)Document 7 has a video that cannot be used: .*{reason}") as caught:
        load_video(video, root)
    assert caught.value.index == 7


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "video",
    [
        FILE,
        memoryview(FILE),
        f"data:video/mp4;base64,{base64.b64encode(FILE).decode()}",
        "clips/disc.mp4",
        Path("clips/disc.mp4"),
    ],
    ids=["bytes", "memoryview", "data URI", "path", "Path"],
)
def test_every_way_to_give_a_file_gives_the_same_frames(video: Any, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "disc.mp4").write_bytes(FILE)
    found = load_video(video, tmp_path)
    assert found == load_video(FILE)
    assert found.frames.shape == (4, *found.frames.shape[1:3], 3)
    assert found.times == (0.0, 1.2, 2.6, 3.8)  # frames 0, 6, 13 and 19, five a second


def test_frames_may_be_given_as_images_are(tmp_path: Path) -> None:
    frames = clip(4)
    frames[1].save(tmp_path / "1.png")
    given = [frames[0], "1.png", encoded(frames[2]), f"data:;base64,{base64.b64encode(encoded(frames[3])).decode()}"]
    assert load_video(given, tmp_path) == load_video(tuple(frames))


@pytest.mark.parametrize(
    ("kind", "codec"), [("mp4", "mpeg4"), ("webm", "libvpx"), ("avi", "mpeg4"), ("mpegts", "mpeg2video")]
)
def test_formats_of_files(kind: str, codec: str) -> None:
    frames, times = decoded(video_file(FRAMES, kind=kind, codec=codec), as_it_is)
    assert [frame.size for frame in frames] == [(256, 128)] * 4
    assert times == [0.0, 1.2, 2.6, 3.8]
    for frame, at in zip(frames, (0, 6, 13, 19), strict=True):  # but for what compression loses
        assert np.abs(np.asarray(frame, int) - np.asarray(FRAMES[at], int)).mean() < 5


@pytest.mark.parametrize(("count", "rate", "taken"), [(20, 5, 4), (33, 5, 6), (3, 1, 2), (70, 1, 64), (9, 30, 4)])
def test_of_a_file_one_frame_a_second_is_taken(count: int, rate: int, taken: int) -> None:
    data = video_file(clip(count, 64, 64), rate)
    pixels, metadata = fetch_video(data)
    frames, times = decoded(data, as_it_is)
    assert len(frames) == len(pixels) == taken
    assert times == [at / metadata["fps"] for at in metadata["frames_indices"]]


@pytest.mark.parametrize("count", [1, 2, 5, 63, 64, 65, 100, 1000])
def test_of_a_list_64_frames_are_taken(count: int) -> None:
    """sample_frames() of the model card's code, then fetch_video(), which repeats the last frame of an odd number."""
    kept = sampled(range(count))
    if count > 64:
        assert kept == np.linspace(0, count - 1, 64, dtype=int).tolist()
    else:
        assert kept == [*range(count), *[count - 1] * (count % 2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "size", [(20, 20), (64, 64), (160, 96), (320, 200), (512, 320), (97, 233), (600, 31), (900, 700)]
)
@pytest.mark.parametrize("count", [2, 21, 64])
def test_sizes_of_lists_are_those_of_the_reference_code(size: tuple[int, int], count: int) -> None:
    first = Image.effect_noise(size, 50).convert("RGB")
    pixels, _ = fetch_video([first] * count)
    found = load_video([first] * count)
    expected = pixels.permute(0, 2, 3, 1).numpy()
    assert found.frames.shape == expected.shape
    assert np.abs(found.frames[0].astype(int) - expected[0]).mean() < 0.5  # Pillow's rounding, and torchvision's


def test_identity_before_loading_and_after() -> None:
    frames = clip(2)
    assert medium_identity(frames) == medium_identity(tuple(frames)) != medium_identity(frames[::-1])
    assert medium_identity(FILE) == medium_identity(bytearray(FILE))
    assert load_video(frames).key == load_video([frame.copy() for frame in frames]).key
    assert load_video(frames).key != load_video(frames[::-1]).key
    documents = [Document("a", video=frames), Document("a", frames[0]), Document("a", video=list(frames)), "a"]
    assert [*contents_of(documents).positions.values()] == [[0, 2], [1], [3]]


# --- what is refused --------------------------------------------------------------------------------------------------


def sound() -> bytes:
    """A second of silence, without a picture."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("video", "reason"),
    [
        ([], "it has no frames"),
        ([picture(64, 64), 5], "of frame 1, it is of type int; give a path"),
        ([picture(64, 64)] * 99 + [5], "of frame 99, it is of type int"),
        ([b"no image"], "of frame 0, its 8 bytes are not those of an image"),
        ([Image.new("RGB", (5, 1005))], "of frame 0, it measures 5 x 1005"),
        ([picture(640, 640), picture(640, 320)], r"its frames differ in shape \(640 x 640, 640 x 320 pixels"),
        (["https://example.com/1.png"], "only fetched with allow_remote_images=True"),
        ("https://example.com/a.mp4", "only fetched with allow_remote_images=True"),
        ("a.mp4", "'a.mp4' is a local path, .* only read below root_path: set it"),
        (b"", "its 0 bytes are not those of a video"),
        (b"not a video" * 99, "its 1089 bytes are not those of a video; MP4"),
        (FILE[:-500], "not those of a video"),
        (sound(), "it has sound, but no picture"),
        (video_file(clip(1, 64, 64)), "it does not move: give one of its frames as an image"),
        (bytes(21 << 20), "more than 20 MiB"),
        (5, "it is of type int; give a path, .* or a list of frames"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else type(value).__name__,
)
def test_bad_videos_say_what_to_do(video: Any, reason: str) -> None:
    refused(video, reason)


def test_long_and_large_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("winnow.media.videos._MAX_DECODED", 19)
    refused(FILE, "it has more than 19 frames: cut it")
    refused(video_file(clip(2, 4096, 2176)), "it measures 4096 x 2176 pixels, more than 4K: reduce it")


def test_frames_that_grow_above_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [video_file(clip(6, *size), kind="mpegts", codec="mpeg2video") for size in ((256, 128), (512, 256))]
    growing = b"".join(parts)
    frames, _ = decoded(growing, as_it_is)
    assert {frame.size for frame in frames} == {(256, 128), (512, 256)}
    monkeypatch.setattr("winnow.media.videos._MAX_FRAME_PIXELS", 256 * 128)
    refused(growing, "it is damaged")
    assert len(load_video(parts[0]).frames) == 4


def test_playlists_open_no_other_files(tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes(FILE)
    listed = f"ffconcat version 1.0\nfile '{tmp_path}/secret.mp4'\n".encode()
    (tmp_path / "list.txt").write_bytes(listed)
    with av.open(str(tmp_path / "list.txt"), options={"safe": "0"}) as container:  # FFmpeg itself would
        assert container.streams.video[0].frames == 20 or container.streams.video
    refused("list.txt", "not those of a video", tmp_path)


def test_paths_stay_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "secret.mp4").write_bytes(FILE)
    refused("../secret.mp4", "does not lie below root_path", tmp_path / "clips")


def test_a_document_has_an_image_or_a_video() -> None:
    both = Document("a", picture(64, 64), clip(2))
    with pytest.raises(DocumentError, match="Document 2 has an image and a video: make two of it"):
        asyncio.run(MediaLoader().of(VISION, both, "Document 2", 2))


def test_models_that_only_read_refuse_videos() -> None:
    with pytest.raises(DocumentError, match="Document 7 has a video, but the model only reads text"):
        asyncio.run(MediaLoader().load_video(None, FILE, "Document 7", 7))


# --- prompts ----------------------------------------------------------------------------------------------------------

SHORT = load_video(clip(4))  # two pairs of 160 tokens
LONG = load_video(FILE)
ICON = load(picture(64, 64, "red"))


def builder(**limits: Any) -> PromptBuilder:
    segments = built_in("qwen3_vl_reranker").segments(
        with_instruction=False, special_tokens={}, control_tokens=TOKENIZER.control_tokens
    )
    return PromptBuilder(PromptLayout(TOKENIZER, segments, Limits(**{"max_length": 1000, **limits}), VISION))


def test_each_two_frames_have_their_time_and_their_tokens() -> None:
    squares = f"<|vision_start|>{'<|video_pad|>' * 160}<|vision_end|>"
    assert SHORT.frames.shape == (4, 320, 512, 3)
    assert TOKENIZER.decode(SHORT.ids) == f"<0.2 seconds>{squares}<1.2 seconds>{squares}"
    times = TOKENIZER.decode([index for index in LONG.ids if index not in (*VISION.marks, VISION.video_id)])
    assert times == "<0.6 seconds><3.2 seconds>"


def test_the_prompt_holds_all_of_it_and_vllm_gets_one_token() -> None:
    (document,) = builder().build(Source("a query", ICON), [Source("a text", SHORT, 0)])
    (prompt,) = document.prompts
    plain = builder().build("a query", ["a text"])[0]
    assert (prompt.images, prompt.videos) == ((ICON,), (SHORT,))
    assert len(prompt.ids) == len(plain.prompts[0].ids) + 6 + SHORT.tokens
    assert document.document_tokens == plain.document_tokens + SHORT.tokens
    collapsed = VISION.collapsed(prompt.ids, prompt.videos)
    mark = "<|vision_start|><|image_pad|><|vision_end|>"
    assert f"<Query>:{mark}a query\n<Document>:<|video_pad|>a text<|im_end|>" in TOKENIZER.decode(collapsed)
    assert VISION.expanded(collapsed, [ICON, SHORT]) == prompt.ids


def test_a_video_of_the_query_and_one_of_the_document() -> None:
    (prompt,) = builder().build(Source("a query", LONG), [Source("a text", SHORT, 0)])[0].prompts
    assert prompt.videos == (LONG, SHORT)
    collapsed = VISION.collapsed(prompt.ids, prompt.videos)
    assert collapsed.count(VISION.video_id) == 2
    assert VISION.expanded(collapsed, prompt.videos) == prompt.ids


def test_placeholders_that_a_text_spells_are_text() -> None:
    (prompt,) = builder().build("<|video_pad|>", [Source("<|video_pad|> <0.2 seconds>", SHORT, 0)])[0].prompts
    assert prompt.ids.count(VISION.video_id) == 320


def test_prompts_with_other_videos_are_other_prompts() -> None:
    other = load_video(clip(4)[::-1])
    assert other.ids == SHORT.ids
    assert len({Prompt([1], videos=videos).key for videos in ((), (SHORT,), (other,), (other, SHORT))}) == 4


def test_texts_are_cut_to_what_a_video_leaves_and_it_is_not() -> None:
    text = " ".join(f"word{number}" for number in range(300))
    (cut,) = builder(max_length=SHORT.tokens + 200).build("q", [Source(text, SHORT, 0)])
    assert cut.truncated
    assert SHORT.tokens + 190 < len(cut.prompts[0].ids) <= SHORT.tokens + 200
    split = builder(max_document_tokens=SHORT.tokens + 50, on_overflow="window")
    (windows,) = split.build("q", [Source(text, SHORT, 0)])
    assert len(windows.prompts) > 3
    assert all(prompt.videos == (SHORT,) and prompt.ids.count(VISION.video_id) == 320 for prompt in windows.prompts)
    with pytest.raises(
        DocumentError, match=r"Document 0 has a video of 342 tokens \(4 frames of 512 x 320 pixels, .*100;"
    ):
        builder(max_document_tokens=100).build("q", [Source("d", SHORT, 0)])


def test_max_pixels_makes_frames_smaller() -> None:
    small = replace(VISION, max_pixels=16 * FACTOR**2)
    video = asyncio.run(MediaLoader().load_video(small, clip(4), "Document 7", 7))
    assert video.ids.count(VISION.video_id) <= 2 * 16
    assert small.video_pixels == 64 * 16 * FACTOR**2
