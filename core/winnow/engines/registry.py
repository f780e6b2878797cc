"""What Winnow knows of each engine: one record for each. `records` beside it has those that come with Winnow."""

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from winnow.engines.base import Engine
from winnow.engines.setting_table import RERANKER_SETTINGS, SETTINGS, Setting, check_keywords
from winnow.engines.setting_values import choice
from winnow.errors import ConfigurationError
from winnow.types import RETRIEVAL_ORDER

logger = logging.getLogger(__name__)

AUTO = "auto"
"""Not an engine: Winnow chooses one."""

# Settings for `open_checkpoint`, and its names for them.
_OF_CHECKPOINT = {
    "hf_overrides": "hf_overrides",
    "revision": "revision",
    "hf_token": "token",
    "mm_processor_kwargs": "mm_processor_kwargs",
    "cache_dir": "cache_dir",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The settings of an engine, from a reranker's arguments and from the environment.

    Attributes:
        engine: The engine, as a name or as an object.
        url: Addresses of servers, if the engine needs some.
        api_key: Key of these servers.
        max_length: Most tokens of a prompt; None for the model's limit.
        base_model: The base of an adapter; None for the one that it names.
        given: The engine's settings that the user gave, except the length.
        found: Settings that only the environment has, of any engine.
        url_is_unused: Whether the environment has an address, and the engine is chosen among those without.
    """

    engine: str | Engine
    url: str | Sequence[str] | None
    api_key: str | None = field(repr=False)
    max_length: int | None
    given: Mapping[str, Any] = field(repr=False)
    found: Mapping[str, Any] = field(repr=False)
    base_model: str | None = None
    url_is_unused: bool = False

    @property
    def key(self) -> Hashable:
        """Equal for two settings that make the same engine for a model."""
        # The record, not its name: an engine that is registered anew is not the one that runs.
        engine = _RECORDS.get(self.engine, self.engine) if isinstance(self.engine, str) else id(self.engine)
        url = self.url if self.url is None or isinstance(self.url, str) else tuple(self.url)
        settings = repr(sorted({**self.found, **self.given}.items()))
        return (engine, url, self.api_key, self.max_length, self.base_model, settings)

    @property
    def device(self) -> str | int | None:
        """The device for the engine; None if the engine chooses."""
        return {**self.found, **self.given}.get("device")

    def of_checkpoint(self) -> dict[str, Any]:
        """Keywords of `open_checkpoint`."""
        merged = {**self.found, **self.given}
        return {
            "base_model": self.base_model,
            "trust_remote_code": bool(merged.get("trust_remote_code")),
            **{theirs: merged.get(ours) for ours, theirs in _OF_CHECKPOINT.items()},
        }

    def for_engine(self, name: str) -> dict[str, Any]:
        """`engine_kwargs` for the chosen engine, without the environment's settings for other engines.

        Args:
            name: The engine's name.

        Raises:
            ConfigurationError: The user gave a setting of another engine, or one that does not exist.
        """
        check_names(name, self.given)
        taken = {key: value for key, value in self.found.items() if name in SETTINGS[key].engines}
        if taken:
            shown = (
                f"{SETTINGS[key].variable}={'…' if SETTINGS[key].secret else value}" for key, value in taken.items()
            )
            logger.info("From the environment: %s", ", ".join(shown))
        return {**taken, **self.given}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EngineRecord:
    """What Winnow knows of an engine. `register_engine` adds one of your own.

    Attributes:
        name: Its name: the argument `engine` of a reranker, and `Engine.name`.
        make: Makes the engine, without starting it, from the model's `Checkpoint` (None if it reads no model) and the
            `EngineSettings`, of which `given` holds its keywords, those of the environment among them. Heavy modules
            are imported here.
        settings: The settings that it takes in `engine_kwargs`: names of Winnow's (docs/settings.md), a `Setting` of
            its own, which gets an environment variable, too, or the name of any other keyword, which it checks itself.
        packages: Modules whose versions are part of the score cache's keys.
        device_name: Names the device that it computes on, for the score cache's keys, from the setting `device`.
        needs_url: Whether it takes `url` and `api_key`, and needs the former.
        reads_model: Whether it reads a model's files, and settings from the environment.
        more_settings: Names of further keywords that it takes, which are found out only when one is given. None found:
            any is taken.
        not_in_scores: Keywords besides a `Setting` that change no score, and so are no part of the score cache's keys.
    """

    name: str
    make: Callable[[Any, EngineSettings], Engine]
    settings: Sequence[str | Setting] = ()
    packages: Sequence[str] = ()
    device_name: Callable[[Any], str | None] | None = None
    needs_url: bool = False
    reads_model: bool = True
    more_settings: Callable[[], Sequence[str]] | None = None
    not_in_scores: Sequence[str] = ()


_RECORDS: dict[str, EngineRecord] = {}


def add_record(record: EngineRecord) -> None:
    """Add an engine's record, or replace the one of its name, and add its settings to the table.

    Raises:
        ConfigurationError: A setting of its own has the name of another engine's.
    """
    own = [one for one in record.settings if isinstance(one, Setting)]
    for one in own:
        others = set(SETTINGS[one.name].engines) - {record.name} if one.name in SETTINGS else set()
        if others:
            raise ConfigurationError(
                f"engine {record.name!r} cannot have a setting {one.name!r} of its own: it is one of "
                f"{', '.join(sorted(others))}. Give its name alone to take the same, or choose another name."
            )
    for name, setting in [*SETTINGS.items()]:
        if record.name in setting.engines:
            SETTINGS[name] = replace(setting, engines=tuple(one for one in setting.engines if one != record.name))
    SETTINGS.update({one.name: one for one in own})
    for name in map(_name, record.settings):
        if name in SETTINGS:
            SETTINGS[name] = replace(SETTINGS[name], engines=(*SETTINGS[name].engines, record.name))
    _RECORDS[record.name] = record
    RERANKER_SETTINGS["engine"] = Setting("engine", choice(*engine_names()))


def _name(setting: str | Setting) -> str:
    return setting if isinstance(setting, str) else setting.name


def engine_names() -> tuple[str, ...]:
    """What the argument `engine` may be, besides an object."""
    return (AUTO, *_RECORDS)


def fallback_names() -> tuple[str, ...]:
    """What the argument `fallback` may be, besides a reranker."""
    return (*_RECORDS, RETRIEVAL_ORDER)


def record_of(engine: str | Engine) -> EngineRecord | None:
    """The record of an engine; None for an engine object, for "auto", and for a name that no engine has."""
    return _RECORDS.get(engine) if isinstance(engine, str) else None


def needs_url(engine: str | Engine) -> bool:
    """Whether the engine takes `url` and `api_key`."""
    record = record_of(engine)
    return record is not None and record.needs_url


def names_with_url() -> str:
    """The engines that take `url`, for messages."""
    return " or ".join(f'engine="{record.name}"' for record in _RECORDS.values() if record.needs_url)


def reads_model(engine: str | Engine) -> bool:
    """Whether the engine reads a model's files and settings from the environment. An engine object has its own."""
    record = record_of(engine)
    return isinstance(engine, str) and (record is None or record.reads_model)


def settings_of(engine: str) -> list[str]:
    """Names of the settings that an engine takes; with "auto", those that any engine takes."""
    record = record_of(engine)
    return [*SETTINGS] if record is None else [_name(setting) for setting in record.settings]


def check_names(engine: str, engine_kwargs: Mapping[str, Any]) -> None:
    """Refuse settings that an engine does not take. vLLM's own fields are known only if it is installed.

    Args:
        engine: Its name; with "auto", settings that no engine takes are refused.
        engine_kwargs: The user's settings.

    Raises:
        ConfigurationError: A setting is of another engine, or does not exist. The message suggests the most similar.
    """
    known = settings_of(engine)
    for name, value in engine_kwargs.items():
        if name in SETTINGS and name not in known and value is not None:
            others = " or ".join(f"engine={other!r}" for other in SETTINGS[name].engines)
            raise ConfigurationError(f"engine={engine!r} takes no {name!r}: it is a setting of {others}")
    unknown = [name for name in engine_kwargs if name not in SETTINGS and name not in known]
    record = record_of(engine)
    records = [*_RECORDS.values()] if record is None else [record]
    more = [one.more_settings for one in records if one.more_settings is not None]
    if unknown and more:
        found = [name for names in more for name in names()]
        known = [*known, *found]
        unknown = unknown if found else []
    check_keywords("engine_kwargs", unknown, known)


def changes_scores(name: str, engine: str) -> bool:
    """Whether a setting of an engine changes scores, as far as is known.

    A score cache that misses too often is slow, but one that hits too often is wrong: what is unknown counts.
    """
    if name in SETTINGS:
        return SETTINGS[name].changes_scores
    record = record_of(engine)
    return record is None or name not in record.not_in_scores
