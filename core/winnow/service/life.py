"""The life of the service: it loads the model, answers, gets a lost engine back, and ends when its work is done."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection
from typing import Literal

from winnow.errors import EngineError, EngineUnavailableError
from winnow.ranking import Reranker
from winnow.service.errors import RETRY_LOADING, ServiceError
from winnow.service.presets import Preset

logger = logging.getLogger(__name__)

# How long a first score may take, loading included, whatever the deadline of requests is.
_FIRST_SECONDS = 3600.0

# Between two tries to get an engine back: to start one that died, and to ask servers, which costs nothing.
_FIRST_PAUSE, _LONGEST_PAUSE, _LONGEST_SILENCE = 1.0, 30.0, 4.0
# After so many tries in vain the service says that it is not healthy: who watches it may start it elsewhere.
_HOPELESS = 3


class Life:
    """Whether the service can answer, and what it does until it can.

    Args:
        reranker: What scores.
        presets: Whose templates are tried when the model is loaded.
        on_failure: Called if the model cannot be loaded.

    Attributes:
        state: What the service does.
        failure: Why the model could not be loaded.
        cut_off: Set when the service ends though requests still run.
    """

    def __init__(
        self, reranker: Reranker, presets: Collection[Preset] = (), on_failure: Callable[[], None] = lambda: None
    ):
        self.state: Literal["loading", "ready", "waiting", "draining"] = "loading"
        self.failure: Exception | None = None
        self.cut_off = asyncio.Event()
        self.on_failure = on_failure
        self._reranker = reranker
        self._presets = presets
        self._restarts_in_vain = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered."""
        return self.state == "ready"

    @property
    def is_healthy(self) -> bool:
        """Whether the process should go on."""
        return self.failure is None and self._restarts_in_vain < _HOPELESS

    def refuse_unless_ready(self) -> None:
        """Refuse a request that cannot be answered now.

        Raises:
            ServiceError: The service loads its model, or ends.
        """
        if self.state == "draining":
            raise self.ending()
        if self.state != "ready":
            what = "being loaded" if self.state == "loading" else "not to be reached"
            raise ServiceError(503, f"The model is {what}: try again later.", retry_after=RETRY_LOADING)

    @staticmethod
    def ending() -> ServiceError:
        """What a request is told that is not answered because the service ends."""
        return ServiceError(503, "This server is ending: send the request to another one.", retry_after=RETRY_LOADING)

    def begin(self) -> None:
        """Load the model, beside whatever else the event loop does."""
        self._task = asyncio.get_running_loop().create_task(self._load())

    def engine_died(self) -> None:
        """Refuse requests, and start the engine again, unless that goes on already."""
        if self.state == "ready":
            self.state = "waiting"
        self._get_back()

    def engine_is_silent(self) -> None:
        """Ask whether the servers that score answer at all, and if not, refuse requests until they do."""
        self._get_back()

    def drain(self) -> None:
        """Refuse new requests from now on; those that came before are answered."""
        self.state = "draining"

    async def end(self) -> None:
        """Free the model."""
        self.state = "draining"
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        with contextlib.suppress(EngineError):  # the process ends: nothing can be done about it
            await self._reranker.aclose()

    async def _load(self) -> None:
        begin = time.monotonic()
        try:
            await self._reranker.astart()
            for preset in self._presets:
                await self._reranker.abind(preset.template, preset.template_kwargs, preset.instruction)
            await self._score_first()
        except Exception as error:  # noqa: BLE001 - whoever runs the server raises it
            self.failure = error
            self.on_failure()
            return
        logger.info("The model is loaded after %.0f s, and requests are answered.", time.monotonic() - begin)
        self._now_ready()

    async def _score_first(self) -> None:
        """Score a pair, after which a model is ready: a GPU compiles kernels and fills caches with its first prompt."""
        query = f"Is the model ready at {time.time_ns()}?"  # of which no score is cached
        await self._reranker.arank(query, ["It is."], deadline=_FIRST_SECONDS)

    def _get_back(self) -> None:
        if self.state != "draining" and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._until_it_scores())

    async def _until_it_scores(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                await self._score_first()
            except (EngineError, TimeoutError) as error:
                if self.state == "ready":
                    self.state = "waiting"
                logger.warning("The engine does not score, and is tried again in %g s: %s", pause, error)
                is_silent = isinstance(error, EngineUnavailableError)  # then nothing can be done about it here
                if not is_silent:
                    self._restarts_in_vain += 1
                    with contextlib.suppress(EngineError):
                        await self._reranker.aclose()  # so that the next call starts it, however often it died
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_SILENCE if is_silent else _LONGEST_PAUSE)
            else:
                logger.info("The engine scores again, and requests are answered.")
                self._now_ready()
                return

    def _now_ready(self) -> None:
        self._restarts_in_vain = 0
        if self.state != "draining":
            self.state = "ready"
