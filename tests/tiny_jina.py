"""Tiny jina rerankers as published, and their judges: what the models' own code computes for a pair."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

import tokenizer_kinds
from tiny_families import DECODER, ENCODER, LENGTH, published_tokenizer, qwen_like, save_model, save_tokenizer
from winnow import Document

# --- jina-reranker-v2-base-multilingual -------------------------------------------------------------------------------

# XLM-RoBERTa's names and jina's: jinaai/xlm-roberta-flash-implementation, convert_roberta_weights_to_flash.py.
_FLASH_NAMES = {
    "embeddings.LayerNorm": "emb_ln",
    "attention.output.LayerNorm": "norm1",
    "attention.output.dense": "mixer.out_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "output.LayerNorm": "norm2",
    "encoder.layer.": "encoder.layers.",
}
_QUERY = "attention.self.query."


def build_v2(folder: Path) -> Path:
    """As jinaai/jina-reranker-v2-base-multilingual: XLM-RoBERTa with jina's names, and no `model_type`."""
    size = save_tokenizer(tokenizer_kinds.xlm_roberta_like(), folder, "XLMRobertaTokenizer", pad_token="<pad>")
    torch.manual_seed(0)
    fields = {"vocab_size": size, "pad_token_id": 1, "type_vocab_size": 1, "max_position_embeddings": LENGTH + 2}
    save_model(
        transformers.XLMRobertaForSequenceClassification(transformers.XLMRobertaConfig(**{**ENCODER, **fields})),
        folder,
        model_type=None,
        position_embedding_type="absolute",
        use_flash_attn=True,
        auto_map={
            "AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig",
            "AutoModelForSequenceClassification": "modeling_xlm_roberta.XLMRobertaForSequenceClassification",
        },
    )
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    published = {}
    for name, weight in weights.items():
        if _QUERY in name:
            parts = [weights[name.replace(_QUERY, f"attention.self.{part}.")] for part in ("query", "key", "value")]
            name, weight = name.replace(_QUERY, "mixer.Wqkv."), torch.cat(parts)
        elif "attention.self." in name:
            continue
        for theirs, jinas in _FLASH_NAMES.items():
            name = name.replace(theirs, jinas)
        published[name] = weight
    safetensors.torch.save_file(published, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def judge_v2(folder: Path, query: str, document: str) -> float:
    """modeling_xlm_roberta.py: XLM-RoBERTa, into which the weights are put by hand."""
    fields = json.loads((folder / "config.json").read_text())
    model = transformers.XLMRobertaForSequenceClassification(transformers.XLMRobertaConfig(**fields)).eval()
    state = {}
    for name, weight in safetensors.torch.load_file(folder / "model.safetensors").items():
        for theirs, jinas in reversed(_FLASH_NAMES.items()):
            name = name.replace(jinas, theirs)
        parts = dict(zip(("query", "key", "value"), weight.chunk(3), strict=True)) if "Wqkv" in name else {"": weight}
        state |= {name.replace("mixer.Wqkv", f"attention.self.{part}"): piece for part, piece in parts.items()}
    model.load_state_dict(state)
    inputs = published_tokenizer(folder)(query, document, return_tensors="pt")
    with torch.inference_mode():
        return model(inputs["input_ids"], inputs["attention_mask"]).logits.item()


# --- jina-reranker-m0 -------------------------------------------------------------------------------------------------

SCORE_TOKEN = 100
LOGIT_BIAS = 2.65
MIN_PIXELS, MAX_PIXELS = 3136, 602112
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


_QWEN = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def build_m0(folder: Path) -> Path:
    """As jinaai/jina-reranker-m0: Qwen2-VL with a head of two layers, its config flat and its weights' names old."""
    tokenizer = qwen_like()
    fields = {
        **DECODER,
        "num_attention_heads": 2,
        "vocab_size": save_tokenizer(tokenizer, folder, "Qwen2Tokenizer", **_QWEN),
    }
    size = fields["hidden_size"]
    tokens = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    ids = {f"{name}_token_id": tokenizer.token_to_id(f"<|{token}|>") for name, token in tokens.items()}
    rope = {"rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    vision = {"depth": 2, "embed_dim": 64, "num_heads": 2, "hidden_size": size, "initializer_range": 0.08}
    torch.manual_seed(0)
    model = transformers.Qwen2VLForConditionalGeneration(
        transformers.Qwen2VLConfig(
            text_config={**fields, "rope_parameters": {"rope_type": "default", **rope}},
            vision_config=vision,
            tie_word_embeddings=True,
            **ids,
        )
    )
    model.score = _head(size)
    model.score[2].weight.data *= 5  # so that scores differ from one another
    named = {f"{name}_token_id": tokenizer.token_to_id(_QWEN["eos_token"]) for name in ("bos", "eos")}
    flat = {**fields, **named, "rope_theta": rope["rope_theta"], "tie_word_embeddings": True}
    save_model(
        model,
        folder,
        **flat,
        architectures=["JinaVLForRanking"],
        auto_map={"AutoModel": "modeling.JinaVLForRanking"},
        rope_scaling={"type": "mrope", "mrope_section": rope["mrope_section"]},
        text_config=None,
        vision_config={**vision, "in_chans": 3, "model_type": "qwen2_vl", "spatial_patch_size": 14},
    )
    normal = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "Qwen2VLImageProcessor",
                "processor_class": "Qwen2VLProcessor",
                "min_pixels": 3136,
                "max_pixels": 12845056,
                "patch_size": 14,
                "temporal_patch_size": 2,
                "merge_size": 2,
                **normal,
            }
        )
    )
    return folder


