"""Queries that a language model writes from passages: questions, claims, requests."""

import json
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich.progress import track

# What the model is asked to write, with examples; the passage's kind says which of them.
_DANUBE = "The Danube is the second-longest river in Europe. It flows through ten countries and ends in the Black Sea."
_LEAVES = (
    "Photosynthesis turns light into chemical energy. Plants take in carbon dioxide and water, and give off oxygen."
)
_JQ = "jq: a command-line processor that slices, filters and maps JSON data with a small query language."
_DROPOUT = "Dropout: During training, randomly zeroes some of the elements of the input tensor with probability p."
_TASKS: dict[str, tuple[str, dict[str, str]]] = {
    "question": (
        "Write one short question that this text answers.",
        {
            _DANUBE: "How many countries does the Danube flow through?",
            _JQ: "How can I filter JSON data on the command line?",
            _LEAVES: "What do plants give off when they turn light into energy?",
        },
    ),
    "claim": (
        "Write one short statement of fact that this text supports, in other words.",
        {
            _DANUBE: "Only one European river is longer than the Danube.",
            _LEAVES: "Plants release oxygen as they use the energy of light.",
            _JQ: "JSON can be filtered from a shell without a programming language.",
        },
    ),
    "request": (
        "Write one sentence of a person who needs this, without its name.",
        {
            _JQ: "We get large JSON files every night and have to pick a few fields out of them in a shell script.",
            _DROPOUT: "My neural network learns the training images by heart, and I want to regularise it.",
        },
    ),
}


def digest(text: str) -> str:
    """A short name of a text."""
    return sha256(text.encode()).hexdigest()[:16]


def task_of(passage: dict[str, Any]) -> str:
    """What to write of a passage: requests of tools, questions or claims of others."""
    if passage["kind"] in ("package", "api"):
        return "request"
    return "claim" if int(digest(passage["text"]), 16) % 2 else "question"


def write_questions(passages: Sequence[dict[str, Any]], file: Path, writer: str, seed: int) -> None:
    """Append a query for each passage to `file`, but for those that it has.

    Args:
        passages: Records of passages.jsonl.
        file: questions.jsonl.
        writer: A chat model that vLLM loads.
        seed: The engine's seed.
    """
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    done = {json.loads(line)["passage"] for line in lines}
    todo = [passage for passage in passages if digest(passage["text"]) not in done]
    if not todo:
        return
    from vllm import LLM, SamplingParams

    # On a CPU the share of memory is of the whole machine's, and compiling takes longer than the questions.
    model = LLM(
        writer,
        dtype="bfloat16",
        max_model_len=1024,
        max_num_seqs=64,
        gpu_memory_utilization=0.2,
        enforce_eager=True,
        block_size=32,  # small enough that the examples' prompt is computed once
        seed=seed,
    )
    # The seed is the engine's: vLLM 0.32 on a CPU fails on a seed of a request.
    sampling = SamplingParams(temperature=0.6, top_p=0.9, max_tokens=40, stop=["\n"])
    for start in track(range(0, len(todo), 256), "Writing questions"):
        part = todo[start : start + 256]
        answers = model.chat([_chat(passage) for passage in part], sampling, use_tqdm=False)
        with file.open("a", encoding="utf-8") as out:
            for passage, answer in zip(part, answers, strict=True):
                record = {"passage": digest(passage["text"]), "query": answer.outputs[0].text.strip()}
                out.write(json.dumps(record, ensure_ascii=False) + "\n")


def _chat(passage: dict[str, Any]) -> list[Any]:
    ask, examples = _TASKS[task_of(passage)]
    chat = []
    for text, query in examples.items():
        chat += [{"role": "user", "content": f"{ask}\n\n{text}"}, {"role": "assistant", "content": query}]
    return [*chat, {"role": "user", "content": f"{ask}\n\n{' '.join(passage['text'].split()[:80])}"}]


def first_sentence(answer: str) -> str | None:
    """The first sentence of a model's answer; None if it cannot stand alone."""
    sentence = re.split(r"(?<=[.?!])\s", answer)[0]
    if not sentence.endswith((".", "?")) or not 4 <= len(sentence.split()) <= 35:
        return None
    return None if re.search(r"\b(?:this|the) (?:text|passage|statement)\b|\bAI\b", sentence) else sentence
