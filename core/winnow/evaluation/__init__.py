"""Judged collections and pairs: how good is a reranker on them, and what do its scores mean?"""

from winnow.evaluation.calibration_report import CalibrationReport, ScoredPairs
from winnow.evaluation.calibrator import calibrate
from winnow.evaluation.collection import Collection, check_run, read_collection, read_corpus, read_qrels, read_queries
from winnow.evaluation.judged_pairs import JudgedPair, pairs_of, read_pairs
from winnow.evaluation.reliability import Bin, Reliability
from winnow.evaluation.reliability_plot import check_reliability_plot, plot_reliability
from winnow.evaluation.runs import Run, read_run
from winnow.evaluation.thresholds import Cut, Threshold

__all__ = [
    "Bin",
    "CalibrationReport",
    "Collection",
    "Cut",
    "JudgedPair",
    "Reliability",
    "Run",
    "ScoredPairs",
    "Threshold",
    "calibrate",
    "check_reliability_plot",
    "check_run",
    "pairs_of",
    "plot_reliability",
    "read_collection",
    "read_corpus",
    "read_pairs",
    "read_qrels",
    "read_queries",
    "read_run",
]
