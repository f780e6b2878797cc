"""Build a tiny Qwen3 reranker with random weights, in seconds and without a network.

It has the architecture, the control tokens and the label tokens of Qwen/Qwen3-Reranker-0.6B, so everything around the
weights is real. Its scores mean nothing: it has learned nothing. The demo and the tests use it where no model hub is
at hand.

    python examples/tiny_model.py OUT_DIR
"""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PASSAGES = Path(__file__).with_name("passages.jsonl")

# The control tokens of Qwen3 in the order of its tokenizer; the second group is not marked special there.
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ADDED_TOKENS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]


def read_passages() -> list[dict[str, str]]:
    """The passages of the demo: dictionaries with `id` and `text`."""
    return [json.loads(line) for line in PASSAGES.read_text(encoding="utf-8").splitlines()]


def build_tokenizer(vocabulary: int = 1000, texts: Iterable[str] = ()) -> "Tokenizer":
    """A small byte-level BPE with Qwen3's control tokens; the arguments are those of `build_tiny_reranker`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    # The two labels are repeated, so that each becomes a single token.
    corpus = [*texts, *(passage["text"] for passage in read_passages()), "yes no " * 50, "no\nyes\n" * 50]
    tokenizer.train_from_iterator(["yes", "no"] * 500 + corpus, trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in ADDED_TOKENS])
    return tokenizer


def build_tiny_reranker(
    folder: Path,
    *,
    vocabulary: int = 1000,
    seed: int = 0,
    texts: Iterable[str] = (),
    layers: int = 2,
    width: int = 64,
    positions: int = 1024,
) -> Path:
    """Write a random Qwen3ForCausalLM and its tokenizer into `folder` and return the folder.

    Args:
        folder: Where the model goes. Its name should contain "qwen3-reranker": Winnow tells families apart by name.
        vocabulary: Number of tokens the byte-level BPE may have, control tokens included.
        seed: Seed of the random weights.
        texts: What the tokenizer is trained on, besides the demo's passages.
        layers: Number of layers.
        width: Hidden size.
        positions: Most tokens of a prompt.
    """
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    tokenizer = build_tokenizer(vocabulary, texts)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        initializer_range=0.08,  # large, so that scores differ from one another
    )
    model: Any = Qwen3ForCausalLM(config)
    with without_progress_bar():
        model.float().save_pretrained(folder)
    return folder


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Keep transformers from showing a bar for a file that is written in no time."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(build_tiny_reranker(Path(sys.argv[1])))
