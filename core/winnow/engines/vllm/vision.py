"""Inputs and settings for images and videos on vLLM in this process."""

from collections.abc import Mapping
from typing import Any

from winnow.media import PromptVideo, Vision
from winnow.prompts import Prompt


def vision_inputs(vision: Vision, prompt: Prompt, *, query_first: bool = False) -> dict[str, Any]:
    """The input for a prompt with images or videos. It has one token for each; vLLM inserts the others.

    For a video that token has no marks (`_get_prompt_updates` in vLLM's `model_executor/models/qwen3_vl.py`).

    Args:
        vision: How the model takes images and videos.
        prompt: The prompt.
        query_first: `ModelRecipe.vllm_query_first`.
    """
    images = [image.pixels for image in prompt.images]
    shown = {"image": images[::-1] if query_first else images, "video": list(map(_timed, prompt.videos))}
    return {
        "prompt_token_ids": vision.collapsed(prompt.ids, prompt.videos),
        "multi_modal_data": {kind: items for kind, items in shown.items() if items},
    }


def _timed(video: PromptVideo) -> tuple[Any, dict[str, Any]]:
    """The input for a video whose frames are chosen already. vLLM takes index / `fps` as the time of a frame."""
    return video.frames, {"fps": 1.0, "frames_indices": list(video.times), "total_num_frames": len(video.times)}


def vision_settings(vision: Vision | None, engine_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for multimodal models: how many images and videos a prompt may have, and their sizes.

    Both query and document may have one. The size of a video is that of all its frames. vLLM before 0.32 has only one
    size for images and videos, and so takes no videos here.
    """
    from vllm import __version_tuple__

    if vision is None:
        return {}
    takes_videos = vision.video_id >= 0 and tuple(__version_tuple__[:2]) >= (0, 32)
    limits = engine_kwargs.get("limit_mm_per_prompt", {"image": 2, "video": 2 if takes_videos else 0})
    sizes: dict[str, Any] = {"size": {"shortest_edge": vision.min_pixels, "longest_edge": vision.max_pixels}}
    if takes_videos:
        of_video = {"shortest_edge": vision.side**2, "longest_edge": vision.video_pixels}
        sizes = {"images_kwargs": sizes, "videos_kwargs": {"size": of_video}}
    return {"limit_mm_per_prompt": limits, "mm_processor_kwargs": sizes}
