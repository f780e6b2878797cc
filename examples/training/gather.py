"""Gathers the passages: a fair choice of all sources, each passage with one query."""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import track

from training.groups import TWINS
from training.passages import Passage, cut, plain, sentences, shortened, standing_alone
from training.sources import SOURCES, folder_of, licences, version

BENCHMARKS = re.compile(r"\b(?:MS ?MARCO|TREC|BEIR|SciFact|APIBench|NovelEval|CORD-19|HotpotQA|SQuAD)\b", re.IGNORECASE)

LONG_WORDS = 220  # of a long passage: some 300 tokens, as an abstract has
TWIN_WORDS = 350  # words that two sources explain, for groups that the instruction decides
TWIN_QUERIES = ("{}", "what is {}", "What is {}?", "{} meaning", "Explain {}.")


def render(passage: Passage, rng: random.Random) -> str:
    """The passage as documents look: mostly with its title where that says what the text is about."""
    title, text = passage.title, passage.text
    forms = {
        "definition": ["{title}: {text}", "{title}\n{text}", "{title} - {text}"],
        "science": ["{title}: {text}", "{title}\n{text}", "{text}"],
        "package": ["{title}: {text}", "Package: {title}\nDescription: {text}", "{text}"],
        "api": ["{title}: {text}", "API: {title}\nDescription: {text}", "{title}\n{text}"],
    }.get(passage.kind, ["{text}", "{text}", "{title}\n{text}"])
    return rng.choice(forms).format(title=title, text=text).strip()


def choose_query(passage: Passage, rng: random.Random) -> Passage:
    """The passage with one of its queries, and without the sentence if the query is a sentence of it."""
    if not passage.queries:
        return passage
    style, query = rng.choice(passage.queries)
    text = passage.text
    if style == "claim" and query in text and rng.random() < 0.7:
        text = " ".join(text.replace(query, "").split())
    if len(text.split()) < 8:
        text = passage.text
    return Passage(text, passage.title, passage.kind, passage.source, [(style, query)])


