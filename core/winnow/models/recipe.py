"""What Winnow must know about a reranker to load, prompt and score it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from winnow.errors import ConfigurationError, EngineError
from winnow.plain import is_finite


def classifier_of(architecture: str) -> str:
    """The name of the classifier that vLLM and transformers make of a causal model; other names are returned as is."""
    return re.sub(r"For(CausalLM|ConditionalGeneration)$", "ForSequenceClassification", architecture)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe:
    """What Winnow must know about a reranker. All fields except `family` have defaults.

    Attributes:
        family: Name of the row; also accepted as `Reranker(recipe=...)`.
        architectures: Values of `architectures` in config.json that the family is published with. In a recipe of your
            own they may be left out: the model's are taken.
        names: Regular expression that a model's name or path matches, in lower case and with "-" for "_", for families
            that share an architecture. Empty if the architecture identifies the family.
        template: Name of the built-in template, or None for the tokenizer's pair encoding.
        labels: Tokens whose logits make the score: (negative, positive), or (positive,) alone; empty for a score head.
        positive_label: For a score head with two labels, the one that means relevant: its number, or its name in
            `id2label` of config.json. The logit is then this label's output minus the other's.
        shift: Number that is subtracted from the logit, as in the family's reference code.
        temperature: Number that then divides the logit.
        vllm_calibrates: Whether vLLM applies both for this architecture (vLLM, model_executor/models/config.py).
        vllm_query_first: Whether vLLM takes the query's image before the document's, although the prompt has it after
            (`JinaVLMultiModalProcessor` in vLLM's model_executor/models/jina_vl.py).
        last_token: Id of a token that the family's reference code puts after every prompt, if no text gives this token.
        vllm_architecture: vLLM's architecture for the score head, if it differs from that in config.json.
        config_class: The configuration class that `auto_map` in config.json names, if other families have the same
            architectures.
        local_code: Whether config.json needs the checkpoint's own code to be read. Winnow replaces that code
            (`winnow.engines.local_code`), so that `trust_remote_code` can stay off.
        max_length: Longest prompt that the family's reference code allows, in tokens; None for the model's own limit.
        pixels: Least and most pixels that the family's reference code resizes an image to; None for the sizes in the
            model's preprocessor_config.json.
    """

    family: str
    architectures: tuple[str, ...] = ()
    names: str = ""
    template: str | None = None
    labels: tuple[str, ...] = ()
    positive_label: int | str | None = None
    shift: float = 0.0
    temperature: float = 1.0
    vllm_calibrates: bool = False
    vllm_query_first: bool = False
    last_token: int | None = None
    vllm_architecture: str | None = None
    config_class: str | None = None
    local_code: bool = False
    max_length: int | None = None
    pixels: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("architectures", "labels", "pixels"):  # JSON has lists only
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        if len(self.labels) > 2 or len(set(self.labels)) < len(self.labels):
            raise ConfigurationError(
                f"labels of the recipe {self.family!r} must be (negative, positive), two different tokens, or "
                f"(positive,) alone, but got {self.labels!r}"
            )
        if self.labels and self.positive_label is not None:
            raise ConfigurationError(
                f"the recipe {self.family!r} has labels, which are tokens, and positive_label, which is one of a score "
                "head: give one of them"
            )
        if not (is_finite(self.temperature) and self.temperature > 0):
            raise ConfigurationError(
                f"temperature of the recipe {self.family!r} must be a finite number > 0, but got {self.temperature!r}"
            )
        if not is_finite(self.shift):
            raise ConfigurationError(
                f"shift of the recipe {self.family!r} must be a finite number, but got {self.shift!r}"
            )

    @property
    def formula(self) -> str:
        """The logit that engines return, in words. Scores are its sigmoid."""
        match self.labels:
            case (negative, positive):
                formula = f"logit[{positive!r}] − logit[{negative!r}]"
            case (positive,):
                formula = f"logit[{positive!r}]"
            case _ if self.positive_label is None:
                formula = "output of the score head"
            case _:
                formula = f"output {self.positive_label} − output {self._negative_label} of the score head"
        if self.shift:
            formula = f"{formula} − {self.shift:g}"
        if self.temperature != 1:
            formula = f"({formula}) / {self.temperature:g}"
        return formula

    @property
    def outputs(self) -> int:
        """How many numbers the score head returns."""
        return 1 if self.positive_label is None else 2

    @property
    def _negative_label(self) -> int:
        return 1 - int(self.positive_label or 0)

    def of_outputs(self, outputs: Sequence[float]) -> float:
        """The raw logit, from the numbers that the score head, or vLLM, returns for a prompt.

        Args:
            outputs: `self.outputs` numbers.

        Raises:
            EngineError: There are more or fewer.
        """
        if len(outputs) != self.outputs:
            raise EngineError(
                f"The model returned {len(outputs)} numbers for a prompt, and the recipe {self.family!r} expects "
                f"{self.outputs}."
            )
        if self.positive_label is None:
            return outputs[0]
        return outputs[int(self.positive_label)] - outputs[self._negative_label]

    def calibrated(self, raw: float) -> float:
        """The logit of `formula`, from the model's raw logit."""
        return (raw - self.shift) / self.temperature

    def calibrated_by_vllm(self, raw: float) -> float:
        """The logit of `formula`, from vLLM's logit."""
        return raw if self.vllm_calibrates else self.calibrated(raw)

    @property
    def vllm_overrides(self) -> dict[str, Any]:
        """`hf_overrides` that make vLLM load the model as a classifier (vLLM `models/adapters.py`)."""
        if not self.labels:
            return {"architectures": [self.vllm_architecture]} if self.vllm_architecture else {}
        overrides: dict[str, Any] = {
            "architectures": [classifier_of(name) for name in self.architectures],
            "classifier_from_token": list(self.labels),
            "method": "from_2_way_softmax" if len(self.labels) == 2 else "no_post_processing",
        }
        if self.family == "qwen3-vl-reranker":
            # vLLM then copies labels and method into text_config, where it looks for them in multimodal models.
            overrides["is_original_qwen3_reranker"] = True
        return overrides
