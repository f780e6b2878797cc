"""Model folders without weights, for what is read before any weight is."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What config.json says of a model with a head for one score.
HEAD = {"architectures": ["Qwen3ForSequenceClassification"], "id2label": {"0": "LABEL_0"}}


def model_folder(
    target: Path,
    like: str,
    *,
    config: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
    tokenizer_config: Mapping[str, Any] | None = None,
) -> str:
    """Copy the small files of the model `like` to `target`, change their fields, and add `files`."""
    target.mkdir(parents=True)
    for name, changes in (("config.json", config), ("tokenizer_config.json", tokenizer_config)):
        content = json.loads((Path(like) / name).read_text(encoding="utf-8")) | dict(changes or {})
        (target / name).write_text(json.dumps(content), encoding="utf-8")
    shutil.copy(Path(like) / "tokenizer.json", target)
    for name, text in (files or {}).items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text(text, encoding="utf-8")
    return str(target)
