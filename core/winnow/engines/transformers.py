"""Plain PyTorch through transformers: CPUs, laptops, and the reference that vLLM's scores are compared with."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from winnow.checkpoint import Checkpoint
from winnow.engines.base import EngineScore
from winnow.engines.known_settings import check_keywords, settings_of
from winnow.errors import ConfigurationError, EngineLoadError, MissingExtraError
from winnow.prompts import Prompt
from winnow.weights import check_weights, untied_without_head

logger = logging.getLogger(__name__)

_BATCH_TOKENS = 16384


class TransformersEngine:
    """A reranker as a PyTorch model: prompts of similar length in padded batches, one batch at a time.

    Args:
        checkpoint: The model.
        engine_kwargs: `device` (default: "cuda" if there is one, else "cpu"), `dtype` (default: the checkpoint's on a
            GPU, float32 on a CPU),
            `batch_tokens` (most tokens of a padded batch), and `attn_implementation`, `revision`, `trust_remote_code`,
            `cache_dir` and `hf_overrides` as in vLLM or transformers; `mm_processor_kwargs` (`min_pixels` and
            `max_pixels`, between which images are resized).

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
        check_keywords("engine_kwargs", engine_kwargs, settings_of("transformers"))
        self.checkpoint = checkpoint
        self._device = _device(engine_kwargs.get("device"))
        self._dtype = engine_kwargs.get("dtype") or ("float32" if self._device.type == "cpu" else "auto")
        self._batch_tokens = engine_kwargs.get("batch_tokens", _BATCH_TOKENS)
        self._load_kwargs = {
            name: engine_kwargs[name]
            for name in ("attn_implementation", "revision", "trust_remote_code", "cache_dir")
            if name in engine_kwargs
        }
        if engine_kwargs.get("hf_token"):
            self._load_kwargs["token"] = engine_kwargs["hf_token"]
        self._hub = {name: self._load_kwargs.get(name) for name in ("revision", "cache_dir", "token")}
        self._forward: Any = None
        self._thread: ThreadPoolExecutor | None = None

    async def start(self) -> None:
        """Load the model in the thread that will run it."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="winnow-transformers")
        await asyncio.get_running_loop().run_in_executor(self._thread, self._load)

    def _load(self) -> None:
        import transformers

        from winnow.engines.transformers_forward import TransformersForward

        check_weights(self.checkpoint)
        kwargs = {"dtype": self._dtype, **self._load_kwargs}
        recipe = self.checkpoint.recipe
        kind: Any
        model: Any
        if recipe.local_code:
            from winnow.engines.local_code import class_and_config

            kind, kwargs["config"] = class_and_config(self.checkpoint.config)
        elif not recipe.labels:
            kind = transformers.AutoModelForSequenceClassification
        elif any(name.endswith("ForConditionalGeneration") for name in recipe.architectures):
            kind = transformers.AutoModelForImageTextToText
        else:
            kind = transformers.AutoModelForCausalLM
        progress = transformers.utils.logging.is_progress_bar_enabled()
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            model, loading = kind.from_pretrained(self.checkpoint.model, output_loading_info=True, **kwargs)
        except Exception as error:  # transformers fails to load with errors of every kind
            raise EngineLoadError(
                f"transformers could not load {self.checkpoint.model} ({', '.join(recipe.architectures)}): "
                f"{type(error).__name__}: {error}\nIf the model brings code of its own, and you trust it, pass "
                "engine_kwargs={'trust_remote_code': True}; if it is newer than your transformers "
                f"({transformers.__version__}), upgrade."
            ) from error
        finally:
            if progress:
                transformers.utils.logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        if missing := sorted(loading["missing_keys"]):
            # transformers fills these with random numbers, and goes on.
            hint = (
                "Check that it is a reranker; if it brings code of its own, and you trust it, pass "
                "engine_kwargs={'trust_remote_code': True}."
            )
            if recipe.labels and any("lm_head" in name for name in missing):
                hint = untied_without_head(self.checkpoint.model)
            raise EngineLoadError(
                f"The weights of {self.checkpoint.model} are not those of a {type(model).__name__}: "
                f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''} are missing. {hint}"
            )
        model.to(self._device)
        self._forward = TransformersForward(model.eval(), self.checkpoint, self._hub)

    async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:  # noqa: ARG002
        """Score prompts, longest batches first, in this engine's thread."""
        order = sorted(range(len(prompts)), key=lambda at: -len(prompts[at].ids))
        logits = [0.0] * len(prompts)
        while order:
            size = max(1, self._batch_tokens // len(prompts[order[0]].ids))
            batch, order = order[:size], order[size:]
            # A call a batch: other callers' batches come in between, and a cancelled call stops after its batch.
            found = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._forward, [prompts[at] for at in batch]
            )
            for at, logit in zip(batch, found, strict=True):
                logits[at] = logit
        return [EngineScore(self.checkpoint.recipe.calibrated(logit)) for logit in logits]

    async def sleep(self) -> None:
        """Move the weights to main memory; on a CPU they are there."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._move_to, "cpu")

    async def wake(self) -> None:
        """Move the weights back."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._move_to, self._device)

    def _move_to(self, device: Any) -> None:
        self._forward.model.to(device)
        self._free_unused()

    def _free_unused(self) -> None:
        if self._device.type == "cuda":
            import torch

            torch.cuda.empty_cache()

    async def aclose(self) -> None:
        """Free the model and its thread."""
        self._forward = None
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None
        self._free_unused()

    def abandon(self) -> None:
        """Nothing to kill: the load ends by itself."""


def _device(given: Any) -> Any:
    """The `torch.device` that was asked for. Looking for it takes none of its memory."""
    import torch

    if given is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(given)
        count = torch.get_device_module(device).device_count()
    except (RuntimeError, TypeError):
        raise ConfigurationError(
            f"device must be one that PyTorch {torch.__version__} can use, such as cpu or cuda:1, but got {given!r}"
        ) from None
    if (device.index or 0) >= count:
        raise ConfigurationError(
            f"device={str(device)!r} is not there: PyTorch {torch.__version__} finds {count} of type {device.type!r}"
        )
    return device
