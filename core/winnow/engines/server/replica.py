"""One vLLM server: the requests to it, the meaning of its answers, and its state.

The requests and answers are those of vLLM 0.32 (`vllm/entrypoints/pooling`); `/pooling` and `/classify` take token ids,
and chat messages.
"""

import asyncio
import base64
import hashlib
import json
import math
import struct
import uuid
from pathlib import Path
from typing import Any

from winnow.engines.server.chat_request import ScoreRequest
from winnow.engines.server.client import NotThereError, ReplicaError, ServerClient
from winnow.errors import EngineError
from winnow.models import ModelRecipe

_LARGEST = 2**53  # the largest whole number that all JSON readers hold exactly


class Replica:
    """One server.

    Args:
        client: Sends the requests; it has the deadline and the API key.
        url: The server's address without a final slash.
        model: The model as the user named it.
        recipe: How the model scores.
        served_name: The model's name on the server; None to look for `model`.
        max_length: Most tokens of a prompt that may be sent.
        probe: A short prompt, to check that the server scores.
        has_activation: Whether the model's scores always differ from its raw logits.

    Attributes:
        up: Whether prompts may be sent. The pool sets it.
        why_down: The error of the last failed check.
        failures: Failed requests since the last answer.
        cooldown: Seconds that its circuit was last open; the next time it is open for twice as long.
        retry_at: Time (of `time.monotonic`) until which it gets no requests.
        asked_at: Time when it was last found to be down.
        checking: A running check of a server that is down.
        requests: Requests in flight.
        prompts: Prompts in flight.
    """

    def __init__(
        self,
        client: ServerClient,
        url: str,
        *,
        model: str,
        recipe: ModelRecipe,
        served_name: str | None,
        max_length: int,
        probe: ScoreRequest,
        has_activation: bool,
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
        self._name = ""
        self._path = "/pooling"

    async def check(self) -> None:
        """Check that the server answers, serves the model with enough length, and returns raw logits for token ids.

        Raises:
            ReplicaError: It does not answer, or fails.
            EngineError: It does not serve the model as the user wants. The message says what to set.
        """
        self._name = await self._client.ask("GET", f"{self.url}/v1/models", self._served_as)
        self._path = "/pooling"
        try:
            [raw] = await self._logits(self._probe, raw=True)
        except NotThereError:  # a gateway may pass only some paths
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
            ReplicaError: The server failed, was too busy or too slow, or gave an invalid answer.
            RefusedError: It refused the request.
            EngineError: It read other prompts than were sent.
        """
        return await self._logits(request, raw=True)

    def _served_as(self, answer: Any) -> str:
        """Our model's name in the server's list of models."""
        cards = {_checked_text(card["id"]): (card.get("root"), card.get("max_model_len")) for card in answer["data"]}
        wanted = {self._served_name} if self._served_name else {self._model, str(Path(self._model).absolute())}
        # A model is known by its served name, or by what vLLM loaded it from (`root`).
        name = next((name for name, (root, _) in cards.items() if {name, root} & wanted), None)
        if name is None:
            served = ", ".join(
                f"{name} (from {root})" if root not in (None, name) else name for name, (root, _) in cards.items()
            )
            raise EngineError(
                f"{self.url} serves {self._client.shown(served) or 'no model'}, not "
                f"{self._served_name or self._model}. If it is the same model under another name, set "
                'engine_kwargs={"served_model_name": ...} to that name.'
            )
        length = cards[name][1]
        if length is not None and _whole(length) < self._max_length:
            raise EngineError(
                f"{self.url} takes prompts of at most {length} tokens, but this reranker may send {self._max_length}. "
                f"Set max_length={length}, or start the server with --max-model-len {self._max_length}."
            )
        return name

    async def _logits(self, request: ScoreRequest, *, raw: bool) -> list[float]:
        body = {"model": self._name, **request.body, "use_activation": not raw, "add_special_tokens": False}
        if self._path == "/pooling":
            # The bits of the fp32 logit, which also carry a NaN; JSON has none.
            body |= {"task": "classify", "encoding_format": "base64", "embed_dtype": "float32", "endianness": "little"}
        content = json.dumps(body, separators=(",", ":")).encode()
        where = f"{self.url}{self._path}"
        own = f"winnow-{hashlib.blake2b(content, digest_size=12).hexdigest()}"

        def read(answer: Any) -> list[float]:
            rows = sorted(answer["data"], key=lambda row: _whole(row["index"]))
            if [row["index"] for row in rows] != list(range(request.prompts)):
                raise ReplicaError(f"{where} returned {len(rows)} scores for {request.prompts} prompts.")
            # vLLM puts the id of a request into its answer (_base_request_id in vllm/entrypoints/serve/engine). A
            # gateway may give the request another, or answer with what it kept of an equal request, which is right.
            if "winnow-" in (found := str(answer.get("id"))) and own not in found:
                raise ReplicaError(f"{where} gave the answer to another request.")
            self._check_tokens(request, (answer.get("usage") or {}).get("prompt_tokens"))
            return [self._one_logit(row["data"] if "data" in row else row["probs"]) for row in rows]

        request_id = f"{own}-{uuid.uuid4().hex}"  # vLLM wants ids that no other request has
        return await self._client.ask("POST", where, read, body=content, request_id=request_id, prompts=request.prompts)

    def _check_tokens(self, request: ScoreRequest, tokens: Any) -> None:
        """Check by the number of tokens that the server read the prompts that were sent.

        A gateway may leave the number out, or set it to 0. Only prompts with images need it.
        """
        if (tokens in (None, 0) and not request.with_images) or _whole(tokens) == request.tokens:
            return
        if request.with_images:
            raise EngineError(
                f"{self.url} found {tokens} tokens in a prompt with images that has {request.tokens}: its chat "
                "template adds to the prompt, or it resizes images."
            )
        raise ReplicaError(
            f"{self.url} read {tokens} tokens where {request.tokens} were sent: this is the answer to another request, "
            "or something on the way changes prompts."
        )

    def _one_logit(self, data: Any) -> float:
        if isinstance(data, str):
            packed = base64.b64decode(data, validate=True)
            numbers = list(struct.unpack(f"<{len(packed) // 4}f", packed))
        else:
            numbers = [_number(one) for one in data]
        if len(numbers) != self._recipe.outputs:
            raise EngineError(
                f"{self.url} gives {len(numbers)} numbers for a prompt, and {self._model} gives "
                f"{self._recipe.outputs}: it is not served as a reranker. Start it with its --hf-overrides."
            )
        return self._recipe.of_outputs(numbers)


def _checked_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text was expected, not {type(value).__name__}")
    return value


def _whole(value: Any) -> int:
    """A count or a position. `True`, which Python counts as 1, is refused."""
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise ValueError("a whole number was expected that is not negative")
    return value


def _number(value: Any) -> float:
    """A score in JSON, where null stands for NaN."""
    if value is None:
        return math.nan
    if type(value) not in (int, float):
        raise TypeError(f"a number was expected, not {type(value).__name__}")
    return float(value)
