"""The training data of the demo's rerankers: groups of tiny passages, without downloads and without a model."""

import base64
import gzip
import json
import random
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn", reason="the training data needs scikit-learn")

import numpy as np

import training_data
from training import gather
from training.dictionaries import read_wordnet
from training.gather import distinct
from training.groups import DOCUMENTS, TWINS, Floats, make_groups
from training.pages import read_pages
from training.passages import Passage
from training.questions import digest
from training.sources import Source, licences
from training.tools import read_docstrings

TEXTS = [
    "Paris: the capital of France, on the river Seine",
    "Berlin: the capital of Germany, on the river Spree",
    "Madrid: the capital of Spain, on a plateau",
    "jq: slices and filters JSON data on the command line",
    "grep: prints the lines of files that match a pattern",
    "rsync: copies files between machines over the network",
    "ffmpeg: converts video and audio files between formats",
    "Photosynthesis turns light into chemical energy in plants",
    "Mitosis divides the nucleus of a cell into two nuclei",
    "Osmosis moves water through a membrane into a solution",
    "The Danube flows through ten countries to the Black Sea",
    "The Volga is the longest river of Europe",
    "A deadlock is a state where each thread waits for another",
    "A mutex lets one thread enter a critical section",
    "Bread is baked from flour, water, salt and yeast",
    "Cheese is made from milk with rennet",
    "Chess is played by two players on a board of 64 squares",
    "Football is played by two teams of eleven players",
]


DOCSTRING = '''
def score(a):
    """Computes the mean of all scores.

    It is weighted by the number of documents that each of the queries has, and it ignores those queries that have no
    relevant document at all.

    Args:
        a: Scores.
    """
'''


def passages() -> list[dict[str, Any]]:
    found = [{"text": text, "kind": "definition", "source": "dict-wn", "queries": []} for text in TEXTS]
    for source, text in (("dict-wn", "mouse: a small rodent with a tail"), ("dict-foldoc", "mouse: a pointing device")):
        twin = ("twin", "what is a mouse")
        found.append({"text": text, "kind": "definition", "source": source, "queries": [twin], "twin": "mouse"})
    found[0]["queries"] = [("question", "What is the capital of France?")]
    found[3]["queries"] = [("request", "filter JSON data")]
    found[14]["queries"] = [("title", "nothing of this kind")]
    return found


def vectors(texts: list[str]) -> Floats:
    """Words counted in 64 places: texts that share words are alike."""
    counts = np.zeros((len(texts), 64), dtype=np.float32)
    for row, text in zip(counts, texts, strict=True):
        for word in text.lower().replace(":", "").replace(",", "").replace("?", "").split():
            row[sha256(word.encode()).digest()[0] % 64] += 1
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def groups() -> list[dict[str, Any]]:
    found = passages()
    queries = training_data.queries_of(found, Path("absent"))
    return make_groups(
        found,
        queries,
        vectors([passage["text"] for passage in found]),
        vectors([query for *_, query in queries]),
        random.Random(0),  # noqa: S311
    )


def test_a_group_is_the_passage_of_the_query_and_seven_others() -> None:
    found = groups()
    for group in found:
        assert len(set(group["documents"])) == DOCUMENTS == len(group["teacher"]) == len(group["relevant"])
        assert group["relevant"][0] is True
        assert max(group["teacher"]) == group["teacher"][0] > 0
    assert found[0]["documents"][0] == TEXTS[0]
    assert set(TEXTS[1:3]) & set(found[0]["documents"]), "the other capitals are hard negatives"


def test_a_query_that_does_not_ask_for_its_passage_has_no_group() -> None:
    assert "nothing of this kind" not in [group["query"] for group in groups()]


