"""Settings of types that neither JSON nor YAML has, for the integrations whose settings are pydantic's."""

from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest


def rich_settings() -> dict[str, Any]:
    """Whatever runs can be dumped: what stands for a text or a number is one. Without PyTorch the test is skipped."""
    torch = pytest.importorskip("torch")
    return {
        "model": Path("some") / "folder",
        "engine": "transformers",
        "engine_kwargs": MappingProxyType(
            {"dtype": torch.bfloat16, "hf_overrides": MappingProxyType({"a": {"b": (1, 2)}})}
        ),
        "template_kwargs": {"style": MappingProxyType({"short": np.bool_(True)})},
        "device": torch.device("cpu"),
        "cache_dir": Path("/files"),
        "root_path": Path("/pictures"),
        "score_cache": Path("/scores"),
        "max_length": np.int64(100),
        "window_overlap": np.float64(0.25),
        "deadline": np.float32(0.5),
    }


def check_plain(made: Any) -> None:
    """Check that what was made of them holds texts and plain numbers."""
    assert made.model == "some/folder"
    assert made.engine_kwargs == {"dtype": "bfloat16", "hf_overrides": {"a": {"b": [1, 2]}}}
    assert (made.device, made.cache_dir, made.max_length, made.deadline) == ("cpu", "/files", 100, 0.5)
