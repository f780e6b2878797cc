"""Adapters as peft makes them, trained as little as it takes to be different, and what peft makes of them."""

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from tiny_model import without_progress_bar

CAUSAL = transformers.AutoModelForCausalLM
CLASSIFIER = transformers.AutoModelForSequenceClassification


def train(base: Path | str, folder: Path, kind: Any = CAUSAL, *, tokens: int = 0, **settings: Any) -> Path:
    """Save an adapter of a base in `folder`. All that an optimiser would change is random.

    Args:
        base: The base's folder.
        folder: The adapter's.
        kind: The class of transformers that it is trained on.
        tokens: How many tokens are added to the vocabulary.
        settings: Of `peft.LoraConfig`.
    """
    task = "CAUSAL_LM" if kind is CAUSAL else "SEQ_CLS"
    options = {} if kind is CAUSAL else {"num_labels": 1}
    torch.manual_seed(3)
    with without_progress_bar(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of tied embeddings
        model = kind.from_pretrained(base, dtype=torch.float32, **options)
        if tokens:
            model.resize_token_embeddings(model.config.vocab_size + tokens)
        adapted = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": task, **settings}))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn_like(parameter) * 0.1
        adapted.save_pretrained(folder)
    return folder


def merged_by_peft(adapter: Path, base: Path | str, folder: Path, kind: Any = CAUSAL, *, tokens: int = 0) -> Path:
    """The whole model that peft makes of an adapter, with its base's tokenizer.

    A tied base is untied first, as peft advises, so that an embedding that the adapter leaves stays as it was.
    """
    options = {} if kind is CAUSAL else {"num_labels": 1}
    with without_progress_bar(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = kind.from_pretrained(base, dtype=torch.float32, **options)
        if tokens:
            model.resize_token_embeddings(model.config.vocab_size + tokens)
        keeps = json.loads((adapter / "adapter_config.json").read_text()).get("ensure_weight_tying")
        if kind is CAUSAL and model.config.tie_word_embeddings and not keeps:
            head = torch.nn.Linear(*model.lm_head.weight.shape[::-1], bias=False)
            head.weight.data = model.lm_head.weight.data.clone()
            model.set_output_embeddings(head)
            model.config.tie_word_embeddings = False
        whole: Any = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        whole.save_pretrained(folder)
    copy_small_files(base, folder)
    return folder


def unmerged(adapter: Path, base: Path | str) -> Any:
    """A causal model with its adapter beside its weights."""
    with without_progress_bar(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(CAUSAL.from_pretrained(base, dtype=torch.float32), str(adapter)).eval()


def copy_small_files(source: Path | str, folder: Path) -> None:
    """Copy the files that are in `source` alone, but for weights."""
    for file in Path(source).iterdir():
        if not (folder / file.name).exists() and ".safetensors" not in file.name:
            shutil.copy(file, folder)


def edit_config(folder: Path, changes: Mapping[str, Any]) -> Path:
    """Change fields of adapter_config.json."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(changes)))
    return folder
