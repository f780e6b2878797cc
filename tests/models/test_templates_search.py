"""Where a template comes from: call, reranker, overrides, config, folder, sentence-transformers' files, built-in."""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from model_folders import HEAD, model_folder
from tokenizer_kinds import tokenizer_of_kind
from winnow import FakeEngine, Prompt, Reranker
from winnow.engines import EngineScore
from winnow.errors import ModelError, TemplateError
from winnow.models import Checkpoint, bind_template, open_checkpoint
from winnow.models.families import ModelRecipe
from winnow.prompts import Limits, PromptBuilder, PromptLayout
from winnow.templates.score_template import ScoreTemplate, built_in

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT_CHAT = (
    "{% for m in messages %}{% if m.role not in ('system', 'user', 'assistant') %}{{ raise_exception('role?') }}"
    "{% endif %}{{ m.content }}{% endfor %}"
)
OF_ROLES = (
    '{{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }} ?? '
    '{{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}'
)


def source(name: str) -> str:
    """A template that tells where it stood."""
    return name + ": {{ query }} {{ document }}"


def origin_of(checkpoint: Checkpoint) -> str:
    assert checkpoint.template is not None
    return checkpoint.template.origin


def rendered(checkpoint: Checkpoint, template: Any = None, *, instruction: str | None = None) -> str:
    bound = bind_template(checkpoint, template, None, with_instruction=instruction is not None)
    ids = (
        PromptBuilder(PromptLayout(checkpoint.tokenizer, bound, Limits(max_length=1000)))
        .prompt("Q", "D", instruction)
        .ids
    )
    return checkpoint.tokenizer.decode(ids)


# --- the order --------------------------------------------------------------------------------------------------------


class RecordingEngine(FakeEngine):
    """A fake engine that keeps the texts of its prompts."""

    def __init__(self, template: str | None) -> None:
        super().__init__()
        self.texts: list[str] = []
        if template is not None:
            object.__setattr__(self.checkpoint, "template", ScoreTemplate(template, "the model"))

    async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
        self.texts += [self.checkpoint.tokenizer.decode(prompt.ids) for prompt in prompts]
        return [EngineScore(0.0) for _ in prompts]


def test_the_call_wins_over_the_reranker_and_the_reranker_over_the_model() -> None:
    engine = RecordingEngine(source("model"))
    with Reranker("fake", engine=engine) as reranker:
        reranker.rank("Q", ["D"])
    with Reranker("fake", engine=engine, template=source("reranker")) as reranker:
        reranker.rank("Q", ["D"])
        reranker.rank("Q", ["D"], template=source("call"))
        reranker.rank("Q", ["D"])
    assert engine.texts == ["model: Q D", "reranker: Q D", "call: Q D", "reranker: Q D"]


def test_template_kwargs_of_the_call_win_over_those_of_the_reranker() -> None:
    engine = RecordingEngine("{{ style }}: {{ query }} {{ document }}")
    with Reranker("fake", engine=engine, template_kwargs={"style": "of the reranker"}) as reranker:
        reranker.rank("Q", ["D"])
        reranker.rank("Q", ["D"], template_kwargs={"style": "of the call"})
        with pytest.raises(TemplateError, match="may not set query"):
            reranker.rank("Q", ["D"], template_kwargs={"query": "x"})
    assert engine.texts == ["of the reranker: Q D", "of the call: Q D"]


