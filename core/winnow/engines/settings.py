"""Settings from the environment: `WINNOW_ENGINE`, `WINNOW_DTYPE` and the like.

An argument takes precedence over the environment. Values from the environment are never stored in a reranker's
settings, so that a saved pipeline does not hold them.
"""

import difflib
import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Protocol

from winnow.engines.base import Engine
from winnow.engines.setting_table import (
    PREFIX,
    RERANKER_SETTINGS,
    SETTINGS,
    Setting,
    check_keywords,
    check_values,
    settings_of,
)
from winnow.engines.vllm.fields import field_names
from winnow.errors import ConfigurationError
from winnow.models import ModelRecipe

logger = logging.getLogger(__name__)

# Settings for `open_checkpoint`, and its names for them.
_OF_CHECKPOINT = {
    "hf_overrides": "hf_overrides",
    "revision": "revision",
    "hf_token": "token",
    "mm_processor_kwargs": "mm_processor_kwargs",
    "cache_dir": "cache_dir",
}
# Arguments of a reranker that are also settings of its engine.
_OF_BOTH = ("device", "cache_dir")

_warned_about: set[str] = set()


class EngineConfig(Protocol):
    """The arguments of a reranker that its engine is made from; `RerankerConfig` describes them."""

    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def recipe(self) -> str | ModelRecipe | None: ...  # noqa: D102
    @property
    def engine(self) -> str | Engine: ...  # noqa: D102
    @property
    def url(self) -> str | Sequence[str] | None: ...  # noqa: D102
    @property
    def api_key(self) -> str | None: ...  # noqa: D102
    @property
    def max_length(self) -> int | None: ...  # noqa: D102
    @property
    def device(self) -> str | None: ...  # noqa: D102
    @property
    def cache_dir(self) -> str | PathLike[str] | None: ...  # noqa: D102
    @property
    def engine_kwargs(self) -> Mapping[str, Any]: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The settings of an engine, from a reranker's arguments and from the environment.

    Attributes:
        engine: The engine, as a name or as an object.
        url: Addresses of servers.
        api_key: Key of these servers.
        max_length: Most tokens of a prompt; None for the model's limit.
        given: The engine's settings that the user gave, except the length.
        found: Settings that only the environment has, of any engine.
    """

    engine: str | Engine
    url: str | Sequence[str] | None
    api_key: str | None = field(repr=False)
    max_length: int | None
    given: Mapping[str, Any] = field(repr=False)
    found: Mapping[str, Any] = field(repr=False)

    @property
    def key(self) -> Hashable:
        """Equal for two settings that make the same engine for a model."""
        engine = self.engine if isinstance(self.engine, str) else id(self.engine)
        url = self.url if self.url is None or isinstance(self.url, str) else tuple(self.url)
        where = (url, self.api_key) if engine == "server" else None
        return (engine, where, self.max_length, repr(sorted({**self.found, **self.given}.items())))

    @property
    def device(self) -> str | int | None:
        """The device for the engine; None if the engine chooses."""
        return {**self.found, **self.given}.get("device")

    def of_checkpoint(self) -> dict[str, Any]:
        """Keywords of `open_checkpoint`."""
        merged = {**self.found, **self.given}
        return {
            "trust_remote_code": bool(merged.get("trust_remote_code")),
            **{theirs: merged.get(ours) for ours, theirs in _OF_CHECKPOINT.items()},
        }

    def for_engine(self, name: str) -> dict[str, Any]:
        """`engine_kwargs` for the chosen engine, without the environment's settings for other engines.

        Args:
            name: "vllm", "server" or "transformers".

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
    if unknown and engine in ("auto", "vllm"):
        fields = field_names()
        known = [*known, *fields]
        unknown = unknown if fields else []
    check_keywords("engine_kwargs", unknown, known)


