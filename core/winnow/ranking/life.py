"""A reranker's settings, and its hold on an engine: loading, sleeping, closing, and work on the engine's event loop."""

import asyncio
from collections.abc import Hashable, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any, Self, TypeVar

from winnow.engines import EngineLife, EngineSettings, Lease, Work, create_engine, resolve
from winnow.models import Checkpoint
from winnow.prompts import PromptParts
from winnow.ranking.arguments import checked_calls, checked_options
from winnow.ranking.calibration import loaded
from winnow.ranking.calls import CallRunner
from winnow.ranking.config import RerankerConfig
from winnow.ranking.fallback import Fallback, config_of_fallback
from winnow.ranking.hints import taking
from winnow.ranking.options import Call, CallLimits, CallOptions
from winnow.ranking.pulling import IteratorFailedError
from winnow.templates import TemplateLike
from winnow.threads import OwnThread
from winnow.types import Ranking

T = TypeVar("T")


class RerankerLife:
    """What a `Reranker` is without its ways to rank. A fallback needs no more."""

    __slots__ = ("__weakref__", "_calls", "_config", "_engine_settings", "_lease", "_stand_in")

    @taking(RerankerConfig)
    def __init__(self, config: RerankerConfig):
        self._config = config
        self._engine_settings = resolve(config)
        # The engine and the calls in flight refer to the config. They must not refer to the reranker, which releases
        # the engine when it is garbage-collected.
        make = partial(create_engine, config, self._engine_settings)
        self._lease = Lease(self.engine_key, make, config.max_restarts)
        other = config_of_fallback(config)
        self._stand_in = None if other is None else RerankerLife(**vars(other))
        rank_instead = None if self._stand_in is None else self._stand_in._rank_instead
        fallback = None if config.fallback is None else Fallback(config, rank_instead)
        ready = replace(config, calibration=loaded(config.calibration))
        self._calls = CallRunner(ready, self._engine_settings, fallback)

    @property
    def config(self) -> RerankerConfig:
        """The settings that it was made with."""
        return self._config

    @property
    def engine_settings(self) -> EngineSettings:
        """The settings of its engine, with those of the environment.

        The environment is read when the reranker is made: what changes in it later is for rerankers made later.
        """
        return self._engine_settings

    @property
    def engine_key(self) -> Hashable:
        """Equal for two rerankers that share an engine."""
        return self._config.key_with(self._engine_settings)

    def __eq__(self, other: object) -> bool:
        return self._config == other._config if isinstance(other, RerankerLife) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # its settings hold mappings

    def __repr__(self) -> str:
        return type(self).__name__ + repr(self._config).removeprefix(type(self._config).__name__)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self._config)

    def __setstate__(self, settings: dict[str, Any]) -> None:
        RerankerLife.__init__(self, **settings)

    def start(self) -> Self:
        """Load the model now instead of with the first call.

        With a `fallback`, an engine that does not start is only a warning in the log. So is an engine that does not
        start within the reranker's `deadline`; it goes on loading.
        """
        self._wait(self._calls.bind)
        return self

    async def astart(self) -> Self:
        """`start` for event loops."""
        await self._await(self._calls.bind)
        return self

    async def abind(
        self,
        template: TemplateLike | None,
        template_kwargs: Mapping[str, Any] | None = None,
        instruction: str | None = None,
    ) -> None:
        """Bind a template to the model, which calls with it then find bound.

        It is rendered in a thread of its own: one that is slow keeps no other call waiting.

        Args:
            template: The template; None for the reranker's own.
            template_kwargs: Its variables.
            instruction: The calls' instruction, of which only counts whether it is blank; None for the reranker's.

        Raises:
            TemplateError: It cannot be used.
        """
        options = CallOptions(template=template, template_kwargs=template_kwargs)
        await self._await(partial(self._calls.bind_for, options, instruction))

    async def aprompt_parts(
        self,
        query: str,
        document: str,
        *,
        instruction: str | None = None,
        template: TemplateLike | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        limits: CallLimits | None = None,
    ) -> PromptParts:
        """The prompt of a pair as the model gets it, in its parts. The pair is not scored.

        Args:
            query: As in `Reranker.rank`.
            document: A text that is not blank.
            instruction: As in `Reranker.rank`.
            template: As in `Reranker.rank`.
            template_kwargs: As in `Reranker.rank`.
            limits: As in `Reranker.rank`.

        Raises:
            ValueError: The query is blank.
            DocumentError: The document does not fit, with `on_overflow="error"`, or a text is not valid.
            ConfigurationError: The model or the template cannot be used.
        """
        options = CallOptions(
            template=template, template_kwargs=template_kwargs, limits=limits or CallLimits(), may_fall_back=False
        )
        options = checked_options(self._config, options)
        request = (query, [document], instruction)
        [call] = (call for call in checked_calls(self._config, [request], options, numbered=False) if call is not None)
        return await self._await(partial(self._calls.parts, call))

    @property
    def checkpoint(self) -> Checkpoint | None:
        """What the model's files say; None until the engine has loaded it."""
        return self._calls.checkpoint

    def sleep(self) -> None:
        """Wait for calls in flight, then free the GPU's memory: the weights move to main memory.

        The next call, or `wake`, moves them back, which is much faster than loading the model. All rerankers that share
        the engine sleep; the engine of a `fallback` does not. Before the engine is loaded, nothing happens.

        Raises:
            ConfigurationError: The engine cannot sleep; `close` frees its memory, too. vLLM needs `enable_sleep_mode`
                in `engine_kwargs`, and a GPU.
        """
        if (done := self._lease.request(EngineLife.sleep)) is not None:
            done.result()

    async def async_sleep(self) -> None:
        """`sleep` for event loops."""
        if (done := self._lease.request(EngineLife.sleep)) is not None:
            await asyncio.wrap_future(done)

    def wake(self) -> None:
        """Wake a sleeping engine now instead of with the next call."""
        if (done := self._lease.request(EngineLife.wake)) is not None:
            done.result()

    async def async_wake(self) -> None:
        """`wake` for event loops."""
        if (done := self._lease.request(EngineLife.wake)) is not None:
            await asyncio.wrap_future(done)

    def close(self) -> None:
        """Wait for calls in flight, then free the engine, unless another reranker uses it.

        The next call loads it again.
        """
        self._lease.close()
        self._calls.retry()
        if self._stand_in is not None:
            self._stand_in.close()

    async def aclose(self) -> None:
        """`close` for event loops."""
        thread = OwnThread("winnow-close")  # which the end of the event loop does not wait for
        try:
            await thread.do(self.close)
        finally:
            thread.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # --- inside ---

    def _wait(self, work: Work[T]) -> T:
        future = self._lease.submit(work)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            for reranker in (self, self._stand_in):
                if reranker is not None:
                    reranker._lease.interrupt()
            raise
        except IteratorFailedError as failed:
            error = failed.error
        finally:
            del future  # its error refers to this frame: a reference cycle, which would keep the reranker alive
        try:
            raise error
        finally:
            del error  # likewise

    async def _await(self, work: Work[T]) -> T:
        try:
            return await asyncio.wrap_future(self._lease.submit(work))
        except IteratorFailedError as failed:
            error = failed.error
        try:
            raise error
        finally:
            del error

    async def _rank_instead(self, call: Call) -> Ranking:
        """Rank a call of the reranker that has this one as its fallback."""
        return (await self._await(partial(self._calls.run, [call], False, self._config.deadline)))[0]


class _Setting:
    """A setting, read from the reranker itself."""

    def __init__(self, name: str):
        self._name = name

    def __get__(self, reranker: RerankerLife | None, owner: type[RerankerLife]) -> Any:
        return self if reranker is None else getattr(reranker.config, self._name)

    def __set__(self, reranker: RerankerLife, value: object) -> None:
        raise AttributeError(f"{self._name} of a Reranker cannot be changed: make another Reranker")


for _field in fields(RerankerConfig):
    setattr(RerankerLife, _field.name, _Setting(_field.name))
