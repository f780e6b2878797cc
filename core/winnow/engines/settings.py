"""Settings from the environment: `WINNOW_ENGINE`, `WINNOW_DTYPE` and the like.

An argument takes precedence over the environment. Values from the environment are never stored in a reranker's
settings, so that a saved pipeline does not hold them.
"""

import difflib
import logging
import os
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Protocol

from winnow.engines.base import Engine
from winnow.engines.registry import AUTO, EngineSettings, needs_url, reads_model
from winnow.engines.setting_table import PREFIX, RERANKER_SETTINGS, SETTINGS, Setting, check_values
from winnow.errors import ConfigurationError
from winnow.models import ModelRecipe

logger = logging.getLogger(__name__)

# Arguments of a reranker that are also settings of its engine.
_OF_BOTH = ("device", "cache_dir")

# Variables of the tests, and of `winnow serve`.
_NOT_SETTINGS = (f"{PREFIX}TEST_", f"{PREFIX}SERVE_")

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
    def base_model(self) -> str | None: ...  # noqa: D102
    @property
    def max_length(self) -> int | None: ...  # noqa: D102
    @property
    def device(self) -> str | None: ...  # noqa: D102
    @property
    def cache_dir(self) -> str | PathLike[str] | None: ...  # noqa: D102
    @property
    def engine_kwargs(self) -> Mapping[str, Any]: ...  # noqa: D102


def resolve(config: EngineConfig, environment: Mapping[str, str] | None = None) -> EngineSettings:
    """A reranker's engine settings, with those from the environment.

    Engine objects and engines without a model take nothing from the environment.

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
    if engine == AUTO:
        engine = variable(RERANKER_SETTINGS["engine"]) or engine
    given = given_settings(config)
    if not reads_model(engine):
        for name in _OF_BOTH:  # of a model; an object has its own settings
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
    url, api_key = None, None
    if needs_url(engine):
        url = _addresses(variable(RERANKER_SETTINGS["url"])) if config.url is None else config.url
        api_key = variable(RERANKER_SETTINGS["api_key"]) if config.api_key is None else config.api_key
    return EngineSettings(
        engine=engine,
        url=url,
        api_key=api_key,
        max_length=max_length,
        given=given,
        found=found,
        base_model=variable(RERANKER_SETTINGS["base_model"]) if config.base_model is None else config.base_model,
        url_is_unused=engine == AUTO and RERANKER_SETTINGS["url"].variable in environment,
    )


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
    names = (name for name in variables if name.startswith(PREFIX) and not name.startswith(_NOT_SETTINGS))
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
