"""The seam between prompts and models: the `Engine` protocol, and a fake that needs no model."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from winnow.checkpoint import Checkpoint
from winnow.prompts import Prompt
from winnow.recipes import ModelRecipe
from winnow.templates import ScoreTemplate
from winnow.tokenization import PromptTokenizer

_LARGEST_LOGIT = (2 - 2**-23) * 2.0**127  # the largest number of fp32


@dataclass(frozen=True, slots=True)
class EngineScore:
    """What an engine says of one prompt.

    Attributes:
        logit: The raw relevance logit in fp32; NaN beside an `error`.
        cached_tokens: How many of the prompt's tokens the engine did not have to compute.
        error: Why the engine has no score for this prompt, as a sentence; it takes others. It is then an error of the
            document.
    """

    logit: float
    cached_tokens: int = 0
    error: str | None = None


def is_logit(number: float) -> bool:
    """Whether a number is finite in fp32, as logits are: then sums of logits are finite, too."""
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
            prompts: A few dozen at most; many such calls are under way at once.
            priority: Lower goes first, where the engine has a choice.

        Raises:
            EngineError: The engine failed. What else it raises becomes one.
            EngineDeadError: The engine is gone, and all calls on it with it. Winnow says what comes next.
        """

    async def aclose(self) -> None:
        """Free the model, its threads and its processes."""

    def abandon(self) -> None:
        """Make a `start` that is under way fail soon and leave nothing behind; make `aclose` quick.

        Called from another thread: the user pressed Ctrl-C, Python is ending, or nobody waits for the start.
        """


@runtime_checkable
class SleepingEngine(Engine, Protocol):
    """An engine that can leave the GPU's memory to others, and come back without being loaded anew.

    Winnow calls `sleep` when no call is in flight, `wake` before the next one, and `aclose` at any time in between.
    """

    async def sleep(self) -> None:
        """Move the weights to main memory, and free the rest.

        Raises:
            ConfigurationError: This one cannot, and is as it was. The message says what to set.
            EngineDeadError: The engine is gone.
        """

    async def wake(self) -> None:
        """Come back to the GPU.

        Raises:
            EngineError: It could not, as when the memory is taken; the next call tries again.
            EngineDeadError: The engine is gone.
        """


@runtime_checkable
class WatchedEngine(Engine, Protocol):
    """An engine that may hang, as it runs in other processes, and that can then be ended by force.

    Winnow counts it as dead when it has answered nothing for `stall_timeout` seconds though prompts wait.

    Attributes:
        stall_timeout: The seconds.
        answered: How many prompts it has answered since it was made, with a score or with why there is none.
    """

    stall_timeout: float
    answered: int

    async def ping(self) -> None:
        """Return when the engine shows that it lives. Asked where nobody waits for a prompt any more."""

    def hang(self) -> str:
        """Take it that the engine hangs: `aclose`, which comes next, ends it by force.

        Returns:
            What is known of the cause, or what to do, as a line of the error's message.
        """


def name_of(engine: str | Engine) -> str:
    """The name of an engine that is given by its name or itself."""
    return engine if isinstance(engine, str) else engine.name


class FakeEngine:
    """An engine without a model, for tests of your own pipelines: deterministic, instant, sensible.

    The logit is the share of the query's words that the document holds, stretched over −4…4; shorter documents win ties
    by a hair.
    Its tokenizer gives one token a byte.

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
        fields = re.split("<[qdie]>", self.checkpoint.tokenizer.decode(prompt.ids))
        instruction, query, document = (set(re.findall(r"\w+", text.lower())) for text in fields[1:4])
        wanted = query | instruction
        share = len(wanted & document) / len(wanted) if wanted else 0.0
        return 8 * share - 4 - len(prompt.ids) * 1e-6


_FAKE_TEMPLATE = "<i>{{ instruction }}<q>{{ query }}<d>{{ document }}<e>"


def _byte_tokenizer() -> PromptTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token) for token in ("<i>", "<q>", "<d>", "<e>")])
    return PromptTokenizer(tokenizer)
