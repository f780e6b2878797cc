"""Tiny random models of every family, of its real architecture and with a tokenizer of its kind, saved as published.

Two layers, 64 dimensions, and weights of a large scale, so that scores differ from one another. The tokenizers know the
real control tokens and have the families' labels as single tokens.
"""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

import tokenizer_kinds

LENGTH = 512
_SCALE = 0.08
DECODER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": LENGTH,
    "initializer_range": _SCALE,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
ENCODER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": LENGTH,
    "initializer_range": 0.2,
    "num_labels": 1,
}


# --- tokenizers -------------------------------------------------------------------------------------------------------


def with_words(tokenizer: Tokenizer, *words: str) -> Tokenizer:
    """The BPE tokenizer with each word as a single token, made by merging the pieces it is split into now.

    The vocabulary grows by them, and the added tokens move up, as if the tokenizer had been trained so.
    """
    for word in words:
        pieces = tokenizer.encode(word, add_special_tokens=False).tokens
        state = json.loads(tokenizer.to_str())
        vocabulary, merges = state["model"]["vocab"], state["model"]["merges"]
        whole, new = pieces[0], []
        for piece in pieces[1:]:
            merges.append([whole, piece])
            whole += piece
            new += [whole] if whole not in vocabulary else []
        moved = {}
        for token in state["added_tokens"]:
            if token["content"] not in vocabulary:
                moved[token["id"]] = token["id"] + len(new)
                token["id"] += len(new)
        for special in (state["post_processor"] or {}).get("special_tokens", {}).values():
            special["ids"] = [moved.get(index, index) for index in special["ids"]]
        vocabulary.update({piece: len(vocabulary) + at for at, piece in enumerate(new)})
        tokenizer = Tokenizer.from_str(json.dumps(state))
        assert len(tokenizer.encode(word, add_special_tokens=False).ids) == 1, word
    return tokenizer


def _byte_level(*added: str, first: tuple[str, ...] = (), words: str | None = None, nfc: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if words is not None:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(words), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=list(first),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tokenizer_kinds.corpus(), trainer)
    tokenizer.add_special_tokens(list(added))
    return tokenizer


@cache
def qwen_like() -> Tokenizer:
    """Byte-level BPE without BOS, its first token "!" as in Qwen's vocabulary, and with both "yes" and "Yes"."""
    vision = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = _byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>", *vision, words=PRETOKENIZE_REGEX)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>")])
    return with_words(tokenizer, "yes", "no", "Yes", "No")


def _pairs(tokenizer: Tokenizer, single: str, pair: str, names: tuple[str, ...]) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(name, tokenizer.token_to_id(name)) for name in names]
    )
    return tokenizer


def bert_like() -> Tokenizer:
    """WordPiece, lower case, with token types."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(tokenizer_kinds.corpus(), trainer)
    return _pairs(tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ("[CLS]", "[SEP]"))


def roberta_like() -> Tokenizer:
    """Byte-level BPE, two separators between the texts. "<pad>" is 1: positions are counted from there."""
    tokenizer = _byte_level(first=("<s>", "<pad>", "</s>", "<unk>", "<mask>"), nfc=False)
    return _pairs(tokenizer, "<s> $A </s>", "<s> $A </s> </s> $B </s>", ("<s>", "</s>"))


def modernbert_like() -> Tokenizer:
    """Byte-level BPE, one separator, no token types."""
    tokenizer = _byte_level("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
    return _pairs(tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ("[CLS]", "[SEP]"))


def deberta_like() -> Tokenizer:
    """Unigram with Metaspace words, in which blanks at the ends do not count, and with token types."""
    state = json.loads(tokenizer_kinds.xlm_roberta_like().to_str())
    names = {"<s>": "[CLS]", "<pad>": "[PAD]", "</s>": "[SEP]", "<unk>": "[UNK]", "<mask>": "[MASK]"}
    for token in state["added_tokens"]:
        token["content"] = names[token["content"]]
    state["model"]["vocab"] = [[names.get(piece, piece), score] for piece, score in state["model"]["vocab"]]
    state["post_processor"] = None
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.NFKC()])
    return _pairs(tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ("[CLS]", "[SEP]"))


def mistral_like() -> Tokenizer:
    """BPE over whole texts with BOS, its first token "<unk>"."""
    state = tokenizer_kinds.llama2_like().to_str()
    swapped = state.replace('"<unk>"', '"<?>"').replace('"<pad>"', '"<unk>"').replace('"<?>"', '"<pad>"')
    return Tokenizer.from_str(swapped)


def save_tokenizer(tokenizer: Tokenizer, folder: Path, tokenizer_class: str, **named: Any) -> int:
    """Save under the class that the published model names in its tokenizer_config.json."""
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LENGTH, **named)
    fast.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": tokenizer_class}))
    return int(tokenizer.get_vocab_size())


def published_tokenizer(folder: Path) -> transformers.PreTrainedTokenizerFast:
    """The tokenizer as published: tokenizer.json, as transformers 4 loaded it, and not what 5 makes of its class."""
    return PreTrainedTokenizerFast.from_pretrained(folder)


# --- models -----------------------------------------------------------------------------------------------------------


def save_model(model: torch.nn.Module, folder: Path, **config: Any) -> Path:
    """Save with biases and norms that are not all zero and one, and with changes of config.json."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            noise = torch.randn(parameter.shape, generator=generator) * _SCALE
            parameter.data.copy_(parameter.data + noise if "visual" not in name else parameter.data)
    model.to(torch.float32).save_pretrained(folder)
    return patch_config(folder, **config)


