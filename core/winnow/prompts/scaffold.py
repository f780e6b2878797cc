"""The part of a prompt that all documents of a query share: tokenised once, with the room that a document has."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from winnow.media import Shown, Vision
from winnow.prompts.limits import Limits
from winnow.templates import Content, PlainText, Segment
from winnow.tokenizer import PromptTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaffold:
    """The whole prompt except the document, for one query.

    `before + document + after` is tokenised as one text. Without the control tokens at its two ends, its ids go between
    `head` and `tail`.

    Each image or video is one token here; `room` and `length` count all of its tokens.

    Attributes:
        head: Ids before the document that do not depend on it.
        tail: Ids after the document that do not depend on it.
        before: Text between `head` and the document; the document's first token may merge with it.
        after: Text after the document up to the next control token; the document's last token may merge with it.
        drop_first: Whether `before` begins with a control token that is in `head`, too.
        drop_last: Whether `after` ends with a control token that is in `tail`, too.
        empty: Tokens of `before + after`, without the dropped ones.
        room: Most tokens of `before + document + after`.
        typed: Whether all tokens after `head` have token type 1.
        query_truncated: Whether the query was cut.
        medium: The document's image or video; its placeholder is the end of `before`.
        smallest: Tokens of `before + after` with this medium.
        media_before: The query's image or video, once for each time the template places it before the document.
        media_after: The same, after the document.
    """

    head: list[int]
    tail: list[int]
    before: str = ""
    after: str = ""
    drop_first: bool = False
    drop_last: bool = False
    empty: int = 0
    room: int = 0
    typed: bool = False
    query_truncated: bool = False
    medium: Shown | None = None
    smallest: int = 0
    media_before: tuple[Shown, ...] = ()
    media_after: tuple[Shown, ...] = ()

    @property
    def media(self) -> tuple[Shown, ...]:
        """All images and videos of the prompt, in order."""
        own = () if self.medium is None else (self.medium,)
        return self.media_before + own + self.media_after

    @property
    def surplus(self) -> int:
        """Tokens of the document's medium, without its placeholder."""
        return 0 if self.medium is None else self.medium.tokens - 1

    @property
    def length(self) -> int:
        """Tokens of the prompt with an empty document."""
        surplus = sum(one.tokens - 1 for one in self.media)
        return len(self.head) + self.empty + len(self.tail) + surplus

    def encode(self, tokenizer: PromptTokenizer, texts: Sequence[str]) -> list[list[int]]:
        """Ids of `before + text + after` for each text, without the dropped ones."""
        encoded = tokenizer.encode_batch([self.before + text + self.after for text in texts])
        stop = -1 if self.drop_last else None
        return [tokenizer.real_ids(ids[int(self.drop_first) : stop]) for ids in encoded]

    def spans(self, tokenizer: PromptTokenizer, texts: Sequence[str]) -> list[tuple[int, list[tuple[int, int]]]]:
        """For each text how many ids `encode` gives, and where in the text its own tokens begin and end."""
        offset, dropped = len(self.before), int(self.drop_first) + int(self.drop_last)
        encodings = tokenizer.encode_with_offsets([self.before + text + self.after for text in texts])
        return [
            (
                len(encoding.ids) - dropped,
                [(start - offset, end - offset) for start, end in encoding.offsets if 0 <= start - offset < len(text)],
            )
            for text, encoding in zip(texts, encodings, strict=True)
        ]


class QueryPart(NamedTuple):
    """What the prompts of one query share, made by `PromptBuilder.query_part`."""

    query: str
    instruction: str
    scaffold: Scaffold


