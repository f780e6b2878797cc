"""Runs the application in uvicorn, until it is told to end."""

import asyncio
import ipaddress
import logging
import os
import signal
import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI

from winnow.ranking import Reranker
from winnow.service.app import create_app
from winnow.service.config import ServiceConfig
from winnow.service.connections import KEEP_ALIVE_SECONDS, patient_for

logger = logging.getLogger(__name__)

# How long answers that are being sent may take, when the last request is scored.
_LAST_ANSWERS_SECONDS = 5

_OPEN_FILES = 65_536


def serve(reranker: Reranker, config: ServiceConfig, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve until SIGTERM or Ctrl-C. Requests that run then are answered; a second signal ends at once.

    Args:
        reranker: What scores.
        config: The service's settings.
        host: The address to listen on.
        port: The port; 0 for a free one, which the log has.

    Raises:
        OSError: It cannot listen there.
        WinnowError: The model cannot be loaded.
    """
    _allow_many_connections()
    with _listening(host, port) as listener:
        app = create_app(reranker, config)
        server = Server(app, config.drain_seconds)
        address = "[{}]:{}" if listener.family is socket.AF_INET6 else "{}:{}"
        where = address.format(*listener.getsockname()[:2])
        logger.info("Serving %s on http://%s; the model is being loaded.", reranker.config.model, where)
        if not config.keys and not _is_loopback(listener):
            logger.warning("Everybody who reaches %s can use the service: --api-key-file asks for keys.", where)
        server.run(sockets=[listener])
        if (failure := app.state.life.failure) is not None:
            raise failure


class Server(uvicorn.Server):
    """uvicorn's server, which answers the requests in flight before it ends.

    Args:
        app: The application of `create_app`.
        drain_seconds: How long it waits for them.
    """

    def __init__(self, app: FastAPI, drain_seconds: float):
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="on",
                ws="none",
                http=patient_for(app.state.scorer.config.body_seconds),
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_LAST_ANSWERS_SECONDS,
            )
        )
        self._life = app.state.life
        self._queue = app.state.scorer.queue
        self._drain_seconds = drain_seconds
        self._draining: asyncio.Task[None] | None = None
        self._life.on_failure = self.end

    def end(self) -> None:
        """End when the answers in flight are sent."""
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's
        """Begin to end at the first signal; end at once at the second."""
        if self._life.state == "draining":
            self.should_exit = self.force_exit = True
            return
        logger.info("%s: requests in flight are answered, others are refused.", signal.Signals(sig).name)
        self._life.drain()
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._drain_seconds):
                await self._queue.empty()
        except TimeoutError:
            logger.warning("Requests still ran after %g seconds, and are broken off.", self._drain_seconds)
            self._life.cut_off.set()
        self.end()


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), f"{host}:{port}") from error


def _allow_many_connections() -> None:
    """Raise the limit of open files as far as that is allowed: each connection is one, and often 1,024 may be open."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback
