"""Frames of a video, from a list or a file, chosen as in Qwen3-VL-Reranker's code.

That code is src/models/qwen3_vl_reranker.py in QwenLM/Qwen3-VL-Embedding, and vision_process.py in qwen_vl_utils
0.0.14, which it calls.
"""

import io
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from winnow.errors import MissingExtraError
from winnow.media.limits import MAX_BYTES, MediumError
from winnow.media.vision import MAX_FRAMES

if TYPE_CHECKING:
    from av.container import InputContainer
    from PIL.Image import Image

T = TypeVar("T")

# Frames a second: of a list (qwen_vl_utils, fetch_video, sample_fps), and taken from a file (model card, FPS).
_LIST_RATE = 2.0
_FILE_RATE = 1
_MIN_FRAMES = 4
# The most that is decoded of a file: ten minutes at 60 frames a second, each as large as 4K.
_MAX_DECODED = 36_000
_MAX_FRAME_PIXELS = 3840 * 2160
# FFmpeg's names. Playlists and the like are left out, because they make FFmpeg open other files and addresses.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,ogg,flv,gif"

NO_VIDEOS = "vLLM servers take no videos from Winnow: use engine='vllm' or engine='transformers'"

# This logger warns about how transformers resizes videos. Here they already have their final size.
logging.getLogger("transformers.models.qwen3_vl.video_processing_qwen3_vl").setLevel(logging.ERROR)


def sampled(frames: Sequence[T]) -> list[T]:
    """As many of the frames as a model takes, evenly spread; the last one twice if their number is odd."""
    import numpy as np

    if not frames:
        raise MediumError("it has no frames")
    kept = list(frames)
    if len(kept) > MAX_FRAMES:
        kept = [kept[at] for at in np.linspace(0, len(kept) - 1, MAX_FRAMES, dtype=int)]
    return kept + kept[-1:] * (len(kept) % 2)


def times_of_list(frames: int) -> list[float]:
    """When the frames of a list are shown, in seconds. A list has no times, so two a second are assumed."""
    return [at / _LIST_RATE for at in range(frames)]


def decoded(data: bytes, size: Callable[[int, int, int], tuple[int, int]]) -> tuple[list["Image"], list[float]]:
    """Frames of a video file, one a second, and when each is shown, in seconds.

    It returns an even number of frames, at least 4 and at most 64, evenly spread from the first to the last one.

    Args:
        data: The file.
        size: Returns the size to which frames are resized, from their width, height and number.

    Raises:
        MediumError: It is not a video, or it is damaged, too long or too large.
        MissingExtraError: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("av", "videos") from error
    if len(data) > MAX_BYTES:
        raise MediumError(f"it has more than {MAX_BYTES >> 20} MiB: reduce it, or give some of its frames in a list")
    try:
        container = av.open(io.BytesIO(data), "r", options={"format_whitelist": _FORMATS})
    except av.FFmpegError:
        raise MediumError(
            f"its {len(data)} bytes are not those of a video; MP4, WebM, AVI and such can be read"
        ) from None
    try:
        with container:
            return _frames(container, size)
    except av.FFmpegError as error:
        raise MediumError(f"it is damaged ({error})") from error


def _frames(
    container: "InputContainer", size: Callable[[int, int, int], tuple[int, int]]
) -> tuple[list["Image"], list[float]]:
    import numpy as np

    if not container.streams.video:
        raise MediumError("it has sound, but no picture")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    if stream.width * stream.height > _MAX_FRAME_PIXELS:
        raise MediumError(f"it measures {stream.width} x {stream.height} pixels, more than 4K: reduce it")
    # The file may say one size, and its frames have another from some time on.
    stream.codec_context.options = {"max_pixels": str(_MAX_FRAME_PIXELS)}
    # Not every format says how many frames there are.
    count = sum(packet.size > 0 for packet in itertools.islice(container.demux(stream), _MAX_DECODED + 1))
    if count > _MAX_DECODED:
        raise MediumError(f"it has more than {_MAX_DECODED} frames: cut it")
    if count < 2 or not stream.average_rate:
        raise MediumError("it does not move: give one of its frames as an image")
    rate = float(stream.average_rate)
    most = min(max(count / rate * _FILE_RATE, _MIN_FRAMES), MAX_FRAMES, count)
    wanted = np.linspace(0, count - 1, int(most // 2) * 2).round().astype(int).tolist()
    container.seek(0)
    kept = {
        at: frame.to_image().resize(size(frame.width, frame.height, len(wanted)))  # type: ignore[no-untyped-call]
        for at, frame in zip(range(wanted[-1] + 1), container.decode(stream), strict=False)
        if at in wanted
    }
    if not kept:
        raise MediumError("it is damaged (none of its frames can be decoded)")
    # A packet may hold no frame of its own: then the last frame is shown longer.
    return [kept.get(at, kept[max(kept)]) for at in wanted], [at / rate for at in wanted]
