"""The settings of the service, beside those of its reranker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from winnow.errors import ConfigurationError
from winnow.service.presets import Preset


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """Settings of the service; docs/service.md describes each for operators.

    Args:
        served_names: Names under which clients may ask for the model; by default the model's own.
        presets: More names, each with a template and an instruction of its own.
        keys: Keys of clients; without any, every request is answered.
        open_metrics: Whether `/metrics` needs no key.
        request_templates: Whether requests may bring templates and template variables.
        max_documents: Most documents, or pairs, of a request.
        max_characters: Most characters of a text.
        max_body_bytes: Most bytes of a request's body.
        body_seconds: Most seconds until the header section of a request has come, and then its body; and for which a
            client may take nothing of its answer.
        max_running: Most requests that are scored at once.
        max_waiting: Most requests that wait for that; more get 429.
        max_priority: How far from 0 priorities of requests may be; 0 ignores them.
        drain_seconds: How long requests may go on after SIGTERM.

    Raises:
        ConfigurationError: A value is out of range, or two models have one name.
    """

    served_names: Sequence[str] = ()
    presets: Mapping[str, Preset] = field(default_factory=dict)
    keys: Sequence[str] = field(default=(), repr=False)
    open_metrics: bool = False
    request_templates: bool = True
    max_documents: int = 10_000
    max_characters: int = 1_000_000
    max_body_bytes: int = 32 << 20
    body_seconds: float = 30.0
    max_running: int = 64
    max_waiting: int = 256
    max_priority: int = 0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            least = 0 if one.name in ("max_waiting", "max_priority") else 1
            if one.type in (int, float, "int", "float") and value < least:
                raise ConfigurationError(f"{one.name} must be at least {least}, but got {value!r}")
        if both := sorted(set(self.served_names).intersection(self.presets)):
            raise ConfigurationError(f"{both[0]!r} is the name of the model and of a preset: give each its own")
        for key in self.keys:
            if not key or key != key.strip() or not key.isascii():
                raise ConfigurationError("A key is not blank, and has neither blanks at its ends nor other than ASCII.")
