"""Segments to token ids: the budget of query and document, truncation, windows.

Only the query and the document are cut, and only between characters. If a text is cut, the whole prompt is tokenised
with the cut text, so a cut prompt has the same ids as a prompt with a shorter text.
"""

import math
from asyncio import CancelledError
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from winnow.errors import DocumentError
from winnow.media import PromptImage, PromptVideo
from winnow.prompts.cutting import CHARACTERS_PER_TOKEN, CUT_WORD, MOST_CHARACTERS_PER_TOKEN, cut_before, first_grapheme
from winnow.prompts.queries import ScaffoldBuilder, too_large
from winnow.prompts.scaffold import PromptLayout, QueryPart, Scaffold
from winnow.prompts.values import DocumentPrompts, Prompt, Source
from winnow.text import checked


class _Fit(NamedTuple):
    """The longest beginning of a text that fits: its ids, and how many characters it has."""

    ids: list[int]
    end: int


class PromptBuilder:
    """Builds the prompts of one template and one model.

    Args:
        layout: How the prompts are laid out.

    Attributes:
        layout: As above.

    Raises:
        TemplateError: The template leaves no room for a query and a document.
    """

    def __init__(self, layout: PromptLayout):
        self.layout = layout
        self._tokenizer = layout.tokenizer
        self._limits = layout.limits
        self._queries = ScaffoldBuilder(layout)

    def query_part(self, query: str | Source, instruction: str | None = None) -> QueryPart:
        """What the prompts of a query share; a call whose documents come in slices makes it once.

        Args:
            query: The query.
            instruction: The instruction, if the template was bound with one.

        Raises:
            DocumentError: The query cannot be tokenised, or is too long for `on_overflow="error"`.
            TemplateError: Template and instruction leave no room.
        """
        source = query if isinstance(query, Source) else Source(query)
        text, instruction = checked(source.text, "The query"), checked(instruction or "", "The instruction")
        return QueryPart(text, instruction, self._queries.scaffold(source, instruction))

    def build(
        self,
        query: str | Source | QueryPart,
        documents: Sequence[str | Source],
        instruction: str | None = None,
        *,
        on_error: Literal["raise", "skip"] = "raise",
        is_over: Callable[[], bool] | None = None,
    ) -> list[DocumentPrompts]:
        """Prompts of many documents for one query, in order.

        It tokenises on all cores, and other threads run meanwhile; so call it in a thread if there is an event loop.

        Args:
            query: The query, or what `query_part` made of it and the instruction.
            documents: The documents.
            instruction: The instruction, if the template was bound with one.
            on_error: What to do about a document that gets no prompts: "raise", or "skip": its `error` says why.
            is_over: Whether no call waits for the prompts any more; checked between documents and windows.

        Raises:
            CancelledError: `is_over` was true.
            DocumentError: The query, or a document, cannot be tokenised or is too long for `on_overflow="error"`.
            TemplateError: Template and instruction leave no room.
        """
        part = query if isinstance(query, QueryPart) else self.query_part(query, instruction)
        scaffold = part.scaffold
        sources = [_as_source(document, at) for at, document in enumerate(documents)]
        scaffolds = [
            scaffold if source.medium is None else self.layout.with_medium(scaffold, source.medium)
            for source in sources
        ]
        texts = [self._text_of(source) for source in sources]
        fits = self._fit_each(scaffolds, ["" if isinstance(text, DocumentError) else text for text in texts])
        built: list[DocumentPrompts] = []
        for source, text, around, fit in zip(sources, texts, scaffolds, fits, strict=True):
            _stop_if(is_over)
            try:
                found = self._prompts_of(source, text, around, fit, is_over)
                self._check_ids_on_server(found, source, query=part.query, instruction=part.instruction)
            except DocumentError as error:
                if on_error == "raise":
                    raise
                found = DocumentPrompts(error=error)
            built.append(found)
        return built

    def prompt(self, query: str, document: str, instruction: str | None = None) -> Prompt:
        """The prompt of one pair, cut if it is too long."""
        return self.build(query, [document], instruction)[0].prompts[0]

    def max_query_tokens(self, instruction: str | None = None) -> int:
        """Most tokens of a query, beside this instruction.

        Raises:
            TemplateError: Template and instruction leave no room.
        """
        return self._queries.budget(instruction or "")[1]

    # --- inside ---

    def _text_of(self, source: Source) -> str | DocumentError:
        """The text of a document as the template takes it, or why it is no text."""
        try:
            text = checked(source.text, f"Document {source.index}", source.index)
        except DocumentError as error:
            return error
        return text.strip() if self.layout.strip_document else text

    def _fit_each(self, scaffolds: Sequence[Scaffold], texts: Sequence[str]) -> list[_Fit]:
        """`_fit` of all texts; those with the same scaffold are tokenised together."""
        fits: dict[int, _Fit] = {}
        for scaffold in {id(scaffold): scaffold for scaffold in scaffolds}.values():
            at = [at for at, other in enumerate(scaffolds) if other is scaffold]
            fits |= zip(at, self._fit(scaffold, [texts[one] for one in at]), strict=True)
        return [fits[at] for at in range(len(texts))]

    def _fit(self, scaffold: Scaffold, texts: Sequence[str]) -> list[_Fit]:
        """For each text, its longest beginning that fits.

        A text is first cut by its number of characters, so that a book is not tokenised to keep its first page. What is
        still too long is cut at the last token that fits and tokenised again, until it fits.
        """
        fits = self._read(scaffold, texts)
        over = [at for at, fit in enumerate(fits) if len(fit.ids) > scaffold.room]
        while over:
            cut = self._cut(scaffold, [texts[at][: fits[at].end] for at in over])
            for at, fit in zip(over, cut, strict=True):
                fits[at] = fit
            over = [at for at in over if len(fits[at].ids) > scaffold.room and fits[at].end]
        return fits

    def _read(self, scaffold: Scaffold, texts: Sequence[str]) -> list[_Fit]:
        """For each text, a beginning of so many characters that its tokens fill the room, or the whole text."""
        reach, most = (count * _tokens_read(scaffold) for count in (CHARACTERS_PER_TOKEN, MOST_CHARACTERS_PER_TOKEN))
        fits: list[_Fit] = []
        for text, ids in zip(texts, scaffold.encode(self._tokenizer, [text[:reach] for text in texts]), strict=True):
            within = reach
            while len(ids) <= scaffold.room + CUT_WORD and within < min(len(text), most):  # uncommonly long tokens
                within *= 4
                [ids] = scaffold.encode(self._tokenizer, [text[:within]])
            fits.append(_Fit(ids, min(within, len(text))))
        return fits

    def _cut(self, scaffold: Scaffold, texts: Sequence[str]) -> list[_Fit]:
        """Texts that are too long, each cut at its last token that fits; tokenised anew, it may be too long again."""
        ends = [
            cut_before(text, own, len(own) - max(length - scaffold.room, 1))
            for text, (length, own) in zip(texts, scaffold.spans(self._tokenizer, texts), strict=True)
        ]
        cut = scaffold.encode(self._tokenizer, [text[:end] for text, end in zip(texts, ends, strict=True)])
        return list(map(_Fit, cut, ends))

    def _end_that_fits(self, scaffold: Scaffold, text: str) -> list[int]:
        """The ids of the longest end of a text that fits; as in `_fit`, the text is first cut by its characters."""
        within = CHARACTERS_PER_TOKEN * max(scaffold.room, 1)
        most = min(len(text), MOST_CHARACTERS_PER_TOKEN * max(scaffold.room, 1))
        while True:
            piece = text[len(text) - min(within, len(text)) :]
            [(length, own)] = scaffold.spans(self._tokenizer, [piece])
            if length > scaffold.room or within >= most:
                break
            within *= 4  # uncommonly long tokens
        while (excess := length - scaffold.room) > 0 and piece:
            piece = piece[cut_before(piece, own, excess) or first_grapheme(piece) :]
            [(length, own)] = scaffold.spans(self._tokenizer, [piece])
        return scaffold.encode(self._tokenizer, [piece])[0]

    def _prompts_of(
        self,
        source: Source,
        text: str | DocumentError,
        scaffold: Scaffold,
        fit: _Fit,
        is_over: Callable[[], bool] | None,
    ) -> DocumentPrompts:
        """The prompts of one document: whole, cut, or in windows.

        Raises:
            DocumentError: It is no text, or does not fit.
        """
        if isinstance(text, DocumentError):
            raise text
        if scaffold.medium is not None and scaffold.smallest > scaffold.room:
            cure = "raise max_length or max_document_tokens, or leave the query less with max_query_tokens"
            why = too_large(scaffold.medium, scaffold.medium.tokens + scaffold.room - scaffold.smallest, cure)
            raise DocumentError(f"Document {source.index} has {why}", source.index)
        if fit.end == len(text) or self._limits.on_overflow == "truncate":
            ids = self._end_that_fits(scaffold, text) if fit.end < len(text) and self._limits.keep == "end" else fit.ids
            return self._document_prompts(scaffold, [ids], fit.end < len(text))
        if self._limits.on_overflow == "window":
            return self._windows(text, scaffold, fit, is_over)
        raise DocumentError(
            f"Document {source.index} ({len(text)} characters) does not fit: the prompt leaves "
            f"{scaffold.room - scaffold.smallest} tokens for it, enough for its first {fit.end} characters. Shorten "
            "it, or set on_overflow to 'truncate' or 'window'.",
            source.index,
        )

    def _windows(
        self, text: str, scaffold: Scaffold, first: _Fit, is_over: Callable[[], bool] | None
    ) -> DocumentPrompts:
        most = MOST_CHARACTERS_PER_TOKEN * _tokens_read(scaffold)
        windows = [first.ids]
        start, end = 0, first.end
        while start + end < len(text) and end:
            _stop_if(is_over)
            window = text[start : start + end]
            spans = self._tokenizer.encode_with_offsets([window])[0].offsets
            start += cut_before(window, spans, math.ceil(len(spans) * (1 - self._limits.window_overlap))) or end
            # Not all the rest, which to copy for each window of a long text would take time that grows with its square.
            [(ids, end)] = self._fit(scaffold, [text[start : start + most]])
            windows.append(ids)
        return self._document_prompts(scaffold, windows, start + end < len(text))

    def _document_prompts(self, scaffold: Scaffold, windows: Sequence[list[int]], truncated: bool) -> DocumentPrompts:
        return DocumentPrompts(
            prompts=tuple([self._prompt(scaffold, ids) for ids in windows]),
            truncated=truncated,
            document_tokens=sum(map(len, windows)) + len(windows) * (scaffold.surplus - scaffold.empty),
            query_truncated=scaffold.query_truncated,
        )

    def _check_ids_on_server(self, built: DocumentPrompts, source: Source, *, query: str, instruction: str) -> None:
        """Refuse prompts that go to a server as text, as those with images do, if it would read other ids.

        Raises:
            DocumentError: A text holds what the server would read as a control token.
        """
        vision = self.layout.vision
        if vision is None or not vision.as_text:
            return
        if all(
            self._tokenizer.text_of(vision.collapsed(prompt.ids, prompt.videos)) is not None
            for prompt in built.prompts
            if prompt.images
        ):
            return
        texts = {"document": source.text, "query": query, "instruction": instruction}
        control = self._tokenizer.control_tokens
        spelled = (f"{token!r} in the {what}" for what, text in texts.items() for token in control if token in text)
        raise DocumentError(
            f"Document {source.index} cannot be scored: it or the query has an image, such prompts are sent to a vLLM "
            f"server as text, and the server would read {next(spelled, 'its text')} as other tokens. Remove it, or use "
            "engine='vllm'.",
            source.index,
        )

    def _prompt(self, scaffold: Scaffold, ids: list[int]) -> Prompt:
        ids = self._tokenizer.up_to_judged(scaffold.head + ids + scaffold.tail)
        second_type_from = len(scaffold.head) if scaffold.typed else None
        if not (media := scaffold.media) or self.layout.vision is None:
            return Prompt(ids, second_type_from)
        images = tuple(one for one in media if isinstance(one, PromptImage))
        videos = tuple(one for one in media if isinstance(one, PromptVideo))
        return Prompt(self.layout.vision.expanded(ids, media), second_type_from, images, videos)


def _tokens_read(scaffold: Scaffold) -> int:
    """How many tokens of a text are read, to see which of them fit."""
    return max(scaffold.room, 1) + CUT_WORD


def _as_source(document: str | Source, at: int) -> Source:
    if isinstance(document, str):
        return Source(document, index=at)
    return document if document.index is not None else replace(document, index=at)


def _stop_if(is_over: Callable[[], bool] | None) -> None:
    if is_over is not None and is_over():
        raise CancelledError
