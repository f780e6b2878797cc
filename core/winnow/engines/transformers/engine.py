"""The engine on plain PyTorch and transformers: for CPUs and laptops, and as the reference for vLLM's scores."""

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from winnow.engines.base import EngineScore
from winnow.engines.cpu_dtype import dtype_on_cpu
from winnow.engines.registry import settings_of
from winnow.engines.setting_table import SETTINGS, check_keywords
from winnow.errors import EngineLoadError, MissingExtraError
from winnow.models import Checkpoint, folder_with_weights, uses_modelscope
from winnow.prompts import Prompt
from winnow.threads import OwnThread, in_daemon_thread

logger = logging.getLogger(__name__)

# Settings for reading the files of a model, and transformers' names for them.
_HUB = {
    "revision": "revision",
    "trust_remote_code": "trust_remote_code",
    "cache_dir": "cache_dir",
    "hf_token": "token",
}

# A CPU gains nothing from larger batches, which do not fit its caches, and other calls wait for them.
_BATCH_TOKENS_ON_CPU = 2048


class TransformersEngine:
    """A reranker as a PyTorch model: prompts of similar length in batches, one batch at a time.

    Args:
        checkpoint: The model.
        engine_kwargs: This engine's settings (docs/settings.md#settings-of-the-engine).

    Raises:
        ConfigurationError: A setting is unknown, or PyTorch finds no such device here.
        MissingExtraError: PyTorch is not installed.
    """

    name = "transformers"

    def __init__(self, checkpoint: Checkpoint, engine_kwargs: Mapping[str, Any]):
        try:
            import torch  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("torch", "transformers") from error
        check_keywords("engine_kwargs", engine_kwargs, settings_of(self.name))
        self.checkpoint = checkpoint
        from winnow.engines.transformers.devices import chosen_device

        self._device = chosen_device(engine_kwargs.get("device"))
        self._batch_tokens = engine_kwargs.get("batch_tokens") or (
            _BATCH_TOKENS_ON_CPU if self._device.type == "cpu" else SETTINGS["batch_tokens"].default
        )
        self._hub = {
            theirs: engine_kwargs[ours] for ours, theirs in _HUB.items() if engine_kwargs.get(ours) is not None
        }
        self._load_kwargs = {"dtype": engine_kwargs.get("dtype") or self._default_dtype(), **self._hub}
        if "attn_implementation" in engine_kwargs:
            self._load_kwargs["attn_implementation"] = engine_kwargs["attn_implementation"]
        self._forward: Any = None
        self._thread: OwnThread

    def _default_dtype(self) -> str:
        """The checkpoint's, also if that is quantised, which sets the type itself; on a CPU one that is fast there."""
        on_cpu = self._device.type == "cpu" and not self.checkpoint.quantized
        return dtype_on_cpu(self.checkpoint) if on_cpu else "auto"

    async def start(self) -> None:
        """Load the model."""
        await in_daemon_thread(self._load)  # so that Ctrl-C need not wait for it
        self._thread = OwnThread("winnow-transformers")

    def _load(self) -> None:
        from winnow.engines.transformers.forward import TransformersForward
        from winnow.engines.transformers.load import load_model

        checkpoint = self._with_files()
        model = load_model(checkpoint, self._load_kwargs)
        model.to(self._device)
        try:
            self._forward = TransformersForward(model, checkpoint, self._hub)
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            raise EngineLoadError(
                f"{self.checkpoint.model} was loaded, but a first prompt failed: {type(error).__name__}: {error}"
            ) from error
        if not self._forward.mixes_lengths:
            logger.warning(
                "%s gives a prompt another score when it is padded. So only prompts of the same length are scored "
                "together, which is slower.",
                self.checkpoint.model,
            )

    def _with_files(self) -> Checkpoint:
        """The checkpoint. Files from ModelScope, which transformers cannot download, are put into a folder first."""
        if not uses_modelscope():
            return self.checkpoint
        where = (self._hub.get(name) for name in ("revision", "token", "cache_dir"))
        return replace(self.checkpoint, model=str(folder_with_weights(self.checkpoint.model, *where)))

    async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:  # noqa: ARG002
        """Score prompts, longest batches first, in this engine's thread."""
        scores = {
            at: EngineScore(math.nan, error=refusal)
            for at, prompt in enumerate(prompts)
            if (refusal := self._forward.refusal(prompt))
        }
        order = sorted(set(range(len(prompts))) - scores.keys(), key=lambda at: (-len(prompts[at].ids), at))
        shared = self._forward.shared([prompts[at] for at in order])
        while order:
            batch = self._next_batch(order, prompts)
            # One piece of work for each batch: other calls' batches may come between, and a cancelled call stops.
            found = await self._thread.do(partial(self._forward, [prompts[at] for at in batch], shared))
            if found is not None:
                scores |= zip(batch, found, strict=True)
            elif len(batch) > 1:
                self._shrink_batches(len(batch) * len(prompts[batch[0]].ids) // 2)
                continue
            else:
                scores[batch[0]] = EngineScore(math.nan, error=self._no_memory(prompts[batch[0]]))
            order = order[len(batch) :]
        return [scores[at] for at in range(len(prompts))]

    def _next_batch(self, order: Sequence[int], prompts: Sequence[Prompt]) -> list[int]:
        """The first of `order`, as many as fit in a batch as long as the first of them."""
        length = len(prompts[order[0]].ids)
        batch = order[: max(1, self._batch_tokens // length)]
        if self._forward.mixes_lengths:
            return list(batch)
        return list(itertools.takewhile(lambda at: len(prompts[at].ids) == length, batch))

    def _no_memory(self, prompt: Prompt) -> str:
        return (
            f"{self.checkpoint.model} ran out of memory on this prompt of {len(prompt.ids)} tokens alone: lower "
            "max_length, or take another dtype or device"
        )

    def _shrink_batches(self, tokens: int) -> None:
        if tokens >= self._batch_tokens:
            return  # another call met the limit first
        self._batch_tokens = tokens
        logger.warning(
            "%s ran out of memory. From now on its batches have %d tokens at most; engine_kwargs={'batch_tokens': %d} "
            "starts with that.",
            self.checkpoint.model,
            tokens,
            tokens,
        )

    async def sleep(self) -> None:
        """Move the weights to main memory; on a CPU they are there."""
        await self._thread.do(partial(self._move_to, "cpu"))

    async def wake(self) -> None:
        """Move the weights back."""
        await self._thread.do(partial(self._move_to, self._device))

    def _move_to(self, device: Any) -> None:
        self._forward.move_to(device)
        self._free_unused()

    def _free_unused(self) -> None:
        from winnow.engines.transformers.devices import free_unused

        free_unused(self._device)

    async def aclose(self) -> None:
        """Free the model and its thread, when the running batch is done."""
        try:
            await self._thread.do(self._free)
        finally:
            self._thread.end()

    def _free(self) -> None:
        self._forward = None
        self._free_unused()

    def abandon(self) -> None:
        """Nothing to kill: the load ends by itself."""
