"""vLLM's arguments with Winnow's batch sizes. This module imports vLLM, so it is imported when an engine is made."""

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext

# vLLM's own number for a CPU is 4,096. A CPU is about as fast with fewer, and a small call beside a large one waits for
# the step that runs, and for its own: both have this many tokens (docs/performance.md#the-service).
_CPU_TOKENS = 1280


class EngineArgs(AsyncEngineArgs):
    """vLLM's arguments. `max_num_batched_tokens` and `max_num_seqs` override its batch sizes, as in vLLM."""

    @classmethod
    def get_batch_defaults(
        cls, world_size: int
    ) -> tuple[dict[UsageContext | None, int], dict[UsageContext | None, int]]:
        """Most tokens and most prompts of a step. For models that need more, vLLM raises what this returns."""
        tokens, prompts = super().get_batch_defaults(world_size)
        if current_platform.is_cpu():
            tokens = dict.fromkeys(tokens, _CPU_TOKENS * world_size)
        return tokens, prompts
