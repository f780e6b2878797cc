"""How each model family is loaded, prompted and scored: a table, one row a family."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from winnow.errors import ConfigurationError, ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe:
    """What Winnow must know of a reranker. All fields but `family` have defaults: a judge of your own needs few.

    Attributes:
        family: Name of the row; also accepted as `Reranker(recipe=...)`.
        architectures: Values of `architectures` in config.json that the family is published with. In a recipe of your
            own they may be left out: the model's are taken.
        names: Regular expression that a model's name or path matches, in lower case and with "-" for "_". Several
            families share an architecture. Empty: the architecture alone tells.
        template: Name of the built-in template, or None for the tokenizer's pair encoding.
        labels: Tokens whose logits make the score: (negative, positive), or (positive,) alone; empty for a score head.
        shift: Subtracted from the logit, as the family's reference code does.
        temperature: What the logit is then divided by.
        vllm_architecture: The architecture that vLLM runs a score head as, where it differs from config.json's.
        local_code: Whether config.json is of a kind that only the checkpoint's own code reads, which Winnow replaces
            (`winnow.engines.local_code`) so that `trust_remote_code` can stay off.
        max_length: Longest prompt that the family's reference code allows, in tokens; None for the model's own limit.
        pixels: Least and most pixels that the family's reference code resizes an image to; None for the sizes in the
            model's preprocessor_config.json.
    """

    family: str
    architectures: tuple[str, ...] = ()
    names: str = ""
    template: str | None = None
    labels: tuple[str, ...] = ()
    shift: float = 0.0
    temperature: float = 1.0
    vllm_architecture: str | None = None
    local_code: bool = False
    max_length: int | None = None
    pixels: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.labels) > 2 or len(set(self.labels)) < len(self.labels):
            raise ConfigurationError(
                f"labels of the recipe {self.family!r} must be (negative, positive), two different tokens, or "
                f"(positive,) alone, but got {self.labels!r}"
            )
        if self.temperature <= 0:
            raise ConfigurationError(
                f"temperature of the recipe {self.family!r} must be > 0, but got {self.temperature}"
            )

    @property
    def formula(self) -> str:
        """The logit that engines return, in words. Scores are its sigmoid."""
        match self.labels:
            case (negative, positive):
                formula = f"logit[{positive!r}] − logit[{negative!r}]"
            case (positive,):
                formula = f"logit[{positive!r}]"
            case _:
                formula = "output of the score head"
        if self.shift:
            formula = f"{formula} − {self.shift:g}"
        if self.temperature != 1:
            formula = f"({formula}) / {self.temperature:g}"
        return formula

    def calibrated(self, raw: float) -> float:
        """The logit of `formula`, from what the model itself puts out."""
        return (raw - self.shift) / self.temperature

    @property
    def vllm_overrides(self) -> dict[str, Any]:
        """`hf_overrides` that make vLLM load the model as a classifier (vLLM `models/adapters.py`)."""
        if not self.labels:
            return {"architectures": [self.vllm_architecture]} if self.vllm_architecture else {}
        overrides: dict[str, Any] = {
            "architectures": [_classifier_of(name) for name in self.architectures],
            "classifier_from_token": list(self.labels),
            "method": "from_2_way_softmax" if len(self.labels) == 2 else "no_post_processing",
        }
        if self.family == "qwen3-vl-reranker":
            # Copies labels and method into text_config, where vLLM looks in models with a vision tower.
            overrides["is_original_qwen3_reranker"] = True
        return overrides


RECIPES: tuple[ModelRecipe, ...] = (
    # Qwen/Qwen3-Reranker-0.6B, -4B, -8B and their conversions: model card, "Transformers Usage" (max_length = 8192).
    ModelRecipe(
        family="qwen3-reranker",
        architectures=("Qwen3ForCausalLM",),
        names=r"qwen3-reranker",
        template="qwen3_reranker",
        labels=("no", "yes"),
        max_length=8192,
    ),
    # Qwen/Qwen3-VL-Reranker-2B, -8B: model card, scripts/qwen3_vl_reranker.py (max_length = 8192), and the newer
    # QwenLM/Qwen3-VL-Embedding, src/models/qwen3_vl_reranker.py: MIN_PIXELS, MAX_PIXELS (4 and 1800 tokens).
    ModelRecipe(
        family="qwen3-vl-reranker",
        architectures=("Qwen3VLForConditionalGeneration",),
        names=r"qwen3-vl-reranker",
        template="qwen3_vl_reranker",
        labels=("no", "yes"),
        max_length=8192,
        pixels=(4 * 32 * 32, 1800 * 32 * 32),
    ),
    # mixedbread-ai/mxbai-rerank-base-v2, -large-v2: mxbai_rerank/mxbai_rerank_v2.py (max_length = 8192).
    ModelRecipe(
        family="mxbai-rerank-v2",
        architectures=("Qwen2ForCausalLM",),
        names=r"mxbai-rerank.*v2",
        template="mxbai_rerank_v2",
        labels=("0", "1"),
        max_length=8192,
    ),
    # BAAI/bge-reranker-v2-gemma: model card, get_inputs(); its max_length of 1024 is an example, not a limit.
    ModelRecipe(
        family="bge-reranker-v2-gemma",
        architectures=("GemmaForCausalLM",),
        names=r"bge-reranker.*gemma",
        template="bge_reranker_v2_gemma",
        labels=("Yes",),
    ),
    # zeroentropy/zerank-1, -1-small, -2: the repositories' modeling_zeranker.py: sigmoid(logit["Yes"] / 5).
    ModelRecipe(
        family="zerank",
        architectures=("Qwen3ForCausalLM",),
        names=r"zerank",
        template="zerank",
        labels=("Yes",),
        temperature=5.0,
    ),
    # ContextualAI/ctxl-rerank-v2-instruct-multilingual-1b, -2b: model card, infer_w_hf(): the logit of token 0, which
    # is "!" in Qwen3's vocabulary and "<unk>" in that of the 6b (below). Context of 32K tokens.
    ModelRecipe(
        family="ctxl-rerank-v2",
        architectures=("Qwen3ForCausalLM",),
        names=r"ctxl-rerank",
        template="ctxl_rerank_v2",
        labels=("!",),
        max_length=32768,
    ),
    ModelRecipe(
        family="ctxl-rerank-v2",
        architectures=("MistralForCausalLM",),
        names=r"ctxl-rerank",
        template="ctxl_rerank_v2",
        labels=("<unk>",),
        max_length=32768,
    ),
    # nvidia/llama-nemotron-rerank-1b-v2: model card ("maximum length 8192"); llama_bidirectional_model.py pools as
    # config.pooling says and divides by config.temperature.
    ModelRecipe(
        family="llama-nemotron-rerank",
        architectures=("LlamaBidirectionalForSequenceClassification",),
        template="llama_nemotron_rerank",
        local_code=True,
        max_length=8192,
    ),
    # Alibaba-NLP/gte-multilingual-reranker-base; vLLM needs to be told the architecture (vLLM, models/registry.py).
    ModelRecipe(
        family="gte-multilingual-reranker",
        architectures=("NewForSequenceClassification", "GteNewForSequenceClassification"),
        vllm_architecture="GteNewForSequenceClassification",
        local_code=True,
    ),
    # ms-marco-MiniLM, bge-reranker-base/-large/-v2-m3, jina-reranker-v2, gte-reranker-modernbert, granite, any other
    # encoder with one score: the tokenizer joins query and document.
    ModelRecipe(
        family="cross-encoder",
        architectures=(
            "BertForSequenceClassification",
            "RobertaForSequenceClassification",
            "XLMRobertaForSequenceClassification",
            "ModernBertForSequenceClassification",
            "GteForSequenceClassification",
            "DebertaV2ForSequenceClassification",  # mxbai-rerank v1; these two run in transformers only
            "ElectraForSequenceClassification",
        ),
    ),
)


def recipe_for(model: str, config: Mapping[str, Any], recipe: str | ModelRecipe | None = None) -> ModelRecipe:
    """The recipe of a model, with all that its config.json settles.

    Args:
        model: Its name or path, as the user gave it.
        config: Its config.json. `winnow_family` in it names the family; `winnow convert` writes it.
        recipe: A recipe, or the family name of one, that the user gave; then nothing is guessed.

    Raises:
        ConfigurationError: No family has that name.
        ModelError: The model is not one Winnow knows as a reranker.
    """
    architectures = tuple(config.get("architectures") or ())
    if isinstance(recipe, ModelRecipe):
        if not recipe.labels and architectures:
            _check_single_score(model, config, architectures[0])
        return recipe if recipe.architectures else replace(recipe, architectures=architectures)
    if config.get("winnow_family"):
        return _converted(model, config, architectures, recipe)
    row = _named(recipe, architectures) if recipe else _guess(model, config, architectures)
    if architectures and architectures[0] in map(_classifier_of, row.architectures):
        _check_single_score(model, config, architectures[0])
        row = replace(row, labels=(), architectures=architectures)
    if row.family == "llama-nemotron-rerank":
        row = replace(row, temperature=float(config.get("temperature", 1.0)))
    return row


def _converted(
    model: str, config: Mapping[str, Any], architectures: tuple[str, ...], family: str | None
) -> ModelRecipe:
    """The recipe of what `winnow convert` wrote: labels, shift and temperature are in its score head."""
    _check_single_score(model, config, architectures[0] if architectures else "model without architectures")
    own = str(config["winnow_family"])
    known = any(row.family == own for row in RECIPES)
    # A judge of the user's own is in no table; its template is in its folder.
    row = _named(family or own, architectures) if family or known else ModelRecipe(family=own)
    return replace(row, architectures=architectures, labels=(), shift=0.0, temperature=1.0)


def _named(family: str, architectures: Sequence[str]) -> ModelRecipe:
    rows = [row for row in RECIPES if row.family == family]
    if not rows:
        raise ConfigurationError(f"recipe={family!r} is not a family; there are: {_families(RECIPES)}.")
    return next((row for row in rows if _may_be(row, architectures)), rows[0])


def _may_be(row: ModelRecipe, architectures: Sequence[str]) -> bool:
    known = {*row.architectures, *map(_classifier_of, row.architectures)}
    return bool(architectures) and architectures[0] in known


def _guess(model: str, config: Mapping[str, Any], architectures: Sequence[str]) -> ModelRecipe:
    kin = [row for row in RECIPES if _may_be(row, architectures)]
    for name in _names_of(model, config):
        for row in kin:
            if re.search(row.names, name):
                return row
    is_a = f"{model} is a {architectures[0]}" if architectures else f"config.json of {model} names no architecture"
    if kin:
        raise ModelError(
            f"{is_a}, and its name does not tell which reranker it is. If it is one, say so with recipe=..., one of: "
            f"{_families(kin)}. "
            "For a judge of your own pass recipe=ModelRecipe(family='judge', labels=(negative, positive)) and "
            "template=..."
        )
    raise ModelError(
        f"{is_a}, which is not a reranker that Winnow knows ({_families(RECIPES)}). Check the name. If it is a "
        "language model that you prompt as a judge, pass recipe=ModelRecipe(family='judge', labels=(negative, "
        "positive)) and template=...; if it has a score head, recipe=ModelRecipe(family='mine')."
    )


def _names_of(model: str, config: Mapping[str, Any]) -> Iterator[str]:
    """What may name the family, most telling first: a path's last part, the folders above it, the config's own name."""
    for name in (model, str(config.get("_name_or_path") or "")):
        for part in reversed(PurePath(name).parts):
            yield re.sub(r"[_\s]", "-", part.lower())


def _check_single_score(model: str, config: Mapping[str, Any], architecture: str) -> None:
    # transformers writes `id2label` unless there are two labels, which is its default.
    if not architecture.endswith("ForSequenceClassification"):
        raise ModelError(
            f"{model} is a {architecture}, which has no score head: give the recipe the labels whose logits score, "
            "labels=(negative, positive)."
        )
    labels = config.get("num_labels") or len(config.get("id2label") or ("", ""))
    if labels != 1:
        raise ModelError(
            f"{model} is a {architecture} with {labels} labels: a classifier, not a reranker, which has one score. "
            "Check the name."
        )


def _classifier_of(architecture: str) -> str:
    return re.sub(r"For(CausalLM|ConditionalGeneration)$", "ForSequenceClassification", architecture)


def _families(rows: Sequence[ModelRecipe]) -> str:
    return ", ".join(dict.fromkeys(row.family for row in rows))