def test_the_instruction_decides_between_two_passages_about_the_same_word() -> None:
    twins = [group for group in groups() if group["style"] == "twin"]
    assert [group["documents"][:2] for group in twins] == [
        [passages()[18]["text"], passages()[19]["text"]],
        [passages()[19]["text"], passages()[18]["text"]],
    ]
    for group in twins:
        assert group["instruction"] in TWINS[group["source"]]
        assert group["teacher"][1] <= -1.5
        assert group["relevant"][1] is False


def test_a_copy_of_the_passage_is_no_hard_negative() -> None:
    found = [*passages(), {**passages()[0], "text": TEXTS[0] + ".", "queries": []}]
    query = "What is the capital of France?"
    of_passages, of_query = vectors([passage["text"] for passage in found]), vectors([query])
    [group] = make_groups(found, [(0, "question", query)], of_passages, of_query, random.Random(1))  # noqa: S311
    assert TEXTS[0] + "." not in group["documents"][:6]


def test_a_passage_is_there_once() -> None:
    found = [{**passage, "title": passage["text"].split(":")[0]} for passage in passages()]
    without_twin = {key: value for key, value in found[18].items() if key != "twin"}
    copies = [{**found[0], "queries": []}, {**without_twin, "text": "mouse - a small rodent with a tail"}]
    assert distinct([*copies, *found]) == [copies[0], *found[1:]]


def test_too_few_passages_are_an_error() -> None:
    with pytest.raises(ValueError, match="A group needs 8 passages, but there are 2"):
        make_groups(passages()[:2], [], vectors(TEXTS[:2]), vectors(["a"]), random.Random(0))  # noqa: S311


def test_the_command_writes_the_same_groups_again_and_goes_on_from_the_files_it_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_data, "HELD_OUT", 0.6)  # 8 of the 20
    found = passages()
    questions = {
        TEXTS[2]: "Which capital of Spain is on a plateau?",  # held out
        TEXTS[16]: "How many players play chess on a board?",
        TEXTS[17]: "No question",
        "a text that is no longer there": "What was there before the text?",
    }
    training_data.write_lines(tmp_path / "passages.jsonl", found)
    training_data.write_json(tmp_path / "sources.json", [{"name": "dict-wn"}, {"name": "dict-foldoc"}])
    written = [{"passage": digest(text), "query": query} for text, query in questions.items()]
    training_data.write_lines(tmp_path / "questions.jsonl", written)
    texts = [passage["text"] for passage in found]
    texts += [query for *_, query in training_data.queries_of(found, tmp_path / "questions.jsonl")]
    long = [{**passage, "text": passage["text"] + "." + " And so on." * 60} for passage in found]
    training_data.write_lines(tmp_path / "passages.long.jsonl", long)
    for name, known in (("vectors.npz", texts), ("vectors.long.npz", [*(one["text"] for one in long), *texts])):
        digests = [sha256(text.encode()).hexdigest() for text in known]
        np.savez(tmp_path / name, digests=np.array(digests), vectors=vectors(known))

    runs = []
    for _ in range(2):
        training_data.main(tmp_path, embedder="never loaded: all vectors are in the file")
        files = ("groups.jsonl", "groups.dev.jsonl", "groups.mixed.jsonl")
        runs.append([(tmp_path / name).read_text() for name in files])

    assert runs[0] == runs[1]
    learnt, held_out, mixed = ([json.loads(line) for line in text.splitlines()] for text in runs[0])
    assert sorted(group["style"] for group in learnt) == ["generated", "question", "request", "twin", "twin"]
    assert [group["query"] for group in held_out] == [questions[TEXTS[2]]]
    long = [all(len(document.split()) > 100 for document in group["documents"]) for group in mixed]
    assert sum(long) == len(mixed) / 2, "half of them are long"
    documents = [{text for group in groups for text in group["documents"]} for groups in (learnt, held_out)]
    assert not documents[0] & documents[1]
    sources = json.loads((tmp_path / "sources.json").read_text())
    assert sources == [{"name": "dict-wn", "groups": 4}, {"name": "dict-foldoc", "groups": 1}]


