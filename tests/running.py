"""A real uvicorn server with the service in it, in a thread of this process, so that tests reach its engine."""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI

from gated_engine import PATIENCE, wait_until
from winnow import Reranker
from winnow.service import ServiceConfig, create_app
from winnow.service.life import Life
from winnow.service.queueing import RequestQueue
from winnow.service.server import Server


@dataclass
class Running:
    """A server that runs."""

    url: str
    server: Server
    app: FastAPI
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread

    @property
    def queue(self) -> RequestQueue:
        queue: RequestQueue = self.app.state.scorer.queue
        return queue

    @property
    def life(self) -> Life:
        life: Life = self.app.state.life
        return life

    def signal(self, number: signal.Signals) -> None:
        """What uvicorn does when a signal comes; only a main thread gets real ones."""
        self.loop.call_soon_threadsafe(self.server.handle_exit, number, None)

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False, **options)


@contextlib.contextmanager
def running(reranker: Reranker, *, until_ready: bool = True, **settings: Any) -> Iterator[Running]:
    """Serve a reranker, with settings of `ServiceConfig`."""
    config = ServiceConfig(**settings)
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener:
        app = create_app(reranker, config)
        server = Server(app, config.drain_seconds)

        def run() -> None:
            with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
                loops.append(runner.get_loop())
                runner.run(server.serve(sockets=[listener]))

        loops: list[asyncio.AbstractEventLoop] = []
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        wait_until(lambda: bool(loops))
        one = Running(f"http://127.0.0.1:{listener.getsockname()[1]}", server, app, loops[0], thread)
        try:
            if until_ready:
                with one.client() as client:
                    wait_until(lambda: not thread.is_alive() or client.get("/ready").status_code == 200)
            yield one
        finally:
            server.end()
            thread.join(PATIENCE)
            assert not thread.is_alive()
