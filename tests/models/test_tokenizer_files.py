"""The tokenizer is the folder's own file, whatever transformers makes of the class that the folder names."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import tiny_families
import tokenizer_kinds
from winnow.cli.doctor import examine
from winnow.errors import ModelError
from winnow.models.checkpoint import open_checkpoint
from winnow.models.families import ModelRecipe

HEAD = ModelRecipe(family="head")
TEXT = "  The naïve  café:\n\n日本語 1234567, ﬁne 🙂\tso\r\n"


def folder_with(target: Path, tokenizer: Tokenizer | None, model_type: str, **settings: object) -> Path:
    """A folder of a classifier without weights, with a tokenizer and these lines of tokenizer_config.json."""
    target.mkdir()
    kind = {"architectures": ["AnyForSequenceClassification"], "id2label": {"0": "LABEL_0"}, "model_type": model_type}
    (target / "config.json").write_text(json.dumps(kind))
    if tokenizer is not None:
        tokenizer.save(str(target / "tokenizer.json"))
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    return target


def ids_by_winnow(folder: Path, text: str) -> list[int]:
    return open_checkpoint(str(folder), recipe=HEAD).tokenizer.encode(text)


def ids_by_transformers(folder: Path, text: str) -> list[int]:
    return AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]


REBUILT: dict[str, tuple[Callable[[], Tokenizer], str, str]] = {
    "DeepSeek-R1-Distill-Llama": (tokenizer_kinds.llama3_like, "llama", "LlamaTokenizerFast"),
    "XLM-RoBERTa": (tokenizer_kinds.xlm_roberta_like, "xlm-roberta", "XLMRobertaTokenizer"),
    "Llama 2's, as Qwen's": (tokenizer_kinds.llama2_like, "qwen3", "Qwen2Tokenizer"),
}


@pytest.mark.parametrize("name", REBUILT)
def test_where_transformers_builds_another_tokenizer_the_file_is_taken(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, model_type, tokenizer_class = REBUILT[name]
    folder = folder_with(tmp_path / "model", made(), model_type, tokenizer_class=tokenizer_class)
    own = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    assert ids_by_transformers(folder, TEXT) != own, "transformers reads the file now: choose another example"
    with caplog.at_level(logging.WARNING, logger="winnow"):
        assert ids_by_winnow(folder, TEXT) == own
    [record] = caplog.records
    assert f"makes another tokenizer ({tokenizer_class.removesuffix('Fast')}) of {folder}" in record.getMessage()
    assert "Winnow takes tokenizer.json as it is" in record.getMessage()


@pytest.mark.parametrize(
    ("made", "model_type", "tokenizer_class"),
    [
        (tokenizer_kinds.gemma_like, "gemma", "GemmaTokenizerFast"),
        (tiny_families.qwen_like, "qwen3", "Qwen2TokenizerFast"),
        (tiny_families.bert_like, "bert", "BertTokenizerFast"),
        (tiny_families.roberta_like, "roberta", "RobertaTokenizerFast"),
        (tiny_families.modernbert_like, "modernbert", "PreTrainedTokenizerFast"),
    ],
)
def test_where_they_agree_nothing_is_said(
    made: Callable[[], Tokenizer],
    model_type: str,
    tokenizer_class: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = folder_with(tmp_path / "model", made(), model_type, tokenizer_class=tokenizer_class)
    assert ids_by_winnow(folder, TEXT) == ids_by_transformers(folder, TEXT)
    assert not caplog.records


def test_doctor_says_so_and_shows_the_spaces(tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path / "model", tokenizer_kinds.llama3_like(), "llama", tokenizer_class="LlamaTokenizerFast"
    )
    found = examine(str(folder), recipe=HEAD, template="Question: {{ query }} Answer: {{ document }}")
    assert [warning for warning in found.warnings if "Winnow takes tokenizer.json as it is" in warning]
    assert "".join(piece.text for piece in found.pieces) == (
        "<|begin_of_text|>Question: what is the capital of China? Answer: The capital of China is Beijing."
    )


def test_what_tokenizer_config_adds_is_kept(tmp_path: Path) -> None:
    """As in transformers 4: more tokens, and whether BERT lower-cases, are tokenizer_config.json's to say."""
    made = tokenizer_kinds.llama3_like()
    size = made.get_vocab_size()
    llama = folder_with(
        tmp_path / "llama",
        made,
        "llama",
        tokenizer_class="LlamaTokenizerFast",
        added_tokens_decoder={str(size): {"content": "<extra>", "special": True}},
    )
    assert open_checkpoint(str(llama), recipe=HEAD).tokenizer.control_tokens["<extra>"] == size
    bert = folder_with(
        tmp_path / "bert", tiny_families.bert_like(), "bert", tokenizer_class="BertTokenizer", do_lower_case=False
    )
    assert ids_by_winnow(bert, "The") != ids_by_winnow(bert, "the")