def test_a_long_passage_is_asked_for_by_a_claim_of_one_of_its_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    word = Passage("Cut.", "flow", "definition", queries=[("title", "flow")], whole="Water flows down the hill. " * 40)
    terms = [
        Passage(
            f"The {name} of cells (in plants) is a process. It lasts for hours.",
            name,
            "science",
            queries=[("title", name)],
        )
        for name in ("growth", "division", "transport", "death")
    ]
    source = Source("tiny", 0, lambda _: iter([word, *terms]), licence="MIT", long=10)
    monkeypatch.setattr(gather, "SOURCES", (source,))
    monkeypatch.setattr(gather, "folder_of", lambda *_: Path())
    found = {passage["kind"]: passage for passage in gather.gather_long(Path(), 1.0, 0)}
    assert len(found["definition"]["text"].split()) > 190
    assert found["definition"]["queries"][0] == ("title", "flow")
    about, claim = found["science"]["queries"]
    assert about[1] in ("growth", "division", "transport", "death")
    assert claim[0] == "claim"
    assert "(" not in claim[1]
    assert "is process" in claim[1] or "is a process" in claim[1]


def test_a_dictionary_is_asked_for_persons_and_capitals(tmp_path: Path) -> None:
    entries = {
        "Paris": "    n 1: the capital and largest city of France; and international\n         center of culture",
        "Einstein": "    n 1: physicist born in Germany who formulated the special theory\n"
        "         of relativity (1879-1955) [syn: {Einstein}, {Albert Einstein}]",
    }
    folder = tmp_path / "usr" / "share" / "dictd"
    folder.mkdir(parents=True)
    text, index = b"", ""
    for head, body in entries.items():
        entry = f"{head}\n{body}\n".encode()
        index += f"{head}\t{_number(len(text))}\t{_number(len(entry))}\n"
        text += entry
    (folder / "wn.index").write_text(index)
    (folder / "wn.dict.dz").write_bytes(gzip.compress(text))

    paris, einstein = read_wordnet(tmp_path)

    assert ("question", "What is the capital of France?") in paris.queries
    assert ("question", "Who formulated the special theory of relativity (1879-1955)?") not in einstein.queries
    assert ("question", "Who formulated the special theory of relativity?") in einstein.queries
    assert einstein.text == "physicist born in Germany who formulated the special theory of relativity (1879-1955)"


def _number(value: int) -> str:
    """A number as dictd writes it: digits of base 64."""
    return base64.b64encode(value.to_bytes(3, "big")).decode()


def test_pages_are_asked_for_by_heading_and_by_a_sentence_taken_out(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        "<h2>2.1. Why do rivers flow to the sea?</h2><p>Rivers flow downhill because gravity pulls water. "
        "Mountains collect rain and snow all year round. Every river ends in a lake, a desert or the sea.</p>"
    )
    [passage] = read_pages(tmp_path, pattern="*.html", kind="prose")
    assert passage.queries[0] == ("question", "Why do rivers flow to the sea?")
    assert ("claim", "Mountains collect rain and snow all year round.") in passage.queries


def test_docstrings_are_asked_for_by_what_they_do(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "_metrics.py").write_text(DOCSTRING)
    [passage] = read_docstrings(tmp_path / "library")
    assert passage.title == "library.score"
    assert ("request", "How can I compute the mean of all scores?") in passage.queries
    assert passage.text.startswith("It is weighted")
    assert passage.text.endswith("at all.")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("License: GPL-2+\n This is free", ["GPL-2+"]),
        ("License: Proprietary\n This licence is not the GPL", []),
        ("All rights reserved; written in Python", []),
        ("This is in the public domain.", ["public domain"]),
    ],
)
def test_a_source_without_a_free_licence_has_none(tmp_path: Path, text: str, found: list[str]) -> None:
    file = tmp_path / "usr" / "share" / "doc" / "book" / "copyright"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert licences(Source("book", 1, read_wordnet), tmp_path) == found
