"""The score cache, in memory or in a folder. Its keys cover everything that determines a score.

A key is a hash of the prompt's token ids (and images), which depend on template, instruction, query, document and
lengths, and of the engine's fingerprint. Texts are never stored.
"""

import asyncio
import hashlib
import json
import logging
import os
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from winnow.engines import (
    Engine,
    EngineScore,
    EngineSettings,
    Requests,
    Turn,
    changes_scores,
    dtype_on_cpu,
    is_logit,
    record_of,
)
from winnow.locks import ForkSafeLock
from winnow.models import uses_modelscope
from winnow.prompts import Prompt
from winnow.ranking.calibration import CALIBRATION_FILE
from winnow.ranking.disk_scores import KEY_BYTES, DiskScores

logger = logging.getLogger(__name__)

# Files of a model's folder that decide its scores: weights, the model's own code, and settings, as those of image
# processors, of the modules after a transformer, and of the tokenizer, which has the labels' ids. Not a
# calibration, which changes no logit.
_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.json", "*.py")


class ScoreStore(Protocol):
    """Where scores are kept. Called from any thread."""

    def get(self, keys: Sequence[bytes]) -> list[float | None]:
        """The logits, None where there is none."""

    def put(self, logits: Mapping[bytes, float]) -> None:
        """Keep logits."""


