"""Under load: a bounded queue, clients that go away, slow bodies, deadlines."""

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from gated_engine import PATIENCE, GatedEngine, wait_until
from running import Running, running
from winnow import EngineScore, FakeEngine, Prompt, Reranker

pytestmark = pytest.mark.slow

BODY = json.dumps({"query": "a", "documents": ["b", "c"]}).encode()


@pytest.fixture
def engine() -> Iterator[GatedEngine]:
    engine = GatedEngine()
    engine.gate.set()
    yield engine
    engine.gate.set()


def sent(server: Running, body: bytes = BODY, declared: int | None = None) -> socket.socket:
    """A connection on which a request was sent."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE)
    length = len(body) if declared is None else declared
    head = f"POST /rerank HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {length}"
    connection.sendall(head.encode() + b"\r\n\r\n" + body)
    return connection


def test_too_many_requests_get_429_and_the_others_an_answer(engine: GatedEngine) -> None:
    with running(Reranker("tiny", engine=engine), max_running=2, max_waiting=3) as server:
        engine.gate.clear()

        def ask(at: int) -> httpx.Response:
            with server.client() as client:
                return client.post("/rerank", json={"query": f"query {at}", "documents": ["b"]})

        with ThreadPoolExecutor(5) as pool:
            asked = [pool.submit(ask, at) for at in range(5)]
            wait_until(lambda: engine.waiting == 2 and server.queue.waiting == 3)
            refused = ask(5)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            engine.gate.set()
            assert [one.result().status_code for one in asked] == [200] * 5
        assert ask(6).status_code == 200


def test_the_prompts_of_a_client_that_goes_away_leave_the_engine(engine: GatedEngine) -> None:
    with running(Reranker("tiny", engine=engine), max_running=1) as server, server.client() as client:
        before = engine.prompts
        engine.gate.clear()
        running_one = sent(server)
        wait_until(lambda: engine.waiting == 1)
        waiting_one = sent(server)
        wait_until(lambda: server.queue.waiting == 1)
        waiting_one.close()
        wait_until(lambda: server.queue.waiting == 0)
        running_one.close()
        wait_until(lambda: engine.waiting == 0)
        engine.gate.set()
        assert client.post("/rerank", content=BODY, headers={"Content-Type": "application/json"}).status_code == 200
        assert engine.prompts - before == 2  # those of the last request alone
        wait_until(lambda: 'route="/rerank",status="499"} 2.0' in client.get("/metrics").text)


def test_a_deadline_ends_a_request_that_runs_and_one_that_waits(engine: GatedEngine) -> None:
    with running(Reranker("tiny", engine=engine), max_running=1) as server, server.client() as client:
        engine.gate.clear()
        holder = sent(server)
        wait_until(lambda: engine.waiting == 1)
        late = client.post("/rerank", json={"query": "q", "documents": ["d"], "deadline": 0.1})
        assert late.status_code == 504
        holder.close()
        wait_until(lambda: engine.waiting == 0)
        late = client.post("/rerank", json={"query": "q", "documents": ["d"], "deadline": 0.1})
        assert late.status_code == 504
        wait_until(lambda: engine.waiting == 0)


def test_the_deadline_of_the_server_is_the_longest(engine: GatedEngine) -> None:
    with running(Reranker("tiny", engine=engine, deadline=0.2)) as server, server.client() as client:
        engine.gate.clear()
        answer = client.post("/rerank", json={"query": "q", "documents": ["d"], "deadline": 1000})
        assert answer.status_code == 504


def test_a_body_that_does_not_come_is_given_up_and_takes_no_turn(engine: GatedEngine) -> None:
    with running(Reranker("tiny", engine=engine), max_running=1, body_seconds=1) as server, server.client() as client:
        slow = [sent(server, BODY[:5], declared=len(BODY)) for _ in range(20)]
        assert client.post("/rerank", content=BODY, headers={"Content-Type": "application/json"}).status_code == 200
        for connection in slow:
            answer = connection.recv(10_000)
            assert answer.startswith(b"HTTP/1.1 408 ")
            connection.close()


def test_many_large_bodies_at_once_are_refused_instead_of_held(engine: GatedEngine) -> None:
    large = json.dumps({"query": "a", "documents": ["b" * 900]}).encode()
    with running(Reranker("tiny", engine=engine), max_running=1, max_body_bytes=1000) as server:
        engine.gate.clear()
        held = [sent(server, large) for _ in range(8)]
        wait_until(lambda: engine.waiting + server.queue.waiting == 8)
        with server.client() as client:
            refused = client.post("/rerank", content=large, headers={"Content-Type": "application/json"})
            assert refused.status_code == 429
            engine.gate.set()
            assert all(connection.recv(10_000).startswith(b"HTTP/1.1 200 ") for connection in held)
            accepted = client.post("/rerank", content=large, headers={"Content-Type": "application/json"})
            assert accepted.status_code == 200
        for connection in held:
            connection.close()


class LargeWait(GatedEngine):
    """Keeps the prompts of the query "large" at the gate."""

    async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
        if "large" in self.checkpoint.tokenizer.decode(prompts[0].ids):
            await self.let_through()
        return await FakeEngine.score(self, prompts, priority=priority)


def test_a_large_request_is_split_and_keeps_no_small_one_waiting() -> None:
    engine = LargeWait()
    with running(Reranker("tiny", engine=engine)) as server, server.client() as client, server.client() as other:
        many = {"query": "large", "documents": [f"document {at}" for at in range(5000)]}
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(other.post("/rerank", json=many)))
        thread.start()
        wait_until(lambda: engine.waiting > 1)  # its prompts go to the engine in many pieces
        assert client.post("/rerank", json={"query": "small", "documents": ["one", "two"]}).status_code == 200
        assert not answers
        engine.gate.set()
        thread.join(PATIENCE)
        assert len(answers[0].json()["results"]) == 5000
