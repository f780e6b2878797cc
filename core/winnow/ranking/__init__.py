"""A call becomes a ranking."""

from winnow.ranking.arguments import checked_deadline, checked_threshold, checked_top_k
from winnow.ranking.calibration import Calibration
from winnow.ranking.config import RerankerConfig
from winnow.ranking.hints import hinting, unknown_argument
from winnow.ranking.options import CallLimits, RankRequest
from winnow.ranking.reranker import Reranker
from winnow.ranking.score_cache import files_state

__all__ = [
    "Calibration",
    "CallLimits",
    "RankRequest",
    "Reranker",
    "RerankerConfig",
    "checked_deadline",
    "checked_threshold",
    "checked_top_k",
    "files_state",
    "hinting",
    "unknown_argument",
]
