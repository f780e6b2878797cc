"""Winnow as a LangChain document compressor and cross encoder."""

from winnow import MissingExtraError

try:
    from winnow_langchain.compressor import WinnowRerank
    from winnow_langchain.cross_encoder import WinnowCrossEncoder
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "langchain_core":
        raise
    raise MissingExtraError("langchain_core", "langchain") from error

__all__ = ["WinnowCrossEncoder", "WinnowRerank"]
