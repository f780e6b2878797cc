"""Every family, in both engines: vLLM's logits are transformers' logits are what the model card's own code computes.

The judges below re-enact that code on tiny random models of the real architectures, without a line of Winnow: prompt,
tokenizer call and formula.
"""

import dataclasses
import importlib.util
import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import tiny_families
from tiny_families import published_tokenizer
from winnow import ModelRecipe, Ranking, Reranker
from winnow.engines.choose import create_engine
from winnow.engines.vllm.defaults import attention_for
from winnow.models.checkpoint import open_checkpoint

pytestmark = pytest.mark.slow

QUERY = "what is the capital of China?"
DOCUMENTS = [
    "Beijing is the capital of China.",
    "Bread rises in the oven because yeast makes gas.",
    "x",
    "naïve café 日本語 🙂 \n second line\twith a tab!",
    "The tide falls twice a day. " * 12,
    "Yes or no? 0 or 1?",
]
# A module tests/tiny_<family>.py may have a family's tiny models, and what computes their logits by hand.
MODULES = [importlib.import_module(path.stem) for path in sorted(Path(tiny_families.__file__).parent.glob("tiny_*.py"))]
FAMILIES = {name: make for module in MODULES for name, make in getattr(module, "FAMILIES", {}).items()}
MULTIMODAL = ("qwen3-vl-reranker-2b", "jina-reranker-m0")
JUDGE = ModelRecipe(family="judge", labels=("Bad", "Good"))
JUDGE_TEMPLATE = "Question: {{ query }}\nAnswer: {{ document }}\nVerdict: "
SETTINGS = {"judge": {"recipe": JUDGE, "template": JUDGE_TEMPLATE}}

Judge = Callable[[Path, str, str], float]


# --- the judges -------------------------------------------------------------------------------------------------------


def last_logits(folder: Path, ids: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0, -1]


def ids_of(tokenizer: transformers.PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def mxbai(folder: Path, query: str, document: str) -> float:
    """mixedbread-ai/mxbai-rerank, mxbai_rerank_v2.py: parts tokenised one by one, logit("1") − logit("0")."""
    tokenizer = published_tokenizer(folder)
    task = (
        "You are a search relevance expert who evaluates how well documents match search queries. For each "
        "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
        "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:"
    )
    system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    parts = [
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n",
        f"query: {query}",
        "\n",
        f"document: {document}",
        "\n",
        task,
        "<|im_end|>\n<|im_start|>assistant\n",
    ]
    logits = last_logits(folder, [index for part in parts for index in ids_of(tokenizer, part)])
    one, zero = (ids_of(tokenizer, label)[0] for label in "10")
    return (logits[one] - logits[zero]).item()


def bge_gemma(folder: Path, query: str, document: str) -> float:
    """BAAI/bge-reranker-v2-gemma, model card, get_inputs(): BOS, three parts, newlines between, logit("Yes")."""
    tokenizer = published_tokenizer(folder)
    prompt = (
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing "
        "a prediction of either 'Yes' or 'No'."
    )
    query_ids, document_ids, prompt_ids = (
        ids_of(tokenizer, text) for text in (f"A: {query}", f"B: {document}", prompt)
    )
    newline = ids_of(tokenizer, "\n")
    ids = [tokenizer.bos_token_id, *query_ids, *newline, *document_ids, *newline, *prompt_ids]
    return last_logits(folder, ids)[ids_of(tokenizer, "Yes")[0]].item()


def zerank(folder: Path, query: str, document: str) -> float:
    """zeroentropy/zerank-1, modeling_zeranker.py: Qwen3's chat template, logit("Yes") / 5."""
    tokenizer = published_tokenizer(folder)
    chat = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    messages = [{"role": "system", "content": query.strip()}, {"role": "user", "content": document.strip()}]
    chat += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    text = tokenizer.apply_chat_template(messages, chat_template=chat, tokenize=False, add_generation_prompt=True)
    yes = tokenizer.encode("Yes", add_special_tokens=False)[0]
    return last_logits(folder, tokenizer(text)["input_ids"])[yes].item() / 5.0


def ctxl(folder: Path, query: str, document: str) -> float:
    """ContextualAI/ctxl-rerank-v2-*, model card, infer_w_hf(): the logit of token 0."""
    text = (
        "Check whether a given document contains information helpful to answer the query.\n"
        f"<Document> {document}\n<Query> {query} ??"
    )
    return last_logits(folder, published_tokenizer(folder)(text)["input_ids"])[0].item()


def judge(folder: Path, query: str, document: str) -> float:
    tokenizer = published_tokenizer(folder)
    text = f"Question: {query}\nAnswer: {document}\nVerdict: "
    logits = last_logits(folder, tokenizer(text)["input_ids"])
    good, bad = tokenizer.convert_tokens_to_ids(["Good", "Bad"])
    return (logits[good] - logits[bad]).item()


def qwen3_seq_cls(folder: Path, query: str, document: str) -> float:
    """tomaarsen/Qwen3-Reranker-0.6B-seq-cls, model card: the original's prompt into a score head."""
    text = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
        f"<Query>: {query}\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    inputs = published_tokenizer(folder)(text, return_tensors="pt")
    with torch.inference_mode():
        return AutoModelForSequenceClassification.from_pretrained(folder).eval()(**inputs).logits.item()


def qwen3_vl(folder: Path, query: str, document: str) -> float:
    """Qwen/Qwen3-VL-Reranker, scripts/qwen3_vl_reranker.py: (w_yes − w_no) · last hidden state."""
    tokenizer = published_tokenizer(folder)
    model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    text = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        "<Instruct>: Given a search query, retrieve relevant candidates that answer the query."
        f"<Query>:{query}\n<Document>:{document}<|im_end|>\n<|im_start|>assistant\n"
    )
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    with torch.inference_mode():
        state = model.model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1]
        return torch.dot(model.lm_head.weight[yes] - model.lm_head.weight[no], state).item()


