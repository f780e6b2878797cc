"""Which recipe a model gets, and what is refused."""

from typing import Any

import pytest

from tokenizer_kinds import qwen3
from winnow import ConfigurationError, ModelRecipe
from winnow.errors import ModelError
from winnow.recipes import RECIPES, recipe_for
from winnow.tokenization import PromptTokenizer


def config(architecture: str, **fields: Any) -> dict[str, Any]:
    return {"architectures": [architecture], **fields}


ONE_SCORE = {"id2label": {"0": "LABEL_0"}}


@pytest.mark.parametrize(
    ("model", "architecture", "family", "labels", "formula"),
    [
        ("Qwen/Qwen3-Reranker-0.6B", "Qwen3ForCausalLM", "qwen3-reranker", ("no", "yes"), "logit['yes'] − logit['no']"),
        ("/models/qwen3_reranker_4b", "Qwen3ForCausalLM", "qwen3-reranker", ("no", "yes"), None),
        ("zeroentropy/zerank-1-small", "Qwen3ForCausalLM", "zerank", ("Yes",), "(logit['Yes']) / 5"),
        (
            "ContextualAI/ctxl-rerank-v2-instruct-multilingual-1b",
            "Qwen3ForCausalLM",
            "ctxl-rerank-v2",
            ("!",),
            "logit['!']",
        ),
        (
            "ContextualAI/ctxl-rerank-v2-instruct-multilingual-6b",
            "MistralForCausalLM",
            "ctxl-rerank-v2",
            ("<unk>",),
            None,
        ),
        ("mixedbread-ai/mxbai-rerank-large-v2", "Qwen2ForCausalLM", "mxbai-rerank-v2", ("0", "1"), None),
        ("BAAI/bge-reranker-v2-gemma", "GemmaForCausalLM", "bge-reranker-v2-gemma", ("Yes",), "logit['Yes']"),
        (
            "Qwen/Qwen3-VL-Reranker-2B",
            "Qwen3VLForConditionalGeneration",
            "qwen3-vl-reranker",
            ("no", "yes"),
            "logit['yes'] − logit['no']",
        ),
        (
            "nvidia/llama-nemotron-rerank-1b-v2",
            "LlamaBidirectionalForSequenceClassification",
            "llama-nemotron-rerank",
            (),
            "output of the score head",
        ),
        ("jinaai/jina-reranker-m0", "JinaVLForRanking", "jina-reranker-m0", (), "output of the score head − 2.65"),
        ("BAAI/bge-reranker-v2-m3", "XLMRobertaForSequenceClassification", "cross-encoder", (), None),
        ("cross-encoder/ms-marco-MiniLM-L6-v2", "BertForSequenceClassification", "cross-encoder", (), None),
        ("Alibaba-NLP/gte-reranker-modernbert-base", "ModernBertForSequenceClassification", "cross-encoder", (), None),
        (
            "Alibaba-NLP/gte-multilingual-reranker-base",
            "NewForSequenceClassification",
            "gte-multilingual-reranker",
            (),
            None,
        ),
        ("tomaarsen/Qwen3-Reranker-0.6B-seq-cls", "Qwen3ForSequenceClassification", "qwen3-reranker", (), None),
    ],
)
def test_published_names(
    model: str, architecture: str, family: str, labels: tuple[str, ...], formula: str | None
) -> None:
    found = recipe_for(model, config(architecture, **ONE_SCORE))
    assert (found.family, found.labels) == (family, labels)
    assert formula is None or found.formula == formula


def test_a_family_that_brings_code_of_its_own_is_found_by_the_name_of_its_config() -> None:
    """Its architecture is that of other encoders, and a fine-tune has any name."""
    code = {"AutoConfig": "jinaai/xlm-roberta-flash-implementation--configuration_xlm_roberta.XLMRobertaFlashConfig"}
    jina = config("XLMRobertaForSequenceClassification", auto_map=code, **ONE_SCORE)
    found = recipe_for("/models/mine", jina)
    assert (found.family, found.local_code, found.max_length) == ("jina-reranker-v2", True, 1024)
    other = config("XLMRobertaForSequenceClassification", auto_map={"AutoConfig": "configuration.Other"}, **ONE_SCORE)
    assert recipe_for("jinaai/jina-reranker-v2-base-multilingual", other).family == "cross-encoder"


def test_the_score_token_of_jina_m0_is_a_byte_that_no_text_spells() -> None:
    """Id 100 in the vocabulary that Qwen's models share is the byte A7, the second half of "§"."""
    tokenizer = PromptTokenizer(qwen3())
    assert tokenizer.token(100) == "§"
    assert tokenizer.encode("§") != [100]


@pytest.mark.parametrize(
    "model",
    [
        "/srv/zerank-tests/Qwen3-Reranker-0.6B",  # the last part tells, not the folder above
        "/cache/models--Qwen--Qwen3-Reranker-0.6B/snapshots/5fa94080caafeaa45a15d11f969d7978e087a3db",
        "QWEN3_RERANKER",
    ],
)
def test_local_folders(model: str) -> None:
    assert recipe_for(model, config("Qwen3ForCausalLM")).family == "qwen3-reranker"


def test_the_name_in_the_config_counts_after_the_folder() -> None:
    named = config("Qwen3ForCausalLM", _name_or_path="Qwen/Qwen3-Reranker-4B")
    assert recipe_for("/models/mine", named).family == "qwen3-reranker"
    assert recipe_for("/models/zerank-2", named).family == "zerank"


