"""OpenTelemetry spans, if opentelemetry-api is installed and the application has set up a tracer provider."""

from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING

from winnow.types import RankStats

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer


@cache
def tracer() -> "Tracer | None":
    """Winnow's tracer; None without opentelemetry-api. A provider may be set up later."""
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    return trace.get_tracer("winnow")


def describe(span: "Span", stats: RankStats | None, failure: BaseException | None, name: str | None) -> None:
    """Write a ranking's outcome to its span: numbers, no texts.

    Args:
        span: The span.
        stats: What the ranking cost; None if it failed.
        failure: The error, or None.
        name: The error's name on the span.
    """
    from opentelemetry.trace import Status, StatusCode

    if stats is not None:
        found = {field: value for field, value in asdict(stats).items() if value is not None}
        span.set_attributes({f"winnow.{field}": value for field, value in found.items()})
    if failure is not None and name is not None:
        span.record_exception(failure)
        span.set_attribute("error.type", name)
        span.set_status(Status(StatusCode.ERROR, name))
