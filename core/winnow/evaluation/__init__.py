"""Judged collections and pairs: how good is a reranker on them, and what do its scores mean?"""

from winnow.evaluation.calibration_report import CalibrationReport, ScoredPairs
from winnow.evaluation.calibrator import calibrate
from winnow.evaluation.collection import (
    Collection,
    check_run,
    place_of,
    read_collection,
    read_corpus,
    read_qrels,
    read_queries,
)
from winnow.evaluation.evaluator import evaluate
from winnow.evaluation.files import parsed_run_line
from winnow.evaluation.judged_pairs import JudgedPair, pairs_of, read_pairs
from winnow.evaluation.metrics import Comparison, Measured, parse_metrics
from winnow.evaluation.pictures import check_picture_file
from winnow.evaluation.plots import check_plot_file, in_words, plot
from winnow.evaluation.reliability import Bin, Reliability
from winnow.evaluation.reliability_plot import plot_reliability
from winnow.evaluation.reranking import Costs, QueryCosts, descending
from winnow.evaluation.results import Evaluation, MeasuredRun, QueryChange
from winnow.evaluation.runs import Run, documents_of, read_run
from winnow.evaluation.thresholds import Cut, Threshold

__all__ = [
    "Bin",
    "CalibrationReport",
    "Collection",
    "Comparison",
    "Costs",
    "Cut",
    "Evaluation",
    "JudgedPair",
    "Measured",
    "MeasuredRun",
    "QueryChange",
    "QueryCosts",
    "Reliability",
    "Run",
    "ScoredPairs",
    "Threshold",
    "calibrate",
    "check_picture_file",
    "check_plot_file",
    "check_run",
    "descending",
    "documents_of",
    "evaluate",
    "in_words",
    "pairs_of",
    "parse_metrics",
    "parsed_run_line",
    "place_of",
    "plot",
    "plot_reliability",
    "read_collection",
    "read_corpus",
    "read_pairs",
    "read_qrels",
    "read_queries",
    "read_run",
]