def gather(folder: Path, scale: float, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Choose passages of all sources.

    Args:
        folder: Where packages are unpacked, and downloaded if they are not there.
        scale: The share of what each source is asked for.
        seed: Of the choice.

    Returns:
        Records of passages.jsonl in random order, and of sources.json.
    """
    chosen: list[dict[str, Any]] = []
    about: list[dict[str, Any]] = []
    by_word: dict[str, dict[str, Passage]] = defaultdict(dict)
    seen: set[str] = set()
    for source in track(SOURCES, "Reading sources"):
        rng = random.Random(f"{seed} {source.name}")  # noqa: S311
        where = folder_of(source, folder)
        record: dict[str, Any] = {"name": source.name, "version": version(source), "licences": licences(source, where)}
        about.append(record)
        if not record["licences"]:
            record["excluded"] = "no free licence was found"
            continue
        found = []
        for passage in source.read(where):
            start = passage.text[:80].lower()
            if start in seen or not _is_usable(passage.text):
                continue
            seen.add(start)
            passage.source = source.name
            found.append(passage)
            if source.name in TWINS and passage.title.isalpha() and len(passage.title) > 2:
                by_word[passage.title.lower()].setdefault(source.name, passage)
        rng.shuffle(found)
        found.sort(key=lambda passage: not passage.queries)  # those with a query first, in random order
        taken = found[: int(source.wanted * scale)]
        taken += _long_passages(found)[: len(taken) // 10]
        for passage in taken:
            asked = choose_query(passage, rng)
            chosen.append(asdict(asked) | {"text": render(asked, rng)})
        record["passages"] = len(taken)
    rng = random.Random(f"{seed} twins")  # noqa: S311
    words = sorted(word for word, entries in by_word.items() if len(entries) > 1)
    for word in rng.sample(words, min(len(words), int(TWIN_WORDS * scale))):
        for passage in by_word[word].values():
            passage.queries = [("twin", rng.choice(TWIN_QUERIES).format(passage.title.lower()))]
            chosen.append(asdict(passage) | {"text": f"{passage.title}: {passage.text}", "twin": word})
    rng.shuffle(chosen)
    return distinct(chosen), about


def gather_long(folder: Path, scale: float, seed: int) -> list[dict[str, Any]]:
    """Long passages, of the sources that have them: records of passages.long.jsonl, in random order."""
    chosen = []
    for source in track([source for source in SOURCES if source.long], "Reading long passages"):
        rng = random.Random(f"{seed} {source.name} long")  # noqa: S311
        where = folder_of(source, folder)
        if not licences(source, where):
            continue
        found = [passage for passage in source.read(where) if _is_usable(passage.whole or passage.text)]
        long = _distinct_beginnings([*_whole(found), *_joined(found)])
        for passage in rng.sample(long, min(len(long), int(source.long * scale))):
            passage.source = source.name
            asked = _ask_long(passage, rng)
            chosen.append(asdict(asked) | {"text": render(asked, rng)})
    random.Random(f"{seed} long").shuffle(chosen)  # noqa: S311
    return distinct(chosen)


def _whole(found: Sequence[Passage]) -> list[Passage]:
    """Long texts that were cut."""
    return [
        Passage(cut(passage.whole, LONG_WORDS), passage.title, passage.kind, queries=passage.queries)
        for passage in found
        if len(passage.whole.split()) >= LONG_WORDS // 2
    ]


def _joined(found: Sequence[Passage]) -> list[Passage]:
    """Neighbouring passages of science as one text, in which one of them answers: as abstracts have several facts."""
    science = [passage for passage in found if passage.kind == "science"]
    joined = []
    for start in range(0, len(science) - 3, 4):
        parts = science[start : start + 4]
        queries = [query for part in parts for query in part.queries]
        joined.append(Passage(cut(" ".join(part.text for part in parts), LONG_WORDS), "", "science", queries=queries))
    return joined


def _ask_long(passage: Passage, rng: random.Random) -> Passage:
    """The passage with two queries: one that it had, and a claim that one of its sentences makes.

    That sentence is taken out of some passages: the others then say what the claim is about.
    """
    asked = [rng.choice(passage.queries)] if passage.queries else []
    text = passage.text
    if good := standing_alone(sentences(text)):
        sentence = rng.choice(good)
        asked = [query for query in asked if query[0] != "claim"] + [("claim", shortened(sentence, rng))]
        rest = plain(text.replace(sentence, ""))
        if rng.random() < 0.3 and len(rest.split()) >= LONG_WORDS // 3:
            text = rest
    return Passage(text, passage.title, passage.kind, passage.source, asked)


def _distinct_beginnings(found: Sequence[Passage]) -> list[Passage]:
    """The first of those that begin alike."""
    return list({passage.text[:80].lower(): passage for passage in reversed(found)}.values())


def distinct(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records without copies: of equal texts the first stays, of equal passages the one that has a twin."""
    twins = {(record["source"], record["title"]) for record in records if record.get("twin")}
    kept: dict[str, dict[str, Any]] = {}
    for record in records:
        if record.get("twin") or (record["source"], record["title"]) not in twins:
            kept.setdefault(record["text"], record)
    return list(kept.values())


def _is_usable(text: str) -> bool:
    """Whether it names no collection, nearly all its letters are ASCII, and nothing is unprintable."""
    if BENCHMARKS.search(text):
        return False
    return text.replace("\n", " ").isprintable() and sum(letter.isascii() for letter in text) > 0.97 * len(text)


def _long_passages(found: Sequence[Passage]) -> list[Passage]:
    """The prose of one heading joined, for the headings that have enough of it."""
    texts: dict[str, list[Passage]] = defaultdict(list)
    for passage in found:
        if passage.title and passage.kind in ("prose", "documentation"):
            texts[passage.title].append(passage)
    long = []
    for title, parts in texts.items():
        text = "\n".join(part.text for part in parts[:8])
        if len(text.split()) >= 220 and parts[0].queries:
            style, query = parts[0].queries[0]
            asked = ("title", title) if style == "claim" else (style, query)
            long.append(Passage(" ".join(text.split(" ")[:360]), title, parts[0].kind, parts[0].source, [asked]))
    return long
