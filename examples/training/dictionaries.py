"""Reads dictionaries in the format of dictd, and the Gene Ontology."""

import gzip
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from training.passages import Passage, cut, lower_first, plain, sentences

_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def _entries(folder: Path) -> Iterator[tuple[str, str]]:
    """Headword and text of each entry of a dictd dictionary."""
    index = next(folder.glob("usr/share/dictd/*.index"))
    with gzip.open(index.with_suffix(".dict.dz")) as file:
        data = file.read()
    seen = set()
    for line in index.read_text(encoding="utf-8", errors="replace").splitlines():
        head, start, length = line.split("\t")[:3]
        first, count = (sum(_DIGITS.index(d) * 64**i for i, d in enumerate(reversed(n))) for n in (start, length))
        if not head.startswith("00") and first not in seen:
            seen.add(first)
            head, _, text = data[first : first + count].decode("utf-8", "replace").partition("\n")
            yield head.strip(), text


def _questions_of(head: str, gloss: str) -> list[tuple[str, str]]:
    """Queries for the definition `gloss` of `head`: it by name, and what it says of persons and places."""
    asked = [("question", form.format(head)) for form in ("What is {}?", "what does {} mean", "Explain the term {}.")]
    asked += [("title", head), ("title", f"{head} definition"), ("title", f"meaning of {head}")]
    person = re.search(r"\b(?:who|he|she) ((?!is |was |are |has )[a-z]+ [^;()\"]{20,110})", gloss)
    if re.search(r"\(\d{3,4}-\d{3,4}\)|\(born ", gloss):
        asked = [
            ("question", f"Who was {head}?"),
            ("question", f"who is {head}"),
            ("question", f"When did {head} live?"),
        ]
        if person:
            asked += [("question", f"Who {person[1].strip()}?")] * 3
    if capital := re.search(r"\bcapital (?:and [a-z ]+)?of (?:the )?([A-Z][A-Za-z ]+)", gloss):
        asked = [("question", f"What is the capital of {capital[1].strip()}?"), ("question", f"Where is {head}?")]
    elif re.search(r"\b(?:city|town|river|mountain|island|lake|country|republic|port)\b.* (?:in|of) .*[A-Z]", gloss):
        asked = [("question", f"Where is {head}?"), ("title", head), ("question", f"What is {head} known for?")]
    return asked


def read_wordnet(folder: Path) -> Iterator[Passage]:
    """WordNet's nouns: words, persons, places, events."""
    for head, text in _entries(folder):
        senses = re.split(r"\s+n 1: |\s+\d+: ", re.split(r"\s(?:v|adj|adv) 1: ", " " + plain(text))[0])[1:]
        glosses = [re.sub(r"\s*\[(?:syn|ant|also): .*?\]|[{}]", "", sense).strip() for sense in senses]
        if len(head) > 2 and glosses and len(glosses[0].split()) >= 9:
            gloss = glosses[0]
            if re.search(r"sexual|obscene|offensive|disparag|slang|vulgar", gloss):
                continue
            queries = _questions_of(head, gloss)
            if len(gloss.split(";")[0].split()) >= 7:
                queries += [
                    ("claim", gloss.split(";")[0]),
                    ("question", f"What is the word for {gloss.split(';')[0]}?"),
                ]
            yield Passage(cut("; ".join(glosses[:2]), 70), head, "definition", queries=queries)


def read_gcide(folder: Path) -> Iterator[Passage]:
    """The GNU version of the Collaborative International Dictionary of English, without etymologies."""
    for head, text in _entries(folder):
        head = head.split("\\")[0].strip()
        text = re.sub(r"\\.*?\\|[{}]|--[A-Z][\w. ]+\.", "", plain(text))
        for _ in range(3):  # Brackets in brackets.
            text = re.sub(r"\s*\[[^\[\]]*\]", "", text)
        text = text.rsplit("]", 1)[-1]
        text = re.sub(r"^\s*(?:\([^)]*\),?\s*)?(?:(?:n|a|v|t|i|p|pl|adv|imp|vb)\b\.?[\s;,&]*)*", "", text)
        if head.isascii() and len(text.split()) >= 15 and "Obs" not in text[:60]:
            yield Passage(cut(text, 80), head, "definition", queries=_questions_of(head, text), whole=text)


def read_foldoc(folder: Path) -> Iterator[Passage]:
    """The Free On-line Dictionary of Computing."""
    for head, text in _entries(folder):
        text = re.sub(r"\(\d{4}-\d\d-\d\d\)|<[^>]*>|\{\([^)]*\)\}|\(?(?:http|ftp)://\S+|[{}]", "", text)
        text = plain(text)
        if len(text.split()) >= 15:
            yield Passage(cut(text, 90), head, "definition", queries=_questions_of(head, ""), whole=text)


def read_dictionary(folder: Path) -> Iterator[Passage]:
    """Any other dictionary, such as the Jargon File."""
    for head, text in _entries(folder):
        text = re.sub(r"^(?:/[^/]*/,? *)?(?:(?:n|v|vt|vi|adj|adv)[.,]+ *)*", "", plain(re.sub(r"[{}]", "", text)))
        if len(text.split()) >= 15 and sum(letter.isalpha() or letter == " " for letter in text) > 0.85 * len(text):
            yield Passage(cut(text, 90), head, "definition", queries=_questions_of(head, ""), whole=text)


def read_elements(folder: Path) -> Iterator[Passage]:
    """The chemical elements."""
    for head, text in _entries(folder):
        asked = [f"What is the atomic number of {head}?", f"properties of {head}", f"What is {head} used for?"]
        asked += [f"Who discovered {head}?", f"chemical symbol of {head}"]
        yield Passage(
            cut(re.sub(r"[{}]", "", text), 90), head, "science", queries=[("question", query) for query in asked]
        )


def read_devil(folder: Path) -> Iterator[Passage]:
    """Ambrose Bierce's Devil's Dictionary."""
    for head, text in _entries(folder):
        whole = plain(f"{head} {text}")
        if match := re.match(r"([A-Z' -]{3,}), (?:n|adj|v\.[ti]|adv)\. (.{60,})", whole):
            word = match[1].lower()
            asked = [f"satirical definition of {word}", f"How did Ambrose Bierce define {word}?", f"joke about {word}"]
            yield Passage(cut(match[2], 80), word, "definition", queries=[("question", query) for query in asked])


def read_gene_ontology(folder: Path) -> Iterator[Passage]:
    """What the terms of the Gene Ontology mean: processes, functions and parts of cells."""
    with sqlite3.connect(next(folder.rglob("GO.sqlite"))) as database:
        rows = database.execute("SELECT term, definition FROM go_term ORDER BY go_id").fetchall()
    for term, definition in rows:
        text = plain(re.sub(r"\[[^\]]*\]", "", definition or ""))
        if len(text.split()) >= 18 and "obsolete" not in term.lower():
            first, *rest = sentences(text)
            queries = [("title", term), ("question", f"What is {term}?"), ("question", f"How does {term} work?")]
            queries += [("question", f"Which biological process or structure is this: {lower_first(first)[:-1]}?")]
            if len(rest) > 0 and len(" ".join(rest).split()) >= 15:
                queries += [("claim", sentences(text)[1])]
            yield Passage(cut(text, 90), term, "science", queries=queries)
