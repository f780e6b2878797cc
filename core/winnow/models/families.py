"""How each model family is loaded, prompted and scored: a table with a row for each family."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from winnow.errors import ConfigurationError, ModelError
from winnow.models.recipe import ModelRecipe as ModelRecipe
from winnow.models.recipe import classifier_of

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
    # is "!" in Qwen3's vocabulary, and "<unk>" in that of the 6b model (below). The context has 32K tokens.
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
    # Alibaba-NLP/gte-multilingual-reranker-base; vLLM has another name for the architecture (vLLM, models/registry.py).
    ModelRecipe(
        family="gte-multilingual-reranker",
        architectures=("NewForSequenceClassification", "GteNewForSequenceClassification"),
        vllm_architecture="GteNewForSequenceClassification",
        local_code=True,
    ),
    # jinaai/jina-reranker-v2-base-multilingual: model card ("up to 1024 tokens"), configuration_xlm_roberta.py.
    ModelRecipe(
        family="jina-reranker-v2",
        architectures=("XLMRobertaForSequenceClassification",),
        config_class="XLMRobertaFlashConfig",
        local_code=True,
        max_length=1024,
    ),
    # jinaai/jina-reranker-m0: modeling.py, formatting_prompts_func() and compute_score() (max_length = 10240, images of
    # 4 to 768 tokens). Its score token stands for a lone byte in the vocabulary.
    ModelRecipe(
        family="jina-reranker-m0",
        architectures=("JinaVLForRanking",),
        template="jina_reranker_m0",
        shift=2.65,
        vllm_calibrates=True,
        vllm_query_first=True,
        last_token=100,
        local_code=True,
        max_length=10240,
        pixels=(4 * 28 * 28, 768 * 28 * 28),
    ),
    # ms-marco-MiniLM, bge-reranker-base/-large/-v2-m3, gte-reranker-modernbert, granite, and any other encoder with one
    # score: the tokenizer joins query and document.
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


def recipe_for(
    model: str,
    config: Mapping[str, Any],
    recipe: str | ModelRecipe | None = None,
    *,
    module_scores: int | None = None,
) -> ModelRecipe:
    """The recipe of a model, with the values that its config.json sets.

    Args:
        model: Its name or path, as the user gave it.
        config: Its config.json. `winnow_family` in it names the family; `winnow convert` writes it.
        recipe: The user's recipe, or a family's name; the model's name is then not looked at.
        module_scores: How many scores the modules return that sentence-transformers put after the model; None if there
            are none.

    Raises:
        ConfigurationError: No family has that name.
        ModelError: Winnow does not know the model as a reranker.
    """
    architectures = tuple(config.get("architectures") or ())
    _refuse_encoder_decoder(model, config, architectures)
    if module_scores is not None:
        given = recipe if isinstance(recipe, ModelRecipe) else ModelRecipe(family=recipe or "sentence-transformers")
        return replace(_with_scores(model, config, given, module_scores), architectures=architectures)
    if isinstance(recipe, ModelRecipe):
        if not recipe.labels and architectures:
            recipe = _with_score_head(model, config, architectures[0], recipe)
        return recipe if recipe.architectures else replace(recipe, architectures=architectures)
    if config.get("winnow_family"):
        return _converted(model, config, architectures, recipe)
    row = _named(recipe, architectures) if recipe else _guess(model, config, architectures)
    if architectures and architectures[0] in map(classifier_of, row.architectures):
        if architectures[0].endswith("ForSequenceClassification"):
            _with_score_head(model, config, architectures[0], row)
        row = replace(row, labels=(), architectures=architectures)
    if row.family == "llama-nemotron-rerank":
        temperature = config.get("temperature")
        row = replace(row, temperature=1.0 if temperature is None else float(temperature))
    return row


def _converted(
    model: str, config: Mapping[str, Any], architectures: tuple[str, ...], family: str | None
) -> ModelRecipe:
    """The recipe of a model that `winnow convert` wrote: labels, shift and temperature are in its score head."""
    name = architectures[0] if architectures else "model without architectures"
    _with_score_head(model, config, name, ModelRecipe(family="converted"))
    own = str(config["winnow_family"])
    known = any(row.family == own for row in RECIPES)
    # A user's own judge is in no table; its template is in its folder.
    row = _named(family or own, architectures) if family or known else ModelRecipe(family=own)
    return replace(row, architectures=architectures, labels=(), shift=0.0, temperature=1.0)


def _named(family: str, architectures: Sequence[str]) -> ModelRecipe:
    rows = [row for row in RECIPES if row.family == family]
    if not rows:
        raise ConfigurationError(f"recipe={family!r} is not a family; there are: {_families(RECIPES)}.")
    row = next((row for row in rows if _may_be(row, architectures)), rows[0])
    another = bool(architectures) and not _may_be(row, architectures)
    if another and all(name.endswith("ForCausalLM") for name in (row.architectures[0], architectures[0])):
        return replace(row, architectures=tuple(architectures))  # trained on the family's prompt and labels
    return row


def _may_be(row: ModelRecipe, architectures: Sequence[str]) -> bool:
    known = {*row.architectures, *map(classifier_of, row.architectures)}
    return bool(architectures) and architectures[0] in known


def _guess(model: str, config: Mapping[str, Any], architectures: Sequence[str]) -> ModelRecipe:
    config_class = str((config.get("auto_map") or {}).get("AutoConfig", "")).rpartition(".")[2]
    kin = [row for row in RECIPES if _may_be(row, architectures) and row.config_class in (None, config_class)]
    for name in _names_of(model, config):
        for row in kin:
            if re.search(row.names, name):
                return row
    is_a = f"{model} is a {architectures[0]}" if architectures else f"config.json of {model} names no architecture"
    if kin:
        raise ModelError(
            f"{is_a}, and its name does not say which reranker it is. If it is a reranker, pass recipe=..., one of: "
            f"{_families(kin)}. "
            "For a judge of your own pass recipe=ModelRecipe(family='judge', labels=(negative, positive)) and "
            "template=..."
        )
    if architectures and architectures[0].endswith("ForSequenceClassification"):
        hint = "Its score head is used as it is with recipe=ModelRecipe(family='mine')."
    elif architectures and architectures[0].endswith(("ForCausalLM", "ForConditionalGeneration")):
        hint = (
            "If you prompt it as a judge, pass recipe=ModelRecipe(family='judge', labels=(negative, positive)) and "
            "template=..."
        )
    else:
        hint = (
            "A model without a score head and without a language model's head, such as an embedding model, gives no "
            "relevance score; if sentence-transformers saved it as a CrossEncoder, its modules.json and "
            "config_sentence_transformers.json are missing."
        )
    raise ModelError(
        f"{is_a}, which is not a reranker that Winnow knows ({_families(RECIPES)}). Check the name. {hint}"
    )


def _names_of(model: str, config: Mapping[str, Any]) -> Iterator[str]:
    """Names that may contain the family's, in order: a path's last part, the folders above it, the config's name."""
    for name in (model, str(config.get("_name_or_path") or "")):
        for part in reversed(PurePath(name).parts):
            yield re.sub(r"[_\s]", "-", part.lower())


