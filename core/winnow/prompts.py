"""Segments to token ids: the budget of query and document, truncation, windows.

The template, the instruction and what follows the document are never cut. A cut falls between characters, and the ids
of a cut prompt are those of tokenising the whole prompt with the cut text: there is one way to tokenise, cut or not.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from winnow.cutting import CHARACTERS_PER_TOKEN, CUT_WORD, cut_before
from winnow.errors import DocumentError
from winnow.frames import Frame, FrameBuilder
from winnow.limits import Limits as Limits
from winnow.limits import Overflow as Overflow
from winnow.segments import Segment
from winnow.text import checked
from winnow.tokenization import PromptTokenizer
from winnow.vision import PromptImage, PromptVideo, Shown, Vision


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an engine scores.

    Attributes:
        ids: Token ids, control tokens and template included.
        second_type_from: Position of the first token of token type 1, for models that have token types; else None.
        images: Its images, in order. Each has as many tokens in `ids` as the model has for it.
        videos: Its videos, in order, likewise.
    """

    ids: list[int]
    second_type_from: int | None = None
    images: tuple[PromptImage, ...] = ()
    videos: tuple[PromptVideo, ...] = ()

    @property
    def key(self) -> bytes:
        """What tells it from other prompts."""
        ids = array("q", [-1 if self.second_type_from is None else self.second_type_from, *self.ids])
        return b"".join([ids.tobytes(), *(one.key for one in self.images), *(one.key for one in self.videos)])


@dataclass(frozen=True, slots=True)
class DocumentPrompts:
    """The prompts of one document: one, or one a window.

    Attributes:
        prompts: In the order of the text.
        truncated: True if part of the text is in none of them.
        document_tokens: Tokens of the document in all of them; overlaps count twice.
        query_truncated: True if part of the query is in none of them.
    """

    prompts: tuple[Prompt, ...] = ()
    truncated: bool = False
    document_tokens: int = 0
    query_truncated: bool = False


