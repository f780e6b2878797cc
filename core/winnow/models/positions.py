"""How many positions a model has. config.json alone does not say, so the model's classes are looked at."""

import importlib.util
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from winnow.models.folder import read_json
from winnow.models.json_fields import TRANSFORMER

# transformers' models that count positions from the padding token's id, as RoBERTa does, call this function.
_FROM_PADDING = "create_position_ids_from_input_ids"


def positions_of(config: Mapping[str, Any], folder: Path) -> int | None:
    """Most tokens that a model has positions for, or None if it does not say.

    RoBERTa and similar models put the first token at the position after the padding token's id, so earlier positions
    are lost: of 514 positions 512 are left.

    Args:
        config: The contents of config.json.
        folder: The model's folder, which may hold code of its own.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    text = config.get("text_config") or config
    model_type = str(text.get("model_type") or config.get("model_type"))
    # `CONFIG_MAPPING.get` finds only classes that are loaded already.
    kind: Any = CONFIG_MAPPING[model_type] if model_type in CONFIG_MAPPING else None  # noqa: SIM401
    own = None if kind is None else kind()
    names = getattr(own, "attribute_map", {})  # GPT-2 has n_positions

    def value_of(name: str) -> Any:
        return text.get(names.get(name, name), getattr(own, name, None))

    positions, padding = value_of("max_position_embeddings"), value_of("pad_token_id")
    if not isinstance(positions, int) or positions <= 0:
        return None
    sources = [*_source_of(kind), *filter(Path.is_file, folder.glob("*.py"))]
    return positions - (padding or 0) - 1 if any(map(_counts_from_padding, sources)) else positions


def sentence_length(folder: Path, model: str) -> int | None:
    """Most tokens of a prompt by `max_seq_length` in sentence_bert_config.json; None if it does not say.

    vLLM (`_get_and_verify_max_len` in vllm/config/model.py) and sentence-transformers obey it.

    Raises:
        ModelError: The file is damaged.
    """
    file = folder / "sentence_bert_config.json"
    length = read_json(file, model, TRANSFORMER).get("max_seq_length") if file.is_file() else None
    return int(length) if length else None


def _source_of(kind: Any) -> Iterator[Path]:
    """The file in which transformers keeps the model of a config's class."""
    spec = kind and importlib.util.find_spec(kind.__module__.replace(".configuration_", ".modeling_"))
    if spec and spec.origin:
        yield Path(spec.origin)


@cache
def _counts_from_padding(source: Path) -> bool:
    """Whether a model's code counts so. The code is read, not run: it is not trusted, and PyTorch may be missing."""
    return _FROM_PADDING in source.read_text(encoding="utf-8", errors="replace")
