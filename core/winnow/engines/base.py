"""The interface between prompts and models: the `Engine` protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from winnow.models import Checkpoint
from winnow.prompts import Prompt

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
