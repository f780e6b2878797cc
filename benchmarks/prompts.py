"""What building prompts costs: 1 query × 1,000 documents of about 300 tokens, with Qwen3's real tokenizer.

Winnow (render, tokenise, check the length; the shared beginning tokenised once) against transformers' tokenizer called
once on the 1,000 whole rendered prompts. Both use all cores; rounds are paired, one after the other. Meanwhile an event
loop ticks every millisecond: the largest gap says whether it was blocked.

    WINNOW_TEST_DATA=... python benchmarks/prompts.py [--json]
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from winnow.prompts import Limits, PromptBuilder, PromptLayout
from winnow.templates import Layout, Origin, built_in, rendered
from winnow.tokenizer import PromptTokenizer

DOCUMENTS, TOKENS, ROUNDS = 1000, 300, 15
QUERY = "Do antibodies against interleukin-6 lower the risk of heart failure in old age?"
INSTRUCTION = "Given a scientific claim, retrieve passages that support or refute it"
DATA = Path(os.environ.get("WINNOW_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def documents_of(tokenizer: Tokenizer) -> list[str]:
    """Real abstracts, joined and cut to about the same number of tokens."""
    lines = (DATA / "collections" / "scifact" / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    text = " ".join(json.loads(line)["text"] for line in lines[:2500])
    ends = [end for _, end in tokenizer.encode(text).offsets]
    cuts = [0, *ends[TOKENS - 1 :: TOKENS]]
    return [text[start:end] for start, end in pairwise(cuts)][:DOCUMENTS]


async def largest_gap(work: Callable[[], Any]) -> float:
    """Longest time, in seconds, that an event loop did not come to its turn while a thread of it worked."""
    gap, before = 0.0, time.perf_counter()
    task = asyncio.create_task(asyncio.to_thread(work))
    while not task.done():
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        gap, before = max(gap, now - before), now
    await task
    return gap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    arguments = parser.parse_args()

    own = Tokenizer.from_file(str(DATA / "tokenizers" / "qwen3" / "tokenizer.json"))
    documents = documents_of(own)
    template = built_in("qwen3_reranker")
    builder = PromptBuilder(
        PromptLayout(PromptTokenizer(own), template.segments(with_instruction=True), Limits(max_length=8192))
    )
    reference = PreTrainedTokenizerFast(tokenizer_object=own)
    values = {"query": QUERY, "instruction": INSTRUCTION}
    origin = Origin(template.origin, trusted=True)
    texts = [
        rendered(str(template.source), origin, {**values, "document": document}, {}, Layout()) for document in documents
    ]

    def winnow() -> list[list[int]]:
        return [built.prompts[0].ids for built in builder.build(QUERY, documents, INSTRUCTION)]

    def transformers() -> list[list[int]]:
        ids: list[list[int]] = reference(texts)["input_ids"]
        return ids

    assert winnow() == transformers(), "the ids differ"  # noqa: S101 -- also warms up
    times: dict[str, list[float]] = {"winnow": [], "transformers": []}
    for number in range(ROUNDS):
        pair = [("winnow", winnow), ("transformers", transformers)]
        for name, build in pair if number % 2 else reversed(pair):
            begin = time.perf_counter()
            build()
            times[name].append(time.perf_counter() - begin)
    gaps = {
        name: asyncio.run(largest_gap(build)) for name, build in [("winnow", winnow), ("transformers", transformers)]
    }

    ratios = sorted(theirs / ours for ours, theirs in zip(times["winnow"], times["transformers"], strict=True))
    ratio = statistics.median(ratios)
    milliseconds = {name: statistics.median(values) * 1000 for name, values in times.items()}
    gaps = {name: gap * 1000 for name, gap in gaps.items()}
    if arguments.json:
        print(json.dumps({"ratio": ratio, "ratios": ratios, "milliseconds": milliseconds, "largest_gap_ms": gaps}))
        return
    print(f"{len(documents)} prompts of {statistics.mean(map(len, winnow())):.0f} tokens on {os.cpu_count()} cores")
    for name in times:
        print(f"{name:13} {milliseconds[name]:6.0f} ms; an event loop beside it waits {gaps[name]:.1f} ms at most")
    print(
        f"transformers' time by Winnow's: {ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f} in {ROUNDS} paired rounds)"
    )


if __name__ == "__main__":
    main()