def test_every_source_of_a_model_in_order(tiny_model: str, tmp_path: Path) -> None:
    folder = Path(
        model_folder(
            tmp_path / "qwen3-reranker-x",
            tiny_model,
            config={"score_template": source("config.json")},
            files={"score_template.jinja": source("score_template.jinja"), "chat_template.jinja": OF_ROLES},
            tokenizer_config={
                "score_template": source("tokenizer_config.json"),
                "chat_template": OF_ROLES.replace("??", "!!"),
            },
        )
    )
    opened = open_checkpoint(str(folder), hf_overrides={"score_template": source("overrides")})
    assert rendered(opened) == "overrides: Q D"
    assert origin_of(opened) == "the Jinja source in score_template of hf_overrides"
    opened = open_checkpoint(str(folder))
    assert rendered(opened) == "config.json: Q D"
    assert origin_of(opened) == "the Jinja source in score_template of config.json"

    shutil.copy(Path(tiny_model) / "config.json", folder)
    opened = open_checkpoint(str(folder))
    assert rendered(opened) == "tokenizer_config.json: Q D"
    assert origin_of(opened) == "the Jinja source in score_template of tokenizer_config.json"

    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["score_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    opened = open_checkpoint(str(folder))
    assert rendered(opened) == "score_template.jinja: Q D"
    assert origin_of(opened) == f"the file {folder / 'score_template.jinja'}"

    (folder / "score_template.jinja").unlink()
    opened = open_checkpoint(str(folder))
    assert rendered(opened) == "Q ?? D"
    assert origin_of(opened) == f"the file {folder / 'chat_template.jinja'}"

    (folder / "chat_template.jinja").unlink()
    opened = open_checkpoint(str(folder))
    assert rendered(opened) == "Q !! D"
    assert origin_of(opened) == f"chat_template in {folder / 'tokenizer_config.json'}"

    shutil.copy(Path(tiny_model) / "tokenizer_config.json", folder)
    assert open_checkpoint(str(folder)).template == built_in("qwen3_reranker")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("mine.jinja", "file: Q D"),
        ({"prefix": "<", "document_template": " {doc}", "suffix": ">"}, "<Q D>"),
        ("{query} -> {doc}", "Q -> D"),
        ("bge_reranker_v2_gemma", "A: Q\nB: D\nGiven"),
    ],
)
def test_forms_of_score_template_in_the_config(tiny_model: str, tmp_path: Path, value: Any, expected: str) -> None:
    folder = model_folder(
        tmp_path / "qwen3-reranker-x",
        tiny_model,
        config={"score_template": value},
        files={"mine.jinja": source("file")},
    )
    assert rendered(open_checkpoint(folder)).startswith(expected)


@pytest.mark.parametrize("value", ["../secret.jinja", "/etc/hostname", "missing.jinja", 3])
def test_a_config_names_no_files_outside_its_folder(tiny_model: str, tmp_path: Path, value: Any) -> None:
    (tmp_path / "secret.jinja").write_text(source("secret"), encoding="utf-8")
    folder = model_folder(tmp_path / "qwen3-reranker-x", tiny_model, config={"score_template": value})
    with pytest.raises(TemplateError, match=r"score_template of config\.json"):
        open_checkpoint(folder)


# --- chat templates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [CHATML, STRICT_CHAT, "{{ messages[0].content }}", "{% broken", "{{ messages[7].x }}"])
def test_the_chat_template_of_a_base_model_is_not_used(tiny_model: str, tmp_path: Path, chat: str) -> None:
    folder = model_folder(tmp_path / "qwen3-reranker-x", tiny_model, files={"chat_template.jinja": chat})
    assert open_checkpoint(folder).template == built_in("qwen3_reranker")


@pytest.mark.parametrize(
    "chat",
    [
        OF_ROLES,
        "{{ messages[0].content }} ?? {{ messages[1].content }}",
        (
            "{% for m in messages %}{% if m.role == 'query' %}{{ m.content }} ?? {% elif m.role == 'document' %}"
            "{{ m.content }}{% else %}{{ raise_exception('role?') }}{% endif %}{% endfor %}"
        ),
    ],
)
def test_a_chat_template_written_for_query_and_document_is_used(tiny_model: str, tmp_path: Path, chat: str) -> None:
    folder = model_folder(tmp_path / "qwen3-reranker-x", tiny_model, files={"chat_template.jinja": chat})
    assert rendered(open_checkpoint(folder)) == "Q ?? D"


