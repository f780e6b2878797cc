"""vLLM in this process: token ids in, raw logits out, through vLLM's continuous batching.

It uses `AsyncLLM`, because two threads that call one `LLM` get each other's scores, or hang.
"""

import asyncio
import importlib.util
import itertools
import logging
import math
import re
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from winnow.engines.base import EngineScore
from winnow.engines.setting_table import SETTINGS
from winnow.engines.vllm.defaults import config_settings, platform_defaults, pooling_settings
from winnow.engines.vllm.fields import as_fields, check_fields
from winnow.engines.vllm.heap import freeze_heap, thaw_heap
from winnow.engines.vllm.log import VllmLog
from winnow.engines.vllm.processes import EngineProcesses
from winnow.engines.vllm.start import LOGGING_IS_SET_UP, quieten, starting
from winnow.engines.vllm.vision import vision_inputs, vision_settings
from winnow.errors import (
    ConfigurationError,
    EngineDeadError,
    EngineError,
    EngineLoadError,
    MissingExtraError,
    ModelError,
)
from winnow.models import Checkpoint, check_labels_on_vllm, check_weights, why_not_on_vllm
from winnow.prompts import Prompt
from winnow.threads import in_daemon_thread

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0

# How long vLLM's processes may take to end when Python ends; then vLLM kills them. Its own default, 5 seconds, is what
# they need on a busy machine, and would double the time that Python takes to end.
_LAST_SECONDS = 2.0


