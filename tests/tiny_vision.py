"""Pictures and clips, how a tiny Qwen3-VL reads them, and its reference: what the model card's own code computes."""

import asyncio
import io
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from tiny_families import qwen_like
from winnow import Document, Reranker
from winnow.media.images import MediaLoader
from winnow.media.vision import PromptImage, PromptVideo, Vision
from winnow.tokenizer import PromptTokenizer

# QwenLM/Qwen3-VL-Embedding, src/models/qwen3_vl_reranker.py.
FACTOR = 32
MIN_PIXELS = 4 * FACTOR * FACTOR
MAX_PIXELS = 1800 * FACTOR * FACTOR
TOTAL_PIXELS = 10 * 768 * FACTOR * FACTOR
INSTRUCTION = "Given a search query, retrieve relevant candidates that answer the query."
SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the "
    'answer can only be "yes" or "no".'
)
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
# Without the marks that Qwen3-VL's chat template puts around it: transformers took them away when the model was made
# (4.57, processing_qwen3_vl.py); since 5.10 it leaves them.
VIDEO = "<|video_pad|>"

TOKENIZER = PromptTokenizer(qwen_like())
VISION = Vision(
    side=FACTOR,
    min_pixels=MIN_PIXELS,
    max_pixels=MAX_PIXELS,
    placeholder=IMAGE,
    token_id=TOKENIZER.control_tokens["<|image_pad|>"],
    marks=(TOKENIZER.control_tokens["<|vision_start|>"], TOKENIZER.control_tokens["<|vision_end|>"]),
    video_id=TOKENIZER.control_tokens["<|video_pad|>"],
    tokenizer=TOKENIZER,
)