def test_the_default_of_several_named_chat_templates(tiny_model: str, tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": CHATML}, {"name": "default", "template": OF_ROLES}]
    folder = model_folder(tmp_path / "qwen3-reranker-x", tiny_model, tokenizer_config={"chat_template": named})
    assert rendered(open_checkpoint(folder)) == "Q ?? D"


# --- none -------------------------------------------------------------------------------------------------------------


def test_a_causal_model_without_a_template_is_an_error(tiny_model: str) -> None:
    judge = ModelRecipe(family="judge", architectures=("Qwen3ForCausalLM",), labels=("no", "yes"))
    opened = open_checkpoint(tiny_model, recipe=judge)
    with pytest.raises(TemplateError, match=r"causal language model \(judge\) and no score template .* Pass template"):
        bind_template(opened, None, None, with_instruction=False)
    assert rendered(opened, source("given")) == "given: Q D"


def test_a_model_that_needs_no_template_encodes_pairs_as_its_tokenizer_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import BertConfig, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of_kind("bert"),
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=512,
    )
    folder = tmp_path / "ms-marco"
    tokenizer.save_pretrained(folder)
    BertConfig(architectures=["BertForSequenceClassification"], num_labels=1).save_pretrained(folder)
    opened = open_checkpoint(str(folder), recipe=ModelRecipe(family="bert-head"))
    assert opened.template is None
    assert bind_template(opened, None, None, with_instruction=False) is None
    builder = PromptBuilder(PromptLayout(opened.tokenizer, None, Limits(max_length=512)))
    for query, document in [("what is gravity?", "Gravity is a force."), (" q", "naïve café\n\n日本 🙂"), ("q", "d")]:
        theirs = tokenizer(query, document)
        prompt = builder.prompt(query, document)
        assert prompt.ids == theirs["input_ids"]
        assert prompt.second_type_from == theirs["token_type_ids"].index(1)
    assert bind_template(opened, None, None, with_instruction=True) is None
    assert "takes no instruction: its prompt is the pair" in caplog.text


# --- what a user should know ------------------------------------------------------------------------------------------


