"""The parts of a prompt: which part each token belongs to, and the text of the tokens."""

import bisect
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from winnow.prompts.scaffold import PromptLayout
from winnow.prompts.values import DocumentPrompts
from winnow.templates import Content, FieldName, PlainText, Segment
from winnow.tokenizer import PromptTokenizer

PartName = Literal["before", "instruction", "query", "between", "document", "after"]
PART_NAMES: tuple[PartName, ...] = get_args(PartName)


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a prompt's text.

    Attributes:
        part: Where it is: in the caller's query, document or instruction, or in the template before, between or after
            query and document.
        text: Its text.
        control: True for a control token; one that is typed in a query or document is text.
    """

    part: PartName
    text: str
    control: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptParts:
    """The prompt of one pair, and which part each piece of it is.

    Attributes:
        built: The prompts of the pair. If there are several windows, the others say what the first one is.
        ids: Token ids of the prompt as it is sent.
        pieces: The text of `ids`, with the control tokens that the tokenizer adds.
        tokens: How many of `ids` each part has. A token that spans two parts counts where it ends.
        uncut: Token ids of the pair if nothing of it were cut.
        passed_over: The padding tokens after them that the prompt does not have, because the model would ignore them.
    """

    built: DocumentPrompts
    ids: list[int]
    pieces: list[Piece]
    tokens: dict[PartName, int]
    uncut: list[int]
    passed_over: list[int]


def parts_of(layout: PromptLayout, built: DocumentPrompts, values: Mapping[FieldName, str]) -> PromptParts:
    """The parts of a prompt that a `PromptBuilder` made.

    Args:
        layout: How it is laid out.
        built: The prompts of one document without an image or a video.
        values: The texts that it was made of.
    """
    tokenizer, ids = layout.tokenizer, built.prompts[0].ids
    whole = _tokens_of(tokenizer, layout.segments, values)
    end = len(tokenizer.up_to_judged([token.id for token in whole]))
    places = _places_as_cut(whole[:end], built)
    counts = Counter(part for part, _ in places)
    return PromptParts(
        built=built,
        ids=ids,
        pieces=_pieces_of(tokenizer, ids, places),
        tokens={name: counts[name] for name in PART_NAMES},
        uncut=[token.id for token in whole[:end]],
        passed_over=[token.id for token in whole[end:]],
    )


class _PromptToken(NamedTuple):
    """A token of the prompt: its part, and whether it is a control token of the template."""

    id: int
    part: PartName
    control: bool


def _tokens_of(
    tokenizer: PromptTokenizer, segments: Sequence[Segment] | None, values: Mapping[FieldName, str]
) -> list[_PromptToken]:
    """The tokens of a whole pair. A token that spans two parts belongs to the one in which it ends."""

    def own(part: PartName, ids: Sequence[int]) -> list[_PromptToken]:
        return [_PromptToken(index, part, control=True) for index in ids]

    def content(part: Literal["query", "document"]) -> list[_PromptToken]:
        return [_PromptToken(index, part, control=False) for index in tokenizer.encode(values[part])]

    if segments is None:
        layout = tokenizer.pair_layout
        return [
            *own("before", layout.before),
            *content("query"),
            *own("between", layout.between),
            *content("document"),
            *own("after", layout.after),
        ]
    spans = list(_spans(tokenizer, segments, values))
    ends = list(itertools.accumulate(len(text) for _, text, _ in spans))
    encoding = tokenizer.encode_with_offsets(["".join(text for _, text, _ in spans)])[0]
    ids = tokenizer.real_ids(encoding.ids)
    control = set(tokenizer.control_tokens.values())
    tokens = []
    for index, (start, end) in zip(ids, encoding.offsets, strict=True):
        part, _, is_content = spans[min(bisect.bisect_right(ends, max(start, end - 1)), len(spans) - 1)]
        tokens.append(_PromptToken(index, part, control=index in control and not is_content))
    begin, end_ids = tokenizer.begin, tokenizer.end
    return [
        *own("before", begin if ids[: len(begin)] != begin else []),
        *tokens,
        *own("after", end_ids if not end_ids or ids[-len(end_ids) :] != end_ids else []),
        *own("after", tokenizer.last),
    ]


def _spans(
    tokenizer: PromptTokenizer, segments: Sequence[Segment], values: Mapping[FieldName, str]
) -> Iterator[tuple[PartName, str, bool]]:
    """Of each segment: its part, its text as it is tokenised, and whether the text is the caller's."""
    seen: set[str] = set()
    for segment in segments:
        place: PartName = "before" if not seen else "after" if len(seen) == 2 else "between"
        if isinstance(segment, Content):
            seen |= {segment.field} - {"instruction"}
            yield segment.field, segment.of(values[segment.field]), True
        elif isinstance(segment, PlainText):
            yield place, segment.text, True
        else:
            yield place, tokenizer.literal(segment), False


def _places_as_cut(whole: Sequence[_PromptToken], built: DocumentPrompts) -> list[tuple[PartName, bool]]:
    """Part of each token of the first prompt, and whether it is a control token: the pair's without what was cut."""
    total, count = len(built.prompts[0].ids), len(built.prompts)
    room = Counter(token.part for token in whole)
    if built.truncated or built.query_truncated or count > 1:
        around = (sum(len(prompt.ids) for prompt in built.prompts) - built.document_tokens) // count
        room["document"] = total - around
        room["query"] += total - room.total() if built.query_truncated else 0
    places: list[tuple[PartName, bool]] = []
    for token in whole:
        room[token.part] -= 1
        if room[token.part] >= 0:
            places.append((token.part, token.control))
    return places


def _pieces_of(tokenizer: PromptTokenizer, ids: Sequence[int], places: Sequence[tuple[PartName, bool]]) -> list[Piece]:
    """The text of the ids, which is what the model reads, in pieces of one part each."""
    pieces: list[Piece] = []
    at, shown = 0, ""
    for (part, control), group in itertools.groupby(places[: len(ids)]):
        stretch = len(list(group))
        steps = [1] * stretch if control else [stretch]
        for step in steps:
            at += step
            # Decoded from the beginning, because decoders drop a first blank, and join the bytes of a character.
            before, shown = shown, tokenizer.decode(ids[:at])
            pieces.append(Piece(part, tokenizer.token(ids[at - 1]) if control else shown[len(before) :], control))
    return pieces
