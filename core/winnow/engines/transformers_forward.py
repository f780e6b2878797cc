"""Prompts to raw logits: one padded batch through a loaded PyTorch model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from winnow.checkpoint import Checkpoint
from winnow.prompts import Prompt


class TransformersForward:
    """What a loaded model says of prompts. Not thread-safe.

    Args:
        model: The PyTorch model, in evaluation mode.
        checkpoint: Its small files.
        hub: `revision`, `cache_dir`, `token` and `trust_remote_code`, with which image and video processors are loaded.
    """

    def __init__(self, model: Any, checkpoint: Checkpoint, hub: Mapping[str, Any]):
        self.model = model
        self._checkpoint = checkpoint
        self._hub = hub
        self._processors: dict[str, Any] = {}

    def __call__(self, prompts: Sequence[Prompt]) -> list[float]:
        """The raw logit of each prompt, computed in one batch."""
        causal = bool(self._checkpoint.recipe.labels)
        width = max(len(prompt.ids) for prompt in prompts)
        pad = getattr(self.model.config, "pad_token_id", None) or 0
        ids = torch.full((len(prompts), width), pad)
        mask = torch.zeros_like(ids)
        types = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            # The judged position of a causal model is the last: padding goes before it.
            start = width - len(prompt.ids) if causal else 0
            ids[row, start : start + len(prompt.ids)] = torch.tensor(prompt.ids)
            mask[row, start : start + len(prompt.ids)] = 1
            if prompt.second_type_from is not None:
                types[row, prompt.second_type_from : len(prompt.ids)] = 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        if any(prompt.images or prompt.videos for prompt in prompts):
            inputs |= self._see(prompts, ids, mask)
        elif causal:
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        elif any(prompt.second_type_from is not None for prompt in prompts):
            inputs["token_type_ids"] = types
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        with torch.inference_mode():
            if not causal:
                return list(map(self._checkpoint.recipe.of_outputs, self.model(**inputs).logits.float().tolist()))
            logits = self.model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].float()
            labels = logits[:, list(self._checkpoint.label_ids)]
            return list(map(float, (labels[:, -1] - labels[:, 0] if labels.shape[1] == 2 else labels[:, 0]).tolist()))

    def _see(self, prompts: Sequence[Prompt], ids: Any, mask: Any) -> dict[str, Any]:
        """The model's inputs for images and videos; it makes their positions itself, in two dimensions."""
        vision = self._checkpoint.vision
        assert vision is not None  # noqa: S101 - for mypy: only models that see get prompts with images
        kinds = (ids == vision.token_id).int() + 2 * (ids == vision.video_id).int()
        inputs = {"mm_token_type_ids": kinds * mask}
        if images := [image.pixels for prompt in prompts for image in prompt.images]:
            shown = self._processor("AutoImageProcessor")(images=images, do_resize=False, return_tensors="pt")
            inputs |= {name: shown[name] for name in ("pixel_values", "image_grid_thw")}
        if videos := [video.frames for prompt in prompts for video in prompt.videos]:
            whole = {"do_resize": False, "do_sample_frames": False}
            shown = self._processor("AutoVideoProcessor")(videos=videos, return_tensors="pt", **whole)
            inputs |= {name: shown[name] for name in ("pixel_values_videos", "video_grid_thw")}
        return inputs

    def _processor(self, kind: str) -> Any:
        """The model's processor of images or videos, by the name of transformers' class; loaded once."""
        if kind not in self._processors:
            import transformers

            load: Any = getattr(transformers, kind).from_pretrained
            self._processors[kind] = load(self._checkpoint.model, **self._hub)
        return self._processors[kind]
