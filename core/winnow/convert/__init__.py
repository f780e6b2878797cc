"""A reranker as a checkpoint that other tools load."""

from winnow.convert.conversion import convert

__all__ = ["convert"]
