"""The query of a prompt: how many tokens it may take, and where it is cut."""

import logging
from dataclasses import replace

from winnow.errors import DocumentError, TemplateError
from winnow.media import PromptVideo, Shown
from winnow.prompts.cutting import CHARACTERS_PER_TOKEN, CUT_WORD, MOST_CHARACTERS_PER_TOKEN, cut_before
from winnow.prompts.scaffold import PromptLayout, Scaffold
from winnow.prompts.values import Source

logger = logging.getLogger(__name__)


class ScaffoldBuilder:
    """Makes the scaffolds of queries, which are cut if they are too long.

    Args:
        layout: How prompts are laid out.
    """

    def __init__(self, layout: PromptLayout):
        self._layout = layout
        self._used: tuple[str, int] | None = None  # the last instruction, and tokens of the prompt with it alone

    def scaffold(self, query: Source, instruction: str) -> Scaffold:
        """The scaffold of a query, whose text is cut if it takes more tokens than it may.

        Raises:
            DocumentError: The query is too long, and `on_overflow` is "error"; or its medium alone is too large.
            TemplateError: Template and instruction leave no room.
        """
        used, cap = self.budget(instruction, query.medium)
        kept, scaffold = self._beginning(query, instruction, used, cap)
        if kept == query.text:
            return scaffold
        if self._layout.limits.on_overflow == "error":
            raise DocumentError(
                f"The query ({len(query.text)} characters) does not fit: it may take {cap} tokens, enough for its "
                f"first {len(kept)} characters. Shorten it, raise max_query_tokens, or set on_overflow to 'truncate'."
            )
        logger.warning(
            "The query was cut from %d to %d characters: it may take %d tokens.", len(query.text), len(kept), cap
        )
        return replace(scaffold, query_truncated=True)

    def _beginning(self, query: Source, instruction: str, used: int, cap: int) -> tuple[str, Scaffold]:
        """The longest beginning of the query's text that fits, and its scaffold.

        Args:
            query: The query.
            instruction: The instruction.
            used: Tokens of the prompt without the text.
            cap: Tokens that the text may take.
        """
        tokenizer, whole = self._layout.tokenizer, query.text
        reach, most = CHARACTERS_PER_TOKEN * (cap + CUT_WORD), MOST_CHARACTERS_PER_TOKEN * (cap + CUT_WORD)
        while reach < min(len(whole), most) and len(tokenizer.encode(whole[:reach])) <= cap + CUT_WORD:
            reach *= 4  # long tokens
        text = whole[:reach]
        uncut = True
        while True:
            scaffold = self._layout.scaffold(text, instruction, query.medium)
            # If tokens merge at its edge, a query may take more tokens in the prompt than alone. Then it is cut again.
            excess = scaffold.length - used - cap
            if not text or (excess <= 0 and not (uncut and len(text) < len(whole))):
                return text, scaffold
            encoding = tokenizer.encode_with_offsets([text])[0]
            keep = min(len(encoding.ids) - 1, cap) if uncut else len(encoding.ids) - excess
            text = text[: cut_before(text, encoding.offsets, keep)]
            uncut = False

    def budget(self, instruction: str, medium: Shown | None = None) -> tuple[int, int]:
        """Tokens that template, instruction and the query's medium take, and tokens that the query's text may take.

        Raises:
            DocumentError: The medium leaves no room.
            TemplateError: Template and instruction leave no room.
        """
        limits = self._layout.limits
        known = self._used
        if known is None or known[0] != instruction:  # queries share theirs, and it takes as long as a query's scaffold
            known = self._used = instruction, self._layout.scaffold("", instruction).length
        used = known[1]
        left = limits.max_length - used
        if left < 2:
            raise TemplateError(
                f"The template and the instruction take {used} tokens of the model's {limits.max_length}, which "
                "leaves no room for a query and a document. Shorten the instruction or the template, or raise "
                "max_length."
            )
        cap = left * 3 // 4 if limits.max_query_tokens is None else min(limits.max_query_tokens, left - 1)
        if medium is None:
            return used, max(cap, 1)
        taken = self._layout.scaffold("", instruction, medium).length - used
        if taken > cap:
            cure = "raise max_length or max_query_tokens"
            raise DocumentError(f"The query has {too_large(medium, cap - (taken - medium.tokens), cure)}")
        return used + taken, cap - taken


def too_large(medium: Shown, room: int, cure: str) -> str:
    """The error message for an image or a video that does not fit.

    Args:
        medium: The image or the video.
        room: Tokens that there is room for.
        cure: What to do, besides making it smaller.
    """
    if isinstance(medium, PromptVideo):
        frames, high, wide, _ = medium.frames.shape
        kind, size = "a video", f"{frames} frames of {wide} x {high} pixels, as the model takes them"
    else:
        kind, size = "an image", "{} x {} pixels, as the model takes it".format(*medium.pixels.size)
    return (
        f"{kind} of {medium.tokens} tokens ({size}), and there is room for {max(room, 0)}; {kind.split()[1]}s are "
        "never cut. Set engine_kwargs={'mm_processor_kwargs': {'max_pixels': ...}}, to which all images and frames are "
        f"then reduced; {cure}."
    )