class VllmEngine:
    """A reranker on vLLM's `AsyncLLM`.

    Args:
        checkpoint: The model.
        max_length: Most tokens of a prompt (vLLM's `max_model_len`).
        engine_kwargs: Fields of vLLM's `AsyncEngineArgs` that override Winnow's choice, and Winnow's own settings
            for this engine (docs/settings.md#settings-of-the-engine).

    Raises:
        ConfigurationError: A setting is wrong, or this vLLM runs on another kind of device.
        MissingExtraError: vLLM is not installed.
    """

    name = "vllm"

    def __init__(self, checkpoint: Checkpoint, max_length: int, engine_kwargs: Mapping[str, Any]):
        self.checkpoint = checkpoint
        quieten()
        try:
            from winnow.engines.vllm.engine_args import EngineArgs
        except ImportError as error:
            raise MissingExtraError("vllm", "vllm") from error
        checkpoint.check_runs_on_vllm()
        engine_kwargs = as_fields(engine_kwargs)
        self.stall_timeout = float(engine_kwargs.pop("stall_timeout", None) or SETTINGS["stall_timeout"].default)
        self.answered = 0
        check_fields(engine_kwargs)
        self._engine_args = EngineArgs(
            **{
                "model": checkpoint.model,
                "max_model_len": max_length,
                **platform_defaults(checkpoint, engine_kwargs),
                **config_settings(checkpoint),
                **pooling_settings(checkpoint),
                **engine_kwargs,
                "hf_overrides": checkpoint.vllm_overrides,
                **vision_settings(checkpoint.vision, engine_kwargs),
            }
        )
        self._llm: Any = None
        self._vllm: Any = None  # the module `requests`
        self._log: VllmLog
        self._death = ""
        self._processes = EngineProcesses()
        self._is_loading = False
        self._patience: float | None = None  # vLLM's own
        self._request_numbers = itertools.count()

    async def start(self) -> None:
        """Load the model, which takes seconds to minutes, in a thread of its own."""
        await in_daemon_thread(self._load)
        # vLLM starts its own tasks with the first call, on the loop of that call. This is the call that a first request
        # would make; if vLLM's process died before the answer, it would wait for ever (v1/engine/async_llm.py).
        try:
            await self._ordered(self._llm.get_supported_tasks(), "start")
            self._check_weights()  # again: it may have downloaded them
        except EngineError as error:
            await self.aclose()
            raise EngineLoadError(str(error)) from error
        except ModelError:
            await self.aclose()
            raise
        freeze_heap(self)

    def _check_weights(self) -> None:
        if self._engine_args.load_format != "dummy":  # random weights for benchmarks, without files
            check_weights(self.checkpoint)
            check_labels_on_vllm(self.checkpoint)

    def _load(self) -> None:
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        from winnow.engines.vllm import requests

        self._vllm = requests
        self._check_weights()
        self._death = ""
        self._patience = None
        self._processes = EngineProcesses()
        self._is_loading = True
        self._log = VllmLog(record=not LOGGING_IS_SET_UP, cache_is_set=bool(self._engine_args.kv_cache_memory_bytes))
        try:
            with starting(), self._processes.starting(self._log.folder), self._log.recording():
                # LLM_CLASS: batch sizes for offline use, several times those of a server (vllm/engine/arg_utils.py).
                self._llm = AsyncLLM.from_engine_args(self._engine_args, usage_context=UsageContext.LLM_CLASS)
        except Exception as error:  # vLLM fails to load with errors of every kind
            reason = why_not(self.checkpoint)
            cure = f"\n  {reason}. Use engine='transformers', or a vLLM that has it." if reason else self._log.reason()
            self._log.close()
            raise EngineLoadError(f"vLLM could not load {self.checkpoint.model}: {error}{cure}") from error
        finally:
            self._is_loading = False
            if self._llm is None:
                self._processes.close()

    async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
        """Score prompts. All of them enter vLLM's queue at once, so that a shared prefix is computed once.

        `AsyncLLM.encode` does what this does, for one prompt. It would need a task for each, which costs a quarter of
        the CPU time that vLLM takes for a request in this process.
        """
        llm = self._llm  # `aclose` forgets it, perhaps before a cancelled call gets here again
        requests = {f"winnow-{next(self._request_numbers)}": prompt for prompt in prompts}
        try:
            sent = [await self._send(request, prompt, priority) for request, prompt in requests.items()]
            return [await self._receive(prompt, one) for prompt, one in zip(prompts, sent, strict=True)]
        except self._vllm.VllmDeadError as error:
            raise self._dead() from error
        except asyncio.CancelledError:
            await llm.abort(list(requests))  # of those that have an answer vLLM knows nothing more
            raise

    async def _send(self, request: str, prompt: Prompt, priority: int) -> Any:
        """The queue that vLLM will put the answer into, or, if it refuses the prompt, the score that says why."""
        vllm = self._vllm
        inputs: Any
        if self.checkpoint.vision is not None and (prompt.images or prompt.videos):
            inputs = vision_inputs(self.checkpoint.vision, prompt, query_first=self.checkpoint.recipe.vllm_query_first)
        else:
            inputs = vllm.tokens_input(prompt.ids)
        try:
            return await self._llm.add_request(request, inputs, vllm.params_of(prompt), priority=priority)
        except vllm.ENGINE_ERRORS:
            raise
        except Exception as error:  # noqa: BLE001 - such as for unknown tokens, or an image that it cannot prepare
            self.answered += 1
            return EngineScore(math.nan, error=f"vLLM refused its prompt: {type(error).__name__}: {error}")

    async def _receive(self, prompt: Prompt, sent: Any) -> EngineScore:
        if isinstance(sent, EngineScore):
            return sent
        output = sent.get_nowait() or await sent.get()
        self.answered += 1
        return self._score_of(prompt, output)

    def _score_of(self, prompt: Prompt, output: Any) -> EngineScore:
        if output.prompt_token_ids != prompt.ids:  # vLLM inserts the tokens of images and videos itself
            return EngineScore(math.nan, error="vLLM changed its prompt: the score would be wrong.")
        recipe = self.checkpoint.recipe
        logit = recipe.calibrated_by_vllm(recipe.of_outputs(output.outputs.data.float().tolist()))
        return EngineScore(logit, output.num_cached_tokens or 0)

    async def sleep(self) -> None:
        """Move the weights to main memory and free the cache (vLLM's level 1)."""
        if not self._engine_args.enable_sleep_mode:
            raise ConfigurationError(
                "vLLM can sleep if it was started with engine_kwargs={'enable_sleep_mode': True}, on a GPU. close() "
                "frees its memory in any case, and the next call loads it again."
            )
        await self._ordered(self._llm.sleep(level=1, mode="wait"), "sleep")

    async def wake(self) -> None:
        """Move the weights back to the GPU."""
        await self._ordered(self._llm.wake_up(), "wake up")

    async def _ordered(self, order: Coroutine[Any, Any, Any], what: str) -> None:
        """Wait for a call of vLLM other than scoring, and check meanwhile that it lives: its death would not end it."""
        from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError

        task = asyncio.ensure_future(order)
        looks = 0  # time is counted in looks, as in `Watchdog`
        while not (await asyncio.wait([task], timeout=_LOOK_SECONDS))[0]:
            looks += 1
            if looks * _LOOK_SECONDS >= self.stall_timeout:
                self._death = f"\n  It did not {what} within {self.stall_timeout:g} seconds.\n  {self.hang()}"
            if self._death or self._llm.errored:
                task.cancel()
                raise self._dead()
        try:
            task.result()
        except VllmDeadError as error:
            raise self._dead() from error
        except Exception as error:
            raise EngineError(f"vLLM of {self.checkpoint.model} could not {what}: {error}") from error

    async def ping(self) -> None:
        """Ask vLLM's process a question that it answers between two steps."""
        await self._llm.is_sleeping()

    def hang(self) -> str:
        """Make `aclose` kill the processes at once. Returns which of them are stopped."""
        self._patience = 0.0
        return (
            self._processes.stopped() or "If one prompt takes longer than that, raise stall_timeout in engine_kwargs."
        )

    def _dead(self) -> EngineDeadError:
        self._death = self._death or self._log.reason()  # read once, for all calls that wait
        return EngineDeadError(f"The vLLM engine of {self.checkpoint.model} died.{self._death}")

    async def aclose(self) -> None:
        """Stop vLLM and its processes."""
        thaw_heap(self)
        if self._llm is not None:
            self._llm.shutdown(timeout=self._patience)
            self._llm = None
            self._log.close()
            self._processes.close()

    def abandon(self) -> None:
        """Kill the processes of a `start` that runs in another thread; it then fails.

        The processes of a running engine get a short time to end by themselves when it closes.
        """
        if self._is_loading:
            self._processes.abandon()
        else:
            self._patience = _LAST_SECONDS


