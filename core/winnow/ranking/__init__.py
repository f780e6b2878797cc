"""A call becomes a ranking."""

from winnow.ranking.arguments import checked_deadline, checked_threshold, checked_top_k
from winnow.ranking.config import RerankerConfig
from winnow.ranking.hints import hinting, unknown_argument
from winnow.ranking.judging import RankRequest
from winnow.ranking.reranker import Reranker

__all__ = [
    "RankRequest",
    "Reranker",
    "RerankerConfig",
    "checked_deadline",
    "checked_threshold",
    "checked_top_k",
    "hinting",
    "unknown_argument",
]
