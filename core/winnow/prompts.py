"""Segments to token ids: the budget of query and document, truncation, windows.

The template, the instruction and what follows the document are never cut. A cut falls between characters, and the ids
of
a cut prompt are those of tokenising the whole prompt with the cut text: there is one way to tokenise, cut or not.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import regex

from winnow.errors import DocumentError, TemplateError
from winnow.templates import Content, Segment
from winnow.tokenization import PromptTokenizer

logger = logging.getLogger(__name__)

Overflow = Literal["truncate", "error", "window"]

_GRAPHEMES = regex.compile(r"\X")
# How far a cut looks back for the start of a grapheme; longer ones (stacked accents) are cut between code points.
_GRAPHEME_REACH = 32
# A first guess of how many characters fit a token, so that a book is not tokenised to keep its first page.
_CHARACTERS_PER_TOKEN = 8


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an engine scores.

    Attributes:
        ids: Token ids, control tokens and template included.
        second_type_from: Position of the first token of token type 1, for models that have token types; else None.
    """

    ids: list[int]
    second_type_from: int | None = None


@dataclass(frozen=True, slots=True)
class DocumentPrompts:
    """The prompts of one document: one, or one a window.

    Attributes:
        prompts: In the order of the text.
        truncated: True if part of the text is in none of them.
        document_tokens: Tokens of the document in all of them; overlaps count twice.
    """

    prompts: tuple[Prompt, ...]
    truncated: bool
    document_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long prompts may be, and what happens to longer ones.

    Attributes:
        max_length: Most tokens of a prompt.
        max_query_tokens: Most tokens of the query; None for three quarters of what the template leaves.
        max_document_tokens: Most tokens of the document (of a window); None for all that is left.
        on_overflow: Cut the document, refuse it, or score it in windows.
        window_overlap: Share of a window that the next one repeats.
    """

    max_length: int
    max_query_tokens: int | None = None
    max_document_tokens: int | None = None
    on_overflow: Overflow = "truncate"
    window_overlap: float = 0.1


@dataclass(frozen=True, slots=True)
class _Frame:
    """All of a prompt but the document, for one query.

    The document is tokenised as `before + document + after`, less the control tokens at the two ends, and stands
    between `head` and `tail`.
    """

    head: list[int]
    before: str
    after: str
    drop_first: bool
    drop_last: bool
    tail: list[int]
    empty: int  # tokens of `before + after` that remain
    room: int  # most tokens of `before + document + after`
    typed: bool

    @property
    def length(self) -> int:
        """Tokens of the prompt with an empty document."""
        return len(self.head) + self.empty + len(self.tail)


class PromptBuilder:
    """Builds the prompts of one template and one model.

    Args:
        tokenizer: The model's tokenizer.
        segments: The bound template, or None for the tokenizer's own pair encoding.
        limits: How long prompts may be.

    Raises:
        TemplateError: The template leaves no room for a query and a document.
    """

    def __init__(self, tokenizer: PromptTokenizer, segments: Sequence[Segment] | None, limits: Limits):
        self._tokenizer = tokenizer
        self._limits = limits
        self._before: list[str | Content] = []
        self._after: list[str | Content] = []
        self._paired = segments is None
        side = self._before
        for segment in segments or ():
            if isinstance(segment, str):
                side.append(tokenizer.literal(segment))
            elif segment.field == "document":
                self._strip_document = segment.strip
                side = self._after
            else:
                side.append(segment)
        if self._paired:
            self._strip_document = False

    def build(
        self,
        query: str,
        documents: Sequence[str],
        instruction: str | None = None,
        *,
        positions: Sequence[int] | None = None,
        errors: dict[int, DocumentError] | None = None,
    ) -> list[DocumentPrompts]:
        """Prompts of many documents for one query, in order.

        Tokenises on all cores and leaves the interpreter free meanwhile; call it in a thread to keep an event loop
        free.

        Args:
            query: The query, not blank.
            documents: The documents.
            instruction: The instruction, if the template was bound with one.
            positions: What messages call the documents; 0, 1, 2, … by default.
            errors: Where to put the errors of documents, by position; such a document gets no prompts. Without it the
                first
                one is raised.

        Raises:
            DocumentError: The query, or a document, cannot be tokenised or is too long for `on_overflow="error"`.
            TemplateError: Template and instruction leave no room.
        """
        frame = self._frame(_checked(query, "The query"), _checked(instruction or "", "The instruction"))
        names = range(len(documents)) if positions is None else positions
        refused: dict[int, DocumentError] = {} if errors is None else errors

        def refuse(error: DocumentError) -> DocumentPrompts:
            if errors is None:
                raise error
            errors[error.index if error.index is not None else -1] = error
            return DocumentPrompts((), False, 0)

        texts: list[str] = []
        for name, document in zip(names, documents, strict=True):
            try:
                text = _checked(document, f"Document {name}", name)
            except DocumentError as error:
                refuse(error)
                text = ""
            texts.append(text.strip() if self._strip_document else text)
        built: list[DocumentPrompts] = []
        for name, text, (ids, end) in zip(names, texts, self._fit(frame, texts), strict=True):
            if name in refused:
                built.append(DocumentPrompts((), False, 0))
            elif end == len(text) or self._limits.on_overflow == "truncate":
                built.append(DocumentPrompts((self._prompt(frame, ids),), end < len(text), len(ids) - frame.empty))
            elif self._limits.on_overflow == "window":
                built.append(self._windows(frame, text, ids, end))
            else:
                message = (
                    f"Document {name} ({len(text)} characters) does not fit: the prompt leaves "
                    f"{frame.room - frame.empty} tokens "
                    f"for it, enough for its first {end} characters. Shorten it, or set on_overflow to 'truncate' or "
                    "'window'."
                )
                built.append(refuse(DocumentError(message, name)))
        return built

    def prompt(self, query: str, document: str, instruction: str | None = None) -> Prompt:
        """The prompt of one pair, cut where it must be."""
        return self.build(query, [document], instruction)[0].prompts[0]

    # --- the frame ----------------------------------------------------------------------------------------------------

    def _frame(self, query: str, instruction: str) -> _Frame:
        bare = self._unbudgeted_frame("", instruction)
        used = bare.length
        left = self._limits.max_length - used
        if left < 2:
            raise TemplateError(
                f"The template and the instruction take {used} tokens of the model's {self._limits.max_length}, which "
                "leaves no room "
                "for a query and a document. Shorten the instruction or the template, or raise max_length."
            )
        cap = left * 3 // 4 if self._limits.max_query_tokens is None else min(self._limits.max_query_tokens, left - 1)
        cap = max(cap, 1)
        whole = query
        while True:
            frame = self._unbudgeted_frame(query, instruction)
            # A query may take more tokens in the prompt than alone, by a merge at its edge: then it is cut a little
            # more.
            excess = frame.length - used - cap
            if excess <= 0 or not query:
                break
            encoding = self._tokenizer.encode_with_offsets([query[: _CHARACTERS_PER_TOKEN * 4 * cap + 256]])[0]
            keep = min(len(encoding.ids) - 1, cap) if query is whole else len(encoding.ids) - excess
            query = query[: _cut_before(query, encoding.offsets, 0, keep)]
        if query != whole:
            if self._limits.on_overflow == "error":
                raise DocumentError(
                    f"The query ({len(whole)} characters) does not fit: it may take {cap} tokens, enough for its first "
                    f"{len(query)} "
                    "characters. Shorten it, raise max_query_tokens, or set on_overflow to 'truncate'."
                )
            logger.warning(
                "The query was cut from %d to %d characters: it may take %d tokens.", len(whole), len(query), cap
            )
        return frame

    def _unbudgeted_frame(self, query: str, instruction: str) -> _Frame:
        tokenizer = self._tokenizer
        if self._paired:
            layout = tokenizer.pair_layout
            head = [*layout.before, *tokenizer.encode(query), *layout.between]
            return self._with_room(_Frame(head, "", "", False, False, layout.after, 0, 0, tokenizer.token_types))
        texts = {"query": query, "instruction": instruction}
        head_text, tail_text = (
            "".join(part if isinstance(part, str) else part.of(texts[part.field]) for part in side)
            for side in (self._before, self._after)
        )
        split, terminator = tokenizer.first_control(tail_text)
        after, tail = tail_text[:split] + terminator, tokenizer.encode(tail_text[split:])
        # A template that writes BOS itself does not get it twice.
        head_ids = tokenizer.encode(head_text)
        begin = [] if head_ids[: len(tokenizer.begin)] == tokenizer.begin else tokenizer.begin
        end = [] if tokenizer.end and tail[-len(tokenizer.end) :] == tokenizer.end else tokenizer.end
        head, before, drop_first = self._shared_head(head_text, after)
        frame = _Frame([*begin, *head], before, after, drop_first, bool(terminator), [*tail, *end], 0, 0, False)
        return self._with_room(frame)

    def _with_room(self, frame: _Frame) -> _Frame:
        empty = len(self._encode(frame, [""])[0])
        room = self._limits.max_length - len(frame.head) - len(frame.tail)
        if self._limits.max_document_tokens is not None:
            room = min(room, empty + self._limits.max_document_tokens)
        return _Frame(
            frame.head,
            frame.before,
            frame.after,
            frame.drop_first,
            frame.drop_last,
            frame.tail,
            empty,
            room,
            frame.typed,
        )

    def _shared_head(self, head: str, after: str) -> tuple[list[int], str, bool]:
        """Split the text before the document where the document cannot change the tokens any more.

        Tokens depend on what follows them only within a word of the pre-tokeniser and the next one, so three words
        before the
        end is a safe place to start again. Tokenizers without words (sentencepiece-like BPE) are restarted at the last
        control token instead. Returns ids, remaining text, and whether the remaining text begins with a control token
        to drop.
        """
        tokenizer = self._tokenizer
        after_control, control = tokenizer.last_control(head)
        encoding = tokenizer.encode_with_offsets([head])[0]
        words, starts = encoding.word_ids, [start for start, _ in encoding.offsets]
        edges = [at for at in range(1, len(words)) if words[at] != words[at - 1] and starts[at] > after_control]
        if len(edges) > 3:
            at = edges[-3]
            before = tokenizer.restart + head[starts[at] :]
            for document in ("", "word", "\n 1"):
                whole, rest = (tokenizer.encode(text + document + after) for text in (head, before))
                if whole != tokenizer.real_ids(encoding.ids[:at]) + rest[1:]:
                    break
            else:
                return tokenizer.real_ids(encoding.ids[:at]), before, True
        if control:
            return tokenizer.encode(head[:after_control]), control + head[after_control:], True
        return [], head, False

    # --- the document -------------------------------------------------------------------------------------------------

    def _encode(self, frame: _Frame, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._tokenizer.encode_batch([frame.before + text + frame.after for text in texts])
        stop = -1 if frame.drop_last else None
        return [self._tokenizer.real_ids(ids[int(frame.drop_first) : stop]) for ids in encoded]

    def _fit(self, frame: _Frame, texts: Sequence[str]) -> list[tuple[list[int], int]]:
        """For each text the ids of the longest beginning that fits, and how many characters that is."""
        reach = _CHARACTERS_PER_TOKEN * max(frame.room, 1) + 256
        ends = [len(text) for text in texts]
        results = self._encode(frame, [text[:reach] for text in texts])
        for at, text in enumerate(texts):  # texts of uncommonly long tokens
            within = reach
            while len(results[at]) <= frame.room and within < len(text):
                within *= 4
                results[at] = self._encode(frame, [text[:within]])[0]
            ends[at] = min(within, len(text))
        over = [at for at in range(len(texts)) if len(results[at]) > frame.room]
        offset, extra = len(frame.before), int(frame.drop_first) + int(frame.drop_last)
        while over:
            pieces = [texts[at][: ends[at]] for at in over]
            encodings = self._tokenizer.encode_with_offsets([frame.before + piece + frame.after for piece in pieces])
            for at, piece, encoding in zip(over, pieces, encodings, strict=True):
                own = [span for span in encoding.offsets if offset <= span[0] < offset + len(piece)]
                keep = len(own) - max(len(encoding.ids) - extra - frame.room, 1)
                ends[at] = _cut_before(piece, own, offset, keep)
            for at, ids in zip(over, self._encode(frame, [texts[at][: ends[at]] for at in over]), strict=True):
                results[at] = ids
            over = [at for at in over if len(results[at]) > frame.room and ends[at]]
        return list(zip(results, ends, strict=True))

    def _windows(self, frame: _Frame, text: str, ids: list[int], end: int) -> DocumentPrompts:
        prompts = [self._prompt(frame, ids)]
        tokens = len(ids) - frame.empty
        start = 0
        while start + end < len(text) and end:
            spans = self._tokenizer.encode_with_offsets([text[start : start + end]])[0].offsets
            step = _cut_before(
                text[start : start + end], spans, 0, math.ceil(len(spans) * (1 - self._limits.window_overlap))
            )
            start += step or end
            [(ids, end)] = self._fit(frame, [text[start:]])
            prompts.append(self._prompt(frame, ids))
            tokens += len(ids) - frame.empty
        return DocumentPrompts(tuple(prompts), start + end < len(text), tokens)

    def _prompt(self, frame: _Frame, ids: list[int]) -> Prompt:
        return Prompt(frame.head + ids + frame.tail, len(frame.head) if frame.typed else None)


def _cut_before(text: str, spans: Sequence[tuple[int, int]], offset: int, keep: int) -> int:
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


def _checked(text: str, what: str, index: int | None = None) -> str:
    """Refuse text that has no UTF-8 form.

    Raises:
        DocumentError: The text holds half of a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DocumentError(
            f"{what} holds the lone surrogate {text[error.start]!r} at character {error.start}, which is not text. It "
            "usually comes from "
            "decoding with errors='surrogateescape': decode with errors='replace' instead.",
            index,
        ) from None
    return text