def label_count(config: Mapping[str, Any]) -> int:
    """How many labels a classifier has. transformers leaves out `id2label` if there are two labels, its default."""
    return int(config.get("num_labels") or len(config.get("id2label") or ("", "")))


def _with_score_head(model: str, config: Mapping[str, Any], architecture: str, recipe: ModelRecipe) -> ModelRecipe:
    """The recipe of a model with a score head, once its labels are checked."""
    if not architecture.endswith("ForSequenceClassification"):
        raise ModelError(
            f"{model} is a {architecture}, which has no score head: give the recipe the labels whose logits score, "
            "labels=(negative, positive)."
        )
    return _with_scores(model, config, recipe, label_count(config))


def _with_scores(model: str, config: Mapping[str, Any], recipe: ModelRecipe, scores: int) -> ModelRecipe:
    """The recipe with `positive_label` as a number."""
    names = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()} if scores == 2 else {}
    shown = " and ".join(f"{index} ({names[index]!r})" if index in names else str(index) for index in range(2))
    given = recipe.positive_label
    if scores == 1 and given is None:
        return recipe
    if scores == 2 and given is not None:
        numbers = [index for index in range(2) if given in (index, names.get(index)) and type(given) is not bool]
        if len(numbers) == 1:
            return replace(recipe, positive_label=numbers[0])
        raise ModelError(f"{model} has no label {given!r}; positive_label is one of its labels {shown}.")
    if scores == 2:
        raise ModelError(
            f"{model} is a classifier with 2 labels, {shown}, and a reranker has one score. If one of them means "
            f"relevant, say which: recipe=ModelRecipe(family={recipe.family!r}, positive_label=1)."
        )
    if scores == 1:
        raise ModelError(f"{model} has one score: leave out positive_label, which is for score heads with two labels.")
    raise ModelError(
        f"{model} has {scores} labels: it is a classifier, not a reranker, which has one score. Check the name."
    )


def _refuse_encoder_decoder(model: str, config: Mapping[str, Any], architectures: Sequence[str]) -> None:
    """Refuse models such as monoT5, which no engine here runs."""
    name = architectures[0] if architectures else str(config.get("model_type"))
    if config.get("is_encoder_decoder") and not name.endswith("ForSequenceClassification"):
        raise ModelError(
            f"{model} is a {name}, a model with an encoder and a decoder, as monoT5 is, and Winnow does not run such "
            "models: take a reranker with only one of the two, such as BAAI/bge-reranker-v2-m3 or "
            "Qwen/Qwen3-Reranker-0.6B."
        )


def _families(rows: Sequence[ModelRecipe]) -> str:
    return ", ".join(dict.fromkeys(row.family for row in rows))