def test_warnings_at_load_time(tiny_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened = open_checkpoint(tiny_model)
    bind_template(opened, source("x"), None, with_instruction=True)
    assert "The template from the Jinja source in template= takes no instruction: it is ignored." in caplog.text
    (tmp_path / "newline.jinja").write_text(source("x") + "</think>\n\n", encoding="utf-8")
    bind_template(opened, tmp_path / "newline.jinja", None, with_instruction=False)
    assert "newline.jinja ends with a newline, which Jinja does not render" in caplog.text
    bind_template(opened, "{{ query }} {{ document }} {{ query }}", None, with_instruction=False)
    assert "places the query 2 times" in caplog.text
    caplog.clear()
    for instruction in (False, True):
        bind_template(opened, None, None, with_instruction=instruction)
    assert not caplog.records


def test_labels_that_are_not_one_token_are_an_error(tiny_model: str) -> None:
    for labels, message in [
        (("no", "absolutely!"), r"'absolutely!' .* not one token .* split into \['"),
        (("no", "<unseen>"), "not one token"),
    ]:
        with pytest.raises(ModelError, match=message):
            open_checkpoint(tiny_model, recipe=ModelRecipe(family="judge", labels=labels))


# --- sentence-transformers --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cross_encoder(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A causal cross-encoder as sentence-transformers saves it, in a folder whose name tells nothing."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.cross_encoder.modules import LogitScore

    body = Transformer(
        tiny_model,
        transformer_task="text-generation",
        processor_kwargs={"chat_template": str(built_in("qwen3_reranker").source)},
    )
    no, yes = (body.tokenizer.convert_tokens_to_ids(label) for label in ("no", "yes"))
    model = CrossEncoder(
        modules=[body, LogitScore(true_token_id=yes, false_token_id=no)],
        prompts={"web": "Find what answers the query", "other": "Something else"},
        default_prompt_name="web",
    )
    folder = tmp_path_factory.mktemp("models") / "saved"
    model.save_pretrained(str(folder), create_model_card=False)
    return model, folder


def ids_of(checkpoint: Checkpoint, instruction: str | None) -> list[int]:
    bound = bind_template(checkpoint, None, None, with_instruction=instruction is not None)
    return (
        PromptBuilder(PromptLayout(checkpoint.tokenizer, bound, Limits(max_length=1000)))
        .prompt("a query", "a doc", instruction)
        .ids
    )


def test_sentence_transformers_template_prompt_and_labels(cross_encoder: tuple[Any, Path]) -> None:
    model, folder = cross_encoder
    opened = open_checkpoint(str(folder))
    assert opened.recipe.labels == ("no", "yes")
    assert opened.label_ids == (model[1].false_token_id, model[1].true_token_id)
    default = model.preprocess([("a query", "a doc")], prompt=model.prompts["web"])["input_ids"][0].tolist()
    given = model.preprocess([("a query", "a doc")], prompt="My own task")["input_ids"][0].tolist()
    assert ids_of(opened, None) == default
    assert ids_of(opened, "My own task") == given
    assert "Find what answers the query" in opened.tokenizer.decode(default)


def test_a_chat_template_that_a_cross_encoder_was_saved_with_is_its_score_template(
    cross_encoder: tuple[Any, Path], tmp_path: Path
) -> None:
    from sentence_transformers import CrossEncoder

    folder = Path(shutil.copytree(cross_encoder[1], tmp_path / "chatml"))
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    model = CrossEncoder(str(folder), device="cpu")
    theirs = {
        prompt: model.preprocess([("a query", "a doc")], prompt=prompt)["input_ids"][0].tolist()
        for prompt in (None, "My own task", model.prompts["web"])
    }
    for prompt in ("My own task", model.prompts["web"]):  # its message stands first
        assert ids_of(open_checkpoint(str(folder)), prompt) == theirs[prompt]
    assert ids_of(open_checkpoint(str(folder)), None) == theirs[model.prompts["web"]]
    config = folder / "config_sentence_transformers.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"web"', "null", 1), encoding="utf-8")
    assert ids_of(open_checkpoint(str(folder)), None) == theirs[None]


def test_a_chat_template_that_cannot_carry_a_pair_is_not_used_even_so(
    cross_encoder: tuple[Any, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(cross_encoder[1], tmp_path / "qwen3-reranker-other"))
    (folder / "chat_template.jinja").write_text(STRICT_CHAT, encoding="utf-8")
    assert origin_of(open_checkpoint(str(folder))) == "Winnow's built-in 'qwen3_reranker'"


def test_labels_that_sentence_transformers_saved_are_compared_with_the_recipe(
    cross_encoder: tuple[Any, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(cross_encoder[1], tmp_path / "qwen3-reranker-other"))
    open_checkpoint(str(folder))
    assert not caplog.records
    (folder / "1_LogitScore" / "config.json").write_text('{"true_token_id": 5, "false_token_id": 6}', encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        open_checkpoint(str(folder))
    assert "sentence-transformers saved this model with the tokens (6, 5)" in caplog.text


def test_the_default_prompt_goes_into_any_template_that_the_model_has(
    cross_encoder: tuple[Any, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(cross_encoder[1], tmp_path / "qwen3-reranker-other"))
    (folder / "chat_template.jinja").unlink()
    opened = open_checkpoint(str(folder))
    assert origin_of(opened) == "Winnow's built-in 'qwen3_reranker'"
    assert "<Instruct>: Find what answers the query\n" in rendered(opened)
    assert "<Instruct>: My own\n" in rendered(opened, instruction="My own")


def test_variables_that_sentence_transformers_saved_for_the_template(
    cross_encoder: tuple[Any, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(cross_encoder[1], tmp_path / "variables"))
    (folder / "chat_template.jinja").write_text("{{ style }}! " + OF_ROLES, encoding="utf-8")
    settings = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))
    settings["processing_kwargs"] = {"chat_template": {"style": "short", "max_length": 9}}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings), encoding="utf-8")
    opened = open_checkpoint(str(folder))
    assert rendered(opened) == "short! Q ?? D"
    bound = bind_template(opened, None, {"style": "long"}, with_instruction=False)
    assert bound is not None
    assert bound[0] == "long! "


def test_the_prompt_of_a_model_without_a_template_is_a_warning(
    tiny_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = {"model_type": "CrossEncoder", "prompts": {"q": "query: "}, "default_prompt_name": "q"}
    files = {"config_sentence_transformers.json": json.dumps(saved)}
    folder = model_folder(tmp_path / "head", tiny_model, config=HEAD, files=files)
    open_checkpoint(folder, recipe=ModelRecipe(family="head"))
    assert "sentence-transformers puts the prompt 'query: ' before each query" in caplog.text


def test_damaged_files_are_named(cross_encoder: tuple[Any, Path], tmp_path: Path) -> None:
    for name in ("config_sentence_transformers.json", "modules.json", "config.json", "tokenizer.json"):
        folder = Path(shutil.copytree(cross_encoder[1], tmp_path / name.replace(".", "-")))
        (folder / name).write_text("{", encoding="utf-8")
        with pytest.raises(ModelError, match=r"damaged|cannot be read"):
            open_checkpoint(str(folder))
