"""The engine on one or more vLLM servers over HTTP: token ids in, raw logits out. It needs neither vLLM nor PyTorch."""

import asyncio
import contextlib
import hashlib
import itertools
import json
import logging
import math
import random
import shlex
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from winnow.engines.base import EngineScore
from winnow.engines.registry import settings_of
from winnow.engines.server.chat_request import ScoreRequest, chat_requests, ids_request, server_options
from winnow.engines.server.client import RefusedError, ReplicaError, ServerClient
from winnow.engines.server.replica import Replica
from winnow.engines.server.replica_pool import ReplicaPool
from winnow.engines.server_addresses import server_addresses
from winnow.engines.setting_table import SETTINGS, check_keywords, check_values
from winnow.errors import ConfigurationError, EngineError, EngineLoadError, EngineUnavailableError
from winnow.media import NO_VIDEOS
from winnow.models import Checkpoint, check_labels_on_vllm, check_weights
from winnow.prompts import Prompt

logger = logging.getLogger(__name__)

# Exponential backoff with jitter: a random time up to 0.5, 1, 2, 4 … 10 seconds, so that clients do not retry together.
_BACKOFF = wait_random_exponential(multiplier=0.5, max=10, min=0.25)
_FAILOVER_SECONDS = 0.05
# Keys of config.json that choose an activation.
_ACTIVATION_SETTINGS = ("problem_type", "sentence_transformers", "sbert_ce_default_activation_function")
_DEFAULTS = {name: SETTINGS[name].default for name in settings_of("server")}
# How many requests more than the least loaded server a query's preferred server may have.
_REQUESTS_AHEAD = 4


