"""The HTTP engine on real vLLM servers: the same numbers as in process, and work spread well."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import BinaryIO

import httpx
import pytest
from vllm_servers import API_KEY, Fault, FaultyProxy, Raw, VllmServer

from gated_engine import wait_until
from winnow import ConfigurationError, EngineLoadError, Prompt, Reranker
from winnow.engines.server.engine import ServerEngine
from winnow.models.checkpoint import Checkpoint, open_checkpoint

pytestmark = pytest.mark.slow

QUERY = "what is the capital of China?"


@pytest.fixture
def urls(servers: list[VllmServer]) -> list[str]:
    return [server.url for server in servers]


@pytest.fixture
def proxies(urls: list[str]) -> Iterator[list[FaultyProxy]]:
    """Two proxies that count, each in front of a server."""
    proxies = [FaultyProxy(url) for url in urls]
    yield proxies
    for proxy in proxies:
        proxy.stop()
        proxy.client.close()


@pytest.fixture
def checkpoint(tiny_model: str) -> Checkpoint:
    return open_checkpoint(tiny_model)


async def logits_of(engine: ServerEngine, prompts: list[Prompt]) -> list[float]:
    await engine.start()
    try:
        return [score.logit for score in await engine.score(prompts)]
    finally:
        await engine.aclose()


# --- the same numbers -------------------------------------------------------------------------------------------------


def test_scores_are_those_of_vllm_in_process(
    start_servers: object, vllm_model: str, urls: list[str], passages: list[str]
) -> None:
    documents = [*passages, "short", "", " ".join(passages), "é🙂 日本\n\n" * 20]
    rankings = []
    for where in ({"engine": "vllm"}, {"engine": "server", "url": urls, "api_key": API_KEY}):
        with Reranker(vllm_model, instruction="Find what answers the question", **where) as reranker:  # type: ignore[arg-type]
            rankings.append(reranker.rank(QUERY, documents))
    here, there = ({hit.index: hit for hit in ranking} for ranking in rankings)
    for index, hit in here.items():
        assert there[index].score == pytest.approx(hit.score, abs=1e-6)
        assert there[index].truncated == hit.truncated
    assert len({round(hit.score, 3) for hit in there.values()}) > 5
    assert rankings[1].stats.prompt_tokens == rankings[0].stats.prompt_tokens


@pytest.mark.parametrize("path", ["/pooling", "/classify"])
def test_a_logit_arrives_to_the_last_bit(proxies: list[FaultyProxy], checkpoint: Checkpoint, path: str) -> None:
    proxy = proxies[0]
    proxy.no_pooling = path == "/classify"  # the fallback
    ids = checkpoint.tokenizer.encode("The capital of China is Beijing, and it was called so for long.")
    [found] = asyncio.run(logits_of(ServerEngine(checkpoint, proxy.url, API_KEY, {}), [Prompt(ids)]))
    body = {"model": checkpoint.model, "input": [ids], "task": "classify", "use_activation": False}
    answer = httpx.post(f"{proxy.target}/pooling", json=body).json()
    assert [found] == answer["data"][0]["data"]
    assert {where for _, _, where in proxy.posts} == {path}


def test_gateways_may_change_what_they_commonly_do(
    proxies: list[FaultyProxy], tiny_model: str, passages: list[str]
) -> None:
    """They set the ids of requests, count no tokens, speak HTTP/1.0, send in chunks, and keep answers."""
    proxy, kept = proxies[0], list[bytes]()

    def changed(**fields: object) -> Callable[[bytes], bytes]:
        return lambda answer: json.dumps(json.loads(answer) | fields).encode()

    def without_usage(answer: bytes) -> bytes:
        content = json.loads(answer)
        del content["usage"]
        return json.dumps(content).encode()

    def with_http_1_0(out: BinaryIO, ask: Callable[[], bytes]) -> None:
        out.write(b"HTTP/1.0 200 OK\r\n\r\n" + ask())

    def in_chunks(out: BinaryIO, ask: Callable[[], bytes]) -> None:
        body = ask()
        out.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for at in range(0, len(body), 100):
            out.write(b"%x\r\n%b\r\n" % (len(body[at : at + 100]), body[at : at + 100]))
        out.write(b"0\r\n\r\n")

    def keep(answer: bytes) -> bytes:
        kept.append(answer)
        return answer

    faults: list[Fault] = [
        changed(id="req-1"),
        changed(id=None),
        changed(usage=None),
        changed(usage={}),
        changed(usage={"prompt_tokens": 0, "total_tokens": 0}),
        without_usage,
        Raw(with_http_1_0),
        Raw(in_chunks, keep=True),
        keep,
        lambda _: kept[0],
    ]
    engine_kwargs = {"max_retries": 0, "chunk_size": len(passages)}
    with Reranker(tiny_model, engine="server", url=proxy.url, api_key=API_KEY, engine_kwargs=engine_kwargs) as reranker:
        expected = reranker.score(QUERY, passages)
        for number, fault in enumerate(faults):
            proxy.faults.append(fault)
            assert reranker.score(QUERY, passages) == pytest.approx(expected, abs=1e-6), number
    assert len(proxy.posts) == 1 + len(faults)


def test_the_logit_is_calibrated_as_the_family_wants(urls: list[str], checkpoint: Checkpoint) -> None:
    prompts = [Prompt(checkpoint.tokenizer.encode("The capital of China is Beijing."))]
    scaled = replace(checkpoint, recipe=replace(checkpoint.recipe, shift=0.5, temperature=5.0))
    raw, logit = (
        asyncio.run(logits_of(ServerEngine(which, urls, API_KEY, {}), prompts)) for which in (checkpoint, scaled)
    )
    assert logit == [pytest.approx((raw[0] - 0.5) / 5)]


def test_it_needs_neither_torch_nor_vllm(tiny_model: str, urls: list[str], passages: list[str]) -> None:
    script = """
