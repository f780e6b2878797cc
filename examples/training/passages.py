"""A passage, and what is done with text: sentences, cutting, claims."""

import random
import re
from dataclasses import dataclass, field


@dataclass
class Passage:
    """A text, and the queries that are known to ask for it.

    Attributes:
        text: The text, without its title.
        title: What the text is about: a headword, a package's name, a heading.
        kind: "package", "definition", "documentation", "prose", "api" or "science".
        source: The name of its `Source`.
        queries: (style, query) for each query. The style is "title", "question", "request" or "claim".
        whole: The text that `text` is the beginning of, where `text` was cut.
    """

    text: str
    title: str
    kind: str
    source: str = ""
    queries: list[tuple[str, str]] = field(default_factory=list)
    whole: str = ""


_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<! cf\.)(?<! [A-Z]\.)\s+(?=[\"(A-Z0-9])")


def plain(text: str) -> str:
    """`text` with all white space as single spaces."""
    return " ".join(text.split())


def sentences(text: str) -> list[str]:
    """The sentences of `text`."""
    return _SENTENCE_END.split(plain(text))


def cut(text: str, words: int) -> str:
    """The first sentences of `text`, at least one, that have about `words` words together."""
    kept: list[str] = []
    count = 0
    for sentence in sentences(text):
        length = len(sentence.split())
        if kept and count + length > words:
            break
        kept.append(sentence)
        count += length
    return " ".join(" ".join(kept).split()[: 2 * words])


# Words that a claim can do without.
_FILLERS = frozenset("also very however often usually generally therefore thus indeed even just then further".split())  # noqa: SIM905


def shortened(sentence: str, rng: random.Random) -> str:
    """What a sentence says in other words, as far as that can be done without a model: fewer.

    Brackets and filling words go; sometimes only the longest clause stays, and sometimes a few words are missing.
    """
    text = re.sub(r"\s*\([^()]*\)", "", sentence).rstrip(".")
    if rng.random() < 0.5:
        longest = max(re.split(r"[;:,] (?:(?:which|who|where|while|because|and|but|so|as) )?", text), key=len)
        text = longest if len(longest.split()) >= 6 else text
    missing = rng.choice((0, 0, 0.15))
    words = [word for word in text.split() if word.lower() not in _FILLERS and rng.random() >= missing]
    return " ".join(words)


def lower_first(text: str) -> str:
    """`text` with a small first letter, unless its first word is a name or an acronym."""
    first = text.split(" ", 1)[0]
    return text if sum(letter.isupper() for letter in first) > 1 or first == "I" else text[:1].lower() + text[1:]


# First words of sentences that mostly point to what was said before, or say little without it.
POINTERS = frozenset(
    """
    This It They These That Those However He She We You There Here But And So Such Thus Also In As If For Which
    Then I Now To Note See When What Some One Both Another Of Hence Or Yet Indeed Therefore Moreover The No
    Since After Before Because While Although Most Many Each Any All Rather Finally Similarly Your Their His Its
    My Our Other Nor
    """.split()  # noqa: SIM905
)


def standing_alone(found: list[str]) -> list[str]:
    """The sentences that can be understood without the rest."""
    return [
        s
        for s in found
        if 7 <= len(s.split()) <= 28
        and s.split()[0].strip(",") not in POINTERS - {"The", "Most", "Many"}
        and s[0].isupper()
    ]


def claims(text: str) -> list[tuple[str, str]]:
    """The first sentences of `text` that can be understood without the rest."""
    found = sentences(text)
    if len(found) < 3:
        return []
    return [("claim", sentence) for sentence in standing_alone(found)[:2] if sentence.endswith(".")]
