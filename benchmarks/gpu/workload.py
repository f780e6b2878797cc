"""What is scored: a model of the real one's shape with random weights, and texts that no engine has seen."""

import json
import math
import os
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tiny_model import build_tiny_reranker, read_passages
from winnow.models import bind_template, open_checkpoint
from winnow.prompts import Limits, PromptBuilder, PromptLayout

DATA = Path(os.environ.get("WINNOW_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
REAL_TOKENIZER = DATA / "tokenizers" / "qwen3" / "tokenizer.json"
MAX_LENGTH = 4096

# config.json of Qwen/Qwen3-Reranker-0.6B.
SHAPE: dict[str, Any] = {
    "vocab_size": 151669,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
}
SMOKE_SHAPE = SHAPE | {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "initializer_range": 0.08,  # large, so that scores differ although there are few layers
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured.

    Attributes:
        callers: Queries of a round, each with a thread of its own.
        documents: Documents of each query.
        words: Median of a document's words.
        rounds: Rounds of each way.
        check: Queries whose scores are compared, and documents of each.
        reference: How many of these pairs are computed in float32, too.
    """

    callers: int
    documents: int
    words: int
    rounds: int
    check: tuple[int, int]
    reference: int

    def work(self, seed: int, share: int = 1) -> "Work":
        """Texts that no other seed has, of a round or of a part of one."""
        return workload(seed, max(1, self.callers // share), self.documents, self.words)

    def check_work(self) -> "Work":
        """The pairs whose scores are compared."""
        return workload(0, *self.check, self.words)


FULL = Size(callers=64, documents=100, words=240, rounds=3, check=(4, 32), reference=16)
SMOKE = Size(callers=4, documents=8, words=40, rounds=2, check=(2, 8), reference=8)

Work = list[tuple[str, list[str]]]
Ids = list[list[tuple[int, ...]]]


@dataclass
class Outcome:
    """Logits by query and document, and the tokens that came from the prefix cache; None where a way does not say."""

    logits: list[list[float]]
    cached: int | None = None


def build_model(folder: Path, shape: dict[str, Any], texts: Iterable[str]) -> None:
    """Write random weights, their config and a tokenizer of the vocabulary's size into `folder`.

    Real files and not vLLM's `load_format="dummy"`: its weights lie within ±0.001, so that all logits are nearly equal
    and no comparison of scores could fail.
    """
    import torch
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if REAL_TOKENIZER.is_file():
        tokenizer = Tokenizer.from_file(str(REAL_TOKENIZER))
    else:
        # A trained one, with pieces that no merge makes up to the size: text never becomes them.
        trained = build_tiny_reranker(folder / "trained", vocabulary=16000, texts=texts) / "tokenizer.json"
        state = json.loads(trained.read_text(encoding="utf-8"))
        control = [AddedToken(t["content"], normalized=False, special=t["special"]) for t in state["added_tokens"]]
        vocabulary = {t: at for t, at in state["model"]["vocab"].items() if t not in {str(c.content) for c in control}}
        for index in set(range(shape["vocab_size"] - len(control))) - set(vocabulary.values()):
            vocabulary[f"<unused-{index}>"] = index
        state["model"]["vocab"], state["added_tokens"] = vocabulary, []
        tokenizer = Tokenizer.from_str(json.dumps(state))
        for token in control:
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    if tokenizer.get_vocab_size() != shape["vocab_size"]:
        raise SystemExit(f"The tokenizer has {tokenizer.get_vocab_size()} tokens instead of {shape['vocab_size']}.")
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    # Random numbers are made faster in float32 than in bfloat16.
    Qwen3ForCausalLM(Qwen3Config(**shape)).bfloat16().save_pretrained(folder)


@cache
def sentences() -> list[str]:
    """Sentences of the demo's passages and, where present, of the evaluation collections."""
    texts = [passage["text"] for passage in read_passages()]
    for corpus in sorted((DATA / "collections").glob("*/corpus.jsonl")):
        texts += [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]
    return [found for text in texts for found in re.split(r"(?<=[.!?])\s+", text) if len(found.split()) > 3]


@cache
def workload(seed: int, callers: int, documents: int, words: int) -> Work:
    """Queries and documents, none of them twice; lengths are log-normal around `words`, as those of passages are."""
    chance = random.Random(seed)  # noqa: S311
    seen: set[str] = set()

    def text() -> str:
        target = min(max(chance.lognormvariate(math.log(words), 0.6), 15), 1500)
        parts: list[str] = []
        while len(parts) < target:
            parts += chance.choice(sentences()).split()
        return " ".join(parts)

    def unseen() -> str:
        while (found := text()) in seen:
            pass
        seen.add(found)
        return found

    return [
        (f"question {seed}.{caller}: " + " ".join(unseen().split()[:12]), [unseen() for _ in range(documents)])
        for caller in range(callers)
    ]


class Prompts:
    """Token ids of a workload, ready before the clock starts.

    Those of a prompt are a tuple: Python's garbage collector walks lists, and would stop the ways that are measured.
    """

    def __init__(self, model: str):
        checkpoint = open_checkpoint(model)
        segments = bind_template(checkpoint, None, None, with_instruction=False)
        self._builder = PromptBuilder(PromptLayout(checkpoint.tokenizer, segments, Limits(max_length=MAX_LENGTH)))
        self._ready: dict[int, list[tuple[int, ...]]] = {}

    def __call__(self, work: Work) -> Ids:
        """Ids by query and document; `work` consists of what comes from `workload`, which keeps it alive."""
        return [self._of(query, documents) for query, documents in work]

    def _of(self, query: str, documents: list[str]) -> list[tuple[int, ...]]:
        if id(documents) not in self._ready:
            self._ready[id(documents)] = [
                tuple(prompt.ids) for document in self._builder.build(query, documents) for prompt in document.prompts
            ]
        return self._ready[id(documents)]


def flops(shape: dict[str, Any], lengths: list[int], cached: int) -> float:
    """Arithmetic of prefilling prompts: matrix products and causal attention. 0.47 TFLOP for one of 500 tokens.

    Args:
        shape: The config. Embedding and head are not counted: a look-up, and one row.
        lengths: Tokens of each prompt.
        cached: Tokens that came from the prefix cache, all prompts together; taken as the same for each.
    """
    width = shape["num_attention_heads"] * shape["head_dim"]
    narrow = shape["num_key_value_heads"] * shape["head_dim"]
    attention = shape["hidden_size"] * (2 * width + 2 * narrow)
    weights = shape["num_hidden_layers"] * (attention + 3 * shape["hidden_size"] * shape["intermediate_size"])
    share = cached / len(lengths)
    products = 2 * weights * (sum(lengths) - cached)
    return products + 2 * shape["num_hidden_layers"] * width * sum(n * n - share * share for n in lengths)
