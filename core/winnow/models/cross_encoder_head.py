"""The modules that sentence-transformers (6.2) puts after the transformer of a `CrossEncoder`, from modules.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.errors import ModelError
from winnow.models.folder import read_json, read_modules
from winnow.models.json_fields import MODULE_CONFIG, TRANSFORMER

MODULES = ("Pooling", "Dense", "LayerNorm", "Normalize", "Dropout")
"""The modules that `winnow.engines.transformers.modular` runs."""
POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_OLD_POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, slots=True)
class HeadModule:
    """One module.

    Attributes:
        kind: Its class, one of `MODULES`.
        path: Its folder, inside the model's.
        config: The contents of its config.json.
    """

    kind: str
    path: str
    config: Mapping[str, Any]

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes in which a `Pooling` makes one vector of the tokens' vectors; several results are concatenated."""
        given = self.config.get("pooling_mode") or [
            mode for name, mode in _OLD_POOLING_MODES.items() if self.config.get(name)
        ]
        return (given,) if isinstance(given, str) else tuple(given) or ("mean",)

    @property
    def scores(self) -> int | None:
        """How many scores the module returns, if it is the one that returns scores."""
        gives = self.kind == "Dense" and self.config.get("module_output_name") == "scores"
        return int(self.config["out_features"]) if gives else None


def read_head(folder: Path, model: str) -> tuple[HeadModule, ...]:
    """The modules after the transformer; none if the transformer has the score head, or if labels' logits score.

    Args:
        folder: The folder of a model that sentence-transformers saved as a `CrossEncoder`.
        model: Its name, for errors.

    Raises:
        ModelError: Winnow does not run one of the modules, or a file is missing or damaged.
    """
    first, *others = read_modules(folder, model) or [{}]
    if not others or [_class_of(module) for module in others] == ["LogitScore"]:
        return ()
    head = []
    for module in others:
        if _class_of(module) not in MODULES or not str(module.get("type")).startswith("sentence_transformers."):
            raise _refused(model, f"has the module {module.get('type')}")
        path: str = module["path"]
        config = folder / path / "config.json"
        head.append(
            HeadModule(_class_of(module), path, read_json(config, model, MODULE_CONFIG) if config.is_file() else {})
        )
    settings = folder / "sentence_bert_config.json"
    task = (read_json(settings, model, TRANSFORMER) if settings.is_file() else {}).get(
        "transformer_task", "feature-extraction"
    )
    if _class_of(first) != "Transformer" or task != "feature-extraction":
        raise _refused(model, f"begins with the module {first.get('type')} (transformer_task {task!r})")
    for one in head:
        if one.kind == "Pooling" and (unknown := set(one.modes) - set(POOLING_MODES)):
            raise _refused(model, f"has the pooling mode {min(unknown)!r}")
        activation = str(one.config.get("activation_function", "torch.nn.modules.activation.Tanh"))
        if one.kind == "Dense" and not activation.startswith("torch.nn.modules."):
            raise _refused(model, f"has the activation function {activation!r}")
    if head[-1].scores is None:
        raise _refused(model, f"ends with the module {head[-1].kind}, which gives no scores")
    return tuple(head)


def _class_of(module: Mapping[str, Any]) -> str:
    return str(module.get("type") or "").rpartition(".")[2]


def _refused(model: str, what: str) -> ModelError:
    return ModelError(
        f"{model} is a sentence-transformers CrossEncoder that {what}: Winnow does not run it. It runs a Transformer "
        f"for feature extraction, then any of {', '.join(MODULES)} (pooling modes {', '.join(POOLING_MODES)}; "
        "activation functions of torch.nn), and last a Dense whose output is named scores."
    )
