"""The two students of `train_demo_reranker.py`: a language model that says yes or no, and a cross encoder.

Each is a base model of `demo_model.py` with trainable LoRA layers in it, and reads the token ids that Winnow sends when
it ranks: its own prompt builder makes them. What is trained is written in PEFT's format.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import demo_model
import packed_prompts
from winnow.models import Checkpoint, bind_template, open_checkpoint
from winnow.prompts import Limits, Prompt, PromptBuilder, PromptLayout

ADAPTER = "adapter_model.safetensors"
GPU_TOKENS = 65536  # of a padded batch on a GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Where LoRA layers go, and how large they are. The names are those of PEFT's `LoraConfig`.

    Attributes:
        r: Rank.
        lora_alpha: The product of the two matrices is multiplied by `lora_alpha / r`.
        target_modules: Names of the linear layers.
        layers_to_transform: Numbers of the transformer's layers; None for all.
        modules_to_save: Modules that are trained and saved whole.
    """

    r: int
    lora_alpha: int
    target_modules: list[str]
    layers_to_transform: list[int] | None = None
    modules_to_save: list[str] = field(default_factory=list)

    def changes(self, module: str) -> bool:
        """Whether a module gets LoRA. Its name has the number of its layer."""
        layer = next((int(part) for part in module.split(".") if part.isdigit()), None)
        chosen = self.layers_to_transform is None or layer in self.layers_to_transform
        return chosen and module.endswith(tuple(f".{name}" for name in self.target_modules))


class LoraLinear(nn.Module):
    """A frozen linear layer plus the product of two small matrices, which are float32 and compute in its data type."""

    def __init__(self, layer: nn.Linear, lora: Lora):
        super().__init__()
        self.layer = layer
        self.lora_A = nn.Linear(layer.in_features, lora.r, bias=False)
        self.lora_B = nn.Linear(lora.r, layer.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))  # as PEFT does
        nn.init.zeros_(self.lora_B.weight)
        self.scale = lora.lora_alpha / lora.r

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Shapes (…, in features) to (…, out features)."""
        small = functional.linear(states, (self.lora_A.weight * self.scale).to(states.dtype))
        wide: torch.Tensor = self.layer(states) + functional.linear(small, self.lora_B.weight.to(states.dtype))
        return wide


class Student:
    """A base model with LoRA in it. Subclasses say how it scores prompts.

    Args:
        base: The base model's name on the Hugging Face Hub, for adapter_config.json.
        model: The base model.
        checkpoint: Its small files, as Winnow reads them.
        task: PEFT's name of the task.
        lora: Where LoRA goes.
    """

    def __init__(self, base: str, model: Any, checkpoint: Checkpoint, task: str, lora: Lora):
        self.base, self.model, self.checkpoint, self.task, self.lora = base, model, checkpoint, task, lora
        model.requires_grad_(False)
        model.config.use_cache = False
        for name, module in list(model.named_modules()):
            if name.endswith(tuple(lora.modules_to_save)):
                module.float().requires_grad_(True)
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))
            elif lora.changes(name):
                model.set_submodule(name, LoraLinear(module, lora))
        self.trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._builder = cache(self._new_builder)

    def to(self, device: torch.device) -> None:
        """Move the model; its trained weights stay the same objects."""
        self.model.to(device)

    def prompts(
        self, query: str, documents: Sequence[str], instruction: str | None, document_tokens: int | None
    ) -> list[Prompt]:
        """The prompts of one query, as Winnow would send them with `max_document_tokens=document_tokens`."""
        if self.checkpoint.template is None:
            instruction = None
        built = self._builder(document_tokens, instruction is not None).build(query, documents, instruction)
        return [one.prompts[0] for one in built]

    def _new_builder(self, document_tokens: int | None, with_instruction: bool) -> PromptBuilder:
        limits = Limits(max_length=self.checkpoint.max_length, max_document_tokens=document_tokens)
        segments = bind_template(self.checkpoint, None, None, with_instruction=with_instruction)
        return PromptBuilder(PromptLayout(self.checkpoint.tokenizer, segments, limits))

    def logits(self, groups: Sequence[Sequence[Prompt]]) -> list[torch.Tensor]:
        """The logits of the prompts of each group, float32; the prompts of a group have the same query."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write the adapter in PEFT's format, in bfloat16."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {f"base_model.model.{name}": weight.detach().bfloat16() for name, weight in self.trained.items()}
        write_whole(folder / ADAPTER, lambda file: save_file(weights, file, metadata={"format": "pt"}))
        config = {
            "peft_type": "LORA",
            "task_type": self.task,
            "base_model_name_or_path": self.base,
            "r": self.lora.r,
            "lora_alpha": self.lora.lora_alpha,
            "target_modules": self.lora.target_modules,
            "layers_to_transform": self.lora.layers_to_transform,
            "layers_pattern": None,
            "modules_to_save": self.lora.modules_to_save or None,
            "bias": "none",
            "lora_dropout": 0.0,
            "fan_in_fan_out": False,
            "inference_mode": True,
        }
        text = json.dumps(config, indent=2) + "\n"
        write_whole(folder / "adapter_config.json", lambda file: file.write_text(text, encoding="utf-8"))

    def load(self, folder: Path) -> None:
        """Take the weights of an adapter that `save` wrote."""
        saved = load_file(folder / ADAPTER)
        with torch.no_grad():
            for name, weight in self.trained.items():
                weight.copy_(saved[f"base_model.model.{name}"])