def test_a_converted_checkpoint_names_its_family() -> None:
    converted = config("Qwen3ForSequenceClassification", winnow_family="zerank", **ONE_SCORE)
    found = recipe_for("/models/out", converted)
    assert (found.family, found.labels, found.temperature) == ("zerank", (), 1.0)  # it is in the head
    assert found.vllm_overrides == {}
    judge = recipe_for("/models/out", config("LlamaForSequenceClassification", winnow_family="judge", **ONE_SCORE))
    assert (judge.family, judge.labels) == ("judge", ())


def test_vllm_is_told_how_to_make_a_classifier_of_a_causal_model() -> None:
    found = recipe_for("mxbai-rerank-base-v2", config("Qwen2ForCausalLM"))
    assert found.vllm_overrides == {
        "architectures": ["Qwen2ForSequenceClassification"],
        "classifier_from_token": ["0", "1"],
        "method": "from_2_way_softmax",
    }
    one = recipe_for("bge-reranker-v2-gemma", config("GemmaForCausalLM")).vllm_overrides
    assert (one["classifier_from_token"], one["method"]) == (["Yes"], "no_post_processing")
    gte = recipe_for("gte-multilingual-reranker-base", config("NewForSequenceClassification", **ONE_SCORE))
    assert gte.vllm_overrides == {"architectures": ["GteNewForSequenceClassification"]}


def test_the_logit_is_calibrated_as_the_formula_says() -> None:
    shifted = ModelRecipe(family="m0", labels=("Yes",), shift=2.5, temperature=2)
    assert shifted.formula == "(logit['Yes'] − 2.5) / 2"
    assert shifted.calibrated(4.5) == 1.0
    jina = recipe_for("m", config("JinaVLForRanking"))
    assert (jina.calibrated(3.65), jina.calibrated_by_vllm(1.0)) == (pytest.approx(1.0), 1.0)
    assert shifted.calibrated_by_vllm(4.5) == 1.0
    nemotron = config("LlamaBidirectionalForSequenceClassification", temperature=0.2, **ONE_SCORE)
    assert recipe_for("m", nemotron).calibrated(1.0) == pytest.approx(5.0)


def test_a_recipe_of_the_users_own_needs_no_architecture() -> None:
    found = recipe_for("m", config("LlamaForCausalLM"), ModelRecipe(family="judge", labels=("Bad", "Good")))
    assert found.vllm_overrides["architectures"] == ["LlamaForSequenceClassification"]


def test_a_family_by_name_fits_the_architecture() -> None:
    assert recipe_for("m", config("MistralForCausalLM"), "ctxl-rerank-v2").labels == ("<unk>",)
    assert recipe_for("m", config("Qwen3ForCausalLM"), "ctxl-rerank-v2").labels == ("!",)


def test_yes_and_capital_yes_are_different_tokens() -> None:
    tokenizer = PromptTokenizer(qwen3())
    ids = {
        label: tokenizer.token_id(label) for row in RECIPES if "Qwen3" in str(row.architectures) for label in row.labels
    }
    assert ids == {"no": 2152, "yes": 9693, "Yes": 9454, "!": 0}


# --- refused ----------------------------------------------------------------------------------------------------------


def test_a_causal_model_of_unknown_name_is_refused() -> None:
    with pytest.raises(ModelError, match=r"its name does not tell which reranker it is.*qwen3-reranker, zerank, ctxl"):
        recipe_for("Qwen/Qwen3-0.6B", config("Qwen3ForCausalLM"))


def test_a_model_that_only_its_own_code_runs_is_refused() -> None:
    nemotron = config("LlamaNemotronVLForSequenceClassification", **ONE_SCORE)
    with pytest.raises(ModelError, match=r"rerank-vl-1b-v2 is a Llama.*, which is not a reranker that Winnow knows"):
        recipe_for("nvidia/llama-nemotron-rerank-vl-1b-v2", nemotron)


def test_an_unknown_architecture_is_refused_with_both_ways_out() -> None:
    with pytest.raises(ModelError, match=r"not a reranker that Winnow knows.*labels=\(negative, positive\)"):
        recipe_for("m", config("FalconForCausalLM"))
    with pytest.raises(ModelError, match="names no architecture"):
        recipe_for("m", {})


@pytest.mark.parametrize("fields", [{}, {"id2label": {"0": "NEGATIVE", "1": "NEUTRAL", "2": "POSITIVE"}}])
def test_a_classifier_with_several_labels_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"with [23] labels: a classifier, not a reranker"):
        recipe_for("sentiment", config("BertForSequenceClassification", **fields))


def test_a_recipe_without_labels_needs_a_single_score() -> None:
    mine = ModelRecipe(family="mine")
    assert recipe_for("m", config("MPNetForSequenceClassification", **ONE_SCORE), mine).architectures
    with pytest.raises(ModelError, match=r"with 2 labels: a classifier, not a reranker"):
        recipe_for("m", config("MPNetForSequenceClassification"), mine)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM, which has no score head: give the recipe the labels"):
        recipe_for("m", config("LlamaForCausalLM"), mine)


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'qwen' is not a family; there are: qwen3-reranker, "):
        recipe_for("m", config("Qwen3ForCausalLM"), "qwen")


@pytest.mark.parametrize("labels", [("no", "no"), ("no", "maybe", "yes")])
def test_labels_are_one_or_two_and_differ(labels: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"labels of the recipe 'judge' must be \(negative, positive\)"):
        ModelRecipe(family="judge", labels=labels)


def test_a_temperature_is_positive() -> None:
    with pytest.raises(ConfigurationError, match=r"temperature of the recipe 'judge' must be > 0, but got 0"):
        ModelRecipe(family="judge", temperature=0)
