"""An engine without a model, for tests of your own pipelines."""

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from winnow.engines.base import EngineScore
from winnow.models import Checkpoint, ModelRecipe
from winnow.prompts import Prompt
from winnow.templates import ScoreTemplate
from winnow.tokenizer import PromptTokenizer


class FakeEngine:
    """An engine without a model, for tests of your own pipelines. It is deterministic and fast.

    The logit is the share of the query's words that are in the document, scaled to −4…4; of equal documents the shorter
    one gets a slightly larger logit. With a template of your own, in which it cannot tell query and document apart, it
    is the share of the prompt's words that occur in it twice. Each byte is one token.

    Args:
        max_length: Most tokens of a prompt.
        delay: Seconds that every call of `score` takes.

    Attributes:
        calls: How many times `score` was called.
        prompts: How many prompts it was given.
    """

    name = "fake"

    def __init__(self, *, max_length: int = 4096, delay: float = 0.0):
        self.checkpoint = Checkpoint(
            model="fake",
            folder=Path(),  # it has no files
            config={},
            recipe=ModelRecipe(family="fake"),
            tokenizer=_byte_tokenizer(),
            template=ScoreTemplate(_FAKE_TEMPLATE, "FakeEngine", trusted=True),
            max_length=max_length,
        )
        self.delay = delay
        self.calls = 0
        self.prompts = 0
        self.started = 0

    async def start(self) -> None:
        """Count the start."""
        self.started += 1

    async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:  # noqa: ARG002
        """Score by the words that query and document share."""
        self.calls += 1
        self.prompts += len(prompts)
        await asyncio.sleep(self.delay)
        return [EngineScore(self._logit(prompt)) for prompt in prompts]

    async def aclose(self) -> None:
        """Nothing to free."""

    def abandon(self) -> None:
        """Nothing to abandon."""

    def _logit(self, prompt: Prompt) -> float:
        words = [re.findall(r"\w+", text.lower()) for text in self._parts(prompt)]
        if len(words) == 5:  # its own template: what stands before, between and after its four marks
            wanted, found = {*words[1], *words[2]}, set(words[3])
        else:
            count = Counter(word for part in words for word in part)
            wanted, found = set(count), {word for word in count if count[word] > 1}
        share = len(wanted & found) / len(wanted) if wanted else 0.0
        return 8 * share - 4 - len(prompt.ids) * 1e-6

    def _parts(self, prompt: Prompt) -> list[str]:
        """The text between the control tokens; one that is typed in a document is text."""
        tokenizer = self.checkpoint.tokenizer
        marks = set(tokenizer.control_tokens.values())
        parts: list[list[int]] = [[]]
        for index in prompt.ids:
            if index in marks:
                parts.append([])
            else:
                parts[-1].append(index)
        return [tokenizer.decode(part) if part else "" for part in parts]


_FAKE_TEMPLATE = "<i>{{ instruction }}<q>{{ query }}<d>{{ document }}<e>"


def _byte_tokenizer() -> PromptTokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token) for token in ("<i>", "<q>", "<d>", "<e>")])
    return PromptTokenizer(tokenizer)
