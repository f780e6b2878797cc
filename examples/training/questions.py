"""Questions that a language model writes from passages."""

import json
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich.progress import track

# A small model writes questions well, and claims and requests badly: it repeats the text, or invents.
_ASK = "Write one short question that this text answers."
_EXAMPLES = {
    "The Danube is the second-longest river in Europe. It flows through ten countries and ends in the Black Sea.": (
        "How many countries does the Danube flow through?"
    ),
    "jq: a command-line processor that slices, filters and maps JSON data with a small query language.": (
        "How can I filter JSON data on the command line?"
    ),
    "Photosynthesis turns light into chemical energy. Plants take in carbon dioxide and water, and give off oxygen.": (
        "What do plants give off when they turn light into energy?"
    ),
}


def digest(text: str) -> str:
    """A short name of a text."""
    return sha256(text.encode()).hexdigest()[:16]


def write_questions(passages: Sequence[dict[str, Any]], file: Path, writer: str, seed: int) -> None:
    """Append a question about each passage to `file`, but for those that it has.

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
    sampling = SamplingParams(temperature=0.5, max_tokens=32, stop=["\n", "?"], include_stop_str_in_output=True)
    for start in track(range(0, len(todo), 256), "Writing questions"):
        part = todo[start : start + 256]
        answers = model.chat([_chat(passage) for passage in part], sampling, use_tqdm=False)
        with file.open("a", encoding="utf-8") as out:
            for passage, answer in zip(part, answers, strict=True):
                record = {"passage": digest(passage["text"]), "query": answer.outputs[0].text.strip()}
                out.write(json.dumps(record, ensure_ascii=False) + "\n")


def _chat(passage: dict[str, Any]) -> list[Any]:
    chat = [
        {"role": role, "content": content}
        for text, question in _EXAMPLES.items()
        for role, content in (("user", f"{_ASK}\n\n{text}"), ("assistant", question))
    ]
    return [*chat, {"role": "user", "content": f"{_ASK}\n\n{' '.join(passage['text'].split()[:80])}"}]


def is_usable(question: str) -> bool:
    """Whether a model's answer is a question that can stand alone."""
    about_itself = re.search(r"\b(?:this|the|these) (?:text|passage|statement|sentence|question)s?\b", question)
    return question.endswith("?") and 3 <= len(question.split()) <= 30 and not about_itself
