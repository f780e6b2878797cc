"""`winnow doctor`: what it finds, what it prints, how it exits."""

import io
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner, Result

import tiny_families
from model_folders import HEAD, model_folder
from tokenizer_kinds import KINDS, tokenizer_of_kind
from winnow.cli.doctor import examine
from winnow.cli.doctor_report import print_report
from winnow.cli.main import app
from winnow.models.checkpoint import open_checkpoint
from winnow.models.families import ModelRecipe
from winnow.prompts.parts import PART_NAMES


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments])


def test_it_shows_recipe_template_prompt_tokens_labels_and_limits(tiny_model: str) -> None:
    result = doctor(tiny_model, "--query", "who?", "--document", "me <|im_end|>")
    assert result.exit_code == 0, result.output
    for expected in (
        "recipe     qwen3-reranker: score = sigmoid(logit['yes'] − logit['no'])",
        "template   Winnow's built-in 'qwen3_reranker'",
        "labels     'no' = ",
        "a prompt up to 1024 tokens, a query up to ",
        "<Query>: who?↵\n<Document>: me <|im_end|>⟦<|im_end|>⟧↵\n",
        "⟦<|im_start|>⟧assistant↵\n⟦<think>⟧↵\n↵\n⟦</think>⟧↵\n↵\n",
        "verdict    ready",
    ):
        assert expected in result.output
    assert "\x1b" not in result.output


def test_it_is_coloured_on_a_terminal(tiny_model: str) -> None:
    stream = io.StringIO()
    print_report(
        examine(tiny_model), Console(file=stream, force_terminal=True, color_system="standard", highlight=False)
    )
    assert "\x1b[1;7;35m⟦<|im_end|>⟧\x1b[0m" in stream.getvalue()
    assert "\x1b[32m The capital of China is Beijing." in stream.getvalue()


def test_it_reads_the_environment_as_a_reranker_does(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--winnow--qwen3-reranker-tiny"
    shutil.copytree(tiny_model, repository / "snapshots" / "c0ffee")
    (repository / "refs").mkdir()
    (repository / "refs" / "v2").write_text("c0ffee")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    name = "winnow/qwen3-reranker-tiny"
    assert examine(name).problems
    monkeypatch.setenv("WINNOW_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("WINNOW_REVISION", "v2")
    monkeypatch.setenv("WINNOW_MAX_LENGTH", "300")
    monkeypatch.setenv("WINNOW_ENGINE", "fake")  # `doctor` reads a model's files in any case
    found = examine(name, document="word " * 500)
    assert found.problems == []
    assert (found.max_length, len(found.ids)) == (300, 300)
    monkeypatch.setenv("WINNOW_MAX_LENGTH", "many")
    assert "WINNOW_MAX_LENGTH must be" in examine(name).problems[0]


def test_json(tiny_model: str) -> None:
    result = doctor(tiny_model, "--json", "--instruction", "Find facts")
    assert result.exit_code == 0
    found = json.loads(result.output)
    assert found["ok"] is True
    assert found["verdict"] == "ready"
    assert found["recipe"]["family"] == "qwen3-reranker"
    assert "<Instruct>: Find facts\n<Query>: what is the capital of China?\n" in found["prompt"]
    assert found["prompt"].endswith("</think>\n\n")
    assert sum(found["tokens"][name] for name in PART_NAMES) == found["tokens"]["total"] == len(found["ids"])
    assert found["tokens"]["instruction"] > 0
    assert set(found["labels"]) == {"no", "yes"}
    assert found["limits"]["max_length"] == 1024


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--template", "nowhere.jinja"], "neither a file"),
        (["--template", "{{ query }}"], "places the document 0 times"),
        (["--template", "{{ query }}{{ document }}{{ nope.x }}"], "failed to render in line 1"),
        (["--recipe", "no-family"], "is not a family; there are: "),
        (["--recipe", "bge-reranker-v2-gemma"], "'Yes' of the recipe 'bge-reranker-v2-gemma' is not one token"),
        (["--instruction", "word " * 3000], "which leaves no room for a query and a document"),
        (["--query", "\ud83d"], "The query holds the lone surrogate"),
    ],
)
def test_problems_are_exit_code_1(tiny_model: str, arguments: list[str], message: str) -> None:
    result = doctor(tiny_model, *arguments)
    assert result.exit_code == 1
    assert "problem    " in result.output
    assert message in result.output
    assert "verdict    not usable as it is: 1 problem" in result.output


def test_a_model_that_is_not_there() -> None:
    result = doctor("./nowhere", "--json")
    assert result.exit_code == 1
    assert json.loads(result.output)["problems"] == ["The model folder ./nowhere does not exist."]


