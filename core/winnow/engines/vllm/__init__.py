"""vLLM in this process."""

from winnow.engines.vllm.engine import VllmEngine

__all__ = ["VllmEngine"]
