"""Write the data that the demo's rerankers are trained on: queries, passages, and a teacher's scores.

    apt-get update -o Acquire::Languages=en
    pip install scikit-learn scipy sentence-transformers
    python examples/training_data.py

It needs Debian, and downloads some 500 MB of packages, which are unpacked and not installed: dictionaries, manuals,
books. Descriptions of packages and docstrings of Python libraries join them. It reads no collection that rerankers are
evaluated on, and drops passages that name one. Interrupt it when you like: each stage writes its file into the folder,
and the same command goes on after it.

    passages.jsonl   passages, each with the query that was made from it: a heading, a summary, a question about the
                     headword, or a sentence that was taken out of the passage
    questions.jsonl  with --questions: questions that a language model writes from passages
    vectors.npz      embeddings of passages and queries
    groups.jsonl     what is learnt from, in random order: any first part of it is a fair mix
    groups.dev.jsonl the same of other passages, to see how the training goes
    *.long.*         the same of long passages: some 200 words, of which one sentence answers
    groups.mixed.jsonl  all groups of long passages, and as many of the others
    sources.json     each source with its version, licences, and how many passages and groups came from it

A line of groups.jsonl is a group:

    {"query": str, "instruction": str, "documents": [str] * 8, "teacher": [float] * 8,
     "relevant": [true | false | null] * 8, "source": str, "style": str}

The query was made from the first document. Of the others three are hard negatives of BM25, two are hard negatives of
the embedder, and two are random. In some groups two documents are about the same word, and the instruction says which
kind of text is wanted.

`teacher` is a logit: `teacher_scores` in training/groups.py makes it of the embedder's cosine, of BM25, and of what is
known of the group. `relevant` is null for a document that the teacher finds about as good as the first.
"""

import json
import random
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

import demo_model
from training.gather import gather, gather_long
from training.groups import Floats, make_groups
from training.questions import digest, is_usable, write_questions

HELD_OUT = 0.06  # share of the passages that the development groups are made of


def main(
    folder: Annotated[Path, typer.Argument(help="Where the files go.")] = demo_model.CACHE / "training",
    questions: Annotated[int, typer.Option(help="Let the model write a question from this many passages.")] = 0,
    embedder: Annotated[
        str | None, typer.Option(help="The teacher: a sentence-transformers model.", show_default="all-MiniLM-L6-v2")
    ] = None,
    writer: Annotated[
        str | None, typer.Option(help="What writes questions: a chat model.", show_default="SmolLM2-135M-Instruct")
    ] = None,
    scale: Annotated[float, typer.Option(help="Take this share of the passages; below 1 for a trial.")] = 1.0,
    development: Annotated[int, typer.Option(help="Number of groups in groups.dev.jsonl.")] = 300,
    seed: Annotated[int, typer.Option(help="The same seed and packages make the same groups.")] = 0,
) -> None:
    """Write the data that the demo's rerankers are trained on.

    Stages whose files are in FOLDER are not run again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "passages.jsonl").exists():
        found, sources = gather(folder / "unpacked", scale, seed)
        write_json(folder / "sources.json", sources)
        write_lines(folder / "passages.jsonl", found)
    passages = read_lines(folder / "passages.jsonl")
    if questions:
        model = writer or str(demo_model.language_model())
        write_questions(passages[:questions], folder / "questions.jsonl", model, seed)
    queries = queries_of(passages, folder / "questions.jsonl")
    texts = [passage["text"] for passage in passages] + [query for *_, query in queries]
    vectors = embed(texts, folder / "vectors.npz", embedder or str(demo_model.encoder()))

    groups = write_groups(folder, "", passages, queries, vectors, development, seed)
    if not (folder / "passages.long.jsonl").exists():
        write_lines(folder / "passages.long.jsonl", gather_long(folder / "unpacked", scale, seed))
    passages = read_lines(folder / "passages.long.jsonl")
    queries = queries_of(passages, folder / "questions.long.jsonl")
    texts = [passage["text"] for passage in passages] + [query for *_, query in queries]
    vectors = embed(texts, folder / "vectors.long.npz", embedder or str(demo_model.encoder()))
    long = write_groups(folder, ".long", passages, queries, vectors, development, seed)
    rng = random.Random(f"{seed} mixed")  # noqa: S311
    mixed = [*long, *rng.sample(groups, min(len(long), len(groups)))]
    rng.shuffle(mixed)
    write_lines(folder / "groups.mixed.jsonl", mixed)

    count = Counter(group["source"] for group in [*groups, *long])
    sources = json.loads((folder / "sources.json").read_text(encoding="utf-8"))
    write_json(folder / "sources.json", [source | {"groups": count[source["name"]]} for source in sources])


def write_groups(
    folder: Path,
    suffix: str,
    passages: Sequence[dict[str, Any]],
    queries: Sequence[tuple[int, str, str]],
    vectors: Floats,
    development: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Write groups{suffix}.dev.jsonl, of at most `development` groups, and groups{suffix}.jsonl, which is returned."""
    console = Console()
    groups: list[dict[str, Any]] = []
    for name, wanted in ((f"groups{suffix}.dev.jsonl", True), (f"groups{suffix}.jsonl", False)):
        # No group on one side has a passage of the other.
        part = [index for index, passage in enumerate(passages) if is_held_out(passage) == wanted]
        places = {index: place for place, index in enumerate(part)}
        mine = [index for index, (passage, *_) in enumerate(queries) if passage in places]
        rng = random.Random(f"{seed} {name}")  # noqa: S311
        groups = make_groups(
            [passages[index] for index in part],
            [(places[queries[index][0]], *queries[index][1:]) for index in mine],
            vectors[part],
            vectors[[len(passages) + index for index in mine]],
            rng,
        )
        rng.shuffle(groups)
        if wanted:
            groups = groups[:development]
        write_lines(folder / name, groups)
        styles = ", ".join(f"{count} {style}" for style, count in Counter(g["style"] for g in groups).most_common())
        console.print(f"{folder / name}: {len(groups)} groups ({styles})")
    return groups