def nemotron(folder: Path, query: str, document: str) -> float:
    """nvidia/llama-nemotron-rerank-1b-v2: llama_bidirectional_model.py, pool() and forward()."""
    fields = json.loads((folder / "config.json").read_text())
    del fields["auto_map"]
    config = transformers.LlamaConfig.from_dict({**fields, "model_type": "llama"})
    model = transformers.LlamaForSequenceClassification.from_pretrained(
        folder, config=config, attn_implementation="eager", dtype=torch.float32
    ).eval()
    tokenizer = published_tokenizer(folder)
    ids = tokenizer(f"question:{query} \n \n passage:{document}", return_tensors="pt")["input_ids"]
    everywhere = torch.zeros(1, 1, ids.shape[1], ids.shape[1])  # nothing is masked: attention in both directions
    with torch.inference_mode():
        states = model.model(input_ids=ids, attention_mask=everywhere).last_hidden_state
        return (model.score(states.mean(1)) / fields["temperature"]).item()


def pair_encoding(folder: Path, query: str, document: str) -> float:
    """Model cards of BAAI/bge-reranker-v2-m3 and cross-encoder/ms-marco-MiniLM-L6-v2: tokenizer(query, document)."""
    inputs = published_tokenizer(folder)(query, document, return_tensors="pt")
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(**inputs).logits.item()


def gte_new(folder: Path, query: str, document: str) -> float:
    """Alibaba-NLP/new-impl, modeling.py: NTKScalingRotaryEmbedding, put into transformers' model by hand."""
    fields = json.loads((folder / "config.json").read_text())
    rope, theta, _ = (fields.pop(name) for name in ("rope_scaling", "rope_theta", "auto_map"))
    config = transformers.GteConfig.from_dict({**fields, "model_type": "gte"})
    model = transformers.GteForSequenceClassification.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    size = config.hidden_size // config.num_attention_heads
    base = theta * rope["factor"]
    frequencies = 1.0 / (base ** (torch.arange(0, size, 2).float() / size)) / rope["factor"] ** (2 / size)
    [rotary] = [module for name, module in model.named_modules() if name.endswith("rotary_emb")]
    rotary.inv_freq.copy_(frequencies)
    inputs = published_tokenizer(folder)(query, document, return_tensors="pt")
    with torch.inference_mode():
        return model(inputs["input_ids"], inputs["attention_mask"]).logits.item()


