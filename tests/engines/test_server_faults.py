"""What goes wrong between Winnow and its servers, and what comes of it: right scores, or an error that says who."""

import asyncio
import json
import logging
import struct
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor

import pytest
from vllm_servers import API_KEY, Answer, Fault, FaultyProxy, VllmServer, free_port, impatient

from gated_engine import PATIENCE, wait_until
from winnow import DocumentError, EngineError, EngineLoadError, EngineScore, Prompt, Reranker
from winnow.engines.server.engine import ServerEngine
from winnow.models.checkpoint import open_checkpoint

pytestmark = pytest.mark.slow

QUERY = "what is the capital of China?"


@pytest.fixture
def expected(tiny_model: str, servers: list[VllmServer], passages: list[str]) -> list[float]:
    """The scores of a call in which nothing goes wrong."""
    with Reranker(tiny_model, engine="server", url=servers[0].url, api_key=API_KEY) as reranker:
        return reranker.score(QUERY, passages)


def changed(answer: bytes, **row: object) -> bytes:
    """An answer of vLLM with something else in its first row."""
    content = json.loads(answer)
    content["data"][0] |= row
    return json.dumps(content).encode()


def without_last(answer: bytes) -> bytes:
    content = json.loads(answer)
    content["data"].pop()
    return json.dumps(content).encode()


def reranker_on(model: str, *proxies: FaultyProxy, **kwargs: object) -> Reranker:
    urls = [proxy.url for proxy in proxies]
    return Reranker(model, engine="server", url=urls, api_key=API_KEY, engine_kwargs=kwargs)


@pytest.mark.parametrize(
    "fault",
    [
        Answer(429, '{"error": {"message": "too many"}}'),
        Answer(500, '{"error": {"message": "oops"}}'),
        Answer(503, "<html><body>upstream is away</body></html>", "text/html"),
        Answer(200, "<html><body>welcome</body></html>", "text/html"),
        Answer(200, '{"data": "none"}'),
        Answer(200, "[]"),
        "drop",
        without_last,
        lambda answer: answer[:-20],
        lambda answer: changed(answer, data="not base64!"),
        lambda answer: changed(answer, index=1),
    ],
    ids=["429", "500", "503-html", "200-html", "wrong-json", "list", "drop", "count", "cut", "base64", "index"],
)
def test_a_passing_fault_is_survived(
    tiny_model: str, proxies: list[FaultyProxy], passages: list[str], expected: list[float], fault: Fault
) -> None:
    with reranker_on(tiny_model, proxies[0]) as reranker:
        proxies[0].faults.extend([fault, fault])
        assert reranker.score(QUERY, passages) == pytest.approx(expected, abs=1e-6)
    assert not proxies[0].faults
    assert len(proxies[0].posts) == 3


def test_retry_after_is_honoured(
    tiny_model: str, proxies: list[FaultyProxy], passages: list[str], expected: list[float]
) -> None:
    with reranker_on(tiny_model, proxies[0], chunk_size=6, concurrency=1) as reranker:
        proxies[0].faults.append(Answer(429, "slow down", "text/plain", {"retry-after": "2"}))
        assert reranker.score(QUERY, passages) == pytest.approx(expected, abs=1e-6)
    first, second, *_ = (when for when, _, _ in proxies[0].posts)
    assert 1.9 < second - first < 3  # the requests that had to wait were held back, too
    assert len(proxies[0].posts) == len(passages) / 6 + 1


def score_ids(model: str, proxy: FaultyProxy, *prompts: list[int]) -> list[EngineScore]:
    async def main() -> list[EngineScore]:
        engine = ServerEngine(open_checkpoint(model), proxy.url, API_KEY, {})
        await engine.start()
        try:
            return await engine.score(list(map(Prompt, prompts)))
        finally:
            await engine.aclose()

    return asyncio.run(main())


def test_a_prompt_that_a_server_refuses_leaves_the_others_alone(proxies: list[FaultyProxy], tiny_model: str) -> None:
    prompts = [[token] * 8 for token in range(1, 21)]
    expected = score_ids(tiny_model, proxies[0], *prompts)
    found = score_ids(tiny_model, proxies[0], *prompts[:13], [1] * 8 + [10**6], *prompts[13:])
    refused = found.pop(13)
    assert f"{proxies[0].url}/pooling answered 400: Token id 1000000 is out of vocab" in (refused.error or "")
    assert [one.logit for one in found] == pytest.approx([one.logit for one in expected], abs=1e-6)
    assert len(proxies[0].posts) <= 1 + 11  # halves of halves
    before = len(proxies[0].posts)
    [alone] = score_ids(tiny_model, proxies[0], [1] * 8 + [10**6])
    assert "out of vocab" in (alone.error or "")
    assert len(proxies[0].posts) == before + 1  # not tried again


