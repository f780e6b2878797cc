"""Prompts to raw logits: one padded batch through a loaded PyTorch model.

Padding comes after the prompts. In a causal model no token depends on later ones, whatever its layers are; padding
before the prompts would change the state of a recurrent model (RecurrentGemma, RWKV).
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from winnow.engines.transformers.head import put_label_head, put_score_heads, weight_in_files
from winnow.errors import EngineError
from winnow.models import Checkpoint
from winnow.prompts import Prompt

# Words in the errors of PyTorch's allocators and of cuBLAS if there is no more memory.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed")
# Two texts, of which the second is much longer.
_PROBES = ("what is it?", "Given a web search query, retrieve relevant passages that answer the query. " * 3)


class TransformersForward:
    """Computes the logits of prompts with a loaded model. Not thread-safe.

    Args:
        model: The PyTorch model, in evaluation mode. Its head is replaced.
        checkpoint: Its small files.
        hub: `revision`, `cache_dir`, `token` and `trust_remote_code`, with which more of its files are read.

    Attributes:
        model: The model.
        mixes_lengths: Whether prompts of different lengths may be in one batch. Not in a few kinds (FNet, ConvBERT),
            whose scores change with the padding.
    """

    def __init__(self, model: Any, checkpoint: Checkpoint, hub: Mapping[str, Any]):
        self.model = model
        self._checkpoint = checkpoint
        self._hub = hub
        self._processors: dict[str, Any] = {}
        self._labelled = bool(checkpoint.recipe.labels)
        if self._labelled:
            self._heads = [put_label_head(model, checkpoint.label_ids)]
        else:
            self._heads = put_score_heads(model, functools.partial(weight_in_files, checkpoint.model, hub))
        config = model.config.get_text_config()
        model.config.use_cache = config.use_cache = False  # the cache is for generating tokens
        self._rows = int(config.vocab_size)
        padding = getattr(config, "pad_token_id", None)
        self._padding = padding if padding is not None and 0 <= padding < self._rows else 0
        self.mixes_lengths = True
        short, long = map(self._probe, _PROBES)
        if self.refusal(long):
            return  # the tokenizer is not the model's: no prompt will be scored
        if not self._labelled and not self._judges_last(short):
            self._heads = []
        elif padding is None and not self._labelled:
            config.pad_token_id = 0  # a classifier takes no batch without one; `JudgedHead` makes its value irrelevant
        self.mixes_lengths = self._is_blind_to_padding(short, long)

    def __call__(self, prompts: Sequence[Prompt]) -> list[float] | None:
        """The raw logit of each prompt, computed in one batch; None if there is too little memory for the batch.

        Raises:
            EngineError: PyTorch failed for another reason.
        """
        try:
            return self._logits(prompts)
        except Exception as error:  # PyTorch fails with errors of every kind
            if not _is_out_of_memory(error):
                longest = max(len(prompt.ids) for prompt in prompts)
                raise EngineError(
                    f"PyTorch could not score {len(prompts)} prompts of at most {longest} tokens with "
                    f"{self._checkpoint.model}: {type(error).__name__}: {error}"
                ) from error
        # Not in the `except` block, because there the error keeps the batch's tensors alive.
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def refusal(self, prompt: Prompt) -> str | None:
        """Why the model cannot score a prompt; None if it can. PyTorch's own error would end a GPU's process."""
        beyond = max(prompt.ids)
        if beyond < self._rows:
            return None
        return (
            f"the prompt has token {beyond} ({self._checkpoint.tokenizer.token(beyond)!r}), but the embedding of "
            f"{self._checkpoint.model} has {self._rows} rows: the tokenizer does not belong to the model"
        )

    def _logits(self, prompts: Sequence[Prompt]) -> list[float]:
        width = max(len(prompt.ids) for prompt in prompts)
        ids = torch.full((len(prompts), width), self._padding)
        mask = torch.zeros_like(ids)
        types = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt.ids)] = torch.tensor(prompt.ids)
            mask[row, : len(prompt.ids)] = 1
            if prompt.second_type_from is not None:
                types[row, prompt.second_type_from : len(prompt.ids)] = 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        if any(prompt.images or prompt.videos for prompt in prompts):
            inputs |= self._media_inputs(prompts, ids, mask)
        elif any(prompt.second_type_from is not None for prompt in prompts):
            inputs["token_type_ids"] = types
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        for head in self._heads:
            head.judged = inputs["attention_mask"].sum(1) - 1
        with torch.inference_mode():
            logits = self.model(**inputs).logits.float()
        if not self._labelled:
            return list(map(self._checkpoint.recipe.of_outputs, logits.tolist()))
        labels = logits[:, -1]
        return [float(logit) for logit in (labels[:, -1] - (labels[:, 0] if labels.shape[1] == 2 else 0)).tolist()]

    def _probe(self, text: str) -> Prompt:
        tokenizer = self._checkpoint.tokenizer
        ids = [*tokenizer.begin, *tokenizer.encode(text)]  # without `end`, which may be the padding token
        return Prompt(ids[: self._checkpoint.max_length])

    def _judges_last(self, prompt: Prompt) -> bool:
        """Whether a classifier applies a linear head to all tokens and takes the last one's output; others pool."""
        found = self._logits([prompt])[0]
        heads, self._heads = self._heads, []
        for head in heads:
            head.judged = None
        own = self._logits([prompt])[0]
        self._heads = heads
        return not abs(found - own) > 1e-3 * max(1.0, abs(own))

    def _is_blind_to_padding(self, short: Prompt, long: Prompt) -> bool:
        """Whether the logit of a prompt is the same alone, beside a longer prompt, and with another padding token.

        Rounding makes logits differ when the batch has another shape. Another padding token does not change the shape,
        so that comparison is more exact if the model computes in bfloat16.
        """
        [alone], [beside, _] = self._logits([short]), self._logits([short, long])
        padding, self._padding = self._padding, long.ids[-1]
        [other, _] = self._logits([short, long])
        self._padding = padding
        dtype = next(weight.dtype for weight in self.model.parameters() if weight.is_floating_point())
        rounding = torch.finfo(dtype).eps ** 0.5 * max(1.0, abs(alone))  # 3e-4 for float32, 0.09 for bfloat16
        return not (abs(alone - beside) > rounding or abs(beside - other) > rounding / 10)

    def _media_inputs(self, prompts: Sequence[Prompt], ids: Any, mask: Any) -> dict[str, Any]:
        """The model's inputs for images and videos. The model computes their two-dimensional positions itself."""
        vision = self._checkpoint.vision
        assert vision is not None  # noqa: S101 - for mypy: only multimodal models get prompts with images
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


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)
    )