def _stem(architecture: str) -> str:
    return re.sub(r"(For[A-Z]\w*|LMHeadModel|Model)$", "", architecture)


def why_not(checkpoint: Checkpoint) -> str | None:
    """Why vLLM cannot run this model on this machine, or None if it can."""
    quieten()
    try:
        from vllm import ModelRegistry
        from vllm.platforms import current_platform
    except Exception as error:  # noqa: BLE001 - a broken build may raise anything
        return f"vLLM does not import ({type(error).__name__}: {error})"
    if current_platform.is_unspecified():
        return "vLLM finds no device that it can use"
    if checkpoint.head:
        return "vLLM does not run the modules of sentence-transformers that are its score head"
    recipe = checkpoint.recipe
    wanted = recipe.vllm_overrides.get("architectures", checkpoint.config.get("architectures") or [])
    # vLLM makes a classifier of any causal model in its registry, so stems are compared (vLLM, models/registry.py).
    if not set(map(_stem, wanted)) & set(map(_stem, ModelRegistry.get_supported_archs())):
        return f"vLLM does not have the architecture {', '.join(wanted)}"
    if checkpoint.vision is not None and importlib.util.find_spec("torchvision") is None:
        return f"vLLM needs torchvision for {', '.join(wanted)}, and it is not installed"
    return why_not_on_vllm(checkpoint)
