"""The interface between prompts and models: the `Engine` protocol, and a fake engine that needs no model."""

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from winnow.models import Checkpoint, ModelRecipe
from winnow.prompts import Prompt
from winnow.templates import ScoreTemplate
from winnow.tokenizer import PromptTokenizer

_LARGEST_LOGIT = (2 - 2**-23) * 2.0**127  # the largest number of fp32


@dataclass(frozen=True, slots=True)
class EngineScore:
    """An engine's result for one prompt.

    Attributes:
        logit: The raw relevance logit in fp32; NaN if there is an `error`.
        cached_tokens: How many of the prompt's tokens the engine did not have to compute.
        error: Why the engine has no score for this prompt, as a sentence. It becomes a `DocumentError`; other prompts
            are not affected.
    """

    logit: float
    cached_tokens: int = 0
    error: str | None = None


def is_logit(number: float) -> bool:
    """Whether a number is finite in fp32, so that sums of such numbers are finite, too."""
    return abs(number) <= _LARGEST_LOGIT


@runtime_checkable
class Engine(Protocol):
    """A model that scores token ids.

    All methods run on one event loop, which Winnow gives each engine; `score` is called many times at once. After
    `aclose` an engine may be started again.

    Attributes:
        name: Short name, for logs.
        checkpoint: The model's tokenizer, recipe, template and length.
    """

    name: str
    checkpoint: Checkpoint

    async def start(self) -> None:
        """Load the model.

        Raises:
            EngineLoadError: It could not be loaded.
        """

    async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
        """Score prompts, in order.

        Args:
            prompts: A few dozen at most; many such calls run at once.
            priority: Lower numbers are scored first, if the engine has a choice.

        Raises:
            EngineError: The engine failed. Winnow turns all other errors into this one.
            EngineDeadError: The engine died, and all calls on it have failed. Winnow adds to the message what to do.
        """

    async def aclose(self) -> None:
        """Free the model, its threads and its processes."""

    def abandon(self) -> None:
        """Make a running `start` fail soon and leave nothing behind; make `aclose` quick.

        It is called from another thread, when the user pressed Ctrl-C, Python ends, or no call waits for the start.
        """


@runtime_checkable
class SleepingEngine(Engine, Protocol):
    """An engine that can free the GPU's memory, and use it again without loading the model again.

    Winnow calls `sleep` when no call is in flight, and `wake` before the next call. It may call `aclose` in between.
    """

    async def sleep(self) -> None:
        """Move the weights to main memory, and free the rest.

        Raises:
            ConfigurationError: This engine cannot sleep, and is unchanged. The message says what to set.
            EngineDeadError: The engine died.
        """

    async def wake(self) -> None:
        """Move the weights back to the GPU.

        Raises:
            EngineError: That failed, for example because the memory is in use; the next call tries again.
            EngineDeadError: The engine died.
        """


@runtime_checkable
class WatchedEngine(Engine, Protocol):
    """An engine in other processes, which may hang and can be killed.

    If prompts wait and it has answered none for `stall_timeout` seconds, Winnow counts it as dead.

    Attributes:
        stall_timeout: The seconds.
        answered: How many prompts it has answered since it was made, with a score or with an error.
    """

    stall_timeout: float
    answered: int

    async def ping(self) -> None:
        """Return when the engine gives a sign of life. Called when no call waits for a prompt any more."""

    def hang(self) -> str:
        """Note that the engine hangs. Winnow calls `aclose` next, which kills it.

        Returns:
            The cause, if it is known, or what to do, as a line for the error's message.
        """


def name_of(engine: str | Engine) -> str:
    """The name of an engine that is given as a name or as an object."""
    return engine if isinstance(engine, str) else engine.name


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