class PromptLayout:
    """Lays out the prompts of one template and one model.

    Args:
        tokenizer: The model's tokenizer.
        segments: The bound template, or None for the tokenizer's own pair encoding.
        limits: How long prompts may be.
        vision: How the model takes images and videos; None for a text model.

    Attributes:
        tokenizer: As above.
        segments: As above.
        limits: As above.
        vision: As above.
        strip_document: Whether the template strips whitespace around the document.
    """

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        segments: Sequence[Segment] | None,
        limits: Limits,
        vision: Vision | None = None,
    ):
        self.tokenizer = tokenizer
        self.segments = segments
        self.limits = limits
        self.vision = vision
        self.strip_document = False
        self._paired = segments is None
        self._before: list[str | Content] = []
        self._after: list[str | Content] = []
        side = self._before
        count = len(segments or ())
        for at, segment in enumerate(segments or ()):
            if isinstance(segment, str):
                side.append(tokenizer.literal(segment, follows=at > 0, precedes=at < count - 1))
            elif isinstance(segment, PlainText):
                side.append(segment.text)
            elif segment.field == "document":
                self.strip_document = segment.strip
                side = self._after
            else:
                side.append(segment)

    def scaffold(self, query: str, instruction: str, medium: Shown | None = None) -> Scaffold:
        """The scaffold of a query, however long it is."""
        tokenizer = self.tokenizer
        if self._paired:
            layout = tokenizer.pair_layout
            head = [*layout.before, *tokenizer.encode(query), *layout.between]
            return self._with_room(Scaffold(head=head, tail=layout.after, typed=tokenizer.token_types))
        texts = {"query": query, "instruction": instruction}
        placeholders = {"query": self._placeholder(medium), "instruction": ""}
        sides = (self._before, self._after)
        head_text, tail_text = (
            "".join(
                part if isinstance(part, str) else placeholders[part.field] + part.of(texts[part.field])
                for part in side
            )
            for side in sides
        )
        media = [
            (medium,) * sum(not isinstance(part, str) and part.field == "query" for part in side) if medium else ()
            for side in sides
        ]
        split, terminator = tokenizer.first_control(tail_text)
        after, tail = tail_text[:split] + terminator, tokenizer.encode(tail_text[split:])
        # If the template writes BOS itself, BOS is not added again.
        begin = tokenizer.begin
        if begin and tokenizer.encode(head_text)[: len(begin)] == begin:
            begin = []
        end = [] if tokenizer.end and tail[-len(tokenizer.end) :] == tokenizer.end else tokenizer.end
        head, before, drop_first = self._shared_head(head_text, after)
        return self._with_room(
            Scaffold(
                head=[*begin, *head],
                before=before,
                after=after,
                drop_first=drop_first,
                drop_last=bool(terminator),
                tail=[*tail, *end, *tokenizer.last],
                media_before=media[0],
                media_after=media[1],
            )
        )

    def with_medium(self, scaffold: Scaffold, medium: Shown) -> Scaffold:
        """The scaffold for a document with an image or a video, which comes before its text."""
        with_medium = replace(
            scaffold,
            before=scaffold.before + self._placeholder(medium),
            room=scaffold.room - (medium.tokens - 1),
            medium=medium,
        )
        return replace(with_medium, smallest=len(with_medium.encode(self.tokenizer, [""])[0]))

    def _placeholder(self, medium: Shown | None) -> str:
        if medium is None or self.vision is None:
            return ""
        return self.tokenizer.literal(self.vision.placeholder_of(medium))

    def _with_room(self, scaffold: Scaffold) -> Scaffold:
        empty = len(scaffold.encode(self.tokenizer, [""])[0])
        room = self.limits.max_length - replace(scaffold, empty=0).length
        if self.limits.max_document_tokens is not None:
            room = min(room, empty + self.limits.max_document_tokens)
        return replace(scaffold, empty=empty, smallest=empty, room=room)

    def _shared_head(self, head: str, after: str) -> tuple[list[int], str, bool]:
        """Split the text before the document at a place before which the document cannot change the tokens.

        A token depends only on its own word (of the pre-tokeniser) and the next one, so the text can be split three
        words before its end. If the tokenizer has no words (sentencepiece-like BPE), the text is split at the last
        control token instead.

        Returns:
            The ids of the first part, the second part as text, and whether that begins with a control token to drop.
        """
        tokenizer = self.tokenizer
        after_control, control = tokenizer.last_control(head)
        encoding = tokenizer.encode_with_offsets([head])[0]
        ids, words = tokenizer.real_ids(encoding.ids), encoding.word_ids
        starts = [start for start, _ in encoding.offsets]
        edges = [at for at in range(1, len(words)) if words[at] != words[at - 1] and starts[at] > after_control]
        if len(edges) > 3:
            at, far = edges[-3], edges[-16] if len(edges) > 16 else 0  # what is further off is not tokenised again
            before = tokenizer.restart + head[starts[at] :]
            stretch, extra = (tokenizer.restart + head[starts[far] :], 1) if far else (head, 0)
            texts = [part + document + after for document in ("", "word", "\n 1") for part in (stretch, before)]
            alone, *found = map(tokenizer.real_ids, tokenizer.encode_batch([before, *texts]))
            # Some normalisers take two blanks for one, counted from the first of them, which may be before the split.
            is_same = alone[1:] == ids[at:]
            pairs = zip(found[::2], found[1::2], strict=True)
            if is_same and all(whole[extra:] == ids[far:at] + rest[1:] for whole, rest in pairs):
                return ids[:at], before, True
        if control:
            return tokenizer.encode(head[:after_control]), control + head[after_control:], True
        return [], head, False
