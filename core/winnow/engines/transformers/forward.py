"""Prompts to scores: one batch through a loaded PyTorch model, packed where that is exact, else padded.

Padding comes after the prompts. In a causal model no token depends on later ones, whatever its layers are; padding
before the prompts would change the state of a recurrent model (RecurrentGemma, RWKV).
"""

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from winnow.engines.base import EngineScore
from winnow.engines.transformers.devices import free_unused
from winnow.engines.transformers.head import put_label_head, put_score_heads, weight_in_files
from winnow.engines.transformers.packing import PackedForward, common_beginning, may_pack
from winnow.errors import EngineError
from winnow.models import Checkpoint
from winnow.prompts import Prompt

logger = logging.getLogger(__name__)

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
        self._packed: PackedForward | None = None
        short, long = map(self._probe, _PROBES)
        if self.refusal(long):
            return  # the tokenizer is not the model's: no prompt will be scored
        if not self._labelled and not self._judges_last(short):
            self._heads = []
        elif padding is None and not self._labelled:
            config.pad_token_id = 0  # a classifier takes no batch without one; `JudgedHead` makes its value irrelevant
        self.mixes_lengths = self._is_blind_to_padding(short, long)
        self._packed = self._packed_if_exact(short, long)

    def __call__(self, prompts: Sequence[Prompt], shared: int = 0) -> list[EngineScore] | None:
        """The score of each prompt, computed in one batch; None if there is too little memory for the batch.

        Args:
            prompts: The batch.
            shared: How many tokens these and more prompts begin with in common.

        Raises:
            EngineError: PyTorch failed for another reason.
        """
        cached = [0] * len(prompts)
        try:
            if self._packed is None:
                logits = self._logits(prompts)
            else:
                outputs, cached = self._packed([prompt.ids for prompt in prompts], shared)
                logits = self._logits_of(outputs)
            recipe = self._checkpoint.recipe
            return [EngineScore(recipe.calibrated(logit), known) for logit, known in zip(logits, cached, strict=True)]
        except Exception as error:  # PyTorch fails with errors of every kind
            if not _is_out_of_memory(error):
                longest = max(len(prompt.ids) for prompt in prompts)
                raise EngineError(
                    f"PyTorch could not score {len(prompts)} prompts of at most {longest} tokens with "
                    f"{self._checkpoint.model}: {type(error).__name__}: {error}"
                ) from error
        # Not in the `except` block, because there the error keeps the batch's tensors alive.
        self._forget()
        free_unused(self.model.device)
        return None

    def shared(self, prompts: Sequence[Prompt]) -> int:
        """How many tokens prompts begin with in common, if it helps to know: the last one of each is its own."""
        if self._packed is None or len(prompts) < 2:
            return 0
        return common_beginning([prompt.ids[:-1] for prompt in prompts])

    def move_to(self, device: Any) -> None:
        """Move the model to another device."""
        self._forget()
        self.model.to(device)

    def _forget(self) -> None:
        if self._packed is not None:
            self._packed.forget()

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
            outputs = self.model(**inputs).logits
        return self._logits_of(outputs[:, -1] if self._labelled else outputs)

    def _logits_of(self, outputs: torch.Tensor) -> list[float]:
        """The logits of prompts, from the head's outputs of shape (prompts, outputs)."""
        outputs = outputs.float()
        if not self._labelled:
            return list(map(self._checkpoint.recipe.of_outputs, outputs.tolist()))
        return [float(logit) for logit in (outputs[:, -1] - (outputs[:, 0] if outputs.shape[1] == 2 else 0)).tolist()]

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
        rounding = self._rounding(alone)
        return not (abs(alone - beside) > rounding or abs(beside - other) > rounding / 10)

    def _packed_if_exact(self, short: Prompt, long: Prompt) -> PackedForward | None:
        """What packs prompts, if the model gives packed prompts the logits that they have alone."""
        if self.model.device.type != "cpu":
            return None  # a GPU likes one large attention better than many small ones: not measured
        if len(self._heads) != 1 or self._checkpoint.vision is not None or not may_pack(self.model):
            return None
        packed = PackedForward(self.model, self._heads[0], labelled=self._labelled)
        prompts = [long.ids + short.ids, long.ids + long.ids]
        if max(map(len, prompts)) > self._checkpoint.max_length:
            return None  # the model may have no positions for them
        expected = [self._logits([Prompt(ids)])[0] for ids in prompts]
        try:
            found = self._logits_of(packed(prompts, len(long.ids))[0])
        except Exception as error:  # noqa: BLE001 - models' own code fails with errors of every kind
            logger.debug("%s does not take packed prompts: %r", self._checkpoint.model, error)
            return None
        if any(abs(one - other) > self._rounding(other) for one, other in zip(found, expected, strict=True)):
            return None
        return packed

    def _rounding(self, logit: float) -> float:
        """How far apart a logit may be that was computed in two ways: 3e-4 in float32, 0.09 in bfloat16."""
        dtype = next(weight.dtype for weight in self.model.parameters() if weight.is_floating_point())
        return float(torch.finfo(dtype).eps ** 0.5 * max(1.0, abs(logit)))

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
