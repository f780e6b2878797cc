"""All families' tiny models, and their judges: what computes a model's logit by hand.

The judges re-enact the model cards' own code on tiny random models of the real architectures, without a line of Winnow:
prompt, tokenizer call and formula.
"""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tiny_families import published_tokenizer

# A module tests/tiny_<family>.py may have a family's tiny models, and what computes their logits by hand.
MODULES = [importlib.import_module(path.stem) for path in sorted(Path(__file__).parent.glob("tiny_*.py"))]
FAMILIES = {name: make for module in MODULES for name, make in getattr(module, "FAMILIES", {}).items()}

Judge = Callable[[Path, str, str], float]


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