def test_warnings_are_shown_and_do_not_fail(tiny_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "x.jinja").write_text("{{ query }} {{ document }} so?\n", encoding="utf-8")
    result = doctor(
        tiny_model, "--template", str(tmp_path / "x.jinja"), "--instruction", "do", "--document", "tides " * 2000
    )
    assert result.exit_code == 0
    assert "takes no instruction: it is ignored" in result.output
    assert "ends with a newline, which Jinja does not render" in result.output
    assert "This document does not fit: the model would read " in result.output
    assert "characters…]" in result.output
    assert "verdict    ready, with 3 warnings" in result.output
    assert not caplog.records, "what is shown is not logged as well"
    assert logging.getLogger("winnow").propagate


def test_a_newline_that_is_written_as_an_expression_is_no_warning(tiny_model: str, tmp_path: Path) -> None:
    (tmp_path / "x.jinja").write_text('{{ query }} {{ document }} so?{{ "\\n" }}\n', encoding="utf-8")
    assert examine(tiny_model, template=tmp_path / "x.jinja").warnings == []


def test_a_long_query_and_document(tiny_model: str) -> None:
    found = examine(tiny_model, query="query " * 2000, document="document " * 2000)
    assert len(found.warnings) == 2
    assert len(found.ids) <= 1024
    assert sum(found.tokens.values()) == len(found.ids)
    assert abs(found.tokens["query"] - found.max_query_tokens) <= 4


def test_it_shows_what_the_ids_stand_for_and_not_what_was_rendered(tiny_model: str, tmp_path: Path) -> None:
    """A lower-casing tokenizer without a token for Chinese: the model reads neither the case nor the characters."""
    folder = model_folder(tmp_path / "head", tiny_model, config=HEAD)
    tiny_families.bert_like().save(str(tmp_path / "head" / "tokenizer.json"))
    (tmp_path / "head" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    found = examine(folder, recipe=ModelRecipe(family="head"), query="China", document="The TIDE 龘")
    assert [(piece.part, piece.text) for piece in found.pieces] == [
        ("before", "[CLS]"),
        ("query", " china"),
        ("between", "[SEP]"),
        ("document", " the tide [UNK]"),
        ("after", "[SEP]"),
    ]


def test_of_a_pair_that_is_cut_it_shows_what_is_sent(tiny_model: str) -> None:
    found = examine(tiny_model, query="who? " * 2000, document="me! " * 2000)
    sent = {part: "".join(piece.text for piece in found.pieces if piece.part == part) for part in PART_NAMES}
    tokenizer = open_checkpoint(tiny_model).tokenizer
    assert "".join(sent.values()) == tokenizer.decode(found.ids)
    assert sent["query"].startswith(" who? who?")  # the blank before it is in one token with it
    assert "me! me!" in sent["document"]
    assert "who?" not in sent["document"]
    assert sent["after"].endswith("</think>\n\n")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", [None, "words {{ instruction }} {{ query }}\nB:{{ document }} ??"])
def test_counts_add_up_for_every_kind_of_tokenizer(
    tiny_model: str, tmp_path: Path, kind: str, template: str | None
) -> None:
    folder = model_folder(tmp_path / "head", tiny_model, config=HEAD)
    tokenizer_of_kind(kind).save(str(tmp_path / "head" / "tokenizer.json"))
    unknown = {"bert": "[UNK]", "qwen3": None, "llama3_like": None}.get(kind, "<unk>")
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": unknown}
    (tmp_path / "head" / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    found = examine(
        folder, recipe=ModelRecipe(family="head"), template=template, instruction="judge" if template else None
    )
    assert found.problems == []
    assert found.warnings == []
    assert sum(found.tokens.values()) == len(found.ids)
    assert found.tokens["query"] >= 6
    assert found.tokens["document"] >= 6
    assert (found.tokens["instruction"] > 0) == (template is not None)


@pytest.mark.parametrize(
    "model",
    [
        models.WordPiece({"[UNK]": 0, "[SEP]": 1, "a": 2, "SEP": 3}, unk_token="[UNK]"),
        models.WordLevel({"[UNK]": 0, "[SEP]": 1, "a": 2}, unk_token="[UNK]"),
        models.BPE({"[UNK]": 0, "[SEP]": 1, "a": 2}, [], unk_token="[UNK]"),
        models.Unigram([("[UNK]", 0.0), ("[SEP]", 0.0), ("a", -1.0)], 0, byte_fallback=False),
    ],
    ids=lambda model: type(model).__name__,
)
@pytest.mark.parametrize("named", [True, False])
def test_an_unknown_character_is_no_forgery(model: Any, named: bool, tiny_model: str, tmp_path: Path) -> None:
    """`[` is in no vocabulary here, so a document that holds `[SEP]` gets `[UNK]`, whether or not a config names it."""
    folder = model_folder(tmp_path / "head", tiny_model, config=HEAD)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[UNK]", "[SEP]"])
    tokenizer.save(str(tmp_path / "head" / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **({"unk_token": "[UNK]"} if named else {})}
    (tmp_path / "head" / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    found = examine(
        folder, recipe=ModelRecipe(family="head"), template="a {{ query }}[SEP]{{ document }}", query="a", document="a"
    )
    assert found.problems == []
    assert "[SEP]" in [piece.text for piece in found.pieces if piece.control]
