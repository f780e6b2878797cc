"""Judged collections: how good is a reranker on them?"""

from winnow.evaluation.collection import Collection, check_run, read_collection, read_corpus, read_qrels, read_queries
from winnow.evaluation.runs import Run, read_run

__all__ = ["Collection", "Run", "check_run", "read_collection", "read_corpus", "read_qrels", "read_queries", "read_run"]
