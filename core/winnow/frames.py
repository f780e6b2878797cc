"""The part of a prompt that all documents of a query share: tokenised once, with its budget."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from winnow.cutting import CHARACTERS_PER_TOKEN, CUT_WORD, cut_before
from winnow.errors import DocumentError, TemplateError
from winnow.limits import Limits
from winnow.segments import Content, PlainText, Segment
from winnow.tokenization import PromptTokenizer
from winnow.vision import PromptVideo, Shown, Vision

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """All of a prompt but the document, for one query.

    The document is tokenised as `before + document + after`, less the control tokens at the two ends, and stands
    between `head` and `tail`.

    Each image, or video, is one token here; the room that is left takes account of the others.

    Attributes:
        head: Ids that no document changes.
        tail: Ids behind the document that none changes.
        before: Text between these and the document, with which the document's first token may merge.
        after: Text behind the document up to the next control token, with which its last token may merge.
        drop_first: Whether `before` begins with a control token that `head` already holds.
        drop_last: Whether `after` ends with a control token that `tail` already holds.
        empty: Tokens of `before + after` that remain.
        room: Most tokens of `before + document + after`.
        typed: Whether what stands behind `head` has token type 1.
        query_truncated: Whether the query was cut.
        image: The document's image or video, whose placeholder is the end of `before`.
        smallest: Tokens of `before + after` with this image.
        images_before: The query's image or video, as often as it stands before the document.
        images_after: The same for behind the document.
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
    image: Shown | None = None
    smallest: int = 0
    images_before: tuple[Shown, ...] = ()
    images_after: tuple[Shown, ...] = ()

    @property
    def images(self) -> tuple[Shown, ...]:
        """All images and videos of the prompt, in order."""
        own = () if self.image is None else (self.image,)
        return self.images_before + own + self.images_after

    @property
    def surplus(self) -> int:
        """Tokens of the document's image beside the one that stands here."""
        return 0 if self.image is None else self.image.tokens - 1

    @property
    def length(self) -> int:
        """Tokens of the prompt with an empty document."""
        surplus = sum(image.tokens - 1 for image in self.images)
        return len(self.head) + self.empty + len(self.tail) + surplus

    def encode(self, tokenizer: PromptTokenizer, texts: Sequence[str]) -> list[list[int]]:
        """Ids of `before + text + after` for each text, less what is dropped."""
        encoded = tokenizer.encode_batch([self.before + text + self.after for text in texts])
        stop = -1 if self.drop_last else None
        return [tokenizer.real_ids(ids[int(self.drop_first) : stop]) for ids in encoded]


