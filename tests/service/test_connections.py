"""Clients that are slow, silent, or leave in the middle: they get no more than the time that they have."""

import json
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gated_engine import PATIENCE, wait_until
from running import Running, running
from winnow import Reranker

pytestmark = pytest.mark.slow

GOOD = {"query": "a", "documents": ["b", "c"]}
BODY = json.dumps(GOOD).encode()
HEAD = b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(BODY)


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    """Its clients have one second."""
    with running(Reranker("tiny", engine="fake"), body_seconds=1) as service:
        yield service


def connected(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def rest_of(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    with connection:
        return b"".join(iter(lambda: connection.recv(65_536), b""))


SILENT = {
    "nothing": b"",
    "half a line": b"POST /rer",
    "half a header section": HEAD,
    "half a header section after a request": HEAD + b"\r\n" + BODY + HEAD,
}


@pytest.mark.parametrize("sent", SILENT.values(), ids=SILENT)
def test_a_header_section_that_does_not_come_ends_the_connection(service: Running, sent: bytes) -> None:
    with service.client() as client:
        silent = [connected(service.url) for _ in range(20)]
        for connection in silent:
            connection.sendall(sent)
        assert client.post("/rerank", json=GOOD).status_code == 200
        answers = [rest_of(connection) for connection in silent]
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers) == sent.startswith(HEAD + b"\r\n")
        assert client.post("/rerank", json=GOOD).status_code == 200


def test_a_header_section_without_an_end_is_refused(service: Running) -> None:
    connection = connected(service.url)
    with pytest.raises(ConnectionError):  # noqa: PT012 - whichever of them finds the closed connection
        while True:
            connection.sendall(b"X" * 1000 + b": y\r\n")
            if not connection.recv(10_000):
                raise ConnectionError
    connection.close()


def test_an_answer_that_is_not_taken_is_given_up(service: Running) -> None:
    many = json.dumps({"query": "a", "documents": ["b" * 900_000] * 30}).encode()
    connection = connected(service.url)
    with connection, service.client() as client:
        head = HEAD.replace(b"%d" % len(BODY), b"%d" % len(many))
        connection.sendall(head + b"\r\n" + many)
        assert client.post("/rerank", json=GOOD).status_code == 200
        before = open_connections(service)
        wait_until(lambda: open_connections(service) < before)
        assert client.post("/rerank", json=GOOD).status_code == 200


def test_clients_that_leave_in_the_middle_of_a_body_leave_nothing_behind(service: Running) -> None:
    for length in range(0, len(BODY), 4):
        with connected(service.url) as connection:
            connection.sendall(HEAD + b"\r\n" + BODY[:length])
    with service.client() as client:
        assert client.post("/rerank", json=GOOD).status_code == 200
        wait_until(lambda: open_connections(service) == 1)
    assert service.queue.inside == 0


def open_connections(service: Running) -> int:
    return len(service.server.server_state.connections)


def test_ten_thousand_idle_connections_keep_no_client_waiting(tmp_path: Path) -> None:
    """Though the process may at first have 100 files open."""
    log = tmp_path / "log"
    arguments = ["-m", "winnow_command", "serve", "tiny", "--engine", "fake", "--port", "0"]
    limited = ["/bin/bash", "-c", 'ulimit -Sn 100 && exec "$@"', "bash", sys.executable, *arguments]
    with log.open("w") as stderr:
        process = subprocess.Popen(limited, stderr=stderr)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    may_open = max(soft, 20_000) if hard == resource.RLIM_INFINITY else hard
    idle: list[socket.socket] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (may_open, hard))
        wait_until(lambda: process.poll() is not None or "requests are answered" in log.read_text())
        address = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        assert address is not None, log.read_text()
        for at in range(min(10_000, may_open - 1_000)):
            idle.append(connected(address[0]))
            if at % 100 == 0:  # those have sent a request before
                idle[-1].sendall(HEAD + b"\r\n" + BODY)
                assert idle[-1].recv(10_000).startswith(b"HTTP/1.1 200 ")
        assert httpx.post(f"{address[0]}/rerank", json=GOOD, timeout=PATIENCE, trust_env=False).status_code == 200
    finally:
        for connection in idle:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        process.terminate()
        process.wait(PATIENCE)