def test_a_server_that_refuses_everything_is_an_error(tiny_model: str, proxies: list[FaultyProxy]) -> None:
    with reranker_on(tiny_model, proxies[0]).start() as reranker:
        proxies[0].broken = Answer(400, '{"error": {"message": "no more"}}')
        with pytest.raises(EngineError, match="answered 400: no more"):
            reranker.rank(QUERY, ["a", "b"])


def test_the_error_of_a_fault_that_stays_names_the_server_and_quotes_it(
    tiny_model: str, proxies: list[FaultyProxy], passages: list[str]
) -> None:
    with reranker_on(tiny_model, proxies[0], max_retries=1).start() as reranker:
        proxies[0].broken = Answer(500, '{"error": {"message": "CUDA out of memory"}}')
        with pytest.raises(
            EngineError, match=rf"no score in 2 tries. {proxies[0].url}/pooling answered 500: CUDA out of"
        ):
            reranker.score(QUERY, passages)
        assert len(proxies[0].posts) == 2


def test_a_server_that_hangs_is_named(tiny_model: str, proxies: list[FaultyProxy], passages: list[str]) -> None:
    with impatient(tiny_model, proxies[0], 0.5) as reranker:
        proxies[0].broken = "hang"  # for much longer
        with pytest.raises(EngineError, match=rf"{proxies[0].url}/pooling: no answer within 0.5 seconds.*timeout"):
            reranker.score(QUERY, passages)


def test_not_a_number_is_an_error(tiny_model: str, proxies: list[FaultyProxy], passages: list[str]) -> None:
    nan = b64encode(struct.pack("<f", float("nan"))).decode()
    with reranker_on(tiny_model, proxies[0]) as reranker:
        proxies[0].faults.append(lambda answer: changed(answer, data=nan))
        with pytest.raises(DocumentError, match=r"Document 0 .*logit nan"):
            reranker.score(QUERY, passages)


def test_two_numbers_a_prompt_are_no_reranker(tiny_model: str, proxies: list[FaultyProxy], passages: list[str]) -> None:
    two = b64encode(struct.pack("<2f", 1, 2)).decode()
    with reranker_on(tiny_model, proxies[0]) as reranker:
        proxies[0].faults.append(lambda answer: changed(answer, data=two))
        with pytest.raises(EngineError, match=r"2 numbers for a prompt.*--hf-overrides"):
            reranker.score(QUERY, passages)
    assert len(proxies[0].posts) == 1


def test_something_else_than_vllm_is_an_error_at_the_start(tiny_model: str, proxies: list[FaultyProxy]) -> None:
    for answer in (Answer(200, "<html>hello</html>", "text/html"), Answer(200, '{"status": "ok"}')):
        proxies[0].broken = answer
        with pytest.raises(
            EngineLoadError, match=rf"{proxies[0].url}/v1/models (did not answer with JSON|does not answer)"
        ):
            reranker_on(tiny_model, proxies[0]).start()


