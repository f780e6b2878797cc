"""What HTTP costs: the same requests in process, through `winnow serve`, and through stock vLLM's `/rerank`.

A model so small that only the way to it counts runs three times: in a `Reranker` of this process, in `winnow serve`,
and in vLLM's own server with the same template. 64 callers have one request each in flight, over HTTP on 64
connections that stay open; the client is aiohttp, as in `vllm bench serve`. All contenders score the same number of
pairs in turn; each round has texts that no other has seen. Then requests of 10 documents are timed one after another,
first alone, then while one of 10,000 runs.

    python benchmarks/service.py [--rounds 5] [--requests 128] [--json FILE]
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import psutil
from shared import (
    MAX_LENGTH,
    Calls,
    Round,
    calls_of,
    device,
    largest_difference,
    nano_model,
    plain_settings,
    server,
    settle,
    spread,
    stock_command,
    tolerance,
    winnow_command,
    winnow_settings,
)

from winnow import Reranker

CALLERS, DOCUMENTS = 64, 32
SMALL, LARGE, SMALL_REQUESTS = 10, 10_000, 200
# Where small requests wait until a large one ends, each large one gives one time.
MOST_LARGE = 3
IN_PROCESS, SERVICE, STOCK = "Reranker in process", "winnow serve", "stock vLLM's /rerank"


class Contender(NamedTuple):
    """A way to score calls.

    Attributes:
        name: Its name in the table.
        score: Scores calls, `CALLERS` at once; returns the scores of each, and the seconds that it took.
        process: The one that does the work of the calls, without vLLM's engine, which is one of its own.
    """

    name: str
    score: Callable[[Calls], Coroutine[Any, Any, tuple[list[list[float]], float]]]
    process: psutil.Process


async def by_callers(ask: Callable[[int], Coroutine[Any, Any, None]], count: int) -> float:
    """Make `count` requests, `CALLERS` at once. Returns the seconds that it took."""
    numbers = iter(range(count))

    async def caller() -> None:
        for number in numbers:
            await ask(number)

    begin = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(caller())
    return time.perf_counter() - begin


def in_process(reranker: Reranker) -> Contender:
    """`Reranker.ascore`."""

    async def score(calls: Calls) -> tuple[list[list[float]], float]:
        scores: list[list[float]] = [[] for _ in calls]

        async def ask(number: int) -> None:
            scores[number] = list(await reranker.ascore(*calls[number]))

        return scores, await by_callers(ask, len(calls))

    return Contender(IN_PROCESS, score, psutil.Process())


def over_http(name: str, client: aiohttp.ClientSession, process: psutil.Process, model: str) -> Contender:
    """`POST /rerank`. Bodies are made before the clock starts and answers read after it ends: both are the client's."""

    async def score(calls: Calls) -> tuple[list[list[float]], float]:
        bodies = [body_of(model, query, documents) for query, documents in calls]
        answers = [b""] * len(calls)

        async def ask(number: int) -> None:
            answers[number] = await post(client, bodies[number])

        seconds = await by_callers(ask, len(calls))
        results = [json.loads(answer)["results"] for answer in answers]
        by_index = [sorted(one, key=lambda result: int(result["index"])) for one in results]
        return [[result["relevance_score"] for result in one] for one in by_index], seconds

    return Contender(name, score, process)


async def post(client: aiohttp.ClientSession, body: bytes) -> bytes:
    """The answer to a request."""
    async with client.post("/rerank", data=body) as answer:
        answer.raise_for_status()
        return await answer.read()


def body_of(model: str, query: str, documents: list[str]) -> bytes:
    """The body of a request."""
    return json.dumps({"model": model, "query": query, "documents": documents}).encode()


async def measured(contender: Contender, calls: Calls) -> Round:
    """One round of one contender."""
    await asyncio.to_thread(settle)
    before = contender.process.cpu_times()
    scores, seconds = await contender.score(calls)
    after = contender.process.cpu_times()
    pairs = sum(map(len, scores))
    cpu = after.user + after.system - before.user - before.system
    return Round(pairs / seconds, cpu / pairs * 1e6)


async def latencies(client: aiohttp.ClientSession, model: str, seed: str, stop: Callable[[int], bool]) -> list[float]:
    """Seconds of small requests, one after another, until `stop` of their number is true."""
    seconds: list[float] = []
    while not stop(len(seconds)):
        [(query, documents)] = calls_of(f"{seed} {len(seconds)}", 1, SMALL)
        body = body_of(model, query, documents)
        begin = time.perf_counter()
        await post(client, body)
        seconds.append(time.perf_counter() - begin)
    return seconds


