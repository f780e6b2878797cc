"""One vLLM server: what it is asked, what its answers mean, and whether it is worth asking.

The requests and answers are those of vLLM 0.32 (`vllm/entrypoints/pooling`); `/pooling` and `/classify` take token ids,
and chat messages.
"""

import asyncio
import base64
import binascii
import email.utils
import math
import re
import struct
import time
from pathlib import Path
from typing import Any

import httpx

from winnow.engines.chat_request import ScoreRequest
from winnow.errors import EngineError
from winnow.model_recipe import ModelRecipe

# Worth another try, there or elsewhere; so is every 5xx but 501, with which vLLM refuses what a model cannot do.
_TRY_AGAIN = {408, 425, 429}
# The request is at fault: vLLM's answer to token ids that it does not know, and a gateway's to too many bytes.
_REFUSED = {400, 413, 422}
_LOOKUP_SECONDS = 10.0
_SHOWN = 500  # characters of a server's message that an error shows


class ReplicaError(EngineError):
    """A server did not answer as it should. Another one, or the same one later, may.

    Attributes:
        retry_after: Seconds that the server asked to be left alone.
    """

    def __init__(self, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.retry_after = retry_after


class RefusedError(EngineError):
    """A server found something wrong with what it was asked: one of the prompts, say."""


class Replica:
    """One server.

    Args:
        client: Sends the requests; holds timeouts and the API key.
        url: The server's address without a final slash.
        model: The model as the user named it.
        recipe: How the model scores.
        served_name: Name under which the server should serve it; None to look for `model`.
        max_length: Most tokens of a prompt that may be sent.
        probe: A short prompt, to see that the server scores.
        has_activation: Whether the model's scores differ from its raw logits for sure.
        secret: What must not appear in an error, wherever the server got it from.

    Attributes:
        up: Whether prompts may be sent. The pool sets it.
        why_down: What it did wrong when it was last asked.
        failures: Faults since the last answer.
        cooldown: Seconds that it is left alone after the next time it goes down.
        retry_at: Time (of `time.monotonic`) until which it is left alone.
        asked_at: Time when it was last found to be down.
        checking: A running check of a server that is down.
        requests: Requests in flight.
        prompts: Prompts in flight.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        url: str,
        *,
        model: str,
        recipe: ModelRecipe,
        served_name: str | None,
        max_length: int,
        probe: ScoreRequest,
        has_activation: bool,
        secret: str | None,
    ):
        self.url = url
        self.up = False
        self.why_down = f"{url} was not asked yet."
        self.failures = 0
        self.cooldown = 0.0
        self.retry_at = self.asked_at = -math.inf
        self.checking: asyncio.Task[None] | None = None
        self.requests = 0
        self.prompts = 0
        self._client = client
        self._model = model
        self._recipe = recipe
        self._served_name = served_name
        self._max_length = max_length
        self._probe = probe
        self._has_activation = has_activation
        self._secret = secret
        self._name = ""
        self._path = "/pooling"

    async def check(self) -> None:
        """See that the server is there, serves the model with enough length, and gives raw logits for token ids.

        Raises:
            ReplicaError: It is not there, or not well.
            EngineError: It is there, and is not what the user wants. The message says what to set.
        """
        self._check_model(await self._ask("GET", "/v1/models"))
        self._path = "/pooling"
        try:
            [raw] = await self._logits(self._probe, raw=True)
        except _NotThereError:  # a gateway may let only some paths through
            self._path = "/classify"
            [raw] = await self._logits(self._probe, raw=True)
        if self._has_activation and [raw] == await self._logits(self._probe, raw=False):
            raise EngineError(
                f"{self.url} gives the same number with and without use_activation=false: it cannot return raw logits. "
                "Winnow needs vLLM 0.26 or newer, and gateways must pass the field on."
            )

    async def score(self, request: ScoreRequest) -> list[float]:
        """Raw logits of a request's prompts, in order.

        Raises:
            ReplicaError: The server failed, was too busy or too slow, or gave an answer that is none.
            RefusedError: It refused the request.
            EngineError: It read other prompts than were meant.
        """
        return await self._logits(request, raw=True)

    def _check_model(self, answer: Any) -> None:
        try:
            cards = {card["id"]: (card.get("root"), card.get("max_model_len")) for card in answer["data"]}
        except (KeyError, TypeError, AttributeError):
            raise ReplicaError(f"{self.url}/v1/models does not answer as vLLM does: {str(answer)[:_SHOWN]}") from None
        wanted = {self._served_name} if self._served_name else {self._model, str(Path(self._model).absolute())}
        # A model is known by its served name, or by what vLLM loaded it from (`root`).
        name = next((name for name, (root, _) in cards.items() if {name, root} & wanted), None)
        if name is None:
            served = ", ".join(
                f"{name} (from {root})" if root not in (None, name) else name for name, (root, _) in cards.items()
            )
            raise EngineError(
                f"{self.url} serves {served or 'no model'}, not {self._served_name or self._model}. If it is the same "
                'model under another name, set engine_kwargs={"served_model_name": ...} to that name.'
            )
        length = cards[name][1]
        if length is not None and length < self._max_length:
            raise EngineError(
                f"{self.url} takes prompts of at most {length} tokens, but this reranker may send {self._max_length}. "
                f"Set max_length={length}, or start the server with --max-model-len {self._max_length}."
            )
        self._name = name

    async def _logits(self, request: ScoreRequest, *, raw: bool) -> list[float]:
        body = {"model": self._name, **request.body, "use_activation": not raw, "add_special_tokens": False}
        if self._path == "/pooling":
            # The bits of the fp32 logit, which also carry a NaN; JSON has none.
            body |= {"task": "classify", "encoding_format": "base64", "embed_dtype": "float32", "endianness": "little"}
        answer = await self._ask("POST", self._path, body)
        try:
            rows = sorted(answer["data"], key=lambda row: row["index"])
            logits = [self._one_logit(row["data"] if self._path == "/pooling" else row["probs"]) for row in rows]
            tokens = answer["usage"]["prompt_tokens"] if request.with_images else None
        except (KeyError, TypeError, ValueError, binascii.Error, struct.error) as error:
            raise ReplicaError(
                f"{self.url}{self._path} does not answer as vLLM does ({type(error).__name__}: {error}): "
                f"{str(answer)[:_SHOWN]}"
            ) from None
        if [row["index"] for row in rows] != list(range(request.prompts)):
            raise ReplicaError(f"{self.url}{self._path} returned {len(rows)} scores for {request.prompts} prompts.")
        if tokens != request.tokens:
            raise EngineError(
                f"{self.url} found {tokens} tokens in a prompt with images that has {request.tokens}: its chat "
                "template adds to the prompt, or it resizes images."
            )
        return logits

    def _one_logit(self, data: str | list[float | None]) -> float:
        numbers = data
        if isinstance(data, str):
            packed = base64.b64decode(data, validate=True)
            numbers = list(struct.unpack(f"<{len(packed) // 4}f", packed))
        if len(numbers) != self._recipe.outputs:
            raise EngineError(
                f"{self.url} gives {len(numbers)} numbers for a prompt, and {self._model} gives "
                f"{self._recipe.outputs}: it is not served as a reranker. Start it with its --hf-overrides."
            )
        return self._recipe.of_outputs([math.nan if number is None else float(number) for number in numbers])

    async def _ask(self, method: str, path: str, body: Any = None) -> Any:
        where = f"{self.url}{path}"
        limits = self._client.timeout
        if method == "GET":  # nothing to compute
            limits = httpx.Timeout(min(limits.read or math.inf, _LOOKUP_SECONDS), connect=limits.connect)
        try:
            response = await self._client.request(method, where, json=body, timeout=limits)
        except httpx.TimeoutException as error:
            seconds = limits.connect if isinstance(error, httpx.ConnectTimeout) else limits.read
            what = "no connection" if isinstance(error, httpx.ConnectTimeout) else "no answer"
            raise ReplicaError(
                f"{where}: {what} within {seconds:g} seconds. If the server is only slow, raise engine_kwargs "
                "timeout, or lower chunk_size or concurrency."
            ) from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise ReplicaError(f"{where}: {type(error).__name__}: {error}".rstrip(": ")) from error
        if response.is_success:
            try:
                return response.json()
            except ValueError:  # not JSON, or not UTF-8
                raise ReplicaError(f"{where} did not answer with JSON: {self._message_of(response)}") from None
        message = f"{where} answered {response.status_code}: {self._message_of(response)}"
        if response.status_code in _TRY_AGAIN or (response.status_code >= 500 and response.status_code != 501):
            raise ReplicaError(message, _retry_after(response))
        if response.status_code in (401, 403):
            raise EngineError(f"{message}. Check api_key.")
        if response.status_code in _REFUSED:
            raise RefusedError(message)
        raise (_NotThereError if response.status_code in (404, 405, 501) else EngineError)(message)

    def _message_of(self, response: httpx.Response) -> str:
        """The message in an error of vLLM or FastAPI, or the beginning of whatever else it is."""
        try:
            content = response.json()
            content = content.get("error", content.get("detail", content))
            text = str(content["message"] if isinstance(content, dict) and "message" in content else content)
        except (ValueError, AttributeError):
            text = re.sub(r"<[^>]*>", " ", response.text)  # a page of some proxy
        text = " ".join(text.split())
        if self._secret:
            text = text.replace(self._secret, "***")
        return text[:_SHOWN] or "(nothing)"


class _NotThereError(EngineError):
    """The server has no such path."""


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("retry-after", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