import json, sys
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *args):
        return None if name.partition(".")[0] in ("torch", "vllm") else self.finder.find_spec(name, *args)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Hiding, sys.meta_path)
model, url, key, query, documents = json.load(sys.stdin)
from winnow import Reranker
with Reranker(model, engine="server", url=url, api_key=key) as reranker:
    print(json.dumps(reranker.score(query, documents)))
"""
    given = json.dumps([tiny_model, urls, API_KEY, QUERY, passages])
    run = subprocess.run([sys.executable, "-c", script], input=given, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    with Reranker(tiny_model, engine="server", url=urls, api_key=API_KEY) as reranker:
        assert json.loads(run.stdout) == pytest.approx(reranker.score(QUERY, passages), abs=1e-6)


def test_one_event_loop_after_another_and_many_threads(tiny_model: str, urls: list[str], passages: list[str]) -> None:
    with Reranker(tiny_model, engine="server", url=urls, api_key=API_KEY) as reranker:
        alone = reranker.score(QUERY, passages)

        async def together() -> list[list[float]]:
            return await asyncio.gather(*(reranker.ascore(QUERY, passages) for _ in range(5)))

        one_by_one = [scores for _ in range(2) for scores in asyncio.run(together())]
        with ThreadPoolExecutor(16) as threads:
            at_once = list(threads.map(lambda _: reranker.score(QUERY, passages), range(32)))
    assert all(scores == pytest.approx(alone, abs=1e-6) for scores in one_by_one + at_once)


# --- the start --------------------------------------------------------------------------------------------------------


def start(checkpoint: Checkpoint, proxy: FaultyProxy, **kwargs: object) -> None:
    asyncio.run(logits_of(ServerEngine(checkpoint, proxy.url, API_KEY, kwargs), []))


def test_another_model_is_refused_unless_it_is_said_to_be_the_same(
    proxies: list[FaultyProxy], checkpoint: Checkpoint
) -> None:
    moved = replace(checkpoint, model="Qwen/Qwen3-Reranker-0.6B")
    with pytest.raises(
        EngineLoadError, match=rf"{proxies[0].url} serves {checkpoint.model}, not Qwen/Qwen3.*served_model"
    ):
        start(moved, proxies[0])
    start(moved, proxies[0], served_model_name=checkpoint.model)
    with pytest.raises(EngineLoadError, match=r"not another"):
        start(checkpoint, proxies[0], served_model_name="another")


def test_a_server_that_takes_shorter_prompts_is_refused(proxies: list[FaultyProxy], checkpoint: Checkpoint) -> None:
    longer = replace(checkpoint, max_length=2048)
    message = (
        r"at most 1024 tokens, but this reranker may send 2048. Set max_length=1024, or start .*--max-model-len 2048"
    )
    with pytest.raises(EngineLoadError, match=message):
        start(longer, proxies[0])
    engine = ServerEngine(longer, proxies[0].url, API_KEY, {}, max_length=1024)
    assert asyncio.run(logits_of(engine, [])) == []


def test_a_server_that_cannot_return_raw_logits_is_refused(proxies: list[FaultyProxy], checkpoint: Checkpoint) -> None:
    proxies[0].request_filter = lambda body: body.pop("use_activation")  # type: ignore[assignment,return-value]
    with pytest.raises(EngineLoadError, match="cannot return raw logits"):
        start(checkpoint, proxies[0])


def test_a_wrong_key_is_refused(urls: list[str], tiny_model: str) -> None:
    with pytest.raises(EngineLoadError, match=rf"{urls[0]}/v1/models answered 401: Unauthorized. Check api_key"):
        Reranker(tiny_model, engine="server", url=urls[0], api_key="wrong").start()


def test_prompts_with_token_types_are_refused(urls: list[str], checkpoint: Checkpoint) -> None:
    engine = ServerEngine(checkpoint, urls, API_KEY, {})
    with pytest.raises(ConfigurationError, match=r'token types.*engine="vllm"'):
        asyncio.run(logits_of(engine, [Prompt([1, 2, 3, 4], second_type_from=2)]))


# --- work spread well -------------------------------------------------------------------------------------------------


def test_requests_and_their_prompts_are_bounded(
    tiny_model: str, proxies: list[FaultyProxy], passages: list[str]
) -> None:
    kwargs = {"chunk_size": 5, "concurrency": 3}
    proxies[0].delay = 0.02
    with Reranker(tiny_model, engine="server", url=proxies[0].url, api_key=API_KEY, engine_kwargs=kwargs) as reranker:
        reranker.score(QUERY, [f"{text} {number}" for number in range(6) for text in passages])
    sizes = [size for _, size, _ in proxies[0].posts]
    assert sum(sizes) == 6 * len(passages)
    assert max(sizes) == 5
    assert proxies[0].most_at_once == 3


def test_a_query_stays_on_one_server_and_many_queries_use_both(
    tiny_model: str, proxies: list[FaultyProxy], passages: list[str]
) -> None:
    urls = [proxy.url for proxy in proxies]
    with Reranker(tiny_model, engine="server", url=urls, api_key=API_KEY, engine_kwargs={"chunk_size": 4}) as reranker:
        for number in range(16):
            before = [len(proxy.posts) for proxy in proxies]
            for _ in range(2):
                reranker.score(f"question number {number}", passages[:9])
            grown = [len(proxy.posts) - count for proxy, count in zip(proxies, before, strict=True)]
            assert 0 in grown
            assert sum(grown) > 2
        small = [len(proxy.posts) for proxy in proxies]
        assert min(small) > 0
        # One query that overloads its server spreads over both.
        reranker.score(QUERY, [f"{text} {number}" for number in range(30) for text in passages])
    big = [len(proxy.posts) - count for proxy, count in zip(proxies, small, strict=True)]
    assert min(big) > 0.1 * sum(big)  # the faster one gets more


def test_a_small_query_does_not_wait_behind_a_big_one(
    tiny_model: str, proxies: list[FaultyProxy], passages: list[str]
) -> None:
    proxies[0].delay = 0.05
    kwargs = {"chunk_size": 4, "concurrency": 1}
    with Reranker(
        tiny_model, engine="server", url=proxies[0].url, api_key=API_KEY, engine_kwargs=kwargs
    ).start() as reranker:
        documents = [f"{text} {number}" for number in range(10) for text in passages]
        with ThreadPoolExecutor(1) as threads:
            big = threads.submit(reranker.score, "the big one", documents)
            wait_until(lambda: len(proxies[0].posts) >= 3)
            before = len(proxies[0].posts)
            reranker.score("the small one", passages[:4])
            assert len(proxies[0].posts) - before < 5
            assert not big.done()
            assert len(big.result()) == len(documents)


def test_a_cancelled_call_is_withdrawn_from_the_server(
    tiny_model: str, servers: list[VllmServer], passages: list[str]
) -> None:
    server = servers[0]
    documents = [f"{text} {number}" for number in range(200) for text in passages]

    def wait_for(running: bool) -> None:
        states = ("running", "waiting")
        wait_until(lambda: running == any(server.metric(f"vllm:num_requests_{state}") for state in states))

    async def main() -> None:
        async with Reranker(tiny_model, engine="server", url=server.url, api_key=API_KEY) as reranker:
            call = asyncio.ensure_future(reranker.arank(QUERY, documents))
            await asyncio.to_thread(wait_for, True)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await asyncio.to_thread(wait_for, False)
            assert len(await reranker.ascore(QUERY, passages)) == len(passages)

    before = server.metric("vllm:request_success_total")
    asyncio.run(main())
    assert server.metric("vllm:request_success_total") - before < len(documents) / 2