def is_held_out(passage: dict[str, Any]) -> bool:
    """Whether a passage is for development. All passages about a word that has twins are on one side."""
    return int(digest(passage.get("twin") or passage["text"]), 16) % 1000 < 1000 * HELD_OUT


def queries_of(passages: Sequence[dict[str, Any]], questions: Path) -> list[tuple[int, str, str]]:
    """(passage's index, style, query) of the passages' own queries, then of what a model wrote, if it did."""
    queries = [(index, style, query) for index, passage in enumerate(passages) for style, query in passage["queries"]]
    if questions.exists():
        places = {digest(passage["text"]): index for index, passage in enumerate(passages)}
        queries += [
            (places[line["passage"]], "generated", line["query"])
            for line in read_lines(questions)
            if line["passage"] in places and is_usable(line["query"])
        ]
    return queries


def embed(texts: Sequence[str], file: Path, embedder: str) -> Floats:
    """Unit vectors of `texts`, shape (texts, dimensions); `file` keeps them, and only new texts are computed."""
    known: dict[str, Floats] = {}
    if file.exists():
        with np.load(file, allow_pickle=False) as stored:
            known = dict(zip(stored["digests"].tolist(), stored["vectors"], strict=True))
    digests = [sha256(text.encode()).hexdigest() for text in texts]
    new = {name: text for name, text in zip(digests, texts, strict=True) if name not in known}
    if new:
        import torch
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(embedder, model_kwargs={"dtype": torch.bfloat16})
        names = sorted(new, key=lambda name: len(new[name]), reverse=True)  # texts of a batch are of one length
        for start in track(range(0, len(names), 1024), "Embedding"):
            part = names[start : start + 1024]
            vectors = model.encode([new[name] for name in part], normalize_embeddings=True, convert_to_tensor=True)
            known |= dict(zip(part, vectors.float().cpu().numpy(), strict=True))
            partly = file.with_suffix(".part.npz")
            np.savez(partly, digests=np.array(list(known)), vectors=np.stack(list(known.values())))
            partly.replace(file)
    return np.stack([known[digest] for digest in digests])


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write_lines(file: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write JSON lines. The file is whole or absent."""
    _write(file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def write_json(file: Path, content: object) -> None:
    """Write JSON for people to read. The file is whole or absent."""
    _write(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _write(file: Path, text: str) -> None:
    partly = file.with_suffix(".part")
    partly.write_text(text, encoding="utf-8")
    partly.replace(file)


if __name__ == "__main__":
    typer.run(main)
