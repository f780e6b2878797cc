"""Text to token ids, with one promise: a control token's id comes from the template, never from a caller's text.

A `PromptTokenizer` is a copy of the model's own tokenizer in which every control token has a secret name. Literal text
of a template is rewritten to the secret names once; contents cannot know them, so `<|im_end|>` typed in a document is
split like any other text. Everything else is the model's: normaliser, pre-tokeniser, merges across the edges of
template and content.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from winnow.errors import ModelError, TemplateError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

# So few characters are tokenised by the calling thread alone: with the tokenizer's own threads, 7 texts of 80
# characters take as long on two cores, and twice the CPU time.
_FEW_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class PairLayout:
    """How a tokenizer joins a query and a document when there is no template.

    Attributes:
        before: Ids before the query.
        between: Ids between query and document.
        after: Ids after the document.
    """

    before: list[int]
    between: list[int]
    after: list[int]


class PromptTokenizer:
    """A model's tokenizer that never reads control tokens in contents.

    Args:
        tokenizer: The model's own tokenizer. It is copied, not changed.
        special_tokens: Its named special tokens, such as `bos_token`, for templates that write them.
        token_types: Whether the model has token types, which mark the two texts of a pair.
        last: Ids that follow every prompt of a template.

    Attributes:
        control_tokens: Ids of the control tokens by their text: every added token that is not made of whitespace alone.
            (Gemma-like tokenizers keep runs of spaces and newlines as added tokens; these are text.)
        begin: Ids that the tokenizer puts before a text, such as BOS.
        end: Ids that it puts after a text.
        unknown: Id for characters that the vocabulary lacks; None if there is none.
        padding: Id that the model ignores at the end of a prompt; None if it ignores none.
    """

    def __init__(
        self,
        tokenizer: "Tokenizer",
        special_tokens: dict[str, str] | None = None,
        *,
        token_types: bool = False,
        last: Sequence[int] = (),
    ):
        self.special_tokens = special_tokens or {}
        self.token_types = token_types
        self.last = list(last)
        self.padding: int | None = None
        self._original = type(tokenizer).from_str(tokenizer.to_str())
        self._original.no_padding()
        self._original.no_truncation()
        state = json.loads(self._original.to_str())
        added = state["added_tokens"]
        control = [token for token in added if token["content"].strip(" \t\r\n\v\f▁")]
        self.control_tokens: dict[str, int] = {token["content"]: int(token["id"]) for token in control}
        model = state["model"]  # unigram has an id, the others a text
        self.unknown: int | None = model.get("unk_id", self.control_tokens.get(model.get("unk_token")))
        # Lower-case letters and digits survive every normaliser; the random part keeps contents from guessing a name.
        nonce = secrets.token_hex(6)
        # A name ends in q, with which no accent that begins a content is composed into another letter.
        self._secret = {text: f"wnw{nonce}x{index}q" for text, index in self.control_tokens.items()}
        self._normalized = {token["content"] for token in control if token["normalized"]}
        self._single_word = {token["content"] for token in control if token["single_word"]}
        self._text = {name: text for text, name in self._secret.items()}
        self.restart = f"wnw{nonce}xrestartx"
        self._plain = self._with_secret_names(state, control)
        self._moved = {
            here: int(token["id"])
            for token in added
            if (here := self._plain.token_to_id(self._secret.get(token["content"], token["content"]))) != token["id"]
        }
        bare, whole = (self._original.encode("a", add_special_tokens=add).ids for add in (False, True))
        at = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
        self.begin, self.end = whole[:at], whole[at + len(bare) :]

    def _with_secret_names(self, state: dict[str, Any], control: Sequence[dict[str, Any]]) -> "Tokenizer":
        """The tokenizer with its control tokens renamed, among the added tokens and in the vocabulary alike.

        A unigram or word-level vocabulary holds control tokens as pieces that text can match, so dropping the added
        tokens is not enough.
        """
        model = state["model"]
        if isinstance(model["vocab"], dict):
            vocabulary = {self._secret.get(piece, piece): index for piece, index in model["vocab"].items()}
            # Added tokens get the vocabulary's size as id: with unused ids below, that would be the id of a piece.
            unused = set(range(max(vocabulary.values(), default=-1) + 1)) - set(vocabulary.values())
            model["vocab"] = vocabulary | {f"{self.restart}unused{index}x": index for index in unused}
        else:  # unigram: pairs of piece and score
            model["vocab"] = [[self._secret.get(piece, piece), score] for piece, score in model["vocab"]]
        if model.get("unk_token") in self._secret:
            model["unk_token"] = self._secret[model["unk_token"]]
        if model.get("merges"):

            def makes_control_token(merge: list[str] | str) -> bool:
                left, right = merge if isinstance(merge, list) else merge.split(" ", 1)
                return not self._secret.keys().isdisjoint((left, right, left + right))

            model["merges"] = [merge for merge in model["merges"] if not makes_control_token(merge)]
        state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in self._secret]
        state["post_processor"] = None
        from tokenizers import AddedToken, Tokenizer

        plain = Tokenizer.from_str(json.dumps(state))
        flags = ("lstrip", "rstrip", "normalized")  # whether it is a single word `literal` has found out
        plain.add_special_tokens(
            [AddedToken(self._secret[token["content"]], **{flag: token[flag] for flag in flags}) for token in control]
        )
        plain.add_special_tokens([AddedToken(self.restart, normalized=False)])
        return plain

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids, added tokens included."""
        return self._original.get_vocab_size()

    @cached_property
    def largest_id(self) -> int:
        """The largest id that a prompt can have. Of the control tokens, only those in every prompt count."""
        vocabulary = self._original.get_vocab()
        ids = (index for token, index in vocabulary.items() if token not in self.control_tokens)
        return max([*ids, *self.begin, *self.end, *self.last])

    def token_id(self, token: str) -> int | None:
        """Id of a token by its exact text in the vocabulary, or None."""
        index: int | None = self._original.token_to_id(token)
        return index

    def token(self, index: int) -> str:
        """Text of a token in the vocabulary.

        Raises:
            ModelError: There is no such token.
        """
        text: str | None = self._original.id_to_token(index)
        if text is None:
            raise ModelError(f"The tokenizer has no token {index}; it has {self.vocabulary_size} tokens.")
        return text

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, control tokens included."""
        text: str = self._original.decode(list(ids), skip_special_tokens=False)
        return text

    def up_to_judged(self, ids: list[int]) -> list[int]:
        """A prompt without the padding tokens at its end, which the model would ignore."""
        end = len(ids)
        while end > 1 and ids[end - 1] == self.padding:
            end -= 1
        return ids if end == len(ids) else ids[:end]

    @cached_property
    def pair_layout(self) -> PairLayout:
        """How this tokenizer joins two texts."""
        encoding = self._original.encode("a", "b")
        positions = encoding.sequence_ids
        query = [at for at, part in enumerate(positions) if part == 0]
        document = [at for at, part in enumerate(positions) if part == 1]
        return PairLayout(
            before=encoding.ids[: query[0]],
            between=encoding.ids[query[-1] + 1 : document[0]],
            after=encoding.ids[document[-1] + 1 :],
        )

    def text_of(self, ids: Sequence[int]) -> str | None:
        """The text that the model's own tokenizer turns into `ids`; None if it turns the text into other ids.

        It does if a content spells a control token.
        """
        text = self.decode(ids)
        return text if self._original.encode(text, add_special_tokens=False).ids == list(ids) else None

    # --- literals of a template ---------------------------------------------------------------------------------------

    def literal(self, text: str, *, follows: bool = False, precedes: bool = False) -> str:
        """Template text with its control tokens under their secret names, ready to be joined with contents.

        Args:
            text: The text.
            follows: Whether it follows a content.
            precedes: Whether it precedes one.

        Raises:
            TemplateError: It touches the content with a token that is one only beside what is no letter.
        """
        encoding = self._original.encode(text, add_special_tokens=False)
        pieces: list[str] = []
        at = 0
        for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            token = self._original.id_to_token(index)
            if token not in self._secret or (span := self._written(token, text, max(start, at), end)) is None:
                continue
            found, stop = span
            if token in self._single_word and ((follows and found == 0) or (precedes and stop == len(text))):
                raise TemplateError(
                    f"The template writes {token!r} right beside a query, document or instruction. This tokenizer "
                    "takes it for a control token only where no letter or digit is next to it (single_word), so that "
                    "what the model reads would depend on their texts. Put a space or a line break between."
                )
            pieces += [text[at:found], self._secret[token]]
            at = stop
        return "".join([*pieces, text[at:]])

    def _written(self, token: str, text: str, start: int, end: int) -> tuple[int, int] | None:
        """Where a control token stands in the stretch of `text` that became it, or None: its id may be that of a piece.

        The stretch may have blanks that the token takes in; a token may be written otherwise before it is normalised.
        """
        if (found := text.find(token, start, end)) >= 0:
            return found, found + len(token)
        normalizer = self._original.normalizer
        written = text[start:end].strip()
        if not written or token not in self._normalized or normalizer is None:
            return None
        if normalizer.normalize_str(written) != normalizer.normalize_str(token):
            return None
        found = text.index(written, start)
        return found, found + len(written)

    def first_control(self, text: str) -> tuple[int, str]:
        """Position and name of the first control token in text made with `literal`; its length and "" if none."""
        return min(((at, name) for name in self._text if (at := text.find(name)) >= 0), default=(len(text), ""))

    def last_control(self, text: str) -> tuple[int, str]:
        """Position after, and name of, the last control token in text made with `literal`; 0 and "" if none."""
        return max(((at + len(name), name) for name in self._text if (at := text.rfind(name)) >= 0), default=(0, ""))

    # --- encoding -----------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Ids of one text, without `begin` and `end`."""
        return self.real_ids(self.encode_batch([text])[0])

    def encode_with_offsets(self, texts: Sequence[str]) -> "list[Encoding]":
        """Encodings with character offsets; their ids are not the model's where control tokens stand."""
        return self._plain.encode_batch(list(texts), add_special_tokens=False)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts on all cores; the names of control tokens are not yet translated, see `real_ids`.

        Leaves the interpreter free meanwhile, so that event loops go on. Few characters are not worth other threads.
        """
        batches = [[text] for text in texts] if sum(map(len, texts)) <= _FEW_CHARACTERS else [list(texts)]
        return [
            encoding.ids
            for batch in batches
            for encoding in self._plain.encode_batch_fast(batch, add_special_tokens=False)
        ]

    def real_ids(self, ids: list[int]) -> list[int]:
        """Translate ids of secret names to the ids of the model."""
        if self._moved.keys().isdisjoint(ids):
            return ids
        return [self._moved.get(index, index) for index in ids]