JUDGES: dict[str, Judge] = {
    "mxbai-rerank-base-v2": mxbai,
    "bge-reranker-v2-gemma": bge_gemma,
    "zerank-2": zerank,
    "ctxl-rerank-v2-instruct-multilingual-1b": ctxl,
    "ctxl-rerank-v2-instruct-multilingual-6b": ctxl,
    "judge": judge,
    "qwen3-reranker-seq-cls": qwen3_seq_cls,
    "qwen3-vl-reranker-2b": qwen3_vl,
    "llama-nemotron-rerank-1b-v2": nemotron,
    "ms-marco-minilm-l6-v2": pair_encoding,
    "stsb-roberta-base": pair_encoding,
    "bge-reranker-v2-m3": pair_encoding,
    "gte-reranker-modernbert-base": pair_encoding,
    "gte-multilingual-reranker-base": gte_new,
    "mxbai-rerank-base-v1": pair_encoding,
    **{name: judge for module in MODULES for name, judge in getattr(module, "JUDGES", {}).items()},
}


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of each family; its name is the family's."""
    if request.param == "jina-reranker-m0" and importlib.util.find_spec("torchvision") is None:
        pytest.skip("transformers saves its processor of videos only with torchvision")
    return FAMILIES[request.param](tmp_path_factory.mktemp("families") / request.param)


@pytest.fixture(scope="module", autouse=True)
def one_process_less() -> Iterator[None]:
    """VLLM's CPU build then runs the model in the engine's process: a third of the start-up time less."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        yield


def ranked(folder: Path, engine: str) -> Ranking:
    with Reranker(str(folder), engine=engine, **SETTINGS.get(folder.name, {})) as reranker:
        return reranker.rank(QUERY, DOCUMENTS)


def logits(ranking: Ranking) -> list[float]:
    return [hit.logit for hit in sorted(ranking, key=lambda hit: hit.index)]


def test_transformers_gives_what_the_model_card_computes(family: Path) -> None:
    ranking = ranked(family, "transformers")
    found = logits(ranking)
    assert found == pytest.approx([JUDGES[family.name](family, QUERY, text) for text in DOCUMENTS], abs=1e-4)
    assert max(found) - min(found) > 0.05  # the model tells the documents apart
    assert [hit.score for hit in ranking] == pytest.approx([1 / (1 + math.exp(-hit.logit)) for hit in ranking])


def test_vllm_gives_what_transformers_gives(family: Path) -> None:
    if family.name in MULTIMODAL and importlib.util.find_spec("torchvision") is None:
        pytest.skip("vLLM imports multimodal models only with torchvision: `make test` installs it, see tests/cpu")
    if family.name == "mxbai-rerank-base-v1":
        pytest.skip("vLLM has no DeBERTa")
    found, expected = (ranked(family, engine) for engine in ("vllm", "transformers"))
    assert logits(found) == pytest.approx(logits(expected), abs=1e-4)
    assert found.stats.prompt_tokens == expected.stats.prompt_tokens


def test_vllm_accepts_the_config_of_a_vision_model(tmp_path: Path) -> None:
    """Also where torchvision is absent: the settings for vLLM reach the places where it looks."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import Qwen3VLForSequenceClassificationConfig
    from vllm.transformers_utils.config import get_config

    folder = str(FAMILIES["qwen3-vl-reranker-2b"](tmp_path / "qwen3-vl-reranker-2b"))
    overrides = open_checkpoint(folder).recipe.vllm_overrides
    config = get_config(folder, trust_remote_code=False, hf_overrides_kw=overrides)
    config.update(overrides)
    Qwen3VLForSequenceClassificationConfig.verify_and_update_model_config(SimpleNamespace(hf_config=config))
    assert config.architectures == ["Qwen3VLForSequenceClassification"]
    assert config.get_text_config().classifier_from_token == ["no", "yes"]
    assert config.get_text_config().method == "from_2_way_softmax"
    assert "Qwen3VLForConditionalGeneration" in ModelRegistry.get_supported_archs()


def test_attention_on_older_gpus(caplog: pytest.LogCaptureFixture) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    with caplog.at_level(logging.INFO, logger="winnow"):
        assert attention_for((7, 5), {}) == {"attention_backend": "TRITON_ATTN"}
    assert "compute capability 7.5. FlashAttention needs 8.0" in caplog.text
    assert attention_for((7, 5), {"attention_backend": "FLEX_ATTENTION"}) == {}
    assert attention_for((9, 0), {}) == attention_for(None, {}) == {}
    assert "attention_backend" in {field.name for field in dataclasses.fields(AsyncEngineArgs)}


@pytest.mark.parametrize("name", [*MULTIMODAL, "mxbai-rerank-base-v1"])
def test_what_vllm_cannot_run_goes_to_transformers(name: str, tmp_path: Path) -> None:
    if name in MULTIMODAL and importlib.util.find_spec("torchvision") is not None:
        pytest.skip("torchvision is installed: vLLM runs it")
    folder = FAMILIES[name](tmp_path / name)
    assert create_engine(Reranker(str(folder))).name == "transformers"
