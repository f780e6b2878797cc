"""How a model takes images and videos: their sizes and their tokens. This module does not need Pillow."""

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from winnow.tokenizer import PromptTokenizer

# Longest side over shortest (qwen_vl_utils, vision_process.py, MAX_RATIO; also transformers' smart_resize).
_MAX_RATIO = 200
# Tokens of two frames, least and most (qwen_vl_utils, vision_process.py, VIDEO_MIN_TOKEN_NUM, VIDEO_MAX_TOKEN_NUM).
_PAIR_TOKENS = (128, 768)
# Squares of a frame before the video is resized, each of four tokens (IMAGE_MIN_TOKEN_NUM, IMAGE_MAX_TOKEN_NUM there).
_FRAME_TOKENS = (4, 16384)
# Most tokens of a video's frames, and most frames (model card, MAX_TOTAL_PIXELS and MAX_FRAMES).
_VIDEO_TOKENS = 10 * 768
MAX_FRAMES = 64


@dataclass(frozen=True, slots=True)
class PromptImage:
    """An image in a prompt, in the size in which the model takes it.

    Attributes:
        pixels: A `PIL.Image.Image`, RGB.
        tokens: How many tokens it has in the prompt, without the marks at its two ends.
        key: A hash of the pixels, 16 bytes.
    """

    pixels: Any = field(compare=False, repr=False)
    tokens: int
    key: bytes


@dataclass(frozen=True, slots=True)
class PromptVideo:
    """A video in a prompt: its frames in the size in which the model takes them.

    Attributes:
        frames: A NumPy array of uint8 and shape [frames, height, width, 3]; the number of frames is even.
        times: When each frame is shown, in seconds from the beginning.
        ids: Its token ids in the prompt. The model takes two frames together as one picture: the ids of their time, and
            of the picture between two marks.
        key: A hash of the frames, 16 bytes.
    """

    frames: Any = field(compare=False, repr=False)
    times: tuple[float, ...]
    ids: tuple[int, ...] = field(repr=False)
    key: bytes

    @property
    def tokens(self) -> int:
        """How many tokens it has in the prompt."""
        return len(self.ids)


Shown = PromptImage | PromptVideo


