"""Pictures, how a tiny Qwen3-VL sees them, and its judge: what the model card's own code computes for a pair."""

import asyncio
import io
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from tiny_families import qwen_like
from winnow import Document
from winnow.images import ImageLoader
from winnow.tokenization import PromptTokenizer
from winnow.vision import PromptImage, Vision

# QwenLM/Qwen3-VL-Embedding, src/models/qwen3_vl_reranker.py.
FACTOR = 32
MIN_PIXELS = 4 * FACTOR * FACTOR
MAX_PIXELS = 1800 * FACTOR * FACTOR
INSTRUCTION = "Given a search query, retrieve relevant candidates that answer the query."
SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the "
    'answer can only be "yes" or "no".'
)
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"

TOKENIZER = PromptTokenizer(qwen_like())
VISION = Vision(
    side=FACTOR,
    min_pixels=MIN_PIXELS,
    max_pixels=MAX_PIXELS,
    placeholder=IMAGE,
    token_id=TOKENIZER.control_tokens["<|image_pad|>"],
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


def load(image: Any, root: Path | None = None, *, remote: bool = False) -> PromptImage:
    """The image of document 7, as it goes into a prompt."""
    return asyncio.run(ImageLoader(root, allow_remote=remote).load(VISION, image, "Document 7", 7))


def smart_resize(height: int, width: int) -> tuple[int, int]:
    """qwen_vl_utils, vision_process.py."""
    if max(height, width) / min(height, width) > 200:
        raise ValueError("absolute aspect ratio must be smaller than 200")
    h_bar = max(FACTOR, round(height / FACTOR) * FACTOR)
    w_bar = max(FACTOR, round(width / FACTOR) * FACTOR)
    if h_bar * w_bar > MAX_PIXELS:
        beta = math.sqrt((height * width) / MAX_PIXELS)
        h_bar = math.floor(height / beta / FACTOR) * FACTOR
        w_bar = math.floor(width / beta / FACTOR) * FACTOR
    elif h_bar * w_bar < MIN_PIXELS:
        beta = math.sqrt(MIN_PIXELS / (height * width))
        h_bar = math.ceil(height * beta / FACTOR) * FACTOR
        w_bar = math.ceil(width * beta / FACTOR) * FACTOR
    return h_bar, w_bar


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
    """format_mm_instruction(), Qwen3-VL's chat template, and tokenize(), for a pair of images that are Pillow's."""
    images = []

    def content(side: str | Document) -> str:
        side = Document(side) if isinstance(side, str) else side
        if side.image is not None:
            images.append(fetch_image(side.image))
        return (IMAGE if side.image is not None else "") + (side.text or "")

    text = (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
        f"<Instruct>: {instruction}<Query>:{content(query)}\n<Document>:{content(document)}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    processor, _ = _loaded(folder)
    return processor(text=[text], images=images or None, do_resize=False, return_tensors="pt")


def by_hand(folder: Path, query: str | Document, document: str | Document, instruction: str = INSTRUCTION) -> float:
    """compute_scores(): (w_yes − w_no) · last hidden state."""
    processor, model = _loaded(folder)
    yes, no = processor.tokenizer.convert_tokens_to_ids(["yes", "no"])
    with torch.inference_mode():
        inputs = model_card_inputs(folder, query, document, instruction)
        state = model.model(**inputs).last_hidden_state[0, -1]
        return float(torch.dot(model.lm_head.weight[yes] - model.lm_head.weight[no], state))