async def small_beside_large(client: aiohttp.ClientSession, model: str) -> dict[str, list[float]]:
    """Seconds of small requests alone and beside a large one."""
    await latencies(client, model, "warm", lambda count: count == SMALL_REQUESTS // 10)
    alone = await latencies(client, model, "alone", lambda count: count == SMALL_REQUESTS)
    beside: list[float] = []
    whole: list[float] = []
    while len(beside) < SMALL_REQUESTS and len(whole) < MOST_LARGE:
        [(query, documents)] = calls_of(f"large {len(whole)}", 1, LARGE)
        begin = time.perf_counter()
        large = asyncio.ensure_future(post(client, body_of(model, query, documents)))
        beside += await latencies(client, model, f"beside {len(whole)}", lambda _, done=large.done: done())
        large.result()
        whole.append(time.perf_counter() - begin)
    return {"alone": alone, "beside": beside, "large": whole}


def waits_of(found: dict[str, list[float]]) -> dict[str, float]:
    """Percentiles of `small_beside_large`, in milliseconds."""
    return {
        f"{kind}_p{part}_ms": statistics.quantiles(found[kind], n=100, method="inclusive")[part - 1] * 1000
        for kind in ("alone", "beside")
        for part in (50, 99)
    }


async def compare(arguments: argparse.Namespace, model: str, urls: dict[str, tuple[str, psutil.Process]]) -> None:
    patience = aiohttp.ClientTimeout(total=600)
    headers = {"Content-Type": "application/json"}
    async with contextlib.AsyncExitStack() as stack:
        clients = {
            name: await stack.enter_async_context(
                aiohttp.ClientSession(
                    url, connector=aiohttp.TCPConnector(limit=CALLERS), headers=headers, timeout=patience
                )
            )
            for name, (url, _) in urls.items()
        }
        reranker = await stack.enter_async_context(
            Reranker(model, engine="vllm", max_length=MAX_LENGTH, engine_kwargs=winnow_settings())
        )
        await reranker.astart()
        contenders = [in_process(reranker)]
        contenders += [over_http(name, clients[name], process, model) for name, (_, process) in urls.items()]
        same = calls_of("check", CALLERS, CALLERS * 5)
        difference = largest_difference([(await one.score(same))[0] for one in contenders])
        if difference > tolerance():
            sys.exit(f"The contenders' scores differ by {difference:.1e}: their times cannot be compared.")

        rows: dict[str, list[Round]] = {one.name: [] for one in contenders}
        for number in range(-1, arguments.rounds):  # the first round warms up
            for at, one in enumerate(contenders):
                calls = calls_of(f"{number + 1}.{at}", arguments.requests, arguments.requests * DOCUMENTS)
                found = await measured(one, calls)
                if number >= 0:
                    rows[one.name].append(found)
                print(f"round {number}: {one.name:24} {found}", file=sys.stderr, flush=True)
        waits: dict[str, dict[str, list[float]]] = {}
        for name, client in clients.items():
            await asyncio.to_thread(settle)
            waits[name] = await small_beside_large(client, model)
            print(f"{name}: {waits_of(waits[name])}", file=sys.stderr, flush=True)
    report(arguments, rows, waits, difference)


def report(
    arguments: argparse.Namespace,
    rows: dict[str, list[Round]],
    waits: dict[str, dict[str, list[float]]],
    difference: float,
) -> None:
    """Print the numbers, and write them to the file that is asked for."""
    ratios = {
        f"{SERVICE} / {other}": statistics.median(
            a.pairs_per_s / b.pairs_per_s for a, b in zip(rows[SERVICE], rows[other], strict=True)
        )
        for other in (IN_PROCESS, STOCK)
    }
    times = {name: waits_of(found) for name, found in waits.items()}
    if arguments.json:
        whole = {
            "machine": device(),
            "load": os.getloadavg(),
            "largest_score_difference": difference,
            "rounds": {name: [one._asdict() for one in rounds] for name, rounds in rows.items()},
            "ratios": ratios,
            "small_beside_large": times,
            "seconds": waits,
        }
        arguments.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(
        f"{device()}, load {os.getloadavg()[0]:.1f}; {CALLERS} callers, {arguments.requests} requests of {DOCUMENTS} "
        f"documents a round, medians of {arguments.rounds} rounds; scores differ by {difference:.0e} at most\n"
    )
    print("| | pairs/s (least to most) | CPU of the process that takes the calls, µs a pair |\n|---|---|---|")
    for name, rounds in rows.items():
        speed, cpu = ([getattr(one, field) for one in rounds] for field in Round._fields)
        print(f"| {name} | {spread(speed)} | {spread(cpu)} |")
    print("\n| medians of paired ratios | pairs/s |\n|---|---|")
    for name, ratio in ratios.items():
        print(f"| {name} | {ratio:.2f} |")
    print(
        f"\n| a request of {SMALL} documents, ms | alone, p50 | alone, p99 | beside one of {LARGE:,}, p50 | p99 "
        "| p99 to p99 alone | the large one, s |\n|---|---|---|---|---|---|---|"
    )
    for name, found in times.items():
        shown = " | ".join(f"{value:.0f}" for value in found.values())
        ratio = found["beside_p99_ms"] / found["alone_p99_ms"]
        print(f"| {name} | {shown} | {ratio:.1f} | {spread(waits[name]['large'], 1)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender runs (default: 5)")
    parser.add_argument("--requests", type=int, default=128, help="requests of a round (default: 128)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to this file")
    arguments = parser.parse_args()

    model = nano_model()
    theirs = stock_command(model, MAX_LENGTH, plain_settings())
    with server(winnow_command(model, MAX_LENGTH)) as service, server(theirs) as stock:
        asyncio.run(compare(arguments, model, {SERVICE: service, STOCK: stock}))


if __name__ == "__main__":
    main()
