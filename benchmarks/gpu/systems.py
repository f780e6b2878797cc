"""Who scores: Winnow, bare AsyncLLM, `LLM.score` in two ways, vLLM's server in two ways, and transformers by hand.

Each function loads a model, and yields what scores with it, by name.
"""

import asyncio
import contextlib
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from gpu.workload import MAX_LENGTH, Ids, Outcome, Prompts, Size, Work
from winnow import Reranker
from winnow.engines.vllm.engine import VllmEngine
from winnow.models import open_checkpoint
from winnow.templates import built_in

Run = Callable[[Work], Outcome]
Runs = Iterator[dict[str, Run]]


class Job(NamedTuple):
    """What a system is given: the model's folder, arguments of vLLM, the prompts' ids, and how much it will score."""

    model: str
    settings: dict[str, Any]
    prompts: Prompts
    size: Size


System = Callable[[Job], contextlib.AbstractContextManager[dict[str, Run]]]

WINNOW, BARE = "Winnow", "bare AsyncLLM, ready ids"
LOCKED, AT_ONCE = "LLM.score behind a lock", "LLM.score on all at once"
WINNOW_SERVER, RERANK = 'Winnow, engine="server"', "/rerank of vLLM's server"
BY_HAND, FLOAT32 = "transformers by hand, sorted batches of 64", "transformers in float32"
CROSS_ENCODER = "sentence-transformers' CrossEncoder, sorted batches of 64"
BATCH = 64


@contextlib.contextmanager
def winnow(job: Job) -> Runs:
    """One `AsyncLLM`, which two share: Winnow with a thread for each query, and vLLM alone.

    Bare `AsyncLLM.encode` gets ready ids, all at once: what is left when nothing stands before vLLM.
    """
    from vllm import PoolingParams
    from vllm.inputs import tokens_input

    engine = VllmEngine(open_checkpoint(job.model, recipe="qwen3-reranker"), MAX_LENGTH, job.settings)
    with Reranker(job.model, engine=engine, max_length=MAX_LENGTH, raw_scores=True) as reranker:
        reranker.start()
        numbers = iter(range(10**9))

        async def one(ids: tuple[int, ...]) -> tuple[float, int]:
            params = PoolingParams(task="classify", use_activation=False)
            async for output in engine._llm.encode(tokens_input(list(ids)), params, f"bare-{next(numbers)}"):
                if output.finished:
                    return output.outputs.data.float().item(), output.num_cached_tokens or 0
            raise RuntimeError("vLLM returned no score")

        async def everything(ids: Ids) -> list[list[tuple[float, int]]]:
            return await asyncio.gather(*(asyncio.gather(*map(one, query)) for query in ids))

        def bare(work: Work) -> Outcome:
            ids = job.prompts(work)
            found = reranker._lease.submit(lambda _: everything(ids)).result()
            logits = [[logit for logit, _ in query] for query in found]
            return Outcome(logits, sum(cached for query in found for _, cached in query))

        yield {WINNOW: partial(_ranked, reranker), BARE: bare}


@contextlib.contextmanager
def llm(job: Job) -> Runs:
    """`LLM.score` behind a lock, as rerankers of frameworks call it, and on all pairs at once."""
    from shared import behind_a_lock, plain_llm

    engine = plain_llm(job.model, MAX_LENGTH, job.settings)
    template = str(built_in("qwen3_reranker").source)
    score: Callable[..., Any] = partial(engine.score, chat_template=template, use_tqdm=False)
    locked = behind_a_lock(lambda query, documents: [_logit(one.outputs.score) for one in score(query, documents)])

    def at_once(work: Work) -> Outcome:
        queries = [query for query, documents in work for _ in documents]
        outputs = score(queries, [document for _, documents in work for document in documents])
        expected = [ids for query in job.prompts(work) for ids in query]
        if [tuple(output.prompt_token_ids) for output in outputs] != expected:
            raise AssertionError("LLM.score had other token ids than Winnow.")
        logits = [_logit(output.outputs.score) for output in outputs]
        return Outcome(_by_query(work, logits), sum(output.num_cached_tokens or 0 for output in outputs))

    try:
        yield {LOCKED: partial(_by_callers, locked), AT_ONCE: at_once}
    finally:
        engine.llm_engine.engine_core.shutdown()


@contextlib.contextmanager
def vllm_server(job: Job) -> Runs:
    """The server that vLLM has: Winnow in front of it, and its `/rerank`, asked with texts."""
    import httpx
    from shared import server, stock_command

    with contextlib.ExitStack() as stack:
        url, _ = stack.enter_context(server(stock_command(job.model, MAX_LENGTH, job.settings)))
        common: dict[str, Any] = {"recipe": "qwen3-reranker", "template": "qwen3_reranker", "max_length": MAX_LENGTH}
        reranker = Reranker(job.model, engine="server", url=url, raw_scores=True, **common)
        stack.enter_context(reranker).start()
        limits = httpx.Limits(max_connections=job.size.callers)
        client = stack.enter_context(httpx.Client(base_url=url, timeout=600, trust_env=False, limits=limits))

        def rerank(query: str, documents: list[str]) -> list[float]:
            answer = client.post("/rerank", json={"query": query, "documents": documents}).raise_for_status()
            found = sorted(answer.json()["results"], key=lambda one: one["index"])
            return [_logit(one["relevance_score"]) for one in found]

        def winnow_server(work: Work) -> Outcome:
            return Outcome(_ranked(reranker, work).logits)  # the server does not say what was cached

        yield {WINNOW_SERVER: winnow_server, RERANK: partial(_by_callers, rerank)}