def _head(size: int) -> torch.nn.Module:
    """modeling.py: `JinaVLForRanking.score`."""
    return torch.nn.Sequential(torch.nn.Linear(size, size), torch.nn.ReLU(), torch.nn.Linear(size, 1))


@cache
def _m0(folder: Path) -> tuple[Any, torch.nn.Module, torch.nn.Module]:
    config = transformers.AutoConfig.from_pretrained(folder)
    model, head = transformers.Qwen2VLModel(config).eval(), _head(config.text_config.hidden_size)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    head.load_state_dict({name.removeprefix("score."): weights.pop(name) for name in list(weights) if "score" in name})
    model.load_state_dict({re.sub(r"^model\.", "language_model.", name): weight for name, weight in weights.items()})
    size = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    return transformers.AutoProcessor.from_pretrained(folder, size=size), model, head


def inputs_m0(folder: Path, query: str | Document, document: str | Document) -> dict[str, torch.Tensor]:
    """modeling.py: formatting_prompts_func() and the beginning of compute_score().

    Images are Pillow's, and Pillow resizes them: so the processor did when the model came out. That of transformers 5
    resizes with torchvision, and then has nothing left to do.
    """
    images = []

    def content(side: str | Document) -> str | None:
        side = Document(side) if isinstance(side, str) else side
        if side.image is None:
            return side.text
        height, width = smart_resize(side.image.height, side.image.width, 28, MIN_PIXELS, MAX_PIXELS)
        images.append(side.image.resize((width, height), Image.Resampling.BICUBIC))
        return IMAGE

    prompt = f"**Document**:\n{content(document)}\n**Query**:\n{content(query)}"
    inputs = dict(_m0(folder)[0](text=[prompt], images=images or None, return_tensors="pt"))
    for name, value in {"input_ids": SCORE_TOKEN, "attention_mask": 1, "mm_token_type_ids": 0}.items():
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.tensor([[value]])], dim=1)
    return inputs


def judge_m0(folder: Path, query: str | Document, document: str | Document) -> float:
    """modeling.py: forward(), but for the sigmoid."""
    _, model, head = _m0(folder)
    with torch.inference_mode():
        state = model(**inputs_m0(folder, query, document)).last_hidden_state[0, -1]
        return head(state).item() - LOGIT_BIAS


FAMILIES = {"jina-reranker-v2-base-multilingual": build_v2, "jina-reranker-m0": build_m0}
JUDGES = {"jina-reranker-v2-base-multilingual": judge_v2, "jina-reranker-m0": judge_m0}