class PromptBuilder:
    """Builds the prompts of one template and one model.

    Args:
        tokenizer: The model's tokenizer.
        segments: The bound template, or None for the tokenizer's own pair encoding.
        limits: How long prompts may be.
        vision: How the model sees, if it does.

    Raises:
        TemplateError: The template leaves no room for a query and a document.
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
        self._frames = FrameBuilder(tokenizer, segments, limits, vision)

    def build(
        self,
        query: str,
        documents: Sequence[str],
        instruction: str | None = None,
        *,
        query_image: Shown | None = None,
        images: Sequence[Shown | None] | None = None,
        positions: Sequence[int] | None = None,
        errors: dict[int, DocumentError] | None = None,
    ) -> list[DocumentPrompts]:
        """Prompts of many documents for one query, in order.

        Tokenises on all cores and leaves the interpreter free meanwhile; call it in a thread to keep an event loop
        free.

        Args:
            query: The query's text; not blank unless it has an image or a video.
            documents: The documents' texts.
            instruction: The instruction, if the template was bound with one.
            query_image: An image or a video that stands before the query's text.
            images: Images and videos that stand before the documents' texts. They are never cut, and in every window.
            positions: What messages call the documents; 0, 1, 2, … by default.
            errors: Where to put the errors of documents, by position; such a document gets no prompts. Without it the
                first one is raised.

        Raises:
            DocumentError: The query, or a document, cannot be tokenised or is too long for `on_overflow="error"`.
            TemplateError: Template and instruction leave no room.
        """
        frame = self._frames.frame(
            checked(query, "The query"), checked(instruction or "", "The instruction"), query_image
        )
        names = range(len(documents)) if positions is None else positions
        refused: dict[int, DocumentError] = {} if errors is None else errors

        def refuse(error: DocumentError) -> DocumentPrompts:
            if errors is None:
                raise error
            errors[error.index if error.index is not None else -1] = error
            return DocumentPrompts()

        texts: list[str] = []
        for name, document in zip(names, documents, strict=True):
            try:
                text = checked(document, f"Document {name}", name)
            except DocumentError as error:
                refuse(error)
                text = ""
            texts.append(text.strip() if self._frames.strip_document else text)
        frames = [frame if image is None else self._frames.with_image(frame, image) for image in images or ()]
        frames = frames or [frame] * len(texts)
        built: list[DocumentPrompts] = []
        for name, text, around, (ids, end) in zip(names, texts, frames, self._fit_each(frames, texts), strict=True):
            if name in refused:
                built.append(DocumentPrompts())
            elif around.image is not None and around.smallest > around.room:
                built.append(refuse(DocumentError(f"Document {name} has {self._frames.too_large(around)}", name)))
            elif end == len(text) or self._limits.on_overflow == "truncate":
                built.append(self._document_prompts(around, [ids], end < len(text)))
            elif self._limits.on_overflow == "window":
                built.append(self._windows(around, text, ids, end))
            else:
                message = (
                    f"Document {name} ({len(text)} characters) does not fit: the prompt leaves "
                    f"{around.room - around.smallest} tokens for it, enough for its first {end} characters. Shorten "
                    "it, or set on_overflow to 'truncate' or 'window'."
                )
                built.append(refuse(DocumentError(message, name)))
        if self._vision is not None and self._vision.as_text:
            for at, (name, text) in enumerate(zip(names, texts, strict=True)):
                if not all(self._arrives(self._vision, prompt) for prompt in built[at].prompts):
                    why = self._changed(name, document=text, query=query, instruction=instruction or "")
                    built[at] = refuse(DocumentError(why, name))
        return built

    def prompt(self, query: str, document: str, instruction: str | None = None) -> Prompt:
        """The prompt of one pair, cut where it must be."""
        return self.build(query, [document], instruction)[0].prompts[0]

    def max_query_tokens(self, instruction: str | None = None) -> int:
        """Most tokens of a query, beside this instruction.

        Raises:
            TemplateError: Template and instruction leave no room.
        """
        return self._frames.budget(instruction or "")[1]

    # --- inside ---

    def _fit_each(self, frames: Sequence[Frame], texts: Sequence[str]) -> list[tuple[list[int], int]]:
        """`_fit`, of all texts of one frame together."""
        fits: dict[int, tuple[list[int], int]] = {}
        for frame in {id(frame): frame for frame in frames}.values():
            at = [at for at, other in enumerate(frames) if other is frame]
            fits |= zip(at, self._fit(frame, [texts[one] for one in at]), strict=True)
        return [fits[at] for at in range(len(texts))]

    def _fit(self, frame: Frame, texts: Sequence[str]) -> list[tuple[list[int], int]]:
        """For each text the ids of the longest beginning that fits, and how many characters that is."""
        reach = CHARACTERS_PER_TOKEN * (max(frame.room, 1) + CUT_WORD)
        ends = [len(text) for text in texts]
        results = frame.encode(self._tokenizer, [text[:reach] for text in texts])
        for at, text in enumerate(texts):  # texts of uncommonly long tokens
            within = reach
            while len(results[at]) <= frame.room + CUT_WORD and within < len(text):
                within *= 4
                results[at] = frame.encode(self._tokenizer, [text[:within]])[0]
            ends[at] = min(within, len(text))
        over = [at for at in range(len(texts)) if len(results[at]) > frame.room]
        offset, extra = len(frame.before), int(frame.drop_first) + int(frame.drop_last)
        while over:
            pieces = [texts[at][: ends[at]] for at in over]
            encodings = self._tokenizer.encode_with_offsets([frame.before + piece + frame.after for piece in pieces])
            for at, piece, encoding in zip(over, pieces, encodings, strict=True):
                own = [span for span in encoding.offsets if offset <= span[0] < offset + len(piece)]
                keep = len(own) - max(len(encoding.ids) - extra - frame.room, 1)
                ends[at] = cut_before(piece, own, offset, keep)
            for at, ids in zip(
                over, frame.encode(self._tokenizer, [texts[at][: ends[at]] for at in over]), strict=True
            ):
                results[at] = ids
            over = [at for at in over if len(results[at]) > frame.room and ends[at]]
        return list(zip(results, ends, strict=True))

    def _windows(self, frame: Frame, text: str, ids: list[int], end: int) -> DocumentPrompts:
        windows = [ids]
        start = 0
        while start + end < len(text) and end:
            spans = self._tokenizer.encode_with_offsets([text[start : start + end]])[0].offsets
            step = cut_before(
                text[start : start + end], spans, 0, math.ceil(len(spans) * (1 - self._limits.window_overlap))
            )
            start += step or end
            [(ids, end)] = self._fit(frame, [text[start:]])
            windows.append(ids)
        return self._document_prompts(frame, windows, start + end < len(text))

    def _document_prompts(self, frame: Frame, windows: Sequence[list[int]], truncated: bool) -> DocumentPrompts:
        return DocumentPrompts(
            prompts=tuple(self._prompt(frame, ids) for ids in windows),
            truncated=truncated,
            document_tokens=sum(len(ids) + frame.surplus - frame.empty for ids in windows),
            query_truncated=frame.query_truncated,
        )

    def _arrives(self, vision: Vision, prompt: Prompt) -> bool:
        """Whether a prompt that travels as text if it has images has the same ids at the other end."""
        return not prompt.images or self._tokenizer.text_of(vision.collapsed(prompt.ids, prompt.videos)) is not None

    def _changed(self, name: int, **texts: str) -> str:
        """What an error says of a prompt that does not arrive."""
        control = self._tokenizer.control_tokens
        spelled = (f"{token!r} in the {what}" for what, text in texts.items() for token in control if token in text)
        return (
            f"Document {name} cannot be scored: it or the query has an image, such prompts travel to a vLLM server as "
            f"text, and {next(spelled, 'its text')} would be read as other tokens there. Take it out, or use "
            "engine='vllm'."
        )

    def _prompt(self, frame: Frame, ids: list[int]) -> Prompt:
        ids, shown = self._tokenizer.up_to_judged(frame.head + ids + frame.tail), frame.images
        if shown and self._vision is not None:
            ids = self._vision.expanded(ids, shown)
        images = tuple(one for one in shown if isinstance(one, PromptImage))
        videos = tuple(one for one in shown if isinstance(one, PromptVideo))
        return Prompt(ids, len(frame.head) if frame.typed else None, images, videos)
