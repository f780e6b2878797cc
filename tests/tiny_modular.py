"""A tiny cross encoder with a head of modules, as sentence-transformers saves cross-encoder/ettin-reranker-*."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.base.modules.normalize import Normalize
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling

import tiny_families

SIZE = tiny_families.ENCODER["hidden_size"]


def save_encoder(folder: Path, kind: str = "ModernBert") -> Path:
    """A transformer without a head, and its tokenizer."""
    bert = kind == "Bert"
    tokenizer = (tiny_families.bert_like if bert else tiny_families.modernbert_like)()
    names = ["input_ids", "token_type_ids", "attention_mask"] if bert else ["input_ids", "attention_mask"]
    size = tiny_families.save_tokenizer(
        tokenizer,
        folder,
        "BertTokenizer" if bert else "PreTrainedTokenizerFast",
        pad_token="[PAD]",
        model_input_names=names,
    )
    pad = tokenizer.token_to_id("[PAD]")
    own = {} if bert else {"bos_token_id": 0, "eos_token_id": 0, "cls_token_id": 0, "sep_token_id": 0}
    fields = {**tiny_families.ENCODER, "vocab_size": size, "pad_token_id": pad, **own}
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**fields))
    return tiny_families.save_model(model, folder)


def save_modular(folder: Path, modules: Sequence[torch.nn.Module], kind: str = "ModernBert") -> Path:
    """Save a `CrossEncoder` of an encoder and these modules."""
    encoder = Transformer(str(save_encoder(folder.with_name(f"{folder.name}-encoder"), kind)))
    CrossEncoder(modules=[encoder, *modules], activation_fn=torch.nn.Identity()).save_pretrained(str(folder))
    return folder


def ettin(pooling: Any = "cls", **pooled: Any) -> list[torch.nn.Module]:
    """The modules of cross-encoder/ettin-reranker-17m-v1."""
    torch.manual_seed(1)
    width = SIZE if isinstance(pooling, str) else SIZE * len(pooling)
    norm = LayerNorm(SIZE)
    norm.norm.weight.data.normal_(1.0, 0.2)
    return [
        Pooling(SIZE, pooling_mode=pooling, **pooled),
        Dense(width, SIZE, bias=False, activation_function=torch.nn.GELU()),
        norm,
        Dense(SIZE, 1, activation_function=torch.nn.Identity(), module_output_name="scores"),
    ]


def others(pooling: Any) -> list[torch.nn.Module]:
    """Other modules that Winnow runs: a residual, a Dropout, a Normalize."""
    torch.manual_seed(2)
    return [
        Pooling(SIZE, pooling_mode=pooling),
        Dense(SIZE, 32, activation_function=torch.nn.Tanh(), use_residual=True),
        Dropout(0.5),
        Dense(32, 32, use_residual=True),
        Normalize(),
        Dense(32, 1, bias=False, activation_function=torch.nn.Identity(), module_output_name="scores"),
    ]
