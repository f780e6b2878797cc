"""Rerank millions of queries, on one machine or many: Ray Data distributes the work.

`rerank_dataset` reranks a dataset of Ray Data; `rerank_files` (`winnow bulk`) reranks files, and can be interrupted.
"""

from winnow.bulk.dataset import rerank_dataset
from winnow.bulk.files_run import BulkReport, rerank_files
from winnow.bulk.rows import BulkCosts

__all__ = ["BulkCosts", "BulkReport", "rerank_dataset", "rerank_files"]
