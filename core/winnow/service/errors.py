"""Errors as the service answers them: in one shape that every rerank client can read, and without texts of requests.

OpenAI's clients read `error.message`, those of Jina, Xinference and Voyage read `detail`, which must be a text, and
Cohere's read `message`.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic_core import PydanticSerializationError, to_json
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from winnow.errors import (
    ConfigurationError,
    DocumentError,
    EngineDeadError,
    EngineError,
    EngineLoadError,
    EngineUnavailableError,
    MissingExtraError,
    WinnowError,
)

# Seconds after which a client may try again while the model loads. Clients ignore 0.
RETRY_LOADING = 5
RETRY_BUSY = 1

_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    413: "RequestTooLargeError",
    415: "UnsupportedMediaTypeError",
    429: "RateLimitError",
    500: "InternalServerError",
    501: "NotImplementedError",
    503: "ServiceUnavailableError",
    504: "DeadlineError",
}


_OF_HTTP = {
    400: "The body cannot be read as JSON.",
    404: "There is nothing at this path: GET /openapi.json lists the paths.",
    405: "This path does not take this method: GET /openapi.json lists those that it takes.",
}


class ServiceError(Exception):
    """A request is not answered with scores.

    Args:
        status: The HTTP status.
        message: What is wrong and what to do; nothing of the request's texts.
        param: The field that is wrong, such as "body.top_n".
        retry_after: Seconds after which to try again.
        headers: More headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        *,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))

    def answer(self) -> Response:
        """The error as an HTTP answer."""
        return Json(
            {
                "error": {
                    "message": self.message,
                    "type": _TYPES.get(self.status, "Error"),
                    "param": self.param,
                    "code": self.status,
                },
                "detail": self.message,
                "message": self.message,
            },
            status_code=self.status,
            headers=self.headers,
        )


class ClientGoneError(Exception):
    """The client has closed its connection: nobody reads an answer."""


class Json(JSONResponse):
    """JSON in UTF-8. What JSON or UTF-8 cannot hold, though Python reads it in a request, is replaced.

    NaN and infinities become null, half of a surrogate pair becomes a question mark.
    """

    def render(self, content: Any) -> bytes:
        """The bytes of the answer. pydantic-core takes a quarter of the time of `json`, but knows no half pairs."""
        try:
            return to_json(content, inf_nan_mode="null")
        except PydanticSerializationError:
            whole = json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")
            return to_json(json.loads(whole), inf_nan_mode="null")


def service_error(error: Exception) -> ServiceError | None:
    """An error of the core as the service answers it; None for one that nobody expects."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, DocumentError):
        where = "body.query" if error.index is None else f"body.documents.{error.index}"
        return ServiceError(400, str(error), where)
    if isinstance(error, EngineDeadError | EngineLoadError):
        return ServiceError(
            503, "The engine has stopped, and is started again: try again later.", retry_after=RETRY_LOADING
        )
    if isinstance(error, EngineUnavailableError):
        return ServiceError(503, "The servers that score do not answer: try again later.", retry_after=RETRY_LOADING)
    if isinstance(error, EngineError):
        return ServiceError(500, "The engine could not score this request; the server's log says why.")
    if isinstance(error, MissingExtraError):
        return ServiceError(501, f"This server cannot read this kind of content: {error.package} is not installed.")
    if isinstance(error, TimeoutError):
        return ServiceError(504, "The deadline passed before all documents were scored, and its prompts are withdrawn.")
    if isinstance(error, ConfigurationError):  # of a template or an instruction in the request: the rest is checked
        return ServiceError(400, str(error))
    return None


def install(app: FastAPI) -> None:
    """Make the application answer every error in this shape."""

    async def known(_: Request, error: Exception) -> Response:
        found = service_error(error)
        if found is None:
            raise error
        return found.answer()

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - for mypy
        return _invalid(error).answer()

    async def of_http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - for mypy
        message = _OF_HTTP.get(error.status_code, str(error.detail))
        return ServiceError(error.status_code, message, headers=error.headers).answer()

    app.add_exception_handler(ServiceError, known)
    app.add_exception_handler(WinnowError, known)
    app.add_exception_handler(TimeoutError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, of_http)


def _invalid(error: RequestValidationError) -> ServiceError:
    """The first fault that pydantic found, without the value that it shows."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    if first["type"] == "json_invalid":
        return ServiceError(400, f"The body is not JSON: {first['ctx']['error']}, at character {place[-1]}.", "body")
    where = ".".join(place)
    return ServiceError(400, f"{where}: {first['msg']}.", where)
