"""Segments to token ids: the budget of query and document, truncation, windows.

Only the query and the document are cut, and only between characters. If a text is cut, the whole prompt is tokenised
with the cut text, so a cut prompt has the same ids as a prompt with a shorter text.
"""

import math
from array import array
from asyncio import CancelledError
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from winnow.errors import DocumentError
from winnow.media import PromptImage, PromptVideo, Shown, Vision
from winnow.prompts.cutting import CHARACTERS_PER_TOKEN, CUT_WORD, MOST_CHARACTERS_PER_TOKEN, cut_before
from winnow.prompts.limits import Limits as Limits
from winnow.prompts.limits import Overflow as Overflow
from winnow.prompts.scaffold import Scaffold, ScaffoldBuilder
from winnow.templates import Segment
from winnow.text import checked
from winnow.tokenizer import PromptTokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an engine scores.

    Attributes:
        ids: Token ids, control tokens and template included.
        second_type_from: Position of the first token of token type 1, for models that have token types; else None.
        images: Its images, in order. `ids` has all tokens of each of them.
        videos: Its videos, in order. `ids` has all tokens of each of them.
    """

    ids: list[int]
    second_type_from: int | None = None
    images: tuple[PromptImage, ...] = ()
    videos: tuple[PromptVideo, ...] = ()

    @property
    def key(self) -> bytes:
        """Bytes that are the same for equal prompts, and different for others."""
        ids = array("q", [-1 if self.second_type_from is None else self.second_type_from, *self.ids])
        return b"".join([ids.tobytes(), *(one.key for one in self.images), *(one.key for one in self.videos)])


@dataclass(frozen=True, slots=True)
class DocumentPrompts:
    """The prompts of one document: one, or one for each window.

    Attributes:
        prompts: The prompts, in the order of the text.
        truncated: True if no prompt has the end of the text.
        document_tokens: Tokens of the document in all prompts; overlaps count twice.
        query_truncated: True if the query was cut.
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
        vision: How the model takes images and videos; None for a text model.

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
        self._scaffolds = ScaffoldBuilder(tokenizer, segments, limits, vision)

    def build(
        self,
        query: str,
        documents: Sequence[str],
        instruction: str | None = None,
        *,
        query_medium: Shown | None = None,
        media: Sequence[Shown | None] | None = None,
        positions: Sequence[int] | None = None,
        errors: dict[int, DocumentError] | None = None,
        is_over: Callable[[], bool] | None = None,
    ) -> list[DocumentPrompts]:
        """Prompts of many documents for one query, in order.

        It tokenises on all cores, and other threads run meanwhile; so call it in a thread if there is an event loop.

        Args:
            query: The query's text; not blank unless it has an image or a video.
            documents: The documents' texts.
            instruction: The instruction, if the template was bound with one.
            query_medium: An image or a video that comes before the query's text.
            media: Images and videos that come before the documents' texts. They are never cut, and every window has
                them.
            positions: The documents' positions in the call, for messages; 0, 1, 2, … by default.
            errors: The method adds the errors of documents here, by position; such a document gets no prompts. Without
                it the first error is raised.
            is_over: Whether no call waits for the prompts any more; checked between documents and windows.

        Raises:
            CancelledError: `is_over` was true.
            DocumentError: The query, or a document, cannot be tokenised or is too long for `on_overflow="error"`.
            TemplateError: Template and instruction leave no room.
        """
        scaffold = self._scaffolds.scaffold(
            checked(query, "The query"), checked(instruction or "", "The instruction"), query_medium
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
            texts.append(text.strip() if self._scaffolds.strip_document else text)
        scaffolds = [scaffold if one is None else self._scaffolds.with_medium(scaffold, one) for one in media or ()]
        scaffolds = scaffolds or [scaffold] * len(texts)
        built: list[DocumentPrompts] = []
        for name, text, around, (ids, end) in zip(
            names, texts, scaffolds, self._fit_each(scaffolds, texts), strict=True
        ):
            _stop_if(is_over)
            if name in refused:
                built.append(DocumentPrompts())
            elif around.medium is not None and around.smallest > around.room:
                built.append(refuse(DocumentError(f"Document {name} has {self._scaffolds.too_large(around)}", name)))
            elif end == len(text) or self._limits.on_overflow == "truncate":
                built.append(self._document_prompts(around, [ids], end < len(text)))
            elif self._limits.on_overflow == "window":
                built.append(self._windows(around, text, ids, end, is_over))
            else:
                message = (
                    f"Document {name} ({len(text)} characters) does not fit: the prompt leaves "
                    f"{around.room - around.smallest} tokens for it, enough for its first {end} characters. Shorten "
                    "it, or set on_overflow to 'truncate' or 'window'."
                )
                built.append(refuse(DocumentError(message, name)))
        if self._vision is not None and self._vision.as_text:
            for at, (name, text) in enumerate(zip(names, texts, strict=True)):
                if not all(self._same_ids_on_server(self._vision, prompt) for prompt in built[at].prompts):
                    why = self._other_ids_message(name, document=text, query=query, instruction=instruction or "")
                    built[at] = refuse(DocumentError(why, name))
        return built

    def prompt(self, query: str, document: str, instruction: str | None = None) -> Prompt:
        """The prompt of one pair, cut if it is too long."""
        return self.build(query, [document], instruction)[0].prompts[0]

    def max_query_tokens(self, instruction: str | None = None) -> int:
        """Most tokens of a query, beside this instruction.

        Raises:
            TemplateError: Template and instruction leave no room.
        """
        return self._scaffolds.budget(instruction or "")[1]

    # --- inside ---

    def _fit_each(self, scaffolds: Sequence[Scaffold], texts: Sequence[str]) -> list[tuple[list[int], int]]:
        """`_fit` of all texts; those with the same scaffold are tokenised together."""
        fits: dict[int, tuple[list[int], int]] = {}
        for scaffold in {id(scaffold): scaffold for scaffold in scaffolds}.values():
            at = [at for at, other in enumerate(scaffolds) if other is scaffold]
            fits |= zip(at, self._fit(scaffold, [texts[one] for one in at]), strict=True)
        return [fits[at] for at in range(len(texts))]

    def _fit(self, scaffold: Scaffold, texts: Sequence[str]) -> list[tuple[list[int], int]]:
        """For each text, the ids of its longest beginning that fits, and how many characters that beginning has.

        A text is first cut by its number of characters, so that a book is not tokenised to keep its first page. What is
        still too long is cut at the last token that fits and tokenised again, until it fits.
        """
        room = max(scaffold.room, 1) + CUT_WORD
        reach, most = CHARACTERS_PER_TOKEN * room, MOST_CHARACTERS_PER_TOKEN * room
        ends = [len(text) for text in texts]
        results = scaffold.encode(self._tokenizer, [text[:reach] for text in texts])
        for at, text in enumerate(texts):  # texts of uncommonly long tokens
            within = reach
            while len(results[at]) <= scaffold.room + CUT_WORD and within < min(len(text), most):
                within *= 4
                results[at] = scaffold.encode(self._tokenizer, [text[:within]])[0]
            ends[at] = min(within, len(text))
        over = [at for at in range(len(texts)) if len(results[at]) > scaffold.room]
        offset, extra = len(scaffold.before), int(scaffold.drop_first) + int(scaffold.drop_last)
        while over:
            pieces = [texts[at][: ends[at]] for at in over]
            encodings = self._tokenizer.encode_with_offsets(
                [scaffold.before + piece + scaffold.after for piece in pieces]
            )
            for at, piece, encoding in zip(over, pieces, encodings, strict=True):
                own = [span for span in encoding.offsets if offset <= span[0] < offset + len(piece)]
                keep = len(own) - max(len(encoding.ids) - extra - scaffold.room, 1)
                ends[at] = cut_before(piece, own, offset, keep)
            for at, ids in zip(
                over, scaffold.encode(self._tokenizer, [texts[at][: ends[at]] for at in over]), strict=True
            ):
                results[at] = ids
            over = [at for at in over if len(results[at]) > scaffold.room and ends[at]]
        return list(zip(results, ends, strict=True))

    def _windows(
        self, scaffold: Scaffold, text: str, ids: list[int], end: int, is_over: Callable[[], bool] | None
    ) -> DocumentPrompts:
        windows = [ids]
        start = 0
        while start + end < len(text) and end:
            _stop_if(is_over)
            spans = self._tokenizer.encode_with_offsets([text[start : start + end]])[0].offsets
            step = cut_before(
                text[start : start + end], spans, 0, math.ceil(len(spans) * (1 - self._limits.window_overlap))
            )
            start += step or end
            [(ids, end)] = self._fit(scaffold, [text[start:]])
            windows.append(ids)
        return self._document_prompts(scaffold, windows, start + end < len(text))

    def _document_prompts(self, scaffold: Scaffold, windows: Sequence[list[int]], truncated: bool) -> DocumentPrompts:
        return DocumentPrompts(
            prompts=tuple(self._prompt(scaffold, ids) for ids in windows),
            truncated=truncated,
            document_tokens=sum(len(ids) + scaffold.surplus - scaffold.empty for ids in windows),
            query_truncated=scaffold.query_truncated,
        )

    def _same_ids_on_server(self, vision: Vision, prompt: Prompt) -> bool:
        """Whether a server that tokenises the prompt's text gets the same ids. Only prompts with images go as text."""
        return not prompt.images or self._tokenizer.text_of(vision.collapsed(prompt.ids, prompt.videos)) is not None

    def _other_ids_message(self, name: int, **texts: str) -> str:
        """The error message for a prompt that a server would tokenise to other ids."""
        control = self._tokenizer.control_tokens
        spelled = (f"{token!r} in the {what}" for what, text in texts.items() for token in control if token in text)
        return (
            f"Document {name} cannot be scored: it or the query has an image, such prompts are sent to a vLLM server "
            f"as text, and the server would read {next(spelled, 'its text')} as other tokens. Remove it, or use "
            "engine='vllm'."
        )

    def _prompt(self, scaffold: Scaffold, ids: list[int]) -> Prompt:
        ids, media = self._tokenizer.up_to_judged(scaffold.head + ids + scaffold.tail), scaffold.media
        if media and self._vision is not None:
            ids = self._vision.expanded(ids, media)
        images = tuple(one for one in media if isinstance(one, PromptImage))
        videos = tuple(one for one in media if isinstance(one, PromptVideo))
        return Prompt(ids, len(scaffold.head) if scaffold.typed else None, images, videos)


def _stop_if(is_over: Callable[[], bool] | None) -> None:
    if is_over is not None and is_over():
        raise CancelledError
