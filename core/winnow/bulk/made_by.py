"""What decides the bytes of an output: an output that was begun with something else is not continued."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from winnow.engines import changes_scores, name_of, record_of, resolve
from winnow.models import open_checkpoint, template_for
from winnow.ranking import Calibration, RerankerConfig, files_state
from winnow.templates import from_user

# Settings that change no score, or that are noted in another form.
_NOT_NOTED = (
    *("model", "engine", "engine_kwargs", "template", "calibration", "max_length"),
    *("url", "api_key", "device", "cache_dir", "root_path", "score_cache", "max_restarts", "deadline", "on_error"),
)
_PATHS = ("model", "base_model", "template", "calibration", "cache_dir", "root_path", "score_cache")


def with_whole_paths(config: RerankerConfig) -> RerankerConfig:
    """The settings with paths from the root: an actor may run in another folder."""
    whole: dict[str, Any] = {}
    for name in _PATHS:
        value = getattr(config, name)
        if not isinstance(value, str | os.PathLike) or "\n" in os.fspath(value):
            continue
        path = Path(value).expanduser()
        if name == "score_cache" or (os.fspath(value) and _is_there(path)):
            whole[name] = str(path.resolve())
    return replace(config, **whole)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a template's source may be too long for a path
        return False


def made_by(config: RerankerConfig) -> dict[str, Any]:
    """What of a reranker decides its scores, as plain data.

    Reads the model's small files, so that a model that cannot be used is an error before any work begins.

    Raises:
        ConfigurationError: The model or its template cannot be used.
    """
    settings = resolve(config)
    engine = name_of(settings.engine)
    record = record_of(settings.engine)
    merged = {**settings.found, **settings.given}
    found: dict[str, Any] = {
        "winnow": version("winnow-rerank"),
        "model": config.model,
        "engine": engine,
        "max_length": settings.max_length,
        "engine_kwargs": {name: value for name, value in merged.items() if changes_scores(name, engine)},
    }
    template = None if config.template is None else from_user(config.template)
    if record is None or record.reads_model:
        checkpoint = open_checkpoint(config.model, recipe=config.recipe, **settings.of_checkpoint())
        template = template_for(checkpoint, config.template)
        revision, cache_dir = merged.get("revision"), settings.of_checkpoint()["cache_dir"]
        state = files_state(config.model, revision, cache_dir)
        found["model_files"] = _hash([state, None if checkpoint.adapter is None else checkpoint.adapter.key])
    found["template"] = None if template is None else _hash(template.source)
    calibration = config.calibration
    if calibration is not None:
        loaded = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
        found["calibration"] = _hash(asdict(loaded))
    for one in fields(RerankerConfig):
        value = getattr(config, one.name)
        if one.name not in _NOT_NOTED and value != one.default:
            found[one.name] = value
    plain: dict[str, Any] = json.loads(json.dumps(found, default=repr))
    return plain


def _hash(value: Any) -> str:
    if isinstance(value, Mapping):
        value = dict(value)
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=repr).encode(), digest_size=16).hexdigest()