def patch_config(folder: Path, **changes: Any) -> Path:
    """Change fields of a saved config.json; None removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return folder


def _causal(
    kind: str, tokenizer: Callable[[], Tokenizer], tokenizer_class: str, **fields: Any
) -> Callable[[Path], Path]:
    named = {name: fields.pop(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token") if name in fields}

    def build(folder: Path) -> Path:
        size = save_tokenizer(tokenizer(), folder, tokenizer_class, **named)
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**{**DECODER, "vocab_size": size, **fields})
        return save_model(getattr(transformers, f"{kind}ForCausalLM")(config), folder)

    return build


def _encoder(
    kind: str, tokenizer: Callable[[], Tokenizer], tokenizer_class: str, **fields: Any
) -> Callable[[Path], Path]:
    named = {name: fields.pop(name) for name in ("pad_token", "model_input_names") if name in fields}
    changes = fields.pop("changes", {})

    def build(folder: Path) -> Path:
        made = tokenizer()
        size = save_tokenizer(made, folder, tokenizer_class, **named)
        torch.manual_seed(0)
        pad = made.token_to_id(named["pad_token"])
        config = getattr(transformers, f"{kind}Config")(
            **{**ENCODER, "vocab_size": size, "pad_token_id": pad, **fields}
        )
        return save_model(getattr(transformers, f"{kind}ForSequenceClassification")(config), folder, **changes)

    return build


def judge(folder: Path, kind: str = "Qwen3", **fields: Any) -> Path:
    """A random causal model whose labels are "Bad" and "Good"."""
    tokenizer = with_words(tokenizer_kinds.llama3_like(), "Good", "Bad")
    size = save_tokenizer(
        tokenizer, folder, "PreTrainedTokenizerFast", bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**DECODER, "vocab_size": size, **fields})
    return save_model(getattr(transformers, f"{kind}ForCausalLM")(config), folder)


def build_qwen3_seq_cls(folder: Path) -> Path:
    """As tomaarsen/Qwen3-Reranker-0.6B-seq-cls: the score head of a converted reranker."""
    size = save_tokenizer(qwen_like(), folder, "Qwen2Tokenizer", eos_token="<|im_end|>", pad_token="<|endoftext|>")
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**{**DECODER, "vocab_size": size, "num_labels": 1, "pad_token_id": 0})
    return save_model(transformers.Qwen3ForSequenceClassification(config), folder)


def build_nemotron(folder: Path) -> Path:
    """As nvidia/llama-nemotron-rerank-1b-v2: a Llama with a score head, whose config.json names code of its own."""
    size = save_tokenizer(
        tokenizer_kinds.llama3_like(),
        folder,
        "PreTrainedTokenizerFast",
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**DECODER, "vocab_size": size, "num_labels": 1, "pad_token_id": 0})
    return save_model(
        transformers.LlamaForSequenceClassification(config),
        folder,
        architectures=["LlamaBidirectionalForSequenceClassification"],
        model_type="llama_bidirec",
        pooling="avg",
        temperature=0.5,
        auto_map={
            "AutoConfig": "llama_bidirectional_model.LlamaBidirectionalConfig",
            "AutoModelForSequenceClassification": (
                "llama_bidirectional_model.LlamaBidirectionalForSequenceClassification"
            ),
        },
    )


def build_qwen3_vl(folder: Path) -> Path:
    """As Qwen/Qwen3-VL-Reranker-2B, with a tiny vision tower and its processor's settings."""
    tokenizer = qwen_like()
    size = save_tokenizer(tokenizer, folder, "Qwen2Tokenizer", eos_token="<|im_end|>", pad_token="<|endoftext|>")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 4, 4], "mrope_interleaved": True}
    config = transformers.Qwen3VLConfig(
        text_config={**DECODER, "vocab_size": size, "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 16,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
            "initializer_range": _SCALE,
        },
        **{
            f"{name}_token_id": tokenizer.token_to_id(f"<|{token}|>")
            for name, token in {
                "image": "image_pad",
                "video": "video_pad",
                "vision_start": "vision_start",
                "vision_end": "vision_end",
            }.items()
        },
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    save_model(transformers.Qwen3VLForConditionalGeneration(config), folder)
    shape = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    size_limits = {"shortest_edge": 4096, "longest_edge": 65536}
    normal = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "processor_class": "Qwen3VLProcessor"}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "Qwen2VLImageProcessorFast", "size": size_limits, **shape, **normal})
    )
    (folder / "video_preprocessor_config.json").write_text(
        json.dumps({"video_processor_type": "Qwen3VLVideoProcessor", "size": size_limits, **shape, **normal})
    )
    return folder


