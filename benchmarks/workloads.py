"""What `contenders.py` measures: each workload is a record, and its texts are the same in every run."""

import itertools
import math
import random
from collections.abc import Sequence
from typing import NamedTuple


class Workload(NamedTuple):
    """What is scored in a round.

    Attributes:
        name: Its name.
        calls: How many queries a round has.
        documents: How many documents each query has.
        contenders: Names of those that it makes sense for.
        callers: How many threads call at once, where a contender allows that.
        rounds: How many rounds there are at most.
        median: Median of a document's tokens; their lengths are lognormal.
        sigma: Standard deviation of the lengths' logarithms, 0.39 among SciFact's abstracts; 0 for documents of one
            length.
        duplicates: Share of a query's documents that repeat one of the others.
        instruction_tokens: Tokens of the instruction; 0 for the template's own.
    """

    name: str
    calls: int
    documents: int
    contenders: tuple[str, ...]
    callers: int = 1
    rounds: int = 5
    median: int = 150
    sigma: float = 0.4
    duplicates: float = 0
    instruction_tokens: int = 0

    def sample(self) -> "Workload":
        """A few pairs of it, on which the contenders have to agree."""
        return self._replace(calls=min(self.calls, 2), documents=min(self.documents, 8))


class Texts:
    """Makes the texts of workloads.

    Args:
        words: What documents and instructions consist of.
        tokens_per_word: How many tokens a word has on average.
    """

    def __init__(self, words: Sequence[str], tokens_per_word: float):
        self._words = words
        self._tokens_per_word = tokens_per_word

    def calls(self, workload: Workload, number: int, tag: str) -> list[tuple[str, list[str]]]:
        """The calls of a round.

        Those of the same number have the same lengths and duplicates. `tag` is in every query and document: no cache
        knows the texts of another one.
        """
        draw = random.Random(f"{workload.name} {number}")  # noqa: S311 - the same in every run
        copies = round(workload.duplicates * workload.documents)
        calls = []
        for call in range(workload.calls):
            documents = []
            for at in range(workload.documents - copies):
                tokens = draw.lognormvariate(math.log(workload.median), workload.sigma)
                begin = draw.randrange(len(self._words))
                documents.append(f"{tag}.{call}.{at} {self._text(tokens, begin)}")
            documents += draw.choices(documents, k=copies)
            draw.shuffle(documents)
            calls.append((f"{tag}.{call}: {self._text(12, draw.randrange(len(self._words)))}?", documents))
        return calls

    def instruction(self, workload: Workload) -> str | None:
        """The instruction of a workload, the same in every round, as users have it; None for the template's own."""
        return self._text(workload.instruction_tokens, 0) if workload.instruction_tokens else None

    def _text(self, tokens: float, begin: int) -> str:
        count = max(1, round(tokens / self._tokens_per_word))
        return " ".join(itertools.islice(itertools.cycle(self._words), begin, begin + count))
