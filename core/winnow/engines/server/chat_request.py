"""The requests to a vLLM server: prompts as token ids, or a prompt with images as a chat message.

vLLM's HTTP interface takes images in messages only, and messages as text only (vLLM 0.32,
`vllm/entrypoints/pooling/base/protocol.py`). So the whole prompt is the text of one message, with the placeholders of
its images in place, which vLLM then leaves where they are (`_get_full_multimodal_text_prompt` in
`vllm/renderers/chat_utils.py`), and the server's chat template passes the message through.
"""

import asyncio
import base64
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from winnow.errors import EngineError
from winnow.media import PromptImage, Vision
from winnow.models import Checkpoint
from winnow.prompts import Prompt

# It passes one message through. From the two messages of other clients of /score it makes the same prompt as vLLM does
# without a template (`get_score_prompt` in vllm/entrypoints/pooling/scoring/io_processor.py).
_TEMPLATE_OF_SERVER = '{{ messages | map(attribute="content") | join }}'
# One of zlib's levels 0 to 9. The default, 6, takes twice as long for a photograph, and saves a tenth of its size.
_COMPRESSION = 1


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """One request.

    Attributes:
        body: The field of the request's body that holds the prompts.
        prompts: How many prompts there are.
        tokens: How many tokens the server must count in them, including those of images.
        with_images: Whether it is a prompt with images, which is sent as text.
    """

    body: Mapping[str, Any]
    prompts: int
    tokens: int
    with_images: bool = False


def ids_request(prompts: Sequence[list[int]]) -> ScoreRequest:
    """The request for prompts of token ids."""
    return ScoreRequest({"input": prompts}, len(prompts), sum(map(len, prompts)))


async def chat_requests(checkpoint: Checkpoint, prompts: Sequence[Prompt]) -> list[ScoreRequest]:
    """The requests for prompts with images, one for each prompt. An image in several prompts is encoded once.

    Args:
        checkpoint: The model.
        prompts: The prompts.

    Raises:
        EngineError: No text gives a prompt's ids. `PromptBuilder` builds no such prompts if `Vision.as_text` is set.
    """
    images = {image.key: image for prompt in prompts for image in prompt.images}
    encoded = await asyncio.gather(*(asyncio.to_thread(_data_uri, image) for image in images.values()))
    uris = dict(zip(images, encoded, strict=True))
    return [_chat_request(checkpoint, prompt, [uris[image.key] for image in prompt.images]) for prompt in prompts]


def _chat_request(checkpoint: Checkpoint, prompt: Prompt, uris: Sequence[str]) -> ScoreRequest:
    vision = checkpoint.vision
    text = None if vision is None else checkpoint.tokenizer.text_of(vision.collapsed(prompt.ids))
    if text is None:
        raise EngineError(
            f"A prompt with images for {checkpoint.model} has no text that the server would turn into its token ids."
        )
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    parts += ({"type": "image_url", "image_url": {"url": uri}} for uri in uris)
    return ScoreRequest({"messages": [{"role": "user", "content": parts}]}, 1, len(prompt.ids), with_images=True)


def _data_uri(image: PromptImage) -> str:
    """An image as a PNG without metadata, because vLLM would follow EXIF data or a transparency in it."""
    from PIL import Image

    buffer = io.BytesIO()
    pixels = Image.frombytes("RGB", image.pixels.size, image.pixels.tobytes())
    pixels.save(buffer, "PNG", compress_level=_COMPRESSION)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def server_options(vision: Vision) -> list[str]:
    """Options of `vllm serve` for these requests.

    They cannot be in the request: vLLM refuses a template or sizes there, unless it was started to trust its clients.
    """
    options = {
        "--chat-template": _TEMPLATE_OF_SERVER,
        # An image of the query and one of the document, in the sizes in which they are sent.
        "--limit-mm-per-prompt": json.dumps({"image": 2, "video": 0}),
        "--mm-processor-kwargs": json.dumps(
            {"size": {"shortest_edge": vision.min_pixels, "longest_edge": vision.max_pixels}}
        ),
    }
    return list(itertools.chain.from_iterable(options.items()))
