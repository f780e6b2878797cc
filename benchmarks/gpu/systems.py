"""Who scores: Winnow, bare AsyncLLM, `LLM.score` in two ways, transformers by hand, and in float32 as the reference."""

import asyncio
import contextlib
import inspect
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from gpu.measuring import Card
from gpu.workload import MAX_LENGTH, Outcome, Prompts, Work
from winnow import Reranker
from winnow.engines.vllm.engine import VllmEngine
from winnow.models import open_checkpoint
from winnow.templates import built_in

OVERRIDES = {
    "architectures": ["Qwen3ForSequenceClassification"],
    "classifier_from_token": ["no", "yes"],
    "is_original_qwen3_reranker": True,
}


def engine_settings(card: Card) -> dict[str, Any]:
    """What all engines are given alike; on a CPU, what vLLM's CPU build needs."""
    settings: dict[str, Any] = {"dtype": "bfloat16", "use_tqdm_on_load": False}
    if card.is_gpu:
        return settings | {"gpu_memory_utilization": 0.5}  # memory for an engine that is still closing
    return settings | {
        "enforce_eager": True,
        "block_size": 32,
        "gpu_memory_utilization": 0.3,
        "kv_cache_memory_bytes": 1 << 30,
    }


@contextlib.contextmanager
def async_engine(
    model: str, settings: dict[str, Any], prompts: Prompts, effective: dict[str, Any] | None = None
) -> Iterator[tuple[Callable[[Work], Outcome], Callable[[Work], Outcome]]]:
    """One `AsyncLLM`, which two share: loading it is what takes longest here.

    Yields Winnow with one thread a query, and bare `AsyncLLM.encode` with ready ids, all at once: what is left when
    nothing stands before vLLM. Puts the settings that vLLM chose into `effective`.
    """
    from vllm import PoolingParams
    from vllm.inputs import tokens_input

    engine = VllmEngine(open_checkpoint(model, recipe="qwen3-reranker"), MAX_LENGTH, settings)
    with Reranker(model, engine=engine, max_length=MAX_LENGTH, raw_scores=True) as reranker:
        reranker.start()
        if effective is not None:
            effective |= _chosen(engine._llm.vllm_config)
        numbers = iter(range(10**9))

        def winnow(work: Work) -> Outcome:
            with ThreadPoolExecutor(len(work)) as threads:
                rankings = list(threads.map(lambda call: reranker.rank(*call), work))
            return Outcome(
                [[hit.score for hit in sorted(ranking, key=lambda hit: hit.index)] for ranking in rankings],
                sum(ranking.stats.prompt_tokens for ranking in rankings),
                sum(ranking.stats.cached_tokens for ranking in rankings),
            )

        async def one(ids: list[int]) -> tuple[float, int]:
            params = PoolingParams(task="classify", use_activation=False)
            async for output in engine._llm.encode(tokens_input(ids), params, f"bare-{next(numbers)}"):
                if output.finished:
                    return output.outputs.data.float().item(), output.num_cached_tokens or 0
            raise RuntimeError("vLLM returned no score")

        async def everything(ids: list[list[list[int]]]) -> list[list[tuple[float, int]]]:
            return await asyncio.gather(*(asyncio.gather(*map(one, query)) for query in ids))

        def bare(work: Work) -> Outcome:
            ids = prompts(work)
            found = reranker._lease.submit(lambda _: everything(ids)).result()
            return Outcome(
                [[logit for logit, _ in query] for query in found],
                cached=sum(cached for query in found for _, cached in query),
            )

        yield winnow, bare


def _chosen(config: Any) -> dict[str, Any]:
    """What vLLM chose by itself."""
    scheduler = ("max_num_batched_tokens", "max_num_seqs", "async_scheduling", "enable_chunked_prefill")
    return {
        **{name: getattr(config.scheduler_config, name, None) for name in scheduler},
        "block_size": config.cache_config.block_size,
        "enable_prefix_caching": config.cache_config.enable_prefix_caching,
        "enforce_eager": config.model_config.enforce_eager,
        "cudagraph_mode": str(getattr(config.compilation_config, "cudagraph_mode", None)),
    }