def test_tokens_that_only_the_class_knows_are_no_tokens_of_the_model(tmp_path: Path) -> None:
    """`LlamaTokenizer` has "<s>" as BOS where the folder names none, with an id beyond the embedding."""
    made = tokenizer_kinds.llama3_like()
    folder = folder_with(tmp_path / "model", made, "llama", tokenizer_class="LlamaTokenizerFast")
    tokenizer = open_checkpoint(str(folder), recipe=HEAD).tokenizer
    assert AutoTokenizer.from_pretrained(folder).bos_token_id == made.get_vocab_size()
    assert tokenizer.special_tokens == {}
    assert tokenizer.vocabulary_size == made.get_vocab_size()


# --- without tokenizer.json -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SentencePiece model with the normaliser of most."""
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "corpus.txt").write_text("\n".join(tokenizer_kinds.corpus()), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "made"), vocab_size=280, minloglevel=2
    )
    return folder / "made.model"


@pytest.mark.parametrize(
    ("model_type", "name", "offset"), [("xlm-roberta", "sentencepiece.bpe.model", 1), ("deberta-v2", "spm.model", 0)]
)
def test_a_sentencepiece_file_is_enough(model_type: str, name: str, offset: int, pieces: Path, tmp_path: Path) -> None:
    """XLM-RoBERTa's ids are SentencePiece's and one more (fairseq): four tokens stand in the place of three."""
    folder = folder_with(tmp_path / "model", None, model_type)
    shutil.copy(pieces, folder / name)
    own = sentencepiece.SentencePieceProcessor(str(pieces))
    for text in ("the tide falls, twice a day", "ﬁne ｗｉｄｅ"):  # SentencePiece folds these
        assert ids_by_winnow(folder, text) == [index + offset for index in own.encode(text)]


def test_a_normaliser_that_transformers_loses_is_logged(
    pieces: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_with(tmp_path / "model", None, "deberta-v2")
    shutil.copy(pieces, folder / "spm.model")
    assert ids_by_transformers(folder, "ﬁne") != ids_by_winnow(folder, "ﬁne")
    [record] = caplog.records
    assert f"makes another tokenizer (DebertaV2Tokenizer) of {folder} than its spm.model: texts" in record.getMessage()


@pytest.mark.parametrize("model_type", ["bert", "llama", "qwen3", "xlm-roberta"])
def test_a_folder_without_its_tokenizer_is_named(model_type: str, tmp_path: Path) -> None:
    """For several classes transformers makes a tokenizer of five words out of nothing."""
    folder = folder_with(tmp_path / "model", None, model_type)
    if model_type == "xlm-roberta":
        (folder / "vocab.txt").write_text("[UNK]\nthe\n")  # of BERT
    with pytest.raises(ModelError, match=r"has no tokenizer: there is no tokenizer.json in"):
        open_checkpoint(str(folder), recipe=HEAD)


@pytest.mark.slow  # starts processes that import transformers
@pytest.mark.parametrize("package", ["sentencepiece", "google.protobuf"])
def test_a_package_that_is_needed_is_named(package: str, pieces: Path, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", None, "xlm-roberta")
    shutil.copy(pieces, folder / "sentencepiece.bpe.model")
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from winnow.models.checkpoint import open_checkpoint; from winnow import ModelRecipe\n"
        f"open_checkpoint({str(folder)!r}, recipe=ModelRecipe(family='head'))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert f"ModelError: The tokenizer of {folder} cannot be read from" in result.stderr
    wanted = package.removeprefix("google.")
    assert f"To read a SentencePiece file (*.model), install: pip install {wanted}" in result.stderr
