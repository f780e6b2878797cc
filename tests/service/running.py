"""A real uvicorn server with the service in it, in a thread of this process, so that tests reach its engine."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from gated_engine import PATIENCE, wait_until
from winnow import Reranker
from winnow.service import ServiceConfig, create_app
from winnow.service.server import Server


@dataclass
class Running:
    """A server that runs."""

    url: str
    server: Server
    thread: threading.Thread

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False, **options)


@contextlib.contextmanager
def running(reranker: Reranker, *, until_ready: bool = True, **settings: Any) -> Iterator[Running]:
    """Serve a reranker, with settings of `ServiceConfig`."""
    config = ServiceConfig(**settings)
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener:
        server = Server(create_app(reranker, config), config.drain_seconds)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        one = Running(f"http://127.0.0.1:{listener.getsockname()[1]}", server, thread)
        try:
            if until_ready:
                with one.client() as client:
                    wait_until(lambda: not thread.is_alive() or client.get("/ready").status_code == 200)
            yield one
        finally:
            server.end()
            thread.join(PATIENCE)
            assert not thread.is_alive()
