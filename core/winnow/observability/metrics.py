"""Prometheus metrics of all rerankers in the process, off until `enable` is called.

All have the labels `model` and `engine`, the arguments of the reranker. `make fix` writes the table into
docs/operations.md.

| Metric | |
|---|---|
| `winnow_pairs_total` | query-document pairs ranked, blank documents and cache hits among them |
| `winnow_prompt_tokens_total` | tokens of prompts, without those whose score was in the score cache |
| `winnow_cached_tokens_total` | of these, tokens in vLLM's prefix cache; vLLM does not report it over HTTP |
| `winnow_reused_prompts_total` | prompts not sent, because another call waited for the same prompt |
| `winnow_cache_hits_total` | prompts not sent, because the score cache had their score |
| `winnow_truncated_documents_total` | documents that were cut |
| `winnow_failed_documents_total` | documents that have an `error`, and no score |
| `winnow_fallbacks_total` | rankings that a fallback made, by `fallback`: an engine's name or "retrieval order" |
| `winnow_errors_total` | rankings that ended with an error, by `type`: the error's class |
| `winnow_rank_duration_seconds` | histogram: seconds a ranking took, whether or not it succeeded |
| `winnow_rankings_in_flight` | gauge: rankings that are running |
"""

from typing import TYPE_CHECKING

from winnow.errors import MissingExtraError
from winnow.locks import ForkSafeLock
from winnow.types import RankStats

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_LABELS = ("model", "engine")
# The field of RankStats, the counter's name, its help text.
_COUNTERS = (
    ("documents", "winnow_pairs", "Query-document pairs ranked"),
    ("prompt_tokens", "winnow_prompt_tokens", "Tokens of prompts whose score was not in the score cache"),
    ("cached_tokens", "winnow_cached_tokens", "Of these, tokens in the engine's prefix cache"),
    ("reused", "winnow_reused_prompts", "Prompts for which another call waited already"),
    ("cache_hits", "winnow_cache_hits", "Prompts whose score was in the score cache"),
    ("truncated", "winnow_truncated_documents", "Documents that were cut"),
    ("failed", "winnow_failed_documents", "Documents that have an error, and no score"),
)
# Buckets, from a few pairs on a GPU that is ready to a first call that loads the model.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """Winnow's metrics in one registry.

    Args:
        registry: Where they are registered.
    """

    def __init__(self, registry: "CollectorRegistry"):
        from prometheus_client import Counter, Gauge, Histogram

        self.registry = registry
        self._counters = {field: Counter(name, text, _LABELS, registry=registry) for field, name, text in _COUNTERS}
        self._errors = Counter(
            "winnow_errors", "Rankings that ended with an error", (*_LABELS, "type"), registry=registry
        )
        self._fallbacks = Counter(
            "winnow_fallbacks", "Rankings that a fallback made", (*_LABELS, "fallback"), registry=registry
        )
        self._seconds = Histogram(
            "winnow_rank_duration_seconds", "Seconds a ranking took", _LABELS, registry=registry, buckets=_SECONDS
        )
        self._in_flight = Gauge(
            "winnow_rankings_in_flight", "Rankings running", _LABELS, registry=registry, multiprocess_mode="livesum"
        )

    def begin(self, model: str, engine: str) -> None:
        """A ranking begins."""
        self._in_flight.labels(model, engine).inc()

    def end(self, model: str, engine: str, seconds: float, stats: RankStats | None, error: str | None) -> None:
        """A ranking is over.

        Args:
            model: The label.
            engine: The label.
            seconds: How long it took.
            stats: What it cost; None if it failed.
            error: The class of the error; None if there was none.
        """
        self._in_flight.labels(model, engine).dec()
        self._seconds.labels(model, engine).observe(seconds)
        if stats is not None:
            for field, counter in self._counters.items():
                counter.labels(model, engine).inc(getattr(stats, field))
            if stats.fallback is not None:
                self._fallbacks.labels(model, engine, stats.fallback).inc()
        if error is not None:
            self._errors.labels(model, engine, error).inc()

    def unregister(self) -> None:
        """Remove the metrics from the registry."""
        for metric in (*self._counters.values(), self._errors, self._fallbacks, self._seconds, self._in_flight):
            self.registry.unregister(metric)


_lock = ForkSafeLock()
_active: Metrics | None = None


def active() -> Metrics | None:
    """The metrics, or None if they are off."""
    return _active


def enable(registry: "CollectorRegistry | None" = None) -> None:
    """Count from now on, for all rerankers of the process. The application serves the metrics.

    Args:
        registry: Where to register the metrics; None for prometheus_client's own. If it is another registry than
            before, the metrics move there and begin at zero.

    Raises:
        MissingExtraError: prometheus_client is not installed.
    """
    global _active
    try:
        from prometheus_client import REGISTRY
    except ImportError as error:
        raise MissingExtraError("prometheus_client", "metrics") from error
    wanted = REGISTRY if registry is None else registry
    with _lock:
        if _active is not None:
            if _active.registry is wanted:
                return
            _active.unregister()
            _active = None
        _active = Metrics(wanted)


def disable() -> None:
    """Stop counting, and remove the metrics from their registry."""
    global _active
    with _lock:
        if _active is not None:
            _active.unregister()
            _active = None
