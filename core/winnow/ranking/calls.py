"""The calls of a reranker: how many run at once, their deadline, their template, and their fallback.

`winnow.ranking.arguments` checks the arguments of calls, and `winnow.ranking.judging` scores the documents of one.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Generator, Hashable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import cast

from winnow.engines import EngineSettings, Started, name_of, reads_model
from winnow.errors import DocumentError
from winnow.locks import ForkSafeLock
from winnow.media import as_read
from winnow.models import Checkpoint, bind_template
from winnow.observability import DEADLINE_PASSED, observed
from winnow.progress import Bar, progress_bar
from winnow.prompts import Limits, PromptBuilder, PromptLayout, PromptParts, parts_of
from winnow.ranking.arguments import checked_options
from winnow.ranking.calibration import Calibration
from winnow.ranking.config import RerankerConfig
from winnow.ranking.fallback import Fallback
from winnow.ranking.judging import Judging, all_or_none
from winnow.ranking.options import Call, CallOptions, Query
from winnow.ranking.pulling import pulled
from winnow.ranking.results import Contents, Outcome, as_they_came, contents_of, raise_first, ranking_of
from winnow.ranking.score_cache import ScoreCache
from winnow.text import readable
from winnow.threads import in_daemon_thread
from winnow.types import Ranking

logger = logging.getLogger(__name__)

# Bound templates that a reranker keeps.
_BUILDERS = 32
_builders_lock = ForkSafeLock()

# Queries of a `rank_many` that run at once.
_CALLS_AT_ONCE = 64


class CallRunner:
    """Runs the calls of one reranker, on the event loop of its engine.

    Args:
        config: The reranker's settings.
        engine_settings: Those of its engine, with the environment's.
        fallback: What ranks if the engine fails.

    Attributes:
        config: The settings.
        cache: The score cache, if the reranker has one.
        checkpoint: What the model's files say; None until the engine has loaded it.
    """

    def __init__(self, config: RerankerConfig, engine_settings: EngineSettings, fallback: Fallback | None = None):
        self.config = config
        self._fallback = fallback
        self.checkpoint: Checkpoint | None = None
        self._left_out = False  # whether the log says that images or videos are ignored
        self._mismatch = False  # whether it says that the calibration is another model's
        self._builders: dict[Hashable, tuple[Checkpoint, PromptBuilder]] = {}
        self.cache = None if config.score_cache is None else ScoreCache(config.score_cache, engine_settings)

    def retry(self) -> None:
        """Let the next call try again what failed: an engine that has a fallback, and the file of the score cache."""
        for failing in (self.cache, self._fallback):
            if failing is not None:
                failing.retry()

    async def bind(self, started: Started) -> None:
        """Load the model, and bind the reranker's own template to it."""
        if self._fallback is None:
            await self._bind(started)
        else:
            await self._fallback.start(partial(self._bind, started))

    async def _bind(self, started: Started) -> None:
        await self.bind_for(CallOptions(), None, started)

    async def bind_for(self, options: CallOptions, instruction: str | None, started: Started) -> None:
        """Bind the template of calls that come later."""
        self.checkpoint = checkpoint = (await started()).engine.checkpoint
        options = checked_options(self.config, options)
        instruction = self.config.instruction if instruction is None else instruction
        await in_daemon_thread(partial(self._builder, checkpoint, options, instruction))

    async def parts(self, call: Call, started: Started) -> PromptParts:
        """The prompt of a call's only document, which is not scored."""
        requests = await started()
        self.checkpoint = checkpoint = requests.engine.checkpoint
        query, document, instruction = (readable(one) for one in (call.query, *call.documents, call.instruction))

        def build() -> PromptParts:
            builder = self._builder_of(checkpoint, call)
            [built] = builder.build(query, [document], instruction)
            return parts_of(builder.layout, built, {"query": query, "document": document, "instruction": instruction})

        return await requests.tokenize(build)

    async def run(
        self, calls: list[Call] | Generator[Call | None], progress: bool, deadline: float | None, started: Started
    ) -> list[Ranking]:
        """Rank calls in their order, a limited number of them at once.

        Args:
            calls: The calls. A generator is read only as fast as calls are ranked; see `pulled`.
            progress: Whether to show a progress bar.
            deadline: Seconds for all calls together.
            started: Starts the engine, if it does not run, and returns its queue.

        Raises:
            IteratorFailedError: The generator raised.
        """
        rankings: dict[int, Ranking] = {}
        gate = asyncio.Semaphore(_CALLS_AT_ONCE)
        clock = asyncio.timeout(deadline)
        engine = name_of(self.config.engine)

        async def keep(number: int, ranked: Awaitable[Ranking]) -> None:
            begin = time.perf_counter()
            with observed(str(self.config.model), engine, clock) as report:
                ranking = await ranked
                stats = replace(ranking.stats, elapsed_ms=(time.perf_counter() - begin) * 1000)
                rankings[number] = replace(ranking, stats=stats)
                report(stats)

        async def rank(number: int, call: Call) -> None:
            try:
                await keep(number, self._ranked(call, started, bar, clock))
            except DocumentError as error:
                if number:
                    error.add_note(f"It is a document of request {number}.")
                raise
            finally:
                gate.release()

        with progress_bar(progress) as bar:
            try:
                async with clock, all_or_none() as start, aclosing(_each(calls)) as each:
                    number = 0
                    async for call in each:
                        await gate.acquire()
                        bar.total = (bar.total or 0) + len(call.documents)
                        start(rank(number, call))
                        number += 1
            except TimeoutError as error:
                if not clock.expired():
                    raise
                late = TimeoutError(DEADLINE_PASSED)  # asyncio's has no message
                # Calls that had begun have a ranking by now. For an iterator the number of the others is not known.
                fallback = self._fallback
                if fallback is None or not (fallback.ranks_at_once and isinstance(calls, list)):
                    raise late from error
                for number, call in enumerate(calls):
                    if number not in rankings:
                        if not call.options.may_fall_back:
                            raise late from error
                        await keep(number, fallback.instead(call, late))
        return [rankings[number] for number in range(len(rankings))]

    async def _ranked(self, call: Call, started: Started, bar: Bar, clock: asyncio.Timeout) -> Ranking:
        if call.problem is not None:
            logger.warning("%d documents stay as they came: %s", len(call.documents), call.problem)
            return as_they_came(call, call.problem)
        self._check_calibration(call)
        fallback = self._fallback if call.options.may_fall_back else None
        if fallback is None:
            return await self._run_one(call, started, bar)
        try:
            return await fallback.rank(lambda: self._run_one(call, started, bar), call)
        except asyncio.CancelledError:
            if clock.expired() and fallback.ranks_at_once:
                return await fallback.instead(call, TimeoutError(DEADLINE_PASSED))
            raise

    def _check_calibration(self, call: Call) -> None:
        calibration = self.config.calibration
        if self._mismatch or call.options.raw_scores or not isinstance(calibration, Calibration):
            return
        if (fitted_on := calibration.mismatch(self.config.model, call.instruction)) is not None:
            self._mismatch = True
            logger.warning(
                "The calibration was fitted on %s: its probabilities may be wrong here. `winnow calibrate` fits one. "
                "This is logged once.",
                fitted_on,
            )

    async def _run_one(self, call: Call, started: Started, bar: Bar) -> Ranking:
        """The engine's ranking of a call. The engine is not used if there is nothing to score."""
        contents, outcome = self._contents(call), Outcome()
        if contents.positions:
            requests = await started()
            self.checkpoint = requests.engine.checkpoint
            bar.unpause()  # loading is not reranking
            read = self._as_read_by(requests.engine.checkpoint, call)
            if read is not call:
                call, contents = read, self._contents(read)
            judging = Judging(self.config, call, contents, requests, self._builder_of, self.cache, bar)
            outcome = await judging.run()
        return ranking_of(call, contents, outcome)

    def _contents(self, call: Call) -> Contents:
        contents = contents_of(call.documents)
        if self.config.on_error == "raise":
            raise_first(contents.failed)
        return contents

    def _as_read_by(self, checkpoint: Checkpoint, call: Call) -> Call:
        """The call without the images and videos that the model does not take, if their documents have a text.

        It is the same object if there are none.
        """
        query, *documents = (as_read(checkpoint.vision, one) for one in (call.query, *call.documents))
        left_out = sum(read is not given for read, given in zip(documents, call.documents, strict=True))
        if not left_out and query is call.query:
            return call
        if not self._left_out:
            self._left_out = True
            logger.warning(
                "%s does not take the images or videos of %d documents: it reads their texts. Set text_only=True if "
                "you want this. This is logged once.",
                checkpoint.model,
                left_out,
            )
        return replace(call, query=cast("Query", query), documents=documents)

    def _builder_of(self, checkpoint: Checkpoint, call: Call) -> PromptBuilder:
        return self._builder(checkpoint, call.options, call.instruction)

    def _builder(self, checkpoint: Checkpoint, options: CallOptions, instruction: str | None) -> PromptBuilder:
        """The prompt builder of a template and limits; templates are bound to the model once."""
        with_instruction = bool(readable(instruction))
        template, template_kwargs, given = options.template, options.template_kwargs, options.limits
        key = (id(checkpoint), repr(template), repr(template_kwargs), given, with_instruction)
        if (kept := self._builders.get(key)) is not None:
            return kept[1]
        bound = bind_template(checkpoint, template, template_kwargs, with_instruction=with_instruction)
        wanted = given.max_length or checkpoint.max_length
        if not reads_model(self.config.engine) and wanted > checkpoint.max_length:  # others have said so
            logger.warning(
                "max_length=%d becomes %d, the limit of the engine %s.",
                wanted,
                checkpoint.max_length,
                name_of(self.config.engine),
            )
        limits = Limits(
            max_length=min(wanted, checkpoint.max_length),
            max_query_tokens=given.max_query_tokens,
            max_document_tokens=given.max_document_tokens,
            on_overflow=given.on_overflow or self.config.on_overflow,
            window_overlap=self.config.window_overlap,
            keep=given.keep,
        )
        builder = PromptBuilder(PromptLayout(checkpoint.tokenizer, bound, limits, checkpoint.vision))
        with _builders_lock:
            self._builders[key] = (checkpoint, builder)  # the checkpoint is kept, so that no other one gets its id
            if len(self._builders) > _BUILDERS:  # the oldest is dropped: each call may have a template of its own
                del self._builders[next(iter(self._builders))]
        return builder


async def _each(calls: list[Call] | Generator[Call | None]) -> AsyncGenerator[Call]:
    if isinstance(calls, list):
        for call in calls:
            yield call
    else:
        async with aclosing(pulled(calls)) as each:
            async for call in each:
                yield call