class ServerEngine:
    """A reranker on vLLM servers in other processes; `serve_command` returns the command that starts one.

    Args:
        checkpoint: The model. Its small files (tokenizer, config) are needed here, too.
        url: Address of a server, or of several that serve the same model.
        api_key: The servers' `--api-key`. It is sent in the Authorization header and shown nowhere.
        engine_kwargs: This engine's settings (docs/settings.md#settings-of-the-engine), among them those with which
            `checkpoint` was opened.
        max_length: Most tokens of a prompt that will be sent; None for the model's limit.

    Raises:
        ConfigurationError: An address or a keyword is wrong.
    """

    name = "server"

    def __init__(
        self,
        checkpoint: Checkpoint,
        url: str | Sequence[str] | None,
        api_key: str | None,
        engine_kwargs: Mapping[str, Any],
        *,
        max_length: int | None = None,
    ):
        check_keywords("engine_kwargs", engine_kwargs, settings_of(self.name))
        max_length = check_values(engine_kwargs, max_length)
        checkpoint.check_runs_on_vllm()
        if checkpoint.vision is not None:
            checkpoint = replace(checkpoint, vision=replace(checkpoint.vision, as_text=True))
        self.checkpoint = checkpoint
        self._urls = server_addresses(url)
        self._settings = _DEFAULTS | {name: value for name, value in engine_kwargs.items() if value is not None}
        self._max_length = min(max_length or checkpoint.max_length, checkpoint.max_length)
        self._api_key = _checked_key(api_key)
        self._probe = ids_request([checkpoint.tokenizer.encode("winnow")[: self._max_length] or [0]])
        self._chunk_size = int(self._settings["chunk_size"])
        self._client: ServerClient | None = None
        self._pool: ReplicaPool | None = None
        self._starting: asyncio.Task[None] | None = None
        if theirs := checkpoint.user_overrides.keys() - {"score_template"}:
            logger.warning(
                "hf_overrides (%s) change what Winnow reads of config.json here; a running server keeps its own. Start "
                "it with: %s",
                ", ".join(sorted(theirs)),
                self._command,
            )

    async def start(self) -> None:
        """Check that the servers serve this model. With several, those that are down are checked again later.

        Raises:
            EngineLoadError: No server answers, or one serves something else. The message says what to do.
            ModelError: The local weights do not match config.json (the server's are the same), or vLLM would give the
                model's labels other logits than the model does.
        """
        check_weights(self.checkpoint, required=False)
        check_labels_on_vllm(self.checkpoint)
        self._client = ServerClient(self._api_key, float(self._settings["timeout"]))
        concurrency = int(self._settings["concurrency"])
        self._pool = ReplicaPool(
            [self._replica(self._client, url) for url in self._urls],
            concurrency=concurrency,
            slack=_REQUESTS_AHEAD * self._chunk_size,
        )
        self._starting = asyncio.ensure_future(self._pool.start())
        try:
            await asyncio.shield(self._starting)
        except EngineError as error:
            await self.aclose()
            raise EngineLoadError(f"{error}\nA server of this model is started with: {self._command}") from error
        except asyncio.CancelledError:
            abandoned = self._starting.cancelled()
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
            await self.aclose()
            if abandoned:
                raise EngineLoadError("Asking the servers was interrupted.") from None
            raise

    @property
    def _command(self) -> str:
        return serve_command(self.checkpoint, self._max_length)

    def _replica(self, client: ServerClient, url: str) -> Replica:
        return Replica(
            client,
            url,
            model=self.checkpoint.model,
            served_name=self._settings.get("served_model_name"),
            max_length=self._max_length,
            recipe=self.checkpoint.recipe,
            probe=self._probe,
            # Otherwise vLLM applies a sigmoid to one number (get_act_fn in vllm/model_executor/layers/pooler).
            has_activation=not any(self.checkpoint.config.get(key) for key in _ACTIVATION_SETTINGS),
        )

    async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:  # noqa: ARG002
        """Score prompts, several in one request; those of one query go to one server, if possible.

        `cached_tokens` stays 0: vLLM does not report it over HTTP.

        Raises:
            ConfigurationError: The prompts have token types or videos, for which vLLM's HTTP interface has no field.
            EngineUnavailableError: A request failed on all tries. The message names the servers.
            EngineError: The server refuses every request.
        """
        if any(prompt.second_type_from is not None for prompt in prompts):
            raise ConfigurationError(
                f"{self.checkpoint.model} needs token types (as BERT does), which vLLM takes in process but not over "
                'HTTP: its scores would be wrong. Use engine="vllm" or engine="transformers".'
            )
        if any(prompt.videos for prompt in prompts):
            raise ConfigurationError(NO_VIDEOS)
        if not prompts:
            return []
        key = _key_of_prefix([prompt.ids for prompt in prompts])
        without_images = [at for at, prompt in enumerate(prompts) if not prompt.images]
        with_images = [at for at, prompt in enumerate(prompts) if prompt.images]
        size = self._chunk_size
        chunks = [without_images[at : at + size] for at in range(0, len(without_images), size)]
        requests = [ids_request([prompts[at].ids for at in chunk]) for chunk in chunks]
        requests += await chat_requests(self.checkpoint, [prompts[at] for at in with_images])
        tasks = [asyncio.ensure_future(self._scored(request, key)) for request in requests]
        try:
            answers = await asyncio.gather(*tasks)
        finally:  # one failed, or the call was cancelled: closing the other connections makes vLLM drop their prompts
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        scores = dict(zip([*without_images, *with_images], itertools.chain.from_iterable(answers), strict=True))
        if all(score.error is not None for score in scores.values()):
            await self._send(self._probe, key)  # raises if the fault is the server's, not the prompts'
        return [scores[at] for at in range(len(prompts))]

    async def _scored(self, request: ScoreRequest, key: bytes) -> list[EngineScore]:
        """Scores of a request's prompts. A refused request is sent again in halves, to find the prompt at fault."""
        try:
            logits = await self._send(request, key)
        except RefusedError as error:
            if request.prompts > 1:
                ids = request.body["input"]
                halves = (ids_request(part) for part in (ids[: len(ids) // 2], ids[len(ids) // 2 :]))
                return [score for half in halves for score in await self._scored(half, key)]
            return [EngineScore(math.nan, error=str(error))]
        return [EngineScore(self.checkpoint.recipe.calibrated_by_vllm(logit)) for logit in logits]

    async def _send(self, request: ScoreRequest, key: bytes) -> list[float]:
        pool = self._pool
        assert pool is not None, "start() comes first"  # noqa: S101
        failed: Replica | None = None

        async def try_once() -> list[float]:
            nonlocal failed
            async with pool.lend(key, request.prompts, avoid=failed) as replica:
                failed = replica
                return await replica.score(request)

        def wait(state: RetryCallState) -> float:
            if state.attempt_number < len(pool.replicas) and pool.has_other(failed):
                return random.uniform(0, _FAILOVER_SECONDS)  # noqa: S311
            return _BACKOFF(state)

        tries = 1 + int(self._settings["max_retries"])
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(ReplicaError), stop=stop_after_attempt(tries), wait=wait, reraise=True
        )
        try:
            return await retrying(try_once)
        except ReplicaError as fault:
            raise EngineUnavailableError(f"{request.prompts} prompts got no score in {tries} tries. {fault}") from fault
        except EngineError as error:
            if not request.with_images:
                raise
            raise type(error)(f"{error}\nA server that takes images is started with: {self._command}") from error

    async def aclose(self) -> None:
        """Close the connections."""
        pool, client = self._pool, self._client
        self._pool = self._client = None
        if pool is not None:
            await pool.aclose()
        if client is not None:
            await client.aclose()

    def abandon(self) -> None:
        """Make a `start` that waits for a server fail now."""
        if (starting := self._starting) is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so the start has ended
                starting.get_loop().call_soon_threadsafe(starting.cancel)


def serve_command(checkpoint: Checkpoint, max_length: int | None = None) -> str:
    """The shell command that starts a vLLM server of a model for `ServerEngine`.

    Args:
        checkpoint: The model.
        max_length: Most tokens of a prompt; None for the model's limit.
    """
    words = ["vllm", "serve", checkpoint.model, "--runner", "pooling"]
    if checkpoint.adapter is not None:  # vLLM loads what it was merged into, and serves it under its own name
        words[2:3] = [str(checkpoint.adapter.place), "--served-model-name", checkpoint.model]
    if overrides := checkpoint.vllm_overrides:
        words += ["--hf-overrides", json.dumps(overrides, ensure_ascii=False)]
    if checkpoint.pooling is not None:
        words += ["--pooler-config", json.dumps({"seq_pooling_type": checkpoint.pooling})]
    words += ["--max-model-len", str(max_length or checkpoint.max_length)]
    if checkpoint.vision is not None:
        words += server_options(checkpoint.vision)
    if checkpoint.recipe.local_code and "AutoConfig" in checkpoint.config.get("auto_map", ()):
        words.append("--trust-remote-code")
    return shlex.join(words)


def _key_of_prefix(prompts: Sequence[list[int]]) -> bytes:
    """A hash of the beginning that all prompts share: for one query its template, instruction and query."""
    pairs = zip(min(prompts), max(prompts), strict=False)
    shared = array("q", (first for first, last in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    return hashlib.blake2b(shared.tobytes(), digest_size=16).digest()


def _checked_key(api_key: str | None) -> str | None:
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and " " not in api_key and api_key):
        raise ConfigurationError(
            "api_key is blank, or holds a space, a line break or another character that an HTTP header cannot carry"
        )
    return api_key
