"""What ranks instead of an engine that failed: another engine, or nobody, and the documents stay as they came."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from winnow.config import RerankerConfig
from winnow.engines.base import name_of
from winnow.engines.known_settings import settings_of
from winnow.errors import EngineError, EngineLoadError
from winnow.ordering import as_they_came
from winnow.types import RETRIEVAL_ORDER, Ranking

if TYPE_CHECKING:
    from winnow.judging import Call

logger = logging.getLogger(__name__)

# An engine that did not start is tried again after this time, by one call; the others do not wait for it.
_RETRY_SECONDS = 30.0


class Fallback:
    """The fallback of one reranker.

    Args:
        config: The reranker's settings.
        rank: Ranks a call; None for the retrieval order.
    """

    def __init__(self, config: RerankerConfig, rank: "Callable[[Call], Awaitable[Ranking]] | None"):
        self._config = config
        other = config.fallback
        self._name = name_of(other.engine) if isinstance(other, RerankerConfig) else str(other)
        self._rank = rank
        self._failure: EngineLoadError | None = None
        self._retry_at = 0.0

    async def start(self, engine: Callable[[], Awaitable[None]]) -> None:
        """Start the engine; where it does not start, or not within the deadline, the calls will have the fallback.

        One that is late loads on. One that failed is left alone for a while: pipelines start their parts with each run.
        """
        if self._failure is not None and time.monotonic() < self._retry_at:
            return
        clock = asyncio.timeout(self._config.deadline)
        try:
            async with clock:
                await engine()
        except TimeoutError:
            if not clock.expired():
                raise
            logger.warning("fallback=%r will rank until the engine has started; the deadline passed.", self._name)
        except EngineError as error:
            if isinstance(error, EngineLoadError):
                self._hold_off(error)
            logger.warning("fallback=%r will rank: %s", self._name, error)
        else:
            self._failure = None

    async def rank(self, engine: Callable[[], Awaitable[Ranking]], call: "Call") -> Ranking:
        """The engine's ranking of a call, or the fallback's where the engine fails.

        Raises:
            EngineError: The fallback failed, too.
        """
        if (failure := self._failure) is not None:
            if time.monotonic() < self._retry_at:
                return await self.instead(call, failure)
            self._hold_off(failure)
        try:
            ranking = await engine()
        except EngineError as error:
            if isinstance(error, EngineLoadError):
                self._hold_off(error)
            return await self.instead(call, error)
        self._failure = None
        return ranking

    async def instead(self, call: "Call", failure: Exception) -> Ranking:
        """The fallback's ranking.

        Args:
            call: The call.
            failure: Why the engine does not rank it.
        """
        logger.warning("fallback=%r ranks %d documents: %s", self._name, len(call.documents), failure)
        why = str(failure)
        if self._rank is None:
            return as_they_came(self._config, call.documents, call.top_k, why)
        if isinstance(other := self._config.fallback, RerankerConfig):  # its model need not understand our template
            instruction = other.instruction if call.instruction is None else call.instruction
            call = replace(
                call, instruction=instruction, template=other.template, template_kwargs=other.template_kwargs
            )
        try:
            ranking = await self._rank(call)
        except EngineError as error:
            error.add_note(f"This is the fallback {self._name!r}, which was asked because of: {why}")
            raise
        return replace(ranking, stats=replace(ranking.stats, fallback=ranking.stats.fallback or self._name, error=why))

    def retry(self) -> None:
        """Let the next call try the engine again. From any thread."""
        self._failure = None

    @property
    def ranks_at_once(self) -> bool:
        """Whether it needs no time, so that it can rank what a deadline cut off."""
        return self._rank is None

    def _hold_off(self, failure: EngineLoadError) -> None:
        self._failure = failure
        self._retry_at = time.monotonic() + _RETRY_SECONDS


def settings_of_fallback(config: RerankerConfig) -> dict[str, Any] | None:
    """Arguments of the reranker that ranks where this one's engine fails; None if none does.

    An engine that was given by name has the same model and prompts, and those of the engine's settings that it takes.
    """
    other = config.fallback
    if other is None or other == RETRIEVAL_ORDER:
        return None
    base = config if isinstance(other, str) else other
    settings = {field.name: getattr(base, field.name) for field in fields(RerankerConfig)}
    if isinstance(other, str):
        kwargs = {name: value for name, value in config.engine_kwargs.items() if name in settings_of(other)}
        settings |= {"engine": other, "url": None, "api_key": None, "engine_kwargs": kwargs, "fallback": None}
        if "device" not in settings_of(other):
            settings["device"] = None
    return settings | {"raw_scores": config.raw_scores}