class FrameBuilder:
    """Makes the frames of one template and one model.

    Args:
        tokenizer: The model's tokenizer.
        segments: The bound template, or None for the tokenizer's own pair encoding.
        limits: How long prompts may be.
        vision: How the model sees, if it does.

    Attributes:
        strip_document: Whether the template strips whitespace around the document.
    """

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        segments: Sequence[Segment] | None,
        limits: Limits,
        vision: Vision | None = None,
    ):
        self._tokenizer = tokenizer
        self._limits = limits
        self._vision = vision
        self._before: list[str | Content] = []
        self._after: list[str | Content] = []
        self._paired = segments is None
        side = self._before
        for segment in segments or ():
            if isinstance(segment, str):
                side.append(tokenizer.literal(segment))
            elif isinstance(segment, PlainText):
                side.append(segment.text)
            elif segment.field == "document":
                self.strip_document = segment.strip
                side = self._after
            else:
                side.append(segment)
        if self._paired:
            self.strip_document = False

    def frame(self, query: str, instruction: str, image: Shown | None = None) -> Frame:
        """The frame of a query, whose text is cut if it takes more than its share.

        Raises:
            DocumentError: It takes more, and `on_overflow` is "error"; or its image alone does.
            TemplateError: Template and instruction leave no room.
        """
        used, cap = self.budget(instruction, image)
        whole = query
        reach = CHARACTERS_PER_TOKEN * (cap + CUT_WORD)
        while reach < len(query) and len(self._tokenizer.encode(query[:reach])) <= cap + CUT_WORD:  # long tokens
            reach *= 4
        query = query[:reach]
        uncut = True
        while True:
            frame = self._whole(query, instruction, image)
            # A query may take more tokens in the prompt than alone, by a merge at its edge: then it is cut a little
            # more.
            excess = frame.length - used - cap
            if not query or (excess <= 0 and not (uncut and len(query) < len(whole))):
                break
            encoding = self._tokenizer.encode_with_offsets([query])[0]
            keep = min(len(encoding.ids) - 1, cap) if uncut else len(encoding.ids) - excess
            query = query[: cut_before(query, encoding.offsets, 0, keep)]
            uncut = False
        if query != whole:
            if self._limits.on_overflow == "error":
                raise DocumentError(
                    f"The query ({len(whole)} characters) does not fit: it may take {cap} tokens, enough for its first "
                    f"{len(query)} characters. Shorten it, raise max_query_tokens, or set on_overflow to 'truncate'."
                )
            logger.warning(
                "The query was cut from %d to %d characters: it may take %d tokens.", len(whole), len(query), cap
            )
            return replace(frame, query_truncated=True)
        return frame

    def with_image(self, frame: Frame, image: Shown) -> Frame:
        """The frame for a document with an image or a video, which stands before its text."""
        with_image = replace(
            frame, before=frame.before + self._placeholder(image), room=frame.room - (image.tokens - 1), image=image
        )
        return replace(with_image, smallest=len(with_image.encode(self._tokenizer, [""])[0]))

    def too_large(self, frame: Frame) -> str:
        """What an error says of an image for which there is no room."""
        assert frame.image is not None  # noqa: S101 - for mypy; the caller checked
        cure = "raise max_length or max_document_tokens, or leave the query less with max_query_tokens"
        return _too_large(frame.image, frame.image.tokens + frame.room - frame.smallest, cure)

    def budget(self, instruction: str, image: Shown | None = None) -> tuple[int, int]:
        """Tokens that template, instruction and the query's image take, and tokens that the query's text may take.

        Raises:
            DocumentError: The image leaves no room.
            TemplateError: Template and instruction leave none.
        """
        used = self._whole("", instruction).length
        left = self._limits.max_length - used
        if left < 2:
            raise TemplateError(
                f"The template and the instruction take {used} tokens of the model's {self._limits.max_length}, which "
                "leaves no room for a query and a document. Shorten the instruction or the template, or raise "
                "max_length."
            )
        cap = left * 3 // 4 if self._limits.max_query_tokens is None else min(self._limits.max_query_tokens, left - 1)
        if image is None:
            return used, max(cap, 1)
        seen = self._whole("", instruction, image).length - used
        if seen > cap:
            cure = "raise max_length or max_query_tokens"
            raise DocumentError(f"The query has {_too_large(image, cap - (seen - image.tokens), cure)}")
        return used + seen, cap - seen

    def _placeholder(self, image: Shown | None) -> str:
        if image is None or self._vision is None:
            return ""
        return self._tokenizer.literal(self._vision.placeholder_of(image))

    def _whole(self, query: str, instruction: str, image: Shown | None = None) -> Frame:
        tokenizer = self._tokenizer
        if self._paired:
            layout = tokenizer.pair_layout
            head = [*layout.before, *tokenizer.encode(query), *layout.between]
            return self._with_room(Frame(head=head, tail=layout.after, typed=tokenizer.token_types))
        texts = {"query": query, "instruction": instruction}
        shown = {"query": self._placeholder(image), "instruction": ""}
        sides = (self._before, self._after)
        head_text, tail_text = (
            "".join(part if isinstance(part, str) else shown[part.field] + part.of(texts[part.field]) for part in side)
            for side in sides
        )
        images = [
            (image,) * sum(not isinstance(part, str) and part.field == "query" for part in side) if image else ()
            for side in sides
        ]
        split, terminator = tokenizer.first_control(tail_text)
        after, tail = tail_text[:split] + terminator, tokenizer.encode(tail_text[split:])
        # A template that writes BOS itself does not get it twice.
        head_ids = tokenizer.encode(head_text)
        begin = [] if head_ids[: len(tokenizer.begin)] == tokenizer.begin else tokenizer.begin
        end = [] if tokenizer.end and tail[-len(tokenizer.end) :] == tokenizer.end else tokenizer.end
        head, before, drop_first = self._shared_head(head_text, after)
        return self._with_room(
            Frame(
                head=[*begin, *head],
                before=before,
                after=after,
                drop_first=drop_first,
                drop_last=bool(terminator),
                tail=[*tail, *end, *tokenizer.last],
                images_before=images[0],
                images_after=images[1],
            )
        )

    def _with_room(self, frame: Frame) -> Frame:
        empty = len(frame.encode(self._tokenizer, [""])[0])
        room = self._limits.max_length - replace(frame, empty=0).length
        if self._limits.max_document_tokens is not None:
            room = min(room, empty + self._limits.max_document_tokens)
        return replace(frame, empty=empty, smallest=empty, room=room)

    def _shared_head(self, head: str, after: str) -> tuple[list[int], str, bool]:
        """Split the text before the document where the document cannot change the tokens any more.

        Tokens depend on what follows them only within a word of the pre-tokeniser and the next one, so three words
        before the end is a safe place to start again. Tokenizers without words (sentencepiece-like BPE) are restarted
        at the last control token instead. Returns ids, remaining text, and whether the remaining text begins with a
        control token to drop.
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


def _too_large(image: Shown, room: int, cure: str) -> str:
    if isinstance(image, PromptVideo):
        frames, high, wide, _ = image.frames.shape
        kind, size = "a video", f"{frames} frames of {wide} x {high} pixels, as the model takes them"
    else:
        kind, size = "an image", "{} x {} pixels, as the model takes it".format(*image.pixels.size)
    return (
        f"{kind} of {image.tokens} tokens ({size}), and there is room for {max(room, 0)}; {kind.split()[1]}s are never "
        "cut. Set engine_kwargs={'mm_processor_kwargs': {'max_pixels': ...}}, to which all images and frames are then "
        f"reduced; {cure}."
    )
