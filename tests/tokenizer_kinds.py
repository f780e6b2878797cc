"""One tokenizer of each kind that rerankers come with: real ones from the shared data, others trained here."""

import json
import os
import string
from functools import lru_cache
from pathlib import Path

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tiny_model import read_passages
from winnow.tokenizer import PromptTokenizer

DATA = Path(os.environ.get("WINNOW_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def data_file(name: str) -> Path:
    """A file of the shared test data; skips the test, loudly, where it is absent."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"SHARED TEST DATA IS ABSENT: {path}. Put it there, or name its folder in WINNOW_TEST_DATA.")
    return path


def corpus() -> list[str]:
    """Text to train on: the demo's passages, and some that is not English."""
    other = [
        "Füße, naïve café, œuvre",
        "日本語のテキスト、中文文本",
        "مرحبا بالعالم",
        "🙂 👨‍👩‍👧 🇩🇪 é",
        "def f(x):\n    return x  # y",
    ]
    return [passage["text"] for passage in read_passages()] + other * 5


def qwen3() -> Tokenizer:
    """Byte-level BPE, no BOS: Qwen3's real tokenizer."""
    return Tokenizer.from_file(str(data_file("tokenizers/qwen3/tokenizer.json")))


def bert() -> Tokenizer:
    """WordPiece: BERT's real tokenizer."""
    return Tokenizer.from_file(str(data_file("tokenizers/bert-base-uncased/tokenizer.json")))


def llama3_like() -> Tokenizer:
    """Byte-level BPE with BOS and `ignore_merges`."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )

    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|> $B",
        special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))],
    )
    return tokenizer


def gemma_like() -> Tokenizer:
    """BPE over whole texts with ▁ for spaces, byte fallback, BOS, and runs of newlines as added tokens."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # for training only: words must not merge
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    specials = ["<pad>", "<eos>", "<bos>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        special_tokens=[*specials, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    # The bytes are plain pieces of the vocabulary, not added tokens.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    state["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens(["<start_of_turn>", "<end_of_turn>"])
    tokenizer.add_tokens([AddedToken("\n" * count, normalized=False) for count in (2, 3, 4)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return tokenizer


def xlm_roberta_like() -> Tokenizer:
    """Unigram with Metaspace words, whose vocabulary holds the control tokens as pieces."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=700,
        special_tokens=specials,
        unk_token="<unk>",
        initial_alphabet=list(string.printable),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ids
    )
    return tokenizer


def llama2_like() -> Tokenizer:
    """BPE over whole texts whose first word alone is prefixed with ▁."""
    state = gemma_like()
    state.normalizer = None
    state.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    return state


KINDS = {kind.__name__: kind for kind in (qwen3, bert, llama3_like, gemma_like, llama2_like, xlm_roberta_like)}


@lru_cache
def tokenizer_of_kind(name: str) -> Tokenizer:
    """The tokenizer of that kind, made once."""
    return KINDS[name]()


@lru_cache
def prompt_tokenizer_of_kind(name: str) -> PromptTokenizer:
    """Winnow's copy of it, made once."""
    return PromptTokenizer(tokenizer_of_kind(name))
