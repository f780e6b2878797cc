"""Every way to score the same pairs with a model of Qwen3-Reranker's family; `contenders.py` says what they are."""

import contextlib
import json
import math
import statistics
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

from shared import Score, behind_a_lock, plain_llm, server, stock_command

from winnow import Reranker
from winnow.templates import built_in

BATCH = 16
LABELS = ("no", "yes")
_TEMPLATE = str(built_in("qwen3_reranker").source)
_DEFAULT_INSTRUCTION = '"Given a web search query, retrieve relevant passages that answer the query"'


class SentenceTransformers:
    """`CrossEncoder.predict`, which sorts by length."""

    def __init__(self, folder: str, dtype: str, device: str = "cpu"):
        import torch
        from sentence_transformers import CrossEncoder

        self._model: Any = CrossEncoder(
            folder,
            device=device,
            local_files_only=True,
            processor_kwargs={"chat_template": _TEMPLATE},
            model_kwargs={"dtype": dtype},
            activation_fn=torch.nn.Identity(),
        )

    def logits(self, query: str, documents: list[str], instruction: str | None = None) -> list[float]:
        """A logit for each document."""
        return self.logits_of([(query, document) for document in documents], instruction)

    def logits_of(
        self, pairs: list[tuple[str, str]], instruction: str | None = None, batch: int = BATCH
    ) -> list[float]:
        """A logit for each pair."""
        found: list[float] = self._model.predict(
            pairs, prompt=instruction, batch_size=batch, show_progress_bar=False
        ).tolist()
        return found


class ByHand:
    """The code of Qwen3-Reranker's model card, sorted, and with the logits of the last token alone."""

    def __init__(self, folder: str, dtype: str):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        load: Any = AutoModelForCausalLM.from_pretrained
        self._model: Any = load(folder, dtype=dtype).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._labels = self.tokenizer.convert_tokens_to_ids(list(LABELS))

    def logits(self, query: str, documents: list[str], instruction: str | None = None) -> list[float]:
        """A logit for each document."""
        import torch

        prompts = prompts_of(self.tokenizer, query, documents, instruction)
        found = [0.0] * len(documents)
        order = sorted(range(len(prompts)), key=lambda at: -len(prompts[at]))
        for batch in (order[at : at + BATCH] for at in range(0, len(order), BATCH)):
            texts = [prompts[at] for at in batch]
            inputs = self.tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
            with torch.inference_mode():
                logits = self._model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].float()
            no, yes = logits[:, self._labels].T.tolist()
            for at, low, high in zip(batch, no, yes, strict=True):
                found[at] = high - low
        return found


def prompts_of(tokenizer: Any, query: str, documents: list[str], instruction: str | None = None) -> list[str]:
    """The prompt of each document."""
    messages = [[{"role": "query", "content": query}, {"role": "document", "content": one}] for one in documents]
    prompts: list[str] = tokenizer.apply_chat_template(
        messages, chat_template=_TEMPLATE, tokenize=False, instruction=instruction
    )
    return prompts


def mean_tokens(tokenizer: Any, query: str, documents: list[str], instruction: str | None = None) -> float:
    """How many tokens a prompt has on average."""
    return statistics.mean(map(len, tokenizer(prompts_of(tokenizer, query, documents, instruction))["input_ids"]))


def _probabilities(
    logits: Callable[..., list[float]], instruction: str | None, query: str, documents: list[str]
) -> list[float]:
    return [1 / (1 + math.exp(-logit)) for logit in logits(query, documents, instruction)]


class Ways(contextlib.ExitStack):
    """The ways to score with a model. What a way needs starts when it is first used, and runs until this is left.

    Each public method takes an instruction, and returns what scores with it.
    """

    def __init__(self, model: str, max_length: int):
        super().__init__()
        self._model, self._max_length = model, max_length

    def winnow(self, instruction: str | None) -> Score:
        """`Reranker.score`, vLLM in this process."""
        return partial(self._in_process.score, instruction=instruction)

    def winnow_server(self, instruction: str | None) -> Score:
        """`Reranker.score`, vLLM's own server."""
        return partial(self._on_server.score, instruction=instruction)

    def vllm_ranker(self, instruction: str | None) -> Score:
        """Haystack's `VLLMRanker`, which asks `/rerank` of the same server."""
        from haystack import Document
        from haystack_integrations.components.rankers.vllm import VLLMRanker

        ranker = VLLMRanker(
            model=self._model,
            api_key=None,
            api_base_url=f"{self._server}/v1",
            # Where many callers wait, it takes longer than httpx's 5 seconds.
            http_client_kwargs={"timeout": 600, "trust_env": False},
            extra_parameters={"instruction": instruction} if instruction else None,
        )
        self.callback(ranker.close)

        def score(query: str, documents: list[str]) -> list[float]:
            # Given ids: whoever reranks has documents with ids already.
            given = [Document(id=str(at), content=text) for at, text in enumerate(documents)]
            found = ranker.run(query=query, documents=given)["documents"]
            return [one.score for one in sorted(found, key=lambda one: int(one.id))]

        return score

    def llm_score(self, instruction: str | None) -> Score:
        """VLLM's `LLM.score`, for one thread."""
        template = _TEMPLATE
        if instruction:  # `LLM.score` has no argument for it
            template = template.replace(_DEFAULT_INSTRUCTION, json.dumps(instruction))
        score = partial(self._llm.score, chat_template=template, use_tqdm=False)
        return lambda query, documents: [output.outputs.score for output in score(query, documents)]

    def locked(self, instruction: str | None) -> Score:
        """`LLM.score` for many threads."""
        return behind_a_lock(self.llm_score(instruction))

    def cross_encoder(self, instruction: str | None) -> Score:
        """sentence-transformers."""
        return partial(_probabilities, self._cross_encoder.logits, instruction)

    def by_hand(self, instruction: str | None) -> Score:
        """Transformers alone."""
        return partial(_probabilities, self._by_hand.logits, instruction)

    def _reranker(self, **settings: Any) -> Reranker:
        common: dict[str, Any] = {"recipe": "qwen3-reranker", "template": "qwen3_reranker"}
        reranker = Reranker(self._model, max_length=self._max_length, **common, **settings)
        return self.enter_context(reranker).start()

    @cached_property
    def _in_process(self) -> Reranker:
        return self._reranker(engine="vllm", engine_kwargs={"dtype": "float32"})

    @cached_property
    def _on_server(self) -> Reranker:
        return self._reranker(engine="server", url=self._server)

    @cached_property
    def _server(self) -> str:
        url, _ = self.enter_context(server(stock_command(self._model, self._max_length)))
        return url

    @cached_property
    def _llm(self) -> Any:
        llm = plain_llm(self._model, self._max_length)
        self.callback(llm.llm_engine.engine_core.shutdown)
        return llm

    @cached_property
    def _cross_encoder(self) -> SentenceTransformers:
        return SentenceTransformers(self._model, "float32")

    @cached_property
    def _by_hand(self) -> ByHand:
        return ByHand(self._model, "float32")
