"""One line in the log for each request, with its id; and the answer to an error that nobody expected."""

import logging
import re
import time
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from winnow.service import metrics
from winnow.service.errors import ServiceError

logger = logging.getLogger(__name__)

# An id that a client gives, as `vllm bench serve` does. Others could write lines of their own into the log.
_OF_CLIENT = re.compile(r"[A-Za-z0-9._:/@+=-]{1,128}")

# Statuses of requests that were not answered: of nginx, for a client that has closed its connection.
CLIENT_GONE = 499


class RequestLog:
    """Gives each request an id, which its answer has as `X-Request-ID`, and logs and counts it when it is over.

    The log has no text of requests: neither bodies, nor queries of addresses, nor messages of unexpected errors.

    Args:
        app: What answers requests.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        request_id = scope.setdefault("state", {})["request_id"] = _request_id(scope)
        status = CLIENT_GONE

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception as error:
            unquoting = RuntimeError("its message is left out: it may quote texts of the request")
            where = (type(unquoting), unquoting, error.__traceback__)
            logger.error("Request %s failed with %s", request_id, type(error).__name__, exc_info=where)
            if status != CLIENT_GONE:
                raise  # a part of the answer is sent: the server ends the connection
            message = "The server failed, which is a fault of Winnow; its log has the traceback under the request's id."
            await ServiceError(500, message).answer()(scope, receive, noting)
        finally:
            seconds = time.perf_counter() - begin
            route = getattr(scope.get("route"), "path", "none")  # of FastAPI; not the path, which may be any text
            metrics.requests().labels(route, status).inc()
            level = logging.DEBUG if route in ("/health", "/ready", "/ping", "/metrics") else logging.INFO
            note = scope["state"].get("note", "")
            logger.log(
                level, "%s %s %d in %.0f ms%s id=%s", scope["method"], route, status, seconds * 1000, note, request_id
            )


def _request_id(scope: Scope) -> str:
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
    return given if _OF_CLIENT.fullmatch(given) else uuid.uuid4().hex
