"""LoRA adapters of peft: read, checked, and merged into their base, a few megabytes at a time."""

from winnow.models.adapters.adapter import Adapter, find_adapter
from winnow.models.adapters.new_head import is_classifier

__all__ = ["Adapter", "find_adapter", "is_classifier"]
