"""Reports each ranking to `winnow.observability.metrics` and `winnow.observability.tracing`, if they are in use."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from winnow.observability import metrics, tracing
from winnow.types import RankStats

DEADLINE_PASSED = "The deadline passed."


@contextmanager
def observed(model: str, engine: str, deadline: asyncio.Timeout) -> Iterator[Callable[[RankStats], None]]:
    """Report one ranking: a span `winnow.rank`, a child of the caller's span, and the metrics.

    The work runs in another thread, but has the caller's span as its parent: an event loop copies the context of the
    thread that submits work to it.

    Args:
        model: The model, as the user named it.
        engine: The engine, as the user named it.
        deadline: The call's deadline; if it has expired, a cancelled ranking was too slow.

    Yields:
        A function that takes the stats at the end.
    """
    counting, tracer = metrics.active(), tracing.tracer()
    if counting is None and tracer is None:
        yield _ignore
        return
    begin = time.perf_counter()
    stats: RankStats | None = None
    name: str | None = None

    def report(found: RankStats) -> None:
        nonlocal stats
        stats = found

    with contextlib.ExitStack() as stack:
        span = None
        if tracer is not None:
            span = stack.enter_context(
                tracer.start_as_current_span(
                    "winnow.rank",
                    attributes={"winnow.model": model, "winnow.engine": engine},
                    record_exception=False,  # OpenTelemetry would leave out cancellations
                    set_status_on_exception=False,
                )
            )
        if counting is not None:
            counting.begin(model, engine)
        failure: BaseException | None = None
        try:
            yield report
        except BaseException as error:
            failure = TimeoutError(DEADLINE_PASSED) if _is_late(error, deadline) else error
            name = type(failure).__name__
            raise
        finally:
            if counting is not None:
                counting.end(model, engine, time.perf_counter() - begin, stats, name)
            if span is not None and span.is_recording():
                tracing.describe(span, stats, failure, name)


def _ignore(_: RankStats) -> None:
    pass


def _is_late(error: BaseException, deadline: asyncio.Timeout) -> bool:
    return isinstance(error, asyncio.CancelledError) and deadline.expired()
