"""Scores what requests ask, in whichever dialect: limits, the queue, the deadline, and clients that go away."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from fastapi import Request

from winnow.errors import EngineDeadError, EngineLoadError, EngineUnavailableError
from winnow.prompts import PromptParts
from winnow.ranking import Reranker
from winnow.service.config import ServiceConfig
from winnow.service.documents import length_of
from winnow.service.errors import ClientGoneError, ServiceError
from winnow.service.life import Life
from winnow.service.options import Options
from winnow.service.presets import Preset
from winnow.service.prompting import Prompter
from winnow.service.queueing import RequestQueue
from winnow.text import readable, shows
from winnow.types import Document, Ranking

T = TypeVar("T")

# How many tokens of other requests may go before one, for each step of its priority: about those of two documents.
_TOKENS_OF_PRIORITY = 1000

# What clients send as the model when their user names none; the second is of Infinity's client.
_NO_MODEL = ("", "default/not-specified")

Pairs = Sequence[tuple[str | Document | None, Sequence[str | Document | None]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a request gets.

    Attributes:
        model: The name under which the model was asked for.
        rankings: One for each query, with all of its documents.
    """

    model: str
    rankings: Sequence[Ranking]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, as vLLM counts them: also of those that were not computed."""
        return sum(ranking.stats.usage_tokens for ranking in self.rankings)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPrompt:
    """The prompt of a pair.

    Attributes:
        model: The name under which the model was asked for.
        template: Where its template comes from; None if the tokenizer encodes the pair.
        parts: The prompt.
    """

    model: str
    template: str | None
    parts: PromptParts


class Scorer:
    """Scores for requests.

    Args:
        reranker: What scores.
        config: The service's settings.
        life: Whether it can.
    """

    def __init__(self, reranker: Reranker, config: ServiceConfig, life: Life):
        self.reranker = reranker
        self.config = config
        self.queue = RequestQueue(config.max_running, config.max_waiting)
        self._life = life
        self._prompter = Prompter(reranker, config.request_templates)
        names = config.served_names or (reranker.config.model,)
        self.models: Mapping[str, Preset] = {**dict.fromkeys(names, Preset()), **config.presets}

    def name_of(self, asked: str | None) -> str:
        """The name of a model that is served.

        Raises:
            ServiceError: There is none of this name.
        """
        if asked is None or asked.strip() in _NO_MODEL:
            return next(iter(self.models))
        if asked not in self.models:
            raise ServiceError(404, "No model of this name is served here: GET /v1/models lists them.", "body.model")
        return asked

    async def score(self, request: Request, options: Options, pairs: Pairs) -> Answer:
        """Score pairs.

        Args:
            request: The request; if its client goes away, its prompts are withdrawn from the engine.
            options: What it says besides the pairs.
            pairs: Queries, each with its documents.

        Raises:
            ClientGoneError: The client has closed the connection.
            ServiceError: It is refused. So are errors of the reranker (`winnow.service.errors`).
        """
        rank = partial(self._rank, options, pairs)
        answer = Answer(model=self.name_of(options.model), rankings=await self._in_turn(request, options, pairs, rank))
        count = sum(len(documents) for _, documents in pairs)
        request.state.note = f", {count} documents, {answer.prompt_tokens} tokens"
        return answer

    async def prompt(self, request: Request, options: Options, query: str, document: str) -> ShownPrompt:
        """The prompt of a pair, which is not scored; arguments and errors as in `score`."""

        async def show(preset: Preset, _: float | None) -> ShownPrompt:
            prompting = await self._prompter.prompting(options, preset)
            parts = await self.reranker.aprompt_parts(
                query,
                document,
                instruction=prompting.instruction,
                template=prompting.template,
                template_kwargs=prompting.template_kwargs,
                limits=options.limits,
            )
            template = self._prompter.counting(prompting.template)
            origin = None if template is None else template.origin
            return ShownPrompt(model=self.name_of(options.model), template=origin, parts=parts)

        return await self._in_turn(request, options, [(query, [document])], show)

    async def _in_turn(
        self,
        request: Request,
        options: Options,
        pairs: Pairs,
        work: Callable[[Preset, float | None], Awaitable[T]],
    ) -> T:
        """Do the work of a request when its turn comes; see `score`.

        Args:
            request: The request.
            options: What it says besides the pairs.
            pairs: Its texts, which are checked.
            work: Gets the preset of the request, and the seconds that its deadline leaves.
        """
        self._life.refuse_unless_ready()
        preset = self.models[self.name_of(options.model)]
        self._check(pairs, options)
        deadline = self._deadline(options)
        begin = time.monotonic()

        async def in_turn() -> T:
            async with asyncio.timeout(deadline), self.queue.turn():
                left = None if deadline is None else deadline - (time.monotonic() - begin)
                return await work(preset, left)

        try:
            return await self._unless_in_vain(request, in_turn())
        except (EngineDeadError, EngineLoadError):
            self._life.engine_died()
            raise
        except EngineUnavailableError:
            self._life.engine_is_silent()
            raise

    async def _rank(self, options: Options, pairs: Pairs, preset: Preset, deadline: float | None) -> list[Ranking]:
        prompting = await self._prompter.prompting(options, preset)
        most = self.config.max_priority
        return await self.reranker.arank_many(
            [(query or "", documents, prompting.instruction) for query, documents in pairs],
            template=prompting.template,
            template_kwargs=prompting.template_kwargs,
            limits=options.limits,
            raw_scores=options.raw(self.reranker.config.raw_scores),
            priority=max(-most, min(options.priority or 0, most)) * _TOKENS_OF_PRIORITY,
            deadline=deadline,
        )

    async def _unless_in_vain(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """Do the work; cancel it if the client closes the connection, or the service ends."""
        working = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(_disconnect(request))
        ending = asyncio.ensure_future(self._life.cut_off.wait())
        tasks: list[asyncio.Future[Any]] = [working, leaving, ending]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise self._life.ending() if ending.done() else ClientGoneError
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _deadline(self, options: Options) -> float | None:
        """The request's, but not later than the server's."""
        given = [one for one in (options.deadline, self.reranker.config.deadline) if one is not None]
        return min(given, default=None)

    def _check(self, pairs: Pairs, options: Options) -> None:
        count = sum(len(documents) for _, documents in pairs)
        if count > self.config.max_documents:
            raise ServiceError(
                413,
                f"The request has {count:,} documents, and may have {self.config.max_documents:,}: split it into "
                "several requests.",
                "body.documents",
            )
        texts = [text for query, documents in pairs for text in (query, *documents)]
        longest = max(map(length_of, [*texts, options.wanted_instruction]), default=0)
        if longest > self.config.max_characters:
            raise ServiceError(
                413, f"A text has {longest:,} characters, and may have {self.config.max_characters:,}: shorten it."
            )
        if not all(readable(query) or shows(query) for query, _ in pairs):
            raise ServiceError(400, "The query must not be blank.", "body.query")


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
