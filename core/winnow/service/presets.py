"""Presets: the model under another name, with a template and an instruction for clients that cannot send any."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from winnow.errors import ConfigurationError
from winnow.templates import TemplateLike, is_file


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """What a name of the model stands for; None where the server's own setting counts.

    Attributes:
        template: A score template, as for `Reranker`.
        instruction: What counts as relevant.
        template_kwargs: Variables of the template.
    """

    template: TemplateLike | None = None
    instruction: str | None = None
    template_kwargs: Mapping[str, Any] | None = None


def read_preset(path: Path) -> Preset:
    """The preset in a TOML file. The file of a template may be given from the preset's folder.

    Raises:
        ConfigurationError: It is malformed, or has fields that no preset has.
        OSError: It cannot be read.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also bytes that are no UTF-8
        raise ConfigurationError(f"The preset {path} is not TOML: {error}") from None
    kinds = {"template": (str, dict), "instruction": (str,), "template_kwargs": (dict,)}
    known = [one.name for one in fields(Preset)]
    for name, value in values.items():
        if name not in kinds:
            raise ConfigurationError(f"The preset {path} has the field {name!r}; presets have {', '.join(known)}.")
        if not isinstance(value, kinds[name]):
            raise ConfigurationError(f"{name} of the preset {path} must be {_WORDS[name]}, but is {value!r:.200}.")
    template = values.get("template")
    if isinstance(template, str) and is_file(path.parent / template):
        values["template"] = path.parent / template
    return Preset(**values)


_WORDS = {
    "template": "a text, or a table of format strings",
    "instruction": "a text",
    "template_kwargs": "a table",
}
