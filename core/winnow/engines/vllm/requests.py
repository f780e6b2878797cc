"""What a request to vLLM is made of. This module imports vLLM, so it is imported when an engine starts."""

from copy import copy

from vllm import PoolingParams, __version_tuple__, exceptions
from vllm.inputs import tokens_input
from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError

from winnow.prompts import Prompt

__all__ = ["ENGINE_ERRORS", "VllmDeadError", "params_of", "tokens_input"]

# Errors that are not about the prompt: vLLM is dead, or has as many requests as `max_num_queued_reqs` allows, which
# older ones do not have.
ENGINE_ERRORS: tuple[type[Exception], ...] = (
    VllmDeadError,
    getattr(exceptions, "GracefulHTTPError", VllmDeadError),
)


class _Params(PoolingParams):
    """Parameters that ask for raw logits.

    vLLM clones them for each request (`process_inputs` in v1/engine/input_processor.py) with `deepcopy`, a sixth of the
    CPU time of a request. None of these values is ever changed in place, so that a shallow copy is as good.
    """

    def clone(self) -> "_Params":
        return copy(self)


_LOGITS = _Params(task="classify", use_activation=False)


def params_of(prompt: Prompt) -> PoolingParams:
    """The parameters of a prompt's request: raw logits, and where its second text begins."""
    if prompt.second_type_from is None:
        return _LOGITS
    # The token types in vLLM's short form: where the ones begin; from vLLM 0.33 on also where they end.
    start = prompt.second_type_from
    types = (start, len(prompt.ids)) if tuple(__version_tuple__[:2]) >= (0, 33) else start
    return _Params(task="classify", use_activation=False, extra_kwargs={"compressed_token_type_ids": types})
