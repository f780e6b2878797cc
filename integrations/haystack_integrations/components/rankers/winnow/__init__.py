"""Winnow as a Haystack ranker."""

from winnow import MissingExtraError

try:
    from haystack_integrations.components.rankers.winnow.ranker import WinnowRanker
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "haystack":
        raise
    raise MissingExtraError("haystack", "haystack") from error

__all__ = ["WinnowRanker"]