@contextlib.contextmanager
def transformers(job: Job) -> Runs:
    """Without vLLM, in sorted, padded batches: sentence-transformers, and transformers as one would write it by hand.

    The latter gets ready ids, also in float32, one by one: that is the reference, of `Size.reference` pairs.
    """
    from ways import SentenceTransformers

    def by_hand(work: Work) -> Outcome:
        ids = [ids for query in job.prompts(work) for ids in query]
        order = sorted(range(len(ids)), key=lambda at: -len(ids[at]))
        found: dict[int, float] = {}
        for batch in (order[start : start + BATCH] for start in range(0, len(order), BATCH)):
            found |= zip(batch, bfloat16([ids[at] for at in batch]), strict=True)
        return Outcome(_by_query(work, [found[at] for at in range(len(ids))]), 0)

    def exact(work: Work) -> Outcome:
        float32 = _by_transformers(job.model, "float32")  # loaded for this call: its memory is free again after it
        ids = [ids for query in job.prompts(work) for ids in query]
        return Outcome([[logit] for one in ids[: job.size.reference] for logit in float32([one])])

    bfloat16 = _by_transformers(job.model, "bfloat16")
    encoder = SentenceTransformers(job.model, "bfloat16", device=_device())

    def cross_encoder(work: Work) -> Outcome:
        pairs = [(query, document) for query, documents in work for document in documents]
        return Outcome(_by_query(work, encoder.logits_of(pairs, batch=BATCH)), 0)

    yield {BY_HAND: by_hand, CROSS_ENCODER: cross_encoder, FLOAT32: exact}


def matmul_tflops() -> float:
    """The device's speed in a bf16 matrix product of 8192 x 8192 x 8192: median of 20, random data."""
    import torch

    size = 8192
    a, b = torch.randn(2, size, size, dtype=torch.bfloat16, device="cuda")
    times = []
    for number in range(25):  # the first 5 warm up
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        torch.mm(a, b)
        end.record()
        torch.cuda.synchronize()
        if number >= 5:
            times.append(begin.elapsed_time(end) / 1000)
    return 2 * size**3 / statistics.median(times) / 1e12


def _ranked(reranker: Reranker, work: Work) -> Outcome:
    """Winnow, one thread a query."""
    with ThreadPoolExecutor(len(work)) as threads:
        rankings = list(threads.map(lambda call: reranker.rank(*call), work))
    return Outcome(
        [[hit.score for hit in sorted(ranking, key=lambda hit: hit.index)] for ranking in rankings],
        sum(ranking.stats.cached_tokens for ranking in rankings),
    )


def _by_callers(score: Callable[[str, list[str]], Any], work: Work) -> Outcome:
    """A function that scores a query's documents, one thread a query."""
    with ThreadPoolExecutor(len(work)) as threads:
        return Outcome([list(scores) for scores in threads.map(lambda call: score(*call), work)])


def _by_query(work: Work, logits: Iterable[float]) -> list[list[float]]:
    """The logits of all pairs, a list for each query."""
    left = iter(logits)
    return [list(itertools.islice(left, len(documents))) for _, documents in work]


def _logit(probability: float) -> float:
    """The logit of a probability; these are in the middle, where float32 keeps it."""
    return math.log(probability / (1 - probability))


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _by_transformers(model: str, dtype: str) -> Callable[[list[tuple[int, ...]]], list[float]]:
    """What gives the logit of yes minus that of no of each prompt of a batch, from the last token's state alone."""
    import torch
    from transformers import AutoTokenizer, Qwen3ForCausalLM

    device = _device()
    torch.backends.cuda.matmul.allow_tf32 = False
    network = Qwen3ForCausalLM.from_pretrained(model, dtype=dtype).to(device).eval()
    no, yes = AutoTokenizer.from_pretrained(model).convert_tokens_to_ids(["no", "yes"])
    labels = (network.lm_head.weight[yes].float() - network.lm_head.weight[no].float()).detach()

    @torch.inference_mode()
    def score(batch: list[tuple[int, ...]]) -> list[float]:
        rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in batch], batch_first=True)
        states = network.model(rows.to(device), use_cache=False).last_hidden_state
        ends = torch.tensor([len(ids) - 1 for ids in batch], device=device)  # a causal model ignores what follows
        judged = states[torch.arange(len(batch), device=device), ends].float()
        logits: list[float] = (judged @ labels).tolist()
        return logits

    return score
