"""Makes groups of a query, its passage and negatives, with teacher scores."""

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.progress import track
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

Floats = np.ndarray[Any, np.dtype[np.float32]]

DOCUMENTS = 8
LONG = 200  # words: a long document's group gets another long one, so that length tells nothing

# What the query asks for, by the passage's kind or the query's style; the first that fits.
INSTRUCTIONS = {
    "claim": (
        "Given a claim, find the passages that support or refute it",
        "Given a scientific claim, retrieve documents that support or refute the claim",
        "Retrieve the passage that this statement was taken from or that is about the same fact",
    ),
    "package": (
        "Find the software package that does the task",
        "Given a request, retrieve descriptions of tools that fulfil it",
        "Given what a user needs, find the package, library or model to use",
    ),
    "api": (
        "Given a request, retrieve the API that does the task",
        "Find the function, class or command that does what the query asks for",
        "Given a task, retrieve descriptions of APIs, tools and models that solve it",
    ),
    "definition": ("Retrieve the definition of the term", "Given a question, find the entry that answers it"),
    "documentation": (
        "Find the part of the documentation that answers the question",
        "Retrieve documentation on the topic",
    ),
    "prose": ("Given a question, retrieve passages that answer it", "Find a text about the topic of the query"),
    "science": (
        "Retrieve scientific text that answers the query",
        "Given a question, retrieve passages that answer it",
    ),
}
WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"

# Sources that explain the same words differently: the instruction that asks for each of them.
TWINS = {
    "dict-wn": ("Retrieve what the word means in everyday English", "Find the entry of a general English dictionary"),
    "dict-foldoc": ("Retrieve what the word means in computing", "Find the entry of a dictionary of computing"),
    "apt": ("Retrieve the software package with this name", "Find descriptions of programs that can be installed"),
    "dict-devil": ("Retrieve satirical definitions", "Find a joke about the word"),
}


class Bm25:
    """BM25 of all passages for a query, as one sparse product (k1 = 0.9, b = 0.4, as Anserini has it)."""

    def __init__(self, texts: Sequence[str]):
        self._words = CountVectorizer(stop_words="english", token_pattern=r"(?u)\b\w+\b")
        counts = self._words.fit_transform(texts).tocoo()
        length = np.asarray(counts.sum(axis=1)).ravel()
        weight = counts.data * 1.9 / (counts.data + 0.9 * (0.6 + 0.4 * length[counts.row] / length.mean()))
        matrix = sparse.csr_matrix((weight, (counts.row, counts.col)), shape=counts.shape)
        found_in = np.bincount(counts.col, minlength=counts.shape[1])
        idf = np.log(1 + (len(texts) - found_in + 0.5) / (found_in + 0.5))
        self._matrix = (matrix @ sparse.diags(idf)).T.tocsr().astype(np.float32)

    def __call__(self, queries: Sequence[str]) -> Floats:
        """Scores of shape (queries, passages), each query's divided by its best."""
        words = self._words.transform(queries).astype(np.float32)
        words.data[:] = 1
        scores = (words @ self._matrix).toarray()
        return np.asarray(scores / np.maximum(scores.max(axis=1, keepdims=True), 1e-6), dtype=np.float32)


def make_groups(
    passages: Sequence[dict[str, Any]],
    queries: Sequence[tuple[int, str, str]],
    passage_vectors: Floats,
    query_vectors: Floats,
    rng: random.Random,
) -> list[dict[str, Any]]:
    """Make a group of each query that finds its passage.

    Args:
        passages: Records of passages.jsonl; at least as many as a group has documents.
        queries: (passage's index, style, query) each.
        passage_vectors: Unit vectors, shape (passages, dimensions).
        query_vectors: Unit vectors, shape (queries, dimensions).
        rng: Chooses the documents and the instructions.

    Returns:
        Groups, in the order of `queries`. A query has none if it does not say enough to find its passage: neither BM25
        nor the embedder has it among the first 30 (or the embedder has it not among the first 3, if a model wrote the
        query), or the teacher says that the passage is not relevant.
    """
    if len(passages) < DOCUMENTS:
        raise ValueError(f"A group needs {DOCUMENTS} passages, but there are {len(passages)}.")
    bm25 = Bm25([passage["text"] for passage in passages])
    negatives = _Negatives(passages, passage_vectors, rng)
    groups = []
    for start in track(range(0, len(queries), 256), "Making groups"):
        part = queries[start : start + 256]
        lexical = bm25([query for _, _, query in part])
        cosine = query_vectors[start : start + 256] @ passage_vectors.T
        for (own, style, query), words, meaning in zip(part, lexical, cosine, strict=True):
            before = [int((scores > scores[own]).sum()) for scores in (words, meaning)]
            if before[1] >= 3 if style == "generated" else min(before) >= 30:
                continue
            twins = negatives.twins(own) if style == "twin" else []
            documents = [own, *twins, *negatives.choose(own, twins, words, meaning)]
            teacher, relevant = teacher_scores(meaning[documents], words[documents], len(twins))
            if teacher[0] < 0:
                continue
            groups.append(
                {
                    "query": query,
                    "instruction": instruction(passages[own], style, rng),
                    "documents": [passages[index]["text"] for index in documents],
                    "teacher": teacher,
                    "relevant": relevant,
                    "source": passages[own]["source"],
                    "style": style,
                }
            )
    return groups


