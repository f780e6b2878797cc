"""Where text may be cut."""

from collections.abc import Sequence

import regex

# A first guess of how many characters fit a token, so that a book is not tokenised to keep its first page.
CHARACTERS_PER_TOKEN = 8
# How many tokens fewer a text may take than its beginning: WordPiece makes one unknown token of a word of more than 100
# characters, and up to 100 tokens of half of it.
CUT_WORD = 128

_GRAPHEMES = regex.compile(r"\X")
# How far a cut looks back for the start of a grapheme; longer ones (stacked accents) are cut between code points.
_GRAPHEME_REACH = 32


def cut_before(text: str, spans: Sequence[tuple[int, int]], offset: int, keep: int) -> int:
    """How many characters of `text` the first `keep` of the tokens at `spans` cover, without splitting a grapheme.

    Tokens of bytes may share a character: it then counts as not covered.
    """
    if keep <= 0:
        return 0
    if keep >= len(spans):
        return len(text)
    end = min(spans[keep - 1][1], spans[keep][0]) - offset
    start = max(0, end - _GRAPHEME_REACH)
    around = text[start : end + _GRAPHEME_REACH]
    boundary = max(
        (start + match.start() for match in _GRAPHEMES.finditer(around) if start + match.start() <= end), default=end
    )
    return boundary if boundary > start or start == 0 else end
