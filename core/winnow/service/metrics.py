"""Metrics of the service, beside those of `winnow.observability.metrics`, in prometheus_client's own registry.

| Metric | |
|---|---|
| `winnow_http_requests_total` | requests answered, by `route` and `status`; 499 is a client that went away |
| `winnow_http_requests_waiting` | gauge: requests that wait for their turn |
| `winnow_http_requests_running` | gauge: requests that are being scored |
"""

from functools import cache

from prometheus_client import Counter, Gauge


@cache
def requests() -> Counter:
    """Requests answered."""
    return Counter("winnow_http_requests", "Requests answered", ("route", "status"))


@cache
def waiting() -> Gauge:
    """Requests that wait."""
    return Gauge("winnow_http_requests_waiting", "Requests that wait for their turn")


@cache
def running() -> Gauge:
    """Requests that run."""
    return Gauge("winnow_http_requests_running", "Requests that are being scored")