@contextlib.contextmanager
def llm_engine(model: str, settings: dict[str, Any], ids_seen: list[list[int]]) -> Iterator[Any]:
    """`LLM.score` behind a lock, as the common rerankers of frameworks call it; and on all pairs at once.

    Yields both. `ids_seen` gets the ids of the pairs scored at once, where this vLLM tells them.
    """
    from vllm import LLM

    if "chat_template" not in inspect.signature(LLM.score).parameters:
        raise RuntimeError("LLM.score of this vLLM takes no chat_template, so it cannot score this model right")
    llm = LLM(model=model, runner="pooling", max_model_len=MAX_LENGTH, hf_overrides=OVERRIDES, **settings)
    template = str(built_in("qwen3_reranker").source)
    score: Callable[..., Any] = partial(llm.score, chat_template=template, use_tqdm=False)
    lock = threading.Lock()

    def logit(output: Any) -> float:
        """The logit of a probability; these are in the middle, where float32 keeps it."""
        p = output.outputs.score
        return math.log(p / (1 - p))

    def cost(outputs: list[Any]) -> tuple[int, int]:
        return (
            sum(len(getattr(output, "prompt_token_ids", None) or ()) for output in outputs),
            sum(getattr(output, "num_cached_tokens", None) or 0 for output in outputs),
        )

    def query_behind_the_lock(query: str, documents: list[str]) -> tuple[list[float], list[Any]]:
        order = sorted(range(len(documents)), key=lambda at: len(documents[at]))
        by_position: dict[int, Any] = {}
        for start in range(0, len(order), 64):
            batch = order[start : start + 64]
            with lock:
                outputs = score(query, [documents[at] for at in batch])
            by_position |= zip(batch, outputs, strict=True)
        outputs = [by_position[at] for at in range(len(documents))]
        return [logit(output) for output in outputs], outputs

    def locked(work: Work) -> Outcome:
        with ThreadPoolExecutor(len(work)) as threads:
            found = list(threads.map(lambda call: query_behind_the_lock(*call), work))
        return Outcome([logits for logits, _ in found], *cost([output for _, some in found for output in some]))

    def at_once(work: Work) -> Outcome:
        queries = [query for query, documents in work for _ in documents]
        outputs = score(queries, [document for _, documents in work for document in documents])
        ids_seen[:] = [list(getattr(output, "prompt_token_ids", None) or ()) for output in outputs]
        logits = iter([logit(output) for output in outputs])
        return Outcome([[next(logits) for _ in documents] for _, documents in work], *cost(outputs))

    try:
        yield locked, at_once
    finally:
        llm.llm_engine.engine_core.shutdown()


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


def float32_logits(model: str, prompts: list[list[int]]) -> list[float]:
    """Logits from transformers in float32, one prompt at a time."""
    score = _by_transformers(model, "float32")
    return [logit for ids in prompts for logit in score([ids])]


def by_hand(model: str, prompts: list[list[int]], batch: int = 64) -> tuple[list[float], float]:
    """Logits from transformers in bf16 as one would write it by hand: sorted by length, padded batches.

    Returns:
        The logits, and the seconds that they took; a first batch, which warms up, is not counted.
    """
    score = _by_transformers(model, "bfloat16")
    order = sorted(range(len(prompts)), key=lambda at: -len(prompts[at]))
    score([prompts[at] for at in order[:batch]])
    found: dict[int, float] = {}
    begin = time.perf_counter()
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        found |= zip(chosen, score([prompts[at] for at in chosen]), strict=True)
    seconds = time.perf_counter() - begin
    return [found[at] for at in range(len(prompts))], seconds


def _by_transformers(model: str, dtype: str) -> Callable[[list[list[int]]], list[float]]:
    """What gives the logit of yes minus that of no of each prompt of a batch, from the last token's state alone."""
    import torch
    from transformers import AutoTokenizer, Qwen3ForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    network = Qwen3ForCausalLM.from_pretrained(model, dtype=dtype).to(device).eval()
    no, yes = AutoTokenizer.from_pretrained(model).convert_tokens_to_ids(["no", "yes"])
    labels = (network.lm_head.weight[yes].float() - network.lm_head.weight[no].float()).detach()

    @torch.inference_mode()
    def score(batch: list[list[int]]) -> list[float]:
        rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in batch], batch_first=True)
        states = network.model(rows.to(device), use_cache=False).last_hidden_state
        ends = torch.tensor([len(ids) - 1 for ids in batch], device=device)  # a causal model ignores what follows
        judged = states[torch.arange(len(batch), device=device), ends].float()
        logits: list[float] = (judged @ labels).tolist()
        return logits

    return score
