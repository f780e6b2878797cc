"""The fallback of an engine that failed: another engine ranks, or the documents keep the caller's order."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from winnow.engines import name_of, settings_of
from winnow.errors import EngineError, EngineLoadError
from winnow.ranking.config import RerankerConfig
from winnow.ranking.options import Call, CallLimits
from winnow.ranking.results import as_they_came
from winnow.types import RETRIEVAL_ORDER, Ranking

logger = logging.getLogger(__name__)

# An engine that did not start is tried again after this time, by one call; the others do not wait for it.
_RETRY_SECONDS = 30.0


class Fallback:
    """The fallback of one reranker.

    Args:
        config: The reranker's settings.
        rank: Ranks a call with the other engine; None for the retrieval order.
    """

    def __init__(self, config: RerankerConfig, rank: Callable[[Call], Awaitable[Ranking]] | None):
        self._config = config
        other = config.fallback_config
        self._name = str(config.fallback) if other is None else name_of(other.engine)
        self._rank = rank
        self._failure: EngineLoadError | None = None
        self._retry_at = 0.0

    async def start(self, engine: Callable[[], Awaitable[None]]) -> None:
        """Start the engine. If it does not start within the deadline, or fails, the fallback ranks the next calls.

        An engine that is late goes on loading. One that failed is not tried again for a while, because pipelines start
        their components with each run.
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
                self._back_off(error)
            logger.warning("fallback=%r will rank: %s", self._name, error)
        else:
            self._failure = None

    async def rank(self, engine: Callable[[], Awaitable[Ranking]], call: Call) -> Ranking:
        """The engine's ranking of a call, or the fallback's if the engine fails.

        Raises:
            EngineError: The fallback failed, too.
        """
        if (failure := self._failure) is not None:
            if time.monotonic() < self._retry_at:
                return await self.instead(call, failure)
            self._back_off(failure)
        try:
            ranking = await engine()
        except EngineError as error:
            if isinstance(error, EngineLoadError):
                self._back_off(error)
            return await self.instead(call, error)
        self._failure = None
        return ranking

    async def instead(self, call: Call, failure: Exception) -> Ranking:
        """The fallback's ranking.

        Args:
            call: The call.
            failure: Why the engine does not rank it.
        """
        logger.warning("fallback=%r ranks %d documents: %s", self._name, len(call.documents), failure)
        why = str(failure)
        if self._rank is None:
            return as_they_came(call, why)
        if (other := self._config.fallback_config) is not None:  # its model may need another template
            instruction = other.instruction if call.instruction is None else call.instruction
            options = replace(
                call.options,
                template=other.template,
                template_kwargs=other.template_kwargs,
                limits=CallLimits(
                    max_length=other.max_length,
                    max_query_tokens=other.max_query_tokens,
                    max_document_tokens=other.max_document_tokens,
                    on_overflow=other.on_overflow,
                    keep=call.options.limits.keep,
                ),
            )
            call = replace(call, instruction=instruction, options=options)
        try:
            ranking = await self._rank(call)
        except EngineError as error:
            error.add_note(f"This is the fallback {self._name!r}, which was to rank because of: {why}")
            raise
        return replace(ranking, stats=replace(ranking.stats, fallback=ranking.stats.fallback or self._name, error=why))

    def retry(self) -> None:
        """Let the next call try the engine again. From any thread."""
        self._failure = None

    @property
    def ranks_at_once(self) -> bool:
        """Whether it needs no time, so that it can rank a call whose deadline passed."""
        return self._rank is None

    def _back_off(self, failure: EngineLoadError) -> None:
        self._failure = failure
        self._retry_at = time.monotonic() + _RETRY_SECONDS


def config_of_fallback(config: RerankerConfig) -> RerankerConfig | None:
    """The settings of the reranker that is the fallback; None if there is none.

    If the fallback is the name of an engine, it has the same model and prompts, and the engine settings that it knows.
    """
    if config.fallback is None or config.fallback == RETRIEVAL_ORDER:
        return None
    if (other := config.fallback_config) is not None:
        return replace(other, raw_scores=config.raw_scores)
    engine = str(config.fallback)
    known = settings_of(engine)
    return replace(
        config,
        engine=engine,
        url=None,
        api_key=None,
        engine_kwargs={name: value for name, value in config.engine_kwargs.items() if name in known},
        device=config.device if "device" in known else None,
        fallback=None,
    )