def teacher_scores(cosine: Floats, bm25: Floats, twins: int) -> tuple[list[float], list[bool | None]]:
    """The teacher's logits, and what is known to be relevant.

    A logit is `8 (cosine - 0.5) + 3 (bm25 - 0.5)`: with these weights the queries find their own passages best. The
    mean reciprocal rank of 250 requests' passages is 0.82, the embedder's alone 0.74, BM25's alone 0.73. The first
    document has 1.5 more, since the query was made from it. About -5 is a random passage, about -2 a hard negative.

    Args:
        cosine: The embedder's similarity of the query to each document; the first is the one it was made from.
        bm25: BM25's score of each, divided by the best of all passages.
        twins: How many documents after the first are about the same word, and not what the instruction asks for: they
            get -1.5 at most.
    """
    scores = (8 * (cosine - 0.5) + 3 * (bm25 - 0.5)).tolist()
    relevant: list[bool | None] = [True, *(None if score > scores[0] - 0.3 else False for score in scores[1:])]
    scores[0] += 1.5
    for place in range(1, twins + 1):
        scores[place], relevant[place] = min(scores[place], -1.5), False
    return [round(score, 3) for score in scores], relevant


class _Negatives:
    """Chooses what stands beside a passage in its group."""

    def __init__(self, passages: Sequence[dict[str, Any]], vectors: Floats, rng: random.Random):
        self._passages, self._vectors, self._rng = passages, vectors, rng
        self._long = [index for index in range(len(passages)) if self._is_long(index)]
        self._of_source, self._of_word = defaultdict(list), defaultdict(list)
        for index, passage in enumerate(passages):
            self._of_source[passage["source"]].append(index)
            self._of_word[passage.get("twin")].append(index)

    def twins(self, own: int) -> list[int]:
        """The other passages about the same word."""
        return [index for index in self._of_word[self._passages[own]["twin"]] if index != own]

    def choose(self, own: int, twins: list[int], lexical: Floats, cosine: Floats) -> list[int]:
        """Hard negatives of BM25 and of the embedder, then random ones, to fill the group."""
        wanted = DOCUMENTS - 1 - len(twins)
        chosen: list[int] = []
        # What is nearly the same text would be just as relevant.
        used = {own, *twins, *np.flatnonzero(self._vectors @ self._vectors[own] > 0.9).tolist()}
        for scores, count in ((lexical, 3), (cosine, 2)):
            best = [index for index in np.argsort(-scores)[:40].tolist() if index not in used and scores[index] > 0]
            chosen += self._rng.sample(best[:10], min(count, len(best[:10])))
            used.update(chosen)
        if self._is_long(own):
            chosen += [index for index in self._rng.sample(self._long, 1) if index not in used]
        same_source, anywhere = self._of_source[self._passages[own]["source"]], range(len(self._passages))
        used = {own, *twins, *chosen}
        while len(chosen) < wanted:
            pool = same_source if len(chosen) % 2 and self._rng.random() < 0.9 else anywhere
            if (index := self._rng.choice(pool)) not in used:
                chosen.append(index)
                used.add(index)
        return chosen[:wanted]

    def _is_long(self, index: int) -> bool:
        return len(self._passages[index]["text"].split()) > LONG


def instruction(passage: dict[str, Any], style: str, rng: random.Random) -> str:
    """An instruction for a query of this style that asks for this passage."""
    if style == "twin":
        return rng.choice(TWINS[passage["source"]])
    if rng.random() < 0.4:
        return WEB_SEARCH
    return rng.choice(INSTRUCTIONS.get(style) or INSTRUCTIONS[passage["kind"]])
