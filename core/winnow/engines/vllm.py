"""vLLM in this process: token ids in, raw logits out, through vLLM's continuous batching.

`AsyncLLM` and not `LLM`: two threads that call one `LLM` get each other's scores, or hang.
"""

import asyncio
import dataclasses
import itertools
import logging
import multiprocessing
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import spawn
from typing import Any

from winnow.checkpoint import Checkpoint
from winnow.engines.base import EngineScore, check_keywords
from winnow.errors import EngineDeadError, EngineError, EngineLoadError, MissingExtraError
from winnow.prompts import Prompt

logger = logging.getLogger(__name__)


class VllmEngine:
    """A reranker on vLLM's `AsyncLLM`.

    Args:
        checkpoint: The model.
        max_length: Most tokens of a prompt (vLLM's `max_model_len`).
        engine_kwargs: Fields of vLLM's `AsyncEngineArgs` that override Winnow's choice.

    Raises:
        MissingExtraError: vLLM is not installed.
    """

    name = "vllm"

    def __init__(self, checkpoint: Checkpoint, max_length: int, engine_kwargs: Mapping[str, Any]):
        self.checkpoint = checkpoint
        # vLLM reads this when it is first imported. Its start-up chatter is off unless the user asks for it.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
        except ImportError as error:
            raise MissingExtraError("vllm", "vllm") from error
        check_keywords("engine_kwargs", engine_kwargs, [field.name for field in dataclasses.fields(AsyncEngineArgs)])
        self._engine_args = AsyncEngineArgs(
            **{
                "model": checkpoint.model,
                "max_model_len": max_length,
                **_platform_defaults(),
                **engine_kwargs,
                "hf_overrides": {**checkpoint.recipe.vllm_overrides, **engine_kwargs.get("hf_overrides", {})},
            }
        )
        self._llm: Any = None
        self._processes_before: set[int | None] = set()
        self._request_numbers = itertools.count()

    async def start(self) -> None:
        """Load the model; takes seconds to minutes, and blocks this engine's own loop meanwhile."""
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        self._processes_before = {process.pid for process in multiprocessing.active_children()}
        try:
            with _without_main_module():
                # LLM_CLASS: the batch sizes of offline use, several times those of a server (vllm/engine/arg_utils.py).
                self._llm = AsyncLLM.from_engine_args(self._engine_args, usage_context=UsageContext.LLM_CLASS)
        except Exception as error:  # vLLM fails to load with errors of every kind
            raise EngineLoadError(f"vLLM could not load {self.checkpoint.model}: {error}") from error

    async def score(self, prompts: Sequence[Prompt]) -> list[EngineScore]:
        """Score prompts; all of them enter vLLM's queue side by side, so that a shared prefix is computed once."""
        return list(await asyncio.gather(*map(self._score_one, prompts)))

    async def _score_one(self, prompt: Prompt) -> EngineScore:
        from vllm import PoolingParams
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError

        params = PoolingParams(task="classify", use_activation=False)
        if prompt.second_type_from is not None:
            params.extra_kwargs = {"compressed_token_type_ids": prompt.second_type_from}
        request = f"winnow-{next(self._request_numbers)}"
        try:
            async for output in self._llm.encode(tokens_input(prompt.ids), params, request_id=request):
                if output.finished:
                    return EngineScore(output.outputs.data.float().item(), output.num_cached_tokens or 0)
        except VllmDeadError as error:
            raise EngineDeadError(
                f"The vLLM engine of {self.checkpoint.model} died. The next call starts it again."
            ) from error
        raise EngineError(f"vLLM returned no score for request {request}.")

    async def aclose(self) -> None:
        """Stop vLLM and its processes."""
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None

    def abandon(self) -> None:
        """Kill the processes of a `start` that is under way in another thread; it then fails."""
        from vllm.utils.system_utils import kill_process_tree

        for process in multiprocessing.active_children():
            if (
                process.pid is not None
                and process.pid not in self._processes_before
                and process.name.startswith("EngineCore")
            ):
                kill_process_tree(process.pid)


def _platform_defaults() -> dict[str, Any]:
    """Winnow's choice of `AsyncEngineArgs`; on a machine without a GPU, settings under which vLLM's CPU build runs."""
    from vllm.platforms import current_platform

    chosen: dict[str, Any] = {"runner": "pooling", "disable_log_stats": True, "use_tqdm_on_load": False}
    if current_platform.is_cpu():
        # Here gpu_memory_utilization is the share of main memory that must be free at the start; the cache is in GiB.
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        chosen |= {"dtype": "float32", "enforce_eager": True, "gpu_memory_utilization": 0.3}
    return chosen


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Let vLLM spawn its processes without running the user's script again in each.

    `multiprocessing`'s spawn imports `__main__` in the child, so that a script without an `if __name__ == "__main__"`
    guard would
    start itself, and fail with an error that names neither vLLM nor the cure. vLLM's processes need nothing from it.
    """
    thread = threading.get_ident()
    original = spawn.get_preparation_data

    def without_main(name: str) -> dict[str, Any]:
        data: dict[str, Any] = original(name)
        if threading.get_ident() == thread:
            data.pop("init_main_from_path", None)
            data.pop("init_main_from_name", None)
        return data

    spawn.get_preparation_data = without_main
    try:
        yield
    finally:
        spawn.get_preparation_data = original


def _stem(architecture: str) -> str:
    return re.sub(r"(For[A-Z]\w*|LMHeadModel|Model)$", "", architecture)


def why_not(checkpoint: Checkpoint) -> str | None:
    """Why vLLM cannot run this model on this machine, or None if it can."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        from vllm import ModelRegistry
        from vllm.platforms import current_platform
    except Exception as error:  # noqa: BLE001 - a broken build fails with whatever its libraries raise
        return f"vLLM does not import ({type(error).__name__}: {error})"
    if current_platform.is_unspecified():
        return "vLLM finds no device that it can use"
    recipe = checkpoint.recipe
    wanted = recipe.vllm_overrides.get("architectures", checkpoint.config.get("architectures") or [])
    # vLLM turns any causal model of its registry into a classifier, so the stem counts (vLLM, models/registry.py).
    if not set(map(_stem, wanted)) & set(map(_stem, ModelRegistry.get_supported_archs())):
        return f"vLLM does not have the architecture {', '.join(wanted)}"
    return None
