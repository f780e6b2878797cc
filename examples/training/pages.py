"""Reads manuals and books: HTML, DocBook, Mallard and Perl's POD."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from training.passages import POINTERS, Passage, claims, cut, lower_first, plain


class _Page(HTMLParser):
    """Collects (heading, paragraph) pairs of HTML, DocBook and Mallard."""

    HEADINGS = frozenset(("h1", "h2", "h3", "h4", "title"))
    PARAGRAPHS = frozenset(("p", "dd", "para"))  # And <div class="para">, which Publican writes.
    SKIPPED = frozenset(("script", "style", "pre", "table", "nav", "figure", "sup"))

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self._heading, self._text = "", ""
        self._in, self._skip = "", 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._skip += tag in self.SKIPPED
        if tag in self.HEADINGS | self.PARAGRAPHS or ("class", "para") in attrs:
            self._close()
            self._in = tag

    def handle_endtag(self, tag: str) -> None:
        self._skip -= tag in self.SKIPPED and self._skip > 0
        if tag == self._in:
            self._close()

    def handle_data(self, data: str) -> None:
        if self._in and not self._skip:
            self._text += data

    def _close(self) -> None:
        text = plain(self._text).replace("¶", "").strip()
        if text and self._in in self.HEADINGS:
            heading = re.sub(r"^(?:Chapter |Appendix )?(?:[A-Z]?\d*[\d.]+|[A-Z]\.[\d.]*)\s+|^\W+", "", text).strip()
            self._heading = heading.capitalize() if heading.isupper() else heading
        elif text:
            self.found.append((self._heading, text))
        self._in, self._text = "", ""


def sections(pairs: list[tuple[str, str]], kind: str) -> Iterator[Passage]:
    """Passages of (heading, paragraph) pairs; the first of each heading is asked for by the heading."""
    last = None
    for heading, paragraph in pairs:
        if (
            len(paragraph.split()) < 22
            or len(re.findall(r"\d+\.\d+\.", paragraph)) > 2
            or sum(c.isalpha() or c in " ,." for c in paragraph) < 0.9 * len(paragraph)
        ):
            continue
        queries = []
        if heading != last and 2 <= len(heading.split()) <= 25:
            queries += [("question" if heading.endswith("?") else "title", heading)] * 3
            verb = heading.split()[0].lower()
            if verb.endswith("ing") and kind == "documentation":
                queries += [("question", f"What should I know about {lower_first(heading)}?")]
        last = heading
        subject = re.match(r"((?:An? )?[\w-]+(?: [\w-]+){0,3}) (is|are|was|were) (?!not|also|that)", paragraph)
        if subject and subject[1].split()[0] not in POINTERS and len(subject[1]) > 3:
            queries += [("question", f"What {subject[2]} {lower_first(subject[1])}?")]
        short = cut(paragraph, 90)
        yield Passage(short, heading, kind, queries=queries + claims(short), whole=paragraph)


def read_pages(folder: Path, *, pattern: str, kind: str) -> Iterator[Passage]:
    """The paragraphs of the files that `pattern` finds."""
    for file in sorted(file for file in folder.glob(pattern) if file.is_file()):
        page = _Page()
        page.feed(file.read_text(encoding="utf-8", errors="replace"))
        yield from sections(page.found, kind)


def read_pod(folder: Path) -> Iterator[Passage]:
    """The paragraphs of Perl's documentation."""
    for file in sorted(folder.rglob("*.pod")):
        heading, pairs = "", []
        for block in re.split(r"\n\s*\n", file.read_text(encoding="utf-8", errors="replace")):
            text = plain(re.sub(r"[A-Z]<+\s?(?:[^<>|]*\|)?([^<>]*?)\s?>+", r"\1", block))
            if match := re.match(r"=(?:head\d|item) (.*)", text):
                heading = match[1].strip("* ").capitalize() if match[1].isupper() else match[1].strip("* ")
            elif not block.startswith((" ", "\t", "=")):
                pairs.append((heading, text))
        yield from sections(pairs, "documentation")
