"""Plain PyTorch through transformers."""

from winnow.engines.transformers.engine import TransformersEngine

__all__ = ["TransformersEngine"]
