"""Which recipe a model gets, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from tokenizer_kinds import prompt_tokenizer_of_kind
from winnow import ConfigurationError, ModelRecipe
from winnow.errors import EngineError, ModelError
from winnow.models.checkpoint import open_checkpoint
from winnow.models.families import RECIPES, recipe_for


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
    tokenizer = prompt_tokenizer_of_kind("qwen3")
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


def test_vllm_s_settings_say_how_to_make_a_classifier_of_a_causal_model() -> None:
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


def test_a_family_s_prompt_and_labels_go_with_another_causal_model() -> None:
    """It was trained to answer as the family does; engines load it as what it is."""
    llama = recipe_for("/models/mine", config("LlamaForCausalLM"), "qwen3-reranker")
    assert (llama.template, llama.labels) == ("qwen3_reranker", ("no", "yes"))
    assert llama.architectures == ("LlamaForCausalLM",)
    assert llama.vllm_overrides["architectures"] == ["LlamaForSequenceClassification"]


def test_yes_and_capital_yes_are_different_tokens() -> None:
    tokenizer = prompt_tokenizer_of_kind("qwen3")
    ids = {
        label: tokenizer.token_id(label) for row in RECIPES if "Qwen3" in str(row.architectures) for label in row.labels
    }
    assert ids == {"no": 2152, "yes": 9693, "Yes": 9454, "!": 0}


# --- refused ----------------------------------------------------------------------------------------------------------


def test_a_causal_model_of_unknown_name_is_refused() -> None:
    with pytest.raises(ModelError, match=r"its name does not say which reranker it is.*qwen3-reranker, zerank, ctxl"):
        recipe_for("Qwen/Qwen3-0.6B", config("Qwen3ForCausalLM"))


def test_a_model_that_only_its_own_code_runs_is_refused() -> None:
    nemotron = config("LlamaNemotronVLForSequenceClassification", **ONE_SCORE)
    with pytest.raises(ModelError, match=r"rerank-vl-1b-v2 is a Llama.*, which is not a reranker that Winnow knows"):
        recipe_for("nvidia/llama-nemotron-rerank-vl-1b-v2", nemotron)


def test_an_unknown_architecture_is_refused_with_the_way_out_that_leads_somewhere() -> None:
    known = "not a reranker that Winnow knows"
    with pytest.raises(ModelError, match=rf"{known}.*labels=\(negative, positive\)"):
        recipe_for("m", config("FalconForCausalLM"))
    with pytest.raises(ModelError, match=rf"{known}.*recipe=ModelRecipe\(family='mine'\)"):
        recipe_for("m", config("MPNetForSequenceClassification", **ONE_SCORE))
    with pytest.raises(ModelError, match=rf"{known}.*gives no relevance score.*modules.json") as error:
        recipe_for("m", config("ModernBertModel"))
    assert "ModelRecipe" not in str(error.value)
    with pytest.raises(ModelError, match="names no architecture"):
        recipe_for("m", {})


@pytest.mark.parametrize("fields", [{}, {"id2label": {"0": "NEGATIVE", "1": "NEUTRAL", "2": "POSITIVE"}}])
def test_a_classifier_with_several_labels_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(
        ModelError, match=r"classifier with 2 labels, 0 and 1|has 3 labels: it is a classifier, not a reranker"
    ):
        recipe_for("sentiment", config("BertForSequenceClassification", **fields))


def test_a_recipe_without_labels_needs_a_single_score() -> None:
    mine = ModelRecipe(family="mine")
    assert recipe_for("m", config("MPNetForSequenceClassification", **ONE_SCORE), mine).architectures
    with pytest.raises(ModelError, match=r"with 2 labels.*recipe=ModelRecipe\(family='mine', positive_label=1\)"):
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
    with pytest.raises(ConfigurationError, match=r"temperature of the recipe 'judge' must be .* > 0, but got 0"):
        ModelRecipe(family="judge", temperature=0)


# --- score heads with two labels --------------------------------------------------------------------------------------

TWO = {"id2label": {"0": "relevant", "1": "irrelevant"}}


@pytest.mark.parametrize("label", [0, "relevant"])
def test_the_positive_label_by_number_or_name(label: int | str) -> None:
    recipe = ModelRecipe(family="mine", positive_label=label, temperature=2.0)
    found = recipe_for("m", config("BertForSequenceClassification", **TWO), recipe)
    assert found.formula == "(output 0 − output 1 of the score head) / 2"
    assert found.outputs == 2
    assert found.calibrated(found.of_outputs([3.0, 1.0])) == 1.0


def test_labels_without_names_have_numbers() -> None:
    """transformers does not write `id2label` where there are two labels."""
    found = recipe_for("m", config("BertForSequenceClassification"), ModelRecipe(family="mine", positive_label=1))
    assert found.of_outputs([3.0, 1.0]) == -2.0
    with pytest.raises(EngineError, match="returned 1 numbers for a prompt, and the recipe 'mine' expects 2"):
        found.of_outputs([3.0])


@pytest.mark.parametrize(
    ("fields", "label", "message"),
    [
        (TWO, 2, r"has no label 2; positive_label is one of its labels 0 \('relevant'\) and 1 \('irrelevant'\)"),
        (TWO, "Relevant", "has no label 'Relevant'"),
        (TWO, True, "has no label True"),
        (ONE_SCORE, 0, "has one score: leave out positive_label"),
        ({"num_labels": 3}, 0, "has 3 labels: it is a classifier"),
    ],
)
def test_a_positive_label_that_is_not_there(fields: dict[str, Any], label: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        recipe_for(
            "m", config("BertForSequenceClassification", **fields), ModelRecipe(family="mine", positive_label=label)
        )


def test_labels_that_are_tokens_and_a_label_of_a_head_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match="'judge' has labels, which are tokens, and positive_label"):
        ModelRecipe(family="judge", labels=("no", "yes"), positive_label=1)


# --- what no engine runs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [None, ModelRecipe(family="judge", labels=("false", "true"))])
def test_an_encoder_decoder_is_refused_with_an_alternative(recipe: ModelRecipe | None) -> None:
    t5 = config("T5ForConditionalGeneration", model_type="t5", is_encoder_decoder=True)
    with pytest.raises(ModelError, match=r"an encoder and a decoder, as monoT5 is.* such as BAAI/bge-reranker-v2-m3"):
        recipe_for("castorini/monot5-base-msmarco", t5, recipe)


@pytest.mark.parametrize("files", [["model-Q4_K_M.gguf"], ["model-Q4_K_M.gguf", "config.json"]])
def test_gguf_is_refused_with_an_alternative(files: list[str], tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    for model in (tmp_path, tmp_path / "model-Q4_K_M.gguf"):
        with pytest.raises(ModelError, match=r"GGUF, which Winnow does not run: give the model that it was made from"):
            open_checkpoint(str(model))


def test_the_page_of_models_lists_every_family() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    assert [recipe.family for recipe in RECIPES if f"| `{recipe.family}` |" not in page] == []
