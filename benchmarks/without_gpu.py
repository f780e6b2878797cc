"""Winnow without vLLM, beside sentence-transformers and a loop by hand: a real language model on this machine's CPU.

The model is SmolLM2-135M-Instruct (examples/demo_model.py), the prompt Qwen3-Reranker's, about 300 tokens long. Each
round has a query that no other has seen, with as many documents of natural lengths, and all contenders score it in
turn. Scores have to agree before a time counts. Counted are pairs per second, and the CPU time of this process, which
is what a busy machine distorts least.

    python benchmarks/without_gpu.py [--rounds 5] [--pairs 32] [--dtype float32] [--json FILE]
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from shared import largest_difference, machine, spread

from demo_model import language_model
from tiny_model import read_passages
from winnow import Reranker
from winnow.templates import built_in

BATCH = 16
# Tokens of a document: the rest of a prompt has 95.
MEDIAN, SIGMA = 190, 0.4
LABELS = ("no", "yes")
WINNOW, CROSS_ENCODER, BY_HAND = "Winnow, engine='transformers'", "sentence-transformers CrossEncoder", "by hand"
Score = Callable[[str, list[str]], list[float]]


class Round(NamedTuple):
    """What one contender did in one round."""

    pairs_per_s: float
    cpu_ms_per_pair: float


def pairs_of(seed: int, pairs: int) -> tuple[str, list[str]]:
    """A query and its documents, of which no other seed has one."""
    words = " ".join(passage["text"] for passage in read_passages()).split()
    lengths = random.Random(seed)  # noqa: S311 - the same in every run
    documents = []
    for number in range(pairs):
        length = int(lengths.lognormvariate(0, SIGMA) * MEDIAN / 1.2)  # a word has 1.2 tokens
        begin = lengths.randrange(len(words) - 1)
        documents.append(f"{number}. " + " ".join((words[begin:] + words * 2)[:length]))
    return f"{seed}: why does the water at the coast come and go?", documents


class Bench:
    """The model in each contender, in one data type."""

    def __init__(self, dtype: str):
        import torch
        from sentence_transformers import CrossEncoder
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = str(language_model())
        self.reranker = Reranker(
            folder,
            engine="transformers",
            recipe="qwen3-reranker",
            raw_scores=True,
            device="cpu",
            engine_kwargs={"dtype": dtype},
        ).start()
        self._cross_encoder: Any = CrossEncoder(
            folder,
            device="cpu",
            local_files_only=True,
            processor_kwargs={"chat_template": built_in("qwen3_reranker").source},
            model_kwargs={"dtype": dtype},
            activation_fn=torch.nn.Identity(),
        )
        load: Any = AutoModelForCausalLM.from_pretrained
        self._model: Any = load(folder, dtype=dtype).eval()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._labels = self._tokenizer.convert_tokens_to_ids(list(LABELS))

    def winnow(self, query: str, documents: list[str]) -> list[float]:
        """`Reranker.score`."""
        return self.reranker.score(query, documents)

    def cross_encoder(self, query: str, documents: list[str]) -> list[float]:
        """`CrossEncoder.predict`, which sorts, too."""
        pairs = [(query, document) for document in documents]
        scores: list[float] = self._cross_encoder.predict(pairs, batch_size=BATCH, show_progress_bar=False).tolist()
        return scores

    def by_hand(self, query: str, documents: list[str]) -> list[float]:
        """The code of Qwen3-Reranker's model card, sorted, and with the logits of the last token alone."""
        import torch

        prompts = self._prompts(query, documents)
        scores = [0.0] * len(documents)
        order = sorted(range(len(prompts)), key=lambda at: -len(prompts[at]))
        for batch in (order[at : at + BATCH] for at in range(0, len(order), BATCH)):
            texts = [prompts[at] for at in batch]
            inputs = self._tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
            with torch.inference_mode():
                logits = self._model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].float()
            no, yes = logits[:, self._labels].T.tolist()
            for at, low, high in zip(batch, no, yes, strict=True):
                scores[at] = high - low
        return scores

    def _prompts(self, query: str, documents: list[str]) -> list[str]:
        messages = [[{"role": "query", "content": query}, {"role": "document", "content": one}] for one in documents]
        template = built_in("qwen3_reranker").source
        prompts: list[str] = self._tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
        return prompts

    def tokens(self, query: str, documents: list[str]) -> float:
        """How many tokens a prompt has on average."""
        return statistics.mean(map(len, self._tokenizer(self._prompts(query, documents))["input_ids"]))

    def contenders(self) -> dict[str, Score]:
        """What is compared, by its name in the table."""
        return {WINNOW: self.winnow, CROSS_ENCODER: self.cross_encoder, BY_HAND: self.by_hand}


def measured(score: Score, query: str, documents: list[str]) -> Round:
    """One round of one contender."""
    begin, cpu = time.perf_counter(), time.process_time()
    done = len(score(query, documents))
    cpu, elapsed = time.process_time() - cpu, time.perf_counter() - begin
    return Round(done / elapsed, cpu / done * 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender runs (default: 5)")
    parser.add_argument("--pairs", type=int, default=32, help="pairs of a round (default: 32)")
    parser.add_argument("--dtype", default="float32", help="data type of all contenders (default: float32)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to this file")
    arguments = parser.parse_args()

    bench = Bench(arguments.dtype)
    contenders = bench.contenders()
    # This warms them up, too.
    difference = largest_difference([[score(*pairs_of(0, arguments.pairs // 2))] for score in contenders.values()])
    if difference > (1e-4 if arguments.dtype == "float32" else 0.5):
        sys.exit(f"The contenders' logits differ by {difference:.1e}: their times cannot be compared.")
    rows: dict[str, list[Round]] = {name: [] for name in contenders}
    for number in range(arguments.rounds):
        query, documents = pairs_of(number + 1, arguments.pairs)
        for name, score in contenders.items():
            rows[name].append(measured(score, query, documents))
            print(f"round {number}: {name:40} {rows[name][-1]}", file=sys.stderr, flush=True)
    tokens = bench.tokens(*pairs_of(1, arguments.pairs))
    ratios = {
        name: {
            field: statistics.median(
                getattr(a, field) / getattr(b, field) for a, b in zip(rows[WINNOW], one, strict=True)
            )
            for field in Round._fields
        }
        for name, one in rows.items()
        if name != WINNOW
    }
    report = {
        "machine": machine(),
        "load": os.getloadavg(),
        "dtype": arguments.dtype,
        "tokens_per_prompt": tokens,
        "largest_logit_difference": difference,
        "rounds": {name: [one._asdict() for one in rounds] for name, rounds in rows.items()},
        "ratios": ratios,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(
        f"{machine()}, load {os.getloadavg()[0]:.1f}; {arguments.dtype}, prompts of {tokens:.0f} tokens, "
        f"{arguments.pairs} pairs a round, medians of {arguments.rounds}; logits differ by {difference:.0e} at most\n"
    )
    print("| | pairs/s (least to most) | CPU, ms a pair |\n|---|---|---|")
    for name, rounds in rows.items():
        speed, cpu = ([getattr(one, field) for one in rounds] for field in Round._fields)
        print(f"| {name} | {spread(speed, 2)} | {spread(cpu)} |")
    print("\n| Winnow beside it, medians of paired ratios | pairs/s | CPU |\n|---|---|---|")
    for name, ratio in ratios.items():
        print(f"| {name} | {ratio['pairs_per_s']:.2f} | {ratio['cpu_ms_per_pair']:.2f} |")


if __name__ == "__main__":
    main()