def resolve(config: EngineConfig, environment: Mapping[str, str] | None = None) -> EngineSettings:
    """A reranker's engine settings, with those from the environment.

    Engine objects and `engine="fake"` take nothing from the environment.

    Args:
        config: The reranker.
        environment: The environment; by default the process's. A blank variable counts as absent.

    Raises:
        ConfigurationError: A value is wrong. The message names the setting, or the variable.
    """
    environment = {
        name: value
        for name, value in (os.environ if environment is None else environment).items()
        if name.startswith(PREFIX) and value.strip()
    }

    def variable(setting: Setting) -> Any:
        text = environment.get(setting.variable)
        return None if text is None else setting.parse(text, setting.variable)

    engine = config.engine
    if engine == "auto":
        engine = variable(RERANKER_SETTINGS["engine"]) or engine
    given = given_settings(config)
    if not isinstance(engine, str) or engine == "fake":
        for name in _OF_BOTH:  # the fake engine has no model; an object has its own settings
            given.pop(name, None)
        return EngineSettings(
            engine=engine, url=None, api_key=None, max_length=config.max_length, given=given, found={}
        )
    max_length = check_values(given, config.max_length)
    found = {name: variable(setting) for name, setting in SETTINGS.items() if name not in given}
    found = {name: value for name, value in found.items() if value is not None}
    if max_length is None:
        max_length = variable(RERANKER_SETTINGS["max_length"])
        if None not in (max_length, length := found.get("max_model_len")) and length != max_length:
            raise ConfigurationError(
                f"WINNOW_MAX_LENGTH={max_length} and WINNOW_MAX_MODEL_LEN={length} are two names "
                "of one setting and differ: set one"
            )
        max_length = length if max_length is None else max_length
    for settings in (given, found):
        settings.pop("max_model_len", None)
        if settings.get("attention_backend") == "auto":
            del settings["attention_backend"]
    url, api_key = config.url, config.api_key
    if engine == "server":
        url = _addresses(variable(RERANKER_SETTINGS["url"])) if url is None else url
        api_key = variable(RERANKER_SETTINGS["api_key"]) if api_key is None else api_key
    return EngineSettings(engine=engine, url=url, api_key=api_key, max_length=max_length, given=given, found=found)


def given_settings(config: EngineConfig) -> dict[str, Any]:
    """The engine's settings that the user gave, in `engine_kwargs` or as arguments of the reranker.

    Raises:
        ConfigurationError: A setting has two values.
    """
    given = {name: value for name, value in config.engine_kwargs.items() if name not in SETTINGS or value is not None}
    for name in _OF_BOTH:
        value = getattr(config, name)
        if value is not None and given.setdefault(name, value) != value:
            raise ConfigurationError(f"{name}={value!r} and engine_kwargs {name} {given[name]!r} differ: give one")
    return given


def warn_about_variables(environment: Mapping[str, str] | None = None) -> None:
    """Log a warning for each variable `WINNOW_…` that sets nothing, once in each process.

    Args:
        environment: The environment; by default the process's.
    """
    known = [setting.variable for setting in (*RERANKER_SETTINGS.values(), *SETTINGS.values())]
    variables = os.environ if environment is None else environment
    names = (name for name in variables if name.startswith(PREFIX) and not name.startswith(f"{PREFIX}TEST_"))
    for name in sorted(set(names).difference(known, _warned_about)):
        _warned_about.add(name)
        near = difflib.get_close_matches(name.removeprefix(PREFIX), [one.removeprefix(PREFIX) for one in known], n=1)
        hint = f"did you mean {PREFIX}{near[0]}?" if near else "docs/settings.md has the list."
        logger.warning("The environment variable %s matches no setting of Winnow; %s", name, hint)


def url_in_environment() -> bool:
    """Whether the environment names a server, so that `engine="server"` needs no `url`."""
    return bool(os.environ.get(RERANKER_SETTINGS["url"].variable, "").strip())


def _addresses(text: str | None) -> str | list[str] | None:
    """One address, or several with commas between them."""
    urls = [part.strip() for part in (text or "").split(",") if part.strip()]
    return urls[0] if len(urls) == 1 else urls or None
