"""Where text may be cut."""

from collections.abc import Sequence

# A first guess of how many characters a token has, so that a book is not tokenised to keep its first page.
CHARACTERS_PER_TOKEN = 8
# Most characters that are read for each token there is room for. A tokenizer may make one token, or none, of any number
# of blanks or of a word without end (WordPiece, unigram): of megabytes of those the rest is cut off unread.
MOST_CHARACTERS_PER_TOKEN = 128
# A text may have fewer tokens than its beginning, by this many: WordPiece makes one unknown token of a word with over
# 100 characters, but up to 100 tokens of half that word.
CUT_WORD = 128

# A cut looks for the start of a grapheme within so many characters. Longer graphemes (stacked accents) may be split.
_GRAPHEME_REACH = 32


def cut_before(text: str, spans: Sequence[tuple[int, int]], keep: int) -> int:
    """How many characters of `text` the first `keep` tokens cover, without splitting a grapheme.

    If the next token holds other bytes of the same character, that character is not counted.

    Args:
        text: The text.
        spans: Where in the text each token begins and ends.
        keep: How many tokens are kept.
    """
    if keep <= 0:
        return 0
    import regex

    if keep >= len(spans):
        return len(text)
    end = min(spans[keep - 1][1], spans[keep][0])
    start = max(0, end - _GRAPHEME_REACH)
    around = text[start : end + _GRAPHEME_REACH]
    boundary = max(
        (start + match.start() for match in regex.finditer(r"\X", around) if start + match.start() <= end), default=end
    )
    return boundary if boundary > start or start == 0 else end


def first_grapheme(text: str) -> int:
    """How many characters the first grapheme of a text has."""
    import regex

    found = regex.match(r"\X", text[:_GRAPHEME_REACH])
    return found.end() if found else 1
