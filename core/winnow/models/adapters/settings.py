"""adapter_config.json of peft: what Winnow reads of it, and what it refuses because it could not merge it right.

Fields and names are those of `peft.LoraConfig` (peft 0.21, peft/tuners/lora/config.py).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.errors import ModelError
from winnow.models.folder import read_json
from winnow.models.json_fields import ADAPTER
from winnow.models.named_files import leads_inside
from winnow.outside_text import shown

CONFIG = "adapter_config.json"

# Fields that make another computation than W + scale · B A, or change the base's weights while it is trained.
_VARIANTS = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "lora_bias": "a bias of LoRA's own",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA",
    "trainable_token_indices": "trainable tokens",
    "target_parameters": "LoRA on parameters that are no layer's weight",
}
# Others of this kind that are only about the training, or about memory.
_HARMLESS = ("use_rslora", "loftq_config", "eva_config", "velora_config", "runtime_config", "megatron_config")
# Ways to begin the training that leave the base's weights as they are.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_TASKS = ("CAUSAL_LM", "SEQ_CLS", "FEATURE_EXTRACTION", None)
# Patterns are regular expressions from outside.
_LONGEST_PATTERN = 1000
_PATTERN_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """What an adapter says of itself.

    Attributes:
        base: Name or path of its base; None if it names none.
        revision: The base's branch, tag or commit.
        task: peft's name of the task, as "CAUSAL_LM" and "SEQ_CLS".
        rank: Rank of its matrices.
        alpha: What they are multiplied by, before the rank divides it.
        ranks: Other ranks, by a pattern of modules' names.
        alphas: Other values of `alpha`, likewise.
        is_rank_stabilized: Whether the square root of the rank divides `alpha` (rsLoRA), not the rank itself.
        is_transposed: Whether square weights are of the shape (in, out), as those of GPT-2.
        keeps_tie: Whether the output embedding followed the input embedding in the training.
    """

    base: str | None
    revision: str | None
    task: str | None
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    is_rank_stabilized: bool
    is_transposed: bool
    keeps_tie: bool

    def rank_of(self, module: str) -> int:
        """The rank of a module's matrices."""
        return self.ranks.get(_pattern_of(module, self.ranks), self.rank)

    def scale_of(self, module: str) -> float:
        """What the product of a module's matrices is multiplied by."""
        alpha, rank = self.alphas.get(_pattern_of(module, self.alphas), self.alpha), self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.is_rank_stabilized else rank)


def read_settings(folder: Path, model: str) -> LoraSettings:
    """Read adapter_config.json.

    Args:
        folder: The adapter's folder.
        model: Its name or path, as the user gave it.

    Raises:
        ModelError: The file is damaged, or the adapter is of a kind that Winnow does not merge.
    """
    content = read_json(folder / CONFIG, model, ADAPTER)
    for reason in _reasons_against(content):
        raise not_merged(model, content.get("task_type"), reason)
    revision = content.get("revision")
    if revision is not None and not leads_inside(revision):
        raise ModelError(f"{CONFIG} of {model}: revision must be a branch, tag or commit, but is {shown(revision)!r}.")
    patterns = {name: content.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}
    for name, pattern in patterns.items():
        _check_patterns(pattern, f"{CONFIG} of {model}: {name}")
    rank = content.get("r")
    return LoraSettings(
        base=(content.get("base_model_name_or_path") or "").strip() or None,
        revision=revision or None,
        task=content.get("task_type"),
        rank=8 if rank is None else rank,  # peft's defaults
        alpha=8 if content.get("lora_alpha") is None else content["lora_alpha"],
        ranks=patterns["rank_pattern"],
        alphas=patterns["alpha_pattern"],
        is_rank_stabilized=bool(content.get("use_rslora")),
        is_transposed=bool(content.get("fan_in_fan_out")),
        keeps_tie=bool(content.get("ensure_weight_tying")),
    )


def not_merged(model: str, task: str | None, reason: str) -> ModelError:
    """The error for an adapter that Winnow does not merge.

    Args:
        model: The adapter's name or path.
        task: Its `task_type`.
        reason: Why, as half a sentence.
    """
    kind = {"SEQ_CLS": "SequenceClassification", "FEATURE_EXTRACTION": "FeatureExtraction"}.get(str(task), "CausalLM")
    return ModelError(
        f"{model} is an adapter that Winnow does not merge: {reason}. Merge it with peft, and use FOLDER: "
        f"peft.AutoPeftModelFor{kind}.from_pretrained({model!r}).merge_and_unload().save_pretrained(FOLDER); save the "
        "tokenizer there, too."
    )


def _reasons_against(content: Mapping[str, Any]) -> Iterator[str]:
    kind, task = content.get("peft_type"), content.get("task_type")
    if kind != "LORA":
        yield f"its peft_type is {shown(repr(kind), 40)}, not 'LORA'"
    if task not in _TASKS:
        yield f"its task_type is {shown(repr(task), 40)}, and a reranker's is 'CAUSAL_LM' or 'SEQ_CLS'"
    for name, words in _VARIANTS.items():
        if content.get(name):
            yield f"it uses {words} ({name})"
    for name, value in content.items():  # kinds that are newer than this code
        if value and (name.startswith("use_") or name.endswith("_config")) and name not in _HARMLESS:
            yield f"it uses {shown(repr(name), 40)}, which Winnow does not know"
    start = content.get("init_lora_weights")
    if start not in _STARTS:
        yield f"its training began with other weights of the base (init_lora_weights is {shown(repr(start), 40)})"
    if content.get("bias") not in (None, "none", "all", "lora_only"):
        yield f"its bias is {shown(repr(content['bias']), 40)}"


def _check_patterns(patterns: Mapping[str, Any], source: str) -> None:
    import regex  # most models are no adapters

    for pattern in patterns:
        try:
            if len(pattern) > _LONGEST_PATTERN:
                raise ValueError("it is too long")
            regex.compile(_whole(pattern))
        except (regex.error, ValueError, OverflowError, MemoryError, RecursionError) as error:
            raise ModelError(f"{source}: {shown(pattern, 80)!r} is no pattern of names: {error}.") from error


def _pattern_of(module: str, patterns: Mapping[str, Any]) -> str:
    """The first pattern that a module's name, or the end of it, matches, as in peft (`get_pattern_key`); else ""."""
    import regex

    for pattern in patterns:
        if module == pattern or module.endswith(f".{pattern}"):
            return pattern
        try:
            if regex.match(_whole(pattern), module, timeout=_PATTERN_SECONDS):
                return pattern
        except TimeoutError as error:
            raise ModelError(
                f"{CONFIG}: the pattern {shown(pattern, 80)!r} takes too long to match {shown(module, 80)!r}."
            ) from error
    return ""


def _whole(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"