def build_gte_new(folder: Path) -> Path:
    """As Alibaba-NLP/gte-multilingual-reranker-base: transformers' Gte under the names its own code has for it."""
    size = save_tokenizer(tokenizer_kinds.xlm_roberta_like(), folder, "XLMRobertaTokenizer", pad_token="<pad>")
    torch.manual_seed(0)
    config = transformers.GteConfig(**{**ENCODER, "vocab_size": size, "pad_token_id": 1, "type_vocab_size": 1})
    save_model(
        transformers.GteForSequenceClassification(config),
        folder,
        architectures=["NewForSequenceClassification"],
        model_type="new",
        rope_parameters=None,
        rope_theta=20000,
        rope_scaling={"factor": 8.0, "type": "ntk"},
        auto_map={
            "AutoConfig": "configuration.NewConfig",
            "AutoModelForSequenceClassification": "modeling.NewForSequenceClassification",
        },
    )
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    published = {re.sub(r"^gte\.", "new.", name): weight for name, weight in weights.items()}
    safetensors.torch.save_file(published, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


_QWEN = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}

# Folder name, by which Winnow tells families that share an architecture apart, and what writes the model into it.
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "mxbai-rerank-base-v2": _causal(
        "Qwen2", qwen_like, "Qwen2Tokenizer", num_attention_heads=2, tie_word_embeddings=True, **_QWEN
    ),
    "bge-reranker-v2-gemma": _causal(
        "Gemma",
        lambda: with_words(tokenizer_kinds.gemma_like(), "Yes", "yes"),
        "GemmaTokenizer",
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        tie_word_embeddings=True,
    ),
    "zerank-2": _causal("Qwen3", qwen_like, "Qwen2Tokenizer", tie_word_embeddings=True, **_QWEN),
    "ctxl-rerank-v2-instruct-multilingual-1b": _causal(
        "Qwen3", qwen_like, "Qwen2Tokenizer", tie_word_embeddings=False, **_QWEN
    ),
    "ctxl-rerank-v2-instruct-multilingual-6b": _causal(
        "Mistral",
        mistral_like,
        "LlamaTokenizerFast",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        sliding_window=None,
    ),
    "judge": _causal(
        "Llama",
        lambda: with_words(tokenizer_kinds.llama3_like(), "Good", "Bad"),
        "LlamaTokenizerFast",  # as DeepSeek-R1-Distill-Llama, whose tokenizer is Llama 3's
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
    ),
    "qwen3-reranker-seq-cls": build_qwen3_seq_cls,
    "qwen3-vl-reranker-2b": build_qwen3_vl,
    "llama-nemotron-rerank-1b-v2": build_nemotron,
    "ms-marco-minilm-l6-v2": _encoder(
        "Bert",
        bert_like,
        "BertTokenizer",
        pad_token="[PAD]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        changes={"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
    ),
    "stsb-roberta-base": _encoder(
        "Roberta",
        roberta_like,
        "RobertaTokenizer",
        pad_token="<pad>",
        max_position_embeddings=LENGTH + 2,
        type_vocab_size=1,
    ),
    "bge-reranker-v2-m3": _encoder(
        "XLMRoberta",
        tokenizer_kinds.xlm_roberta_like,
        "XLMRobertaTokenizer",
        pad_token="<pad>",
        max_position_embeddings=LENGTH + 2,
        type_vocab_size=1,
    ),
    "gte-reranker-modernbert-base": _encoder(
        "ModernBert",
        modernbert_like,
        "PreTrainedTokenizerFast",
        pad_token="[PAD]",
        classifier_pooling="mean",
        bos_token_id=0,
        eos_token_id=0,
        cls_token_id=0,
        sep_token_id=0,
        global_attn_every_n_layers=2,
        local_attention=16,
    ),
    "gte-multilingual-reranker-base": build_gte_new,
    "mxbai-rerank-base-v1": _encoder(
        "DebertaV2",
        deberta_like,
        "DebertaV2Tokenizer",
        pad_token="[PAD]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        type_vocab_size=0,
        relative_attention=True,
        position_biased_input=False,
        pos_att_type=["p2c", "c2p"],
    ),
}


def sharded(folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """A Qwen3 reranker with an output embedding of its own, in several files."""
    FAMILIES["ctxl-rerank-v2-instruct-multilingual-1b"](folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    return folder