class LanguageModelStudent(Student):
    """SmolLM2 in the prompt of Qwen3-Reranker: the logit is that of "yes" minus that of "no".

    On a CPU the beginning that a group's prompts share goes through the model once (`packed_prompts`). On a GPU, which
    has arithmetic to spare, all prompts go in padded batches: that takes fewer and larger steps.
    """

    def __init__(
        self, folder: Path, dtype: torch.dtype = torch.bfloat16, *, for_gpu: bool = False, first_layer: int = 0
    ):
        self.for_gpu = for_gpu
        attention = "sdpa" if for_gpu else packed_prompts.NAME
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
        lora = Lora(
            r=16,
            lora_alpha=32,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            layers_to_transform=list(range(first_layer, model.config.num_hidden_layers)),
        )
        checkpoint = open_checkpoint(str(folder), recipe="qwen3-reranker")
        super().__init__(demo_model.LANGUAGE_MODEL, model.eval(), checkpoint, "CAUSAL_LM", lora)

    def logits(self, groups: Sequence[Sequence[Prompt]]) -> list[torch.Tensor]:
        """One forward for each group, or one for each padded batch."""
        no, yes = self.checkpoint.label_ids
        rows = self.model.lm_head.weight[[no, yes]].float()
        difference = rows[1] - rows[0]
        if self.for_gpu:
            return in_batches(groups, lambda prompts: self._last_states(prompts) @ difference, GPU_TOKENS)
        logits = []
        for prompts in groups:
            packing = packed_prompts.Packing([prompt.ids for prompt in prompts], self.model.device, self.model.dtype)
            body = self.model.model(
                input_ids=packing.ids[None], position_ids=packing.positions[None], packing=packing
            ).last_hidden_state[0]
            logits.append(body[packing.ends].float() @ difference)
        return logits

    def _last_states(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """The state of each prompt's last token. Padding stands after it, where a causal model does not look."""
        ids = padded([prompt.ids for prompt in prompts]).to(self.model.device)
        ends = torch.tensor([len(prompt.ids) - 1 for prompt in prompts], device=self.model.device)
        states: torch.Tensor = self.model.model(input_ids=ids).last_hidden_state
        return states[torch.arange(len(prompts), device=self.model.device), ends].float()


class CrossEncoderStudent(Student):
    """all-MiniLM-L6-v2 with a new head: the logit is its only output."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.bfloat16, *, for_gpu: bool = False):
        self.tokens = GPU_TOKENS if for_gpu else 2048
        # On a CPU "sdpa" takes twice as long backward in bfloat16.
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=dtype, num_labels=1, attn_implementation="sdpa" if for_gpu else "eager"
        )
        lora = Lora(
            r=32,
            lora_alpha=64,
            target_modules=["query", "key", "value", "intermediate.dense", "output.dense"],
            modules_to_save=["pooler", "classifier"],
        )
        checkpoint = open_checkpoint(
            str(folder),
            recipe="cross-encoder",
            hf_overrides={"architectures": ["BertForSequenceClassification"], "num_labels": 1},
        )
        super().__init__(demo_model.ENCODER, model.eval(), checkpoint, "SEQ_CLS", lora)

    def logits(self, groups: Sequence[Sequence[Prompt]]) -> list[torch.Tensor]:
        """One forward for each padded batch."""
        return in_batches(groups, self._batch, self.tokens)

    def _batch(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        ids = padded([prompt.ids for prompt in prompts])
        mask = padded([[1] * len(prompt.ids) for prompt in prompts])
        starts = [prompt.second_type_from or len(prompt.ids) for prompt in prompts]
        types = padded(
            [[int(at >= start) for at in range(len(one.ids))] for one, start in zip(prompts, starts, strict=True)]
        )
        device = self.model.device
        outputs = self.model(input_ids=ids.to(device), attention_mask=mask.to(device), token_type_ids=types.to(device))
        logits: torch.Tensor = outputs.logits[:, 0].float()
        return logits


def padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Rows of different lengths as a tensor of shape (rows, longest), filled up with zeros at the end."""
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def in_batches(
    groups: Sequence[Sequence[Prompt]], run: Callable[[Sequence[Prompt]], torch.Tensor], tokens: int
) -> list[torch.Tensor]:
    """The logits of each group. `run` gets prompts of similar length, about `tokens` tokens at a time."""
    prompts = [prompt for group in groups for prompt in group]
    order = sorted(range(len(prompts)), key=lambda at: -len(prompts[at].ids))
    found: dict[int, torch.Tensor] = {}
    while order:
        batch = order[: max(1, tokens // len(prompts[order[0]].ids))]
        order = order[len(batch) :]
        found |= zip(batch, run([prompts[at] for at in batch]), strict=True)
    logits = torch.stack([found[at] for at in range(len(prompts))])
    return list(logits.split([len(group) for group in groups]))


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name, and give it its own when it is whole: a reader never sees half of it."""
    unfinished = file.with_name(f"{file.name}.unfinished")
    write(unfinished)
    unfinished.replace(file)