def picture(width: int, height: int, color: Any = "white", text: str = "", mode: str = "RGB") -> Image.Image:
    """A disc and a line on a ground, with a text."""
    image = Image.new("RGBA", (width, height), color)
    draw = ImageDraw.Draw(image)
    draw.ellipse((width // 4, height // 4, width // 2, height - 2), fill="orange")
    draw.line((0, height, width, 0), fill="navy", width=3)
    draw.text((2, 2), text, fill="black")
    return image.convert(mode)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def clip(count: int, width: int = 512, height: int = 320, color: Any = "white") -> list[Image.Image]:
    """Frames on which a disc moves to the right; by default in a size in which models take them as they are."""
    frames = []
    for at in range(count):
        frame = Image.new("RGB", (width, height), color)
        left = at * (width - 20) // max(count, 1)
        ImageDraw.Draw(frame).ellipse((left, height // 3, left + 20, height // 3 + 20), fill="orange")
        frames.append(frame)
    return frames


def video_file(frames: Sequence[Image.Image], rate: int = 5, kind: str = "mp4", codec: str = "mpeg4") -> bytes:
    """The bytes of a video file."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return buffer.getvalue()


def load_video(video: Any, root: Path | None = None, *, remote: bool = False) -> PromptVideo:
    """The video of document 7, as it goes into a prompt."""
    return asyncio.run(MediaLoader(root, allow_remote=remote).load_video(VISION, video, "Document 7", 7))


def load(image: Any, root: Path | None = None, *, remote: bool = False) -> PromptImage:
    """The image of document 7, as it goes into a prompt."""
    return asyncio.run(MediaLoader(root, allow_remote=remote).load(VISION, image, "Document 7", 7))


def smart_resize(
    height: int, width: int, factor: int = FACTOR, least: float = MIN_PIXELS, most: float = MAX_PIXELS
) -> tuple[int, int]:
    """qwen_vl_utils, vision_process.py."""
    if max(height, width) / min(height, width) > 200:
        raise ValueError("absolute aspect ratio must be smaller than 200")
    h_bar = max(factor, round(height / factor) * factor)
    w_bar = max(factor, round(width / factor) * factor)
    if h_bar * w_bar > most:
        beta = math.sqrt((height * width) / most)
        h_bar = math.floor(height / beta / factor) * factor
        w_bar = math.floor(width / beta / factor) * factor
    elif h_bar * w_bar < least:
        beta = math.sqrt(least / (height * width))
        h_bar = math.ceil(height * beta / factor) * factor
        w_bar = math.ceil(width * beta / factor) * factor
    return h_bar, w_bar


def fetch_video(video: Sequence[Image.Image] | bytes) -> tuple[torch.Tensor, dict[str, Any]]:
    """qwen_vl_utils 0.0.14, vision_process.py: fetch_video(), _read_video_decord() and smart_nframes().

    With what the model card's code gives them: all `total_pixels` for a list, `fps` and `max_frames` for a file.

    Returns:
        Float pixels of shape [frames, 3, height, width], and the metadata.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    if isinstance(video, bytes):
        with av.open(io.BytesIO(video)) as container:
            rate = float(container.streams.video[0].average_rate)
            decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        count = math.floor(min(min(max(len(decoded) / rate, 4), 64), len(decoded)) / 2) * 2
        indices = torch.linspace(0, len(decoded) - 1, count).round().long().tolist()
        frames = [decoded[at] for at in indices]
        metadata = {"fps": rate, "frames_indices": indices, "total_num_frames": len(decoded)}
        total = 128000 * FACTOR**2 * 0.9
    else:
        sides = (smart_resize(one.height, one.width, 2 * FACTOR, 16 * FACTOR**2, 2**16 * FACTOR**2) for one in video)
        frames = [np.asarray(one.resize((wide, high))) for one, (high, wide) in zip(video, sides, strict=True)]
        frames += frames[-1:] * (len(frames) % 2)
        metadata = {"fps": 2.0, "frames_indices": list(range(len(frames))), "total_num_frames": len(frames)}
        total = TOTAL_PIXELS
    pixels = torch.stack([torch.from_numpy(frame.transpose(2, 0, 1).copy()) for frame in frames])
    least = 128 * FACTOR**2
    most = max(min(768 * FACTOR**2, total / len(frames) * 2), int(least * 1.05))
    size = smart_resize(*pixels.shape[2:], FACTOR, least, most)
    return resize(pixels, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True).float(), metadata


def fetch_image(image: Image.Image) -> Image.Image:
    """qwen_vl_utils, vision_process.py: fetch_image() and to_rgb()."""
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.split()[3])
        image = white
    image = image.convert("RGB")
    height, width = smart_resize(image.height, image.width)
    return image.resize((width, height))


@cache
def _loaded(folder: Path) -> tuple[Any, Any]:
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return AutoProcessor.from_pretrained(folder), model


def model_card_inputs(folder: Path, query: str | Document, document: str | Document, instruction: str) -> Any:
    """format_mm_instruction(), Qwen3-VL's chat template, and tokenize(), for a pair of images that are Pillow's.

    A video is a list of those, or the bytes of a file.
    """
    images, videos = [], []

    def content(side: str | Document) -> str:
        side = Document(side) if isinstance(side, str) else side
        if side.image is not None:
            images.append(fetch_image(side.image))
        if side.video is not None:
            videos.append(fetch_video(side.video))
        shown = IMAGE * (side.image is not None) + VIDEO * (side.video is not None)
        return shown + (side.text or "")

    text = (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
        f"<Instruct>: {instruction}<Query>:{content(query)}\n<Document>:{content(document)}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    processor, _ = _loaded(folder)
    given: dict[str, Any] = {"images": images} if images else {}
    if videos:
        pixels, metadata = zip(*videos, strict=True)
        given |= {"videos": list(pixels), "video_metadata": list(metadata), "do_sample_frames": False}
    inputs = processor(text=[text], **given, do_resize=False, return_tensors="pt")
    inputs.pop("video_metadata", None)
    return inputs


def by_hand(folder: Path, query: str | Document, document: str | Document, instruction: str = INSTRUCTION) -> float:
    """compute_scores(): (w_yes − w_no) · last hidden state."""
    processor, model = _loaded(folder)
    yes, no = processor.tokenizer.convert_tokens_to_ids(["yes", "no"])
    with torch.inference_mode():
        inputs = model_card_inputs(folder, query, document, instruction)
        state = model.model(**inputs).last_hidden_state[0, -1]
        return float(torch.dot(model.lm_head.weight[yes] - model.lm_head.weight[no], state))


def logits(reranker: Reranker, query: str | Document, documents: list[Any]) -> list[float]:
    """What the reranker says of documents, in their order."""
    return [hit.logit for hit in sorted(reranker.rank(query, documents), key=lambda hit: hit.index)]