def test_the_key_is_in_no_log_repr_or_error(
    tiny_model: str, proxies: list[FaultyProxy], passages: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    echo = Answer(500, json.dumps({"error": {"message": f"bad header Bearer {API_KEY}"}}))
    with caplog.at_level(logging.DEBUG), reranker_on(tiny_model, proxies[0], max_retries=1) as reranker:
        reranker.score(QUERY, passages)
        proxies[0].broken = echo
        with pytest.raises(EngineError, match=r"Bearer \*\*\*") as error:
            reranker.score(QUERY, passages)
        seen = [caplog.text, repr(reranker), str(error.value), repr(error.value.__cause__)]
    assert len(caplog.records) > 10
    assert not [text for text in seen if API_KEY in text]


# --- more than one server ---------------------------------------------------------------------------------------------


def test_a_server_that_is_down_at_the_start_comes_later(
    tiny_model: str, proxies: list[FaultyProxy], passages: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    proxies[0].stop()
    with reranker_on(tiny_model, *proxies) as reranker:
        reranker.start()
        assert f"Starting without a server: {proxies[0].url}" in caplog.text
        for number in range(8):
            reranker.score(f"question {number}", passages)
        proxies[0].start()
        use_until(proxies[0], reranker, passages)


def use_until(proxy: FaultyProxy, reranker: Reranker, passages: list[str], seconds: float = PATIENCE) -> None:
    """Score queries until a server gets some."""
    end = time.monotonic() + seconds
    count = len(proxy.posts)
    number = 0
    while len(proxy.posts) == count:
        assert time.monotonic() < end
        number += 1
        reranker.score(f"another question {number}", passages)


def test_a_circuit_opens_and_heals(tiny_model: str, proxies: list[FaultyProxy], passages: list[str]) -> None:
    bad = proxies[0]
    with reranker_on(tiny_model, *proxies, chunk_size=4) as reranker:
        expected = [reranker.score(f"question {number}", passages) for number in range(12)]
        bad.broken = Answer(500, "no")
        bad.posts.clear()
        for number in range(12):  # nothing is lost meanwhile
            assert reranker.score(f"question {number}", passages) == pytest.approx(expected[number], abs=1e-6)
        assert 3 <= len(bad.posts) <= 10  # those in flight when it opened
        tried = len(bad.posts)
        time.sleep(1.2)
        reranker.score("after a while", passages)  # it is checked, and is still bad
        assert len(bad.posts) == tried
        bad.broken = None
        use_until(bad, reranker, passages)


def test_all_servers_down_is_an_error_that_names_them_and_they_may_come_back(
    tiny_model: str, proxies: list[FaultyProxy], passages: list[str], expected: list[float]
) -> None:
    with reranker_on(tiny_model, *proxies, max_retries=3) as reranker:
        reranker.start()
        for proxy in proxies:
            proxy.stop()
        with ThreadPoolExecutor(4) as threads:
            calls = [threads.submit(reranker.score, QUERY, passages) for _ in range(4)]
            errors = [str(call.exception(timeout=PATIENCE)) for call in calls]
        assert all("no score in 4 tries" in error for error in errors)
        with pytest.raises(EngineError, match="No server is up") as error:
            reranker.score(QUERY, passages)
        assert all(proxy.url in str(error.value) for proxy in proxies)
        proxies[1].start()
        # It asks again at once, and does not wait until the circuit's time is over.
        assert reranker.score(QUERY, passages) == pytest.approx(expected, abs=1e-6)


def test_a_server_that_comes_back_with_another_model_is_not_used(
    tiny_model: str, proxies: list[FaultyProxy], passages: list[str]
) -> None:
    with reranker_on(tiny_model, proxies[0]) as reranker:
        reranker.score(QUERY, passages)
        proxies[0].stop()
        with pytest.raises(EngineError):
            reranker.score(QUERY, passages)
        proxies[0].start()
        proxies[0].broken = Answer(200, '{"data": [{"id": "another", "max_model_len": 4096}]}')
        with pytest.raises(EngineError, match="serves another, not"):
            reranker.score(QUERY, passages)


def test_an_address_without_a_server_beside_a_good_one_costs_no_time(
    tiny_model: str, servers: list[VllmServer], passages: list[str]
) -> None:
    urls = [f"http://127.0.0.1:{free_port()}", servers[0].url]
    with Reranker(tiny_model, engine="server", url=urls, api_key=API_KEY).start() as reranker:
        seconds = []
        for number in range(10):
            begin = time.monotonic()
            reranker.score(f"question {number}", passages)
            seconds.append(time.monotonic() - begin)
        assert min(seconds) < 2, seconds  # the best of ten: a busy machine slows some of them


# The last one: it leaves one server.
def test_a_server_killed_under_load_loses_nothing(
    tiny_model: str, servers: list[VllmServer], passages: list[str]
) -> None:
    urls = [server.url for server in servers]
    queries = [f"question number {number}" for number in range(60)]
    with Reranker(tiny_model, engine="server", url=urls, api_key=API_KEY, engine_kwargs={"chunk_size": 4}) as reranker:
        before = [reranker.score(query, passages) for query in queries]
        assert all(server.metric("vllm:request_success_total") for server in servers)
        with ThreadPoolExecutor(16) as threads:
            calls = [threads.submit(reranker.score, query, passages) for query in queries]
            wait_until(lambda: any(call.done() for call in calls))
            servers[1].kill()
            left = sum(not call.done() for call in calls)
            found = [call.result(timeout=PATIENCE) for call in calls]
        assert left
        for scores, expected in zip(found, before, strict=True):
            assert scores == pytest.approx(expected, abs=1e-6)
        assert len(reranker.score(QUERY, passages)) == len(passages)
