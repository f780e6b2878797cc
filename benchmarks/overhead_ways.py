"""The ways that `overhead.py` measures: Winnow and bare `AsyncLLM` on one engine, and vLLM's `LLM`, in one process."""

import asyncio
import math
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from shared import MAX_LENGTH, Calls, Score, behind_a_lock, plain_llm, plain_settings, winnow_settings

from winnow import Reranker
from winnow.engines.vllm.engine import VllmEngine
from winnow.models import bind_template, open_checkpoint
from winnow.prompts import Limits, PromptBuilder, PromptLayout
from winnow.templates import built_in

# What vLLM has on one GPU. Its scheduler and its worker share one process: on a CPU it takes two, which wait for each
# other without a pause, and with two cores the way to them would have none. And the tokens of a step: with the few that
# Winnow takes on a CPU, the step itself costs more than the way to it.
AS_ON_GPU = {
    "distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
    "max_num_batched_tokens": 16384,
}
Prompts = list[list[list[int]]]


class Bench:
    """The engines and the ways to score on them. Each way takes calls, and returns the probabilities of each."""

    def __init__(self, model: str):
        from vllm import PoolingParams
        from vllm.inputs import tokens_input

        checkpoint = open_checkpoint(model)
        engine = VllmEngine(checkpoint, MAX_LENGTH, winnow_settings() | AS_ON_GPU)
        self.reranker = Reranker(model, engine=engine).start()
        segments = bind_template(checkpoint, None, None, with_instruction=False)
        self._builder = PromptBuilder(PromptLayout(checkpoint.tokenizer, segments, Limits(max_length=MAX_LENGTH)))
        self._bare: Any = engine._llm
        self._numbers = iter(range(10**12))
        self._params = partial(PoolingParams, task="classify", use_activation=False)
        self._input = tokens_input
        self.llm = plain_llm(model, MAX_LENGTH, plain_settings() | AS_ON_GPU)
        self._score = partial(self.llm.score, chat_template=str(built_in("qwen3_reranker").source), use_tqdm=False)
        self._locked = behind_a_lock(lambda *call: [output.outputs.score for output in self._score(*call)])

    def ids(self, query: str, documents: list[str]) -> list[list[int]]:
        """Token ids of a call's prompts."""
        return [list(prompt.ids) for one in self._builder.build(query, documents) for prompt in one.prompts]

    # --- Winnow ---

    def winnow(self, calls: Calls) -> list[list[float]]:
        """`Reranker.score`, one caller after another."""
        return [self.reranker.score(*call) for call in calls]

    def winnow_threads(self, calls: Calls) -> list[list[float]]:
        """`Reranker.score`, each caller in a thread of its own."""
        return in_threads(self.reranker.score, calls)

    def winnow_many(self, calls: Calls) -> list[list[float]]:
        """`Reranker.rank_many`."""
        rankings = self.reranker.rank_many(calls)
        return [[hit.score for hit in sorted(ranking, key=lambda hit: hit.index)] for ranking in rankings]

    # --- vLLM ---

    def _on_engines_loop(self, work: Coroutine[Any, Any, list[list[float]]]) -> list[list[float]]:
        return self.reranker._lease.submit(lambda _: work).result()

    async def _encode(self, ids: list[int]) -> float:
        async for output in self._bare.encode(self._input(ids), self._params(), f"bare-{next(self._numbers)}"):
            if output.finished:
                return 1 / (1 + math.exp(-output.outputs.data.item()))
        raise RuntimeError("vLLM returned no score")

    async def _encode_all(self, prompts: Prompts) -> list[list[float]]:
        return await asyncio.gather(*(asyncio.gather(*map(self._encode, ids)) for ids in prompts))

    def ready(self, prompts: Prompts) -> list[list[float]]:
        """Bare `AsyncLLM.encode`, ids ready before the clock starts, all at once."""
        return self._on_engines_loop(self._encode_all(prompts))

    async def _build_and_encode(self, query: str, documents: list[str]) -> list[float]:
        ids = await asyncio.to_thread(self.ids, query, documents)
        return await asyncio.gather(*map(self._encode, ids))

    def built(self, calls: Calls) -> list[list[float]]:
        """The prompts built in threads by Winnow's own builder, then bare `AsyncLLM.encode`; all calls at once.

        A call of many documents is built in slices, as Winnow does: while one is scored, the next is built.
        """

        async def sliced(query: str, documents: list[str]) -> list[float]:
            slices = [documents[at : at + 256] for at in range(0, len(documents), 256)]
            found = await asyncio.gather(*(self._build_and_encode(query, one) for one in slices))
            return [score for one in found for score in one]

        async def everything() -> list[list[float]]:
            return await asyncio.gather(*(sliced(*call) for call in calls))

        return self._on_engines_loop(everything())

    def built_threads(self, calls: Calls) -> list[list[float]]:
        """`built`, each caller in a thread of its own."""
        return in_threads(lambda *call: self.built([call])[0], calls)

    def llm_ready(self, prompts: Prompts) -> list[list[float]]:
        """`LLM.encode`, ids ready before the clock starts."""
        flat = [self._input(ids) for call in prompts for ids in call]
        outputs = iter(self.llm.encode(flat, self._params(), pooling_task="classify", use_tqdm=False))
        return [[1 / (1 + math.exp(-next(outputs).outputs.data.item())) for _ in call] for call in prompts]

    def llm_score(self, calls: Calls) -> list[list[float]]:
        """`LLM.score`, one call after another, each with all its documents."""
        return [[output.outputs.score for output in self._score(*call)] for call in calls]

    def locked(self, calls: Calls) -> list[list[float]]:
        """`LLM.score` behind a lock, as frameworks' rerankers call it: batches of 64, sorted, without duplicates."""
        return in_threads(self._locked, calls)

    def close(self) -> None:
        """End both engines."""
        self.reranker.close()
        self.llm.llm_engine.engine_core.shutdown()


def in_threads(score: Score, calls: Calls) -> list[list[float]]:
    """The scores of calls, each called from a thread of its own."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(lambda call: list(score(*call)), calls))