class MemoryScores:
    """The scores that were used last.

    Args:
        pairs: How many to keep; about 200 bytes each.
    """

    def __init__(self, pairs: int):
        self._pairs = pairs
        self._logits: OrderedDict[bytes, float] = OrderedDict()
        self._lock = ForkSafeLock()

    def get(self, keys: Sequence[bytes]) -> list[float | None]:
        """The logits, None where there is none; what is found counts as used."""
        with self._lock:
            found = [self._logits.get(key) for key in keys]
            for key, logit in zip(keys, found, strict=True):
                if logit is not None:
                    self._logits.move_to_end(key)
            return found

    def put(self, logits: Mapping[bytes, float]) -> None:
        """Keep logits, and drop those that were not used for the longest time."""
        with self._lock:
            for key, logit in logits.items():
                self._logits[key] = logit
                self._logits.move_to_end(key)
            while len(self._logits) > self._pairs:
                self._logits.popitem(last=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What scoring prompts cost: sums that `RankStats` has under the same names, and explains."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    reused: int = 0
    cache_hits: int = 0

    def __add__(self, other: "Costs") -> "Costs":
        return Costs(**{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(Costs)})


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of prompts in order, and what they cost."""

    scores: list[EngineScore]
    costs: Costs


async def score(requests: Requests, prompts: Sequence[Prompt], turn: Turn, cache: "ScoreCache | None") -> Scored:
    """Score prompts; those in the cache do not go to the engine.

    Raises:
        EngineError: The engine failed. The cache never makes a call fail.
    """
    if cache is not None:
        return await cache.score(requests, prompts, turn)
    found = await requests.score(prompts, turn)
    costs = Costs(
        prompt_tokens=sum(len(prompt.ids) for prompt in prompts),
        cached_tokens=sum(one.score.cached_tokens for one in found),
        reused=sum(one.shared for one in found),
    )
    return Scored([one.score for one in found], costs)


class ScoreCache:
    """The score cache of one reranker. Files are read and written in threads, never on an event loop.

    Args:
        where: How many pairs to keep in memory, or a folder to keep them in. Rerankers and processes may share one.
        settings: The settings that the reranker's engine is made from.
    """

    def __init__(self, where: int | str | PathLike[str], settings: EngineSettings):
        self._where = where
        self._settings = settings
        self._store: ScoreStore = MemoryScores(where) if isinstance(where, int) else DiskScores(where)
        self._failed: set[str] = set()
        self._known: tuple[Requests, bytes] | None = None

    async def score(self, requests: Requests, prompts: Sequence[Prompt], turn: Turn) -> Scored:
        """See the function `score`."""
        keys, known = await asyncio.to_thread(self._look_up, requests, prompts)
        if not keys:
            return await score(requests, prompts, turn, None)
        missing = [at for at, logit in enumerate(known) if logit is None]
        fresh = await score(requests, [prompts[at] for at in missing], turn, None)
        scores = dict(zip(missing, fresh.scores, strict=True))
        if good := {keys[at]: one.logit for at, one in scores.items() if one.error is None and is_logit(one.logit)}:
            await asyncio.to_thread(self._keep, good)
        return Scored(
            [scores[at] if logit is None else EngineScore(logit) for at, logit in enumerate(known)],
            fresh.costs + Costs(cache_hits=len(prompts) - len(missing)),
        )

    def retry(self) -> None:
        """Use the cache again after a failure."""
        self._failed.clear()
        self._known = None

    def _look_up(self, requests: Requests, prompts: Sequence[Prompt]) -> tuple[list[bytes], list[float | None]]:
        """Keys and logits of prompts; no keys if the cache cannot be used."""
        if "read" in self._failed:
            return [], []
        try:
            of_engine = self._fingerprint(requests)
            keys = [hashlib.blake2b(prompt.key, digest_size=KEY_BYTES, key=of_engine).digest() for prompt in prompts]
            return keys, self._store.get(keys)
        except Exception as error:  # noqa: BLE001 - the cache must not make a ranking fail
            self._fail("read", error)
            return [], []

    def _keep(self, logits: Mapping[bytes, float]) -> None:
        if "written" in self._failed:
            return
        try:
            self._store.put(logits)
        except Exception as error:  # noqa: BLE001 - as above
            self._fail("written", error)

    def _fail(self, what: str, error: Exception) -> None:
        if what in self._failed:  # another call has logged it
            return
        self._failed.add(what)
        logger.warning(
            "The score cache %s cannot be %s (%s: %s). Until the reranker is closed, %s. "
            "Check the disk's space and the folder's permissions; if the folder is damaged, remove it.",
            self._where,
            what,
            type(error).__name__,
            error,
            {"read": "everything is scored anew", "written": "it keeps no new scores"}[what],
        )

    def _fingerprint(self, requests: Requests) -> bytes:
        """One for each running engine: a reranker that is closed and started again may find other weights."""
        if self._known is None or self._known[0] is not requests:
            self._known = (requests, fingerprint(requests.engine, self._settings))
        return self._known[1]


def fingerprint(engine: Engine, settings: EngineSettings) -> bytes:
    """A hash of 32 bytes of everything except the prompt that determines an engine's scores.

    Name or path of the model, its commit on the Hub or the sizes and times of its files, its configuration and
    recipe, all engine settings but those that only concern speed (dtype and quantization are among them), the engine,
    the versions of its packages and its device; for servers their addresses, as nothing else is known of them.

    Args:
        engine: The engine, started or not.
        settings: The settings that it was made from.
    """
    checkpoint = engine.checkpoint
    record = record_of(engine.name)
    merged = {**settings.found, **settings.given}
    kwargs = {name: value for name, value in merged.items() if changes_scores(name, engine.name)}
    cache_dir = settings.of_checkpoint()["cache_dir"]
    is_made_by_winnow = isinstance(settings.engine, str)
    device = record.device_name(kwargs.get("device")) if record and record.device_name else None
    if device and device.startswith("cpu"):
        device += f" {dtype_on_cpu(checkpoint)}"  # which the same settings leave to the processor
    parts = {
        # Not the module of an engine that Winnow makes: when that moves, what a folder keeps must still be found.
        "engine": [
            engine.name,
            None if is_made_by_winnow else f"{type(engine).__module__}.{type(engine).__qualname__}",
        ],
        "packages": [[name, _version(name)] for name in (record.packages if record else ())],
        "device": device,
        "settings": kwargs,
        "urls": [settings.url] if isinstance(settings.url, str) else sorted(settings.url or ()),
        "model": str(checkpoint.model),
        "files": files_state(
            str(checkpoint.folder if uses_modelscope() else checkpoint.model), kwargs.get("revision"), cache_dir
        ),
        "config": checkpoint.config,
        "recipe": repr(checkpoint.recipe),
    }
    if checkpoint.adapter is not None:
        parts["files"] = checkpoint.adapter.key  # of the adapter and its base, whichever of the two a folder holds
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).digest()


def _version(package: str) -> str | None:
    """The version of the loaded module, because builds of vLLM have several names of distributions."""
    return getattr(sys.modules.get(package), "__version__", None)


def files_state(model: str, revision: str | None, cache_dir: str | None) -> list[Any]:
    """The state of a model's files: its commit, or their sizes and times."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return [revision, _commit(model, revision, cache_dir)]
    # In folders below are the modules that sentence-transformers puts after a transformer.
    found = (path for pattern in _FILES for place in ("", "*/") for path in sorted(folder.glob(place + pattern)))
    stats = [(str(path.relative_to(folder)), path.stat()) for path in found]
    return [
        os.fspath(folder.resolve()),
        *([name, stat.st_size, stat.st_mtime_ns] for name, stat in stats if name != CALIBRATION_FILE),
    ]


def _commit(model: str, revision: str | None, cache_dir: str | None) -> str | None:
    """The commit that was downloaded; asks no server."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        file = try_to_load_from_cache(model, "config.json", cache_dir=cache_dir, revision=revision)
    except HFValidationError:  # no name on the Hub: an engine of the user's own
        return None
    return Path(file).parent.name if isinstance(file, str) else None