@dataclass(frozen=True, slots=True, kw_only=True)
class Vision:
    """How a model takes images and videos.

    Attributes:
        side: Side of the square that becomes one token, in pixels.
        min_pixels: Smaller images are enlarged to this many pixels.
        max_pixels: Larger images are reduced to this many pixels.
        placeholder: The template's text for an image: the mark before it, one token for the image, the mark after it.
        token_id: Id of that token; the prompt has it once for each token of the image.
        marks: Ids of the marks before and after it.
        video_id: Id of the token of a video; -1 if the model takes none.
        tokenizer: The model's tokenizer.
        as_text: Whether prompts with images are sent to a server as text, which the server tokenises. Queries and
            documents must then not spell a control token.
    """

    side: int
    min_pixels: int
    max_pixels: int
    placeholder: str
    token_id: int
    marks: tuple[int, int]
    video_id: int
    tokenizer: PromptTokenizer = field(compare=False, repr=False)
    as_text: bool = False

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in which the model takes an image, in pixels; both are multiples of `side`.

        This is `smart_resize` of qwen_vl_utils, which the model card's code calls. It is repeated while the result is
        too large, as in transformers and vLLM; that happens only to long strips with a small `max_pixels`.

        Raises:
            ValueError: The image is too long a strip.
        """
        if max(width, height) > _MAX_RATIO * min(width, height):
            raise ValueError(
                f"it measures {width} x {height} pixels, and models take no strip that is more than {_MAX_RATIO} times "
                "as long as wide: cut it into pieces"
            )
        wide, high = (max(self.side, round(length / self.side) * self.side) for length in (width, height))
        while wide * high > self.max_pixels and max(wide, high) > self.side:
            shrink = math.sqrt(width * height / self.max_pixels)
            wide, high = (
                max(self.side, math.floor(length / shrink / self.side) * self.side) for length in (width, height)
            )
            width, height = wide, high
        if wide * high < self.min_pixels:
            stretch = math.sqrt(self.min_pixels / (width * height))
            wide, high = (math.ceil(length * stretch / self.side) * self.side for length in (width, height))
        return wide, high

    def prepared(self, image: Any) -> PromptImage:
        """An image as it goes into a prompt.

        It is resized here, so that all engines get the same pixels, whichever library their processors use.

        Args:
            image: A `PIL.Image.Image`, RGB.

        Raises:
            ValueError: The image is too long a strip.
        """
        wide, high = self.size(*image.size)
        pixels = image.resize((wide, high))  # bicubic, Pillow's default and the model card's
        digest = hashlib.blake2b(f"{wide}x{high}".encode(), digest_size=16)
        digest.update(pixels.tobytes())
        return PromptImage(pixels, wide * high // self.side**2, digest.digest())

    @property
    def video_pixels(self) -> int:
        """Most pixels of all frames of a video."""
        return min(2 * _VIDEO_TOKENS * self.side**2, MAX_FRAMES * self.max_pixels)

    def frame_size(self, width: int, height: int, frames: int) -> tuple[int, int]:
        """Width and height in which the model takes each frame of a video, in pixels.

        As in `fetch_video` of qwen_vl_utils with the model card's `total_pixels`. For files that code ignores
        `total_pixels`, so its prompts are longer than the model allows.

        Raises:
            ValueError: The frame is too long a strip.
        """
        least, most = (tokens * self.side**2 for tokens in _PAIR_TOKENS)
        most = min(most, self.video_pixels // frames, self.max_pixels)
        return replace(self, min_pixels=least if least < most else self.min_pixels, max_pixels=most).size(width, height)

    def prepared_frame(self, image: Any, frames: int) -> Any:
        """One of the frames of a list, in the size in which the model takes it.

        As in `fetch_video` of qwen_vl_utils, which resizes the frames of a list twice: each frame, then the video.

        Args:
            image: A `PIL.Image.Image`, RGB.
            frames: How many frames there are.

        Raises:
            ValueError: The frame is too long a strip.
        """
        side = 2 * self.side
        least, most = (tokens * side**2 for tokens in _FRAME_TOKENS)
        image = image.resize(replace(self, side=side, min_pixels=least, max_pixels=most).size(*image.size))
        return image.resize(self.frame_size(image.width, image.height, frames))

    def prepared_video(self, frames: Sequence[Any], times: Sequence[float]) -> PromptVideo:
        """A video as it goes into a prompt.

        Args:
            frames: An even number of `PIL.Image.Image`s, RGB, in the size in which the model takes them.
            times: When each is shown, in seconds from the beginning.

        Raises:
            ValueError: The frames differ in size.
        """
        import numpy as np

        sizes = dict.fromkeys(f"{frame.width} x {frame.height}" for frame in frames)
        if len(sizes) > 1:
            raise ValueError(
                f"its frames differ in shape ({', '.join(sizes)} pixels, resized): give all of them in one"
            )
        wide, high = frames[0].size
        pixels = np.stack([np.asarray(frame) for frame in frames])
        ids: list[int] = []
        for first, second in zip(times[::2], times[1::2], strict=True):
            ids += self.tokenizer.encode(f"<{(first + second) / 2:.1f} seconds>")
            ids += [self.marks[0], *[self.video_id] * (wide * high // self.side**2), self.marks[1]]
        digest = hashlib.blake2b(f"{pixels.shape}".encode(), digest_size=16)
        digest.update(pixels.tobytes())
        return PromptVideo(pixels, tuple(times), tuple(ids), digest.digest())

    def placeholder_of(self, shown: Shown) -> str:
        """The template's text for an image, with its marks, or for a video, whose ids hold its marks."""
        return self.placeholder if isinstance(shown, PromptImage) else self.tokenizer.token(self.video_id)

    def expanded(self, ids: Sequence[int], shown: Sequence[Shown]) -> list[int]:
        """`ids` with all tokens of each image and video instead of one, as transformers needs them."""
        pieces = (one.ids if isinstance(one, PromptVideo) else [self.token_id] * one.tokens for one in shown)
        own = (self.token_id, self.video_id)
        return list(itertools.chain.from_iterable(next(pieces, [index]) if index in own else [index] for index in ids))

    def collapsed(self, ids: Sequence[int], videos: Sequence[PromptVideo] = ()) -> list[int]:
        """`ids` with one token for each image and video, as vLLM needs them."""
        short = [
            index
            for index, before in zip(ids, [None, *ids[:-1]], strict=True)
            if index != self.token_id or before != self.token_id
        ]
        at = 0
        for video in videos:
            at = short.index(self.video_id, at) - video.ids.index(self.video_id)
            short[at : at + video.tokens] = [self.video_id]
            at += 1
        return short
