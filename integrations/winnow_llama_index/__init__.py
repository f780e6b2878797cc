"""Winnow as a LlamaIndex node postprocessor."""

from winnow import MissingExtraError

try:
    from winnow_llama_index.postprocessor import WinnowRerank
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "llama_index":
        raise
    raise MissingExtraError("llama_index.core", "llama-index") from error

__all__ = ["WinnowRerank"]
