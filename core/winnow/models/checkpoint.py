"""A model's small files (config, tokenizer, templates), read once; never its weights."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from winnow.errors import ModelError
from winnow.locks import import_lock
from winnow.media import Vision
from winnow.models.adapters import Adapter, find_adapter
from winnow.models.cross_encoder_head import HeadModule, read_head
from winnow.models.families import ModelRecipe, recipe_for
from winnow.models.folder import CrossEncoderFiles, folder_of, read_config, read_cross_encoder_files, read_modules
from winnow.models.json_fields import check_config
from winnow.models.judged_token import padding_of, pooling_of
from winnow.models.overrides import completed, merged, misspelt, overridden
from winnow.models.positions import positions_of, sentence_length
from winnow.models.template_search import find_template
from winnow.models.tokenizer_files import load_tokenizer
from winnow.models.vision_config import vision_of
from winnow.templates import ScoreTemplate, from_user
from winnow.tokenizer import PromptTokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What Winnow needs to know about a model before any weight is loaded.

    Attributes:
        model: Name or path as the user gave it; engines load their weights from it.
        folder: Where its small files are. For a local model, and in the Hub's cache, its weights are there, too.
        config: The contents of config.json, changed by `hf_overrides`.
        recipe: How the model is loaded, prompted and scored.
        tokenizer: The model's tokenizer; in queries and documents it encodes control tokens as text.
        template: The model's own template, or its family's; None for the tokenizer's pair encoding.
        max_length: Most tokens of a prompt: the model's own limit, or less if the family's reference code says so.
        longest: Most tokens that a prompt may ever have, by the model's positions, its tokenizer's `model_max_length`
            and sentence-transformers' `max_seq_length`, as in vLLM (`_get_and_verify_max_len` in
            vllm/config/model.py); None if none is set.
        vision: How the model takes images and videos; None for a text model.
        head: The modules that sentence-transformers put after the transformer, if they are the score head.
        pooling: The pooling that vLLM must be told, because modules.json is an embedder's (`pooling_of`).
        adapter: The adapter that the model is, with its base; None for a whole model. Its weights are not there before
            `with_merged_weights`.
        user_overrides: The user's `hf_overrides`, completed (`winnow.models.overrides`); they are in `config`, too.
    """

    model: str
    folder: Path
    config: Mapping[str, Any]
    recipe: ModelRecipe
    tokenizer: PromptTokenizer
    template: ScoreTemplate | None
    max_length: int
    longest: int | None = None
    vision: Vision | None = None
    head: tuple[HeadModule, ...] = ()
    pooling: Literal["CLS", "LAST"] | None = None
    adapter: Adapter | None = None
    user_overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def quantized(self) -> bool:
        """Whether the weights are saved in a quantised form, as config.json says."""
        return any(part.get("quantization_config") for part in (self.config, self.config.get("text_config") or {}))

    def check_runs_on_vllm(self) -> None:
        """Refuse what only transformers runs.

        Raises:
            ModelError: The score head is made of modules of sentence-transformers.
        """
        if self.head:
            raise ModelError(
                f"The score head of {self.model} is made of modules of sentence-transformers "
                f"({', '.join(module.kind for module in self.head)}), which vLLM does not run. "
                'Use engine="transformers".'
            )

    @property
    def vllm_overrides(self) -> dict[str, Any]:
        """`hf_overrides` that make vLLM load the model: the recipe's, fields that vLLM does not find, the user's."""
        overrides = self.recipe.vllm_overrides
        if (
            self.vision is not None
            and overrides
            and "tie_word_embeddings" not in (self.config.get("text_config") or {})
        ):
            # vLLM looks for it there, but transformers 5 writes it beside text_config only.
            overrides["text_config"] = {"tie_word_embeddings": bool(self.config.get("tie_word_embeddings"))}
        return merged(overrides, self.user_overrides)

    @property
    def label_ids(self) -> tuple[int, ...]:
        """Token ids of the recipe's labels.

        Raises:
            ModelError: A label is not one token of this model, or two labels are the same token.
        """
        ids = []
        for label in self.recipe.labels:
            index = self.tokenizer.token_id(label)
            if index is None:
                pieces = [self.tokenizer.decode([piece]) for piece in self.tokenizer.encode(label)]
                raise ModelError(
                    f"The label {label!r} of the recipe {self.recipe.family!r} is not one token of {self.model} (it is "
                    f"split into {pieces}). "
                    "Check that the tokenizer belongs to the model, or give a recipe with other labels."
                )
            ids.append(index)
        if len(set(ids)) < len(ids):
            raise ModelError(
                f"The labels {self.recipe.labels} of the recipe {self.recipe.family!r} are the same token of "
                f"{self.model}."
            )
        return tuple(ids)


def open_checkpoint(
    model: str,
    *,
    recipe: str | ModelRecipe | None = None,
    hf_overrides: Mapping[str, Any] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    token: str | None = None,
    mm_processor_kwargs: Mapping[str, Any] | None = None,
    cache_dir: str | None = None,
    base_model: str | None = None,
) -> Checkpoint:
    """Read a model's small files from a folder or the Hugging Face Hub; an adapter's, with its base's.

    Args:
        model: A local folder, or the name of a repository on the Hub.
        recipe: A recipe or the name of a family, for models whose name does not identify the family.
        hf_overrides: Values that replace those of config.json, as for vLLM.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Whether the tokenizer may run code from the repository.
        token: Access token of the Hub, for private and gated models; by default the environment's HF_TOKEN.
        mm_processor_kwargs: `min_pixels` and `max_pixels`, between which images are resized, instead of the family's.
        cache_dir: Folder for files from the Hub; None for the environment's.
        base_model: Name or path of an adapter's base, instead of the one that it names.

    Raises:
        ModelError: The model is not found or is not a reranker, or a file is missing or damaged. The message says
            which. Or it is an adapter that Winnow does not merge.
        TemplateError: Its `score_template` cannot be read, or its chat template exceeds the limits for templates that
            come with a model.
    """
    folder = folder_of(model, revision, token, cache_dir)
    adapter = find_adapter(folder, model, base_model=base_model, revision=revision, token=token, cache_dir=cache_dir)
    if adapter is not None:
        folder = adapter.small_files()
    cross_encoder = read_cross_encoder_files(folder)
    with import_lock:
        checkpoint = _without_template(
            folder, model, cross_encoder, recipe, hf_overrides, trust_remote_code, mm_processor_kwargs
        )
    # Outside the lock: other models must not wait while this model's own template is rendered.
    template = find_template(
        folder,
        read_config(folder, model),
        hf_overrides=hf_overrides,
        special_tokens=checkpoint.tokenizer.special_tokens,
        cross_encoder=cross_encoder,
    )
    if template is None and checkpoint.recipe.template is not None:
        template = from_user(checkpoint.recipe.template, "template of the recipe")
    if cross_encoder is not None and cross_encoder.prompt is not None:
        if template is not None:
            template = replace(template, instruction=cross_encoder.prompt)
        else:
            logger.warning(
                "sentence-transformers puts the prompt %r before each query of %s. Winnow does not: put it there.",
                cross_encoder.prompt,
                model,
            )
    return replace(checkpoint, template=template, adapter=adapter)


def with_merged_weights(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint of the model that an adapter and its base make; a whole model's as it is.

    They are merged now unless they were before.

    Raises:
        ModelError: The adapter does not fit its base, or a file is missing or damaged.
        ConfigurationError: The merged model cannot be written.
    """
    if checkpoint.adapter is None:
        return checkpoint
    folder = checkpoint.adapter.merged()
    return replace(checkpoint, model=str(folder), folder=folder)


def whole_model(
    model: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | None = None,
    base_model: str | None = None,
) -> str:
    """The folder of the model that an adapter and its base make, merged now unless they were before; else `model`.

    Args:
        model: A local folder, or the name of a repository on the Hub.
        revision: Branch, tag or commit on the Hub.
        token: As for `open_checkpoint`.
        cache_dir: Likewise.
        base_model: Likewise.

    Raises:
        ModelError: As for `open_checkpoint` and `with_merged_weights`.
        ConfigurationError: The merged model cannot be written.
    """
    folder = folder_of(model, revision, token, cache_dir)
    adapter = find_adapter(folder, model, base_model=base_model, revision=revision, token=token, cache_dir=cache_dir)
    return model if adapter is None else str(adapter.merged())


def _without_template(
    folder: Path,
    model: str,
    cross_encoder: CrossEncoderFiles | None,
    recipe: str | ModelRecipe | None,
    hf_overrides: Mapping[str, Any] | None,
    trust_remote_code: bool,
    mm_processor_kwargs: Mapping[str, Any] | None,
) -> Checkpoint:
    own_config = read_config(folder, model)
    overrides = completed(own_config, hf_overrides or {})
    config = overridden(own_config, overrides)
    check_config(config, f"config.json of {model}, with hf_overrides in it")
    modules = read_modules(folder, model)  # engines read what they name, whoever wrote them
    for name, near in misspelt(own_config, hf_overrides or {}):
        logger.warning(
            "%r in hf_overrides is no known field of the config of %s, and may change nothing: did you mean %r?",
            name,
            model,
            near,
        )
    head = () if cross_encoder is None else read_head(folder, model)
    try:
        found = recipe_for(str(model), config, recipe, module_scores=head[-1].scores if head else None)
        tokenizer, own_limit = load_tokenizer(folder, model, trust_remote_code, found.last_token)
    except ModelError:
        if cross_encoder is None or not cross_encoder.label_ids:
            raise
        tokenizer, own_limit = load_tokenizer(folder, model, trust_remote_code)
        found = _recipe_of(cross_encoder, config, tokenizer)
    tokenizer.padding = padding_of(config, found)
    limits = (own_limit, positions_of(config, folder), sentence_length(folder, model))
    longest = min((limit for limit in limits if limit is not None), default=None)
    max_length = min((limit for limit in (longest, found.max_length) if limit is not None), default=512)
    checkpoint = Checkpoint(
        model=model,
        folder=folder,
        config=config,
        recipe=found,
        tokenizer=tokenizer,
        template=None,
        max_length=max_length,
        longest=longest,
        vision=vision_of(folder, model, config, found, tokenizer, mm_processor_kwargs),
        head=head,
        pooling=None if head else pooling_of(found, modules),
        user_overrides=overrides,
    )
    if mm_processor_kwargs and checkpoint.vision is None:
        logger.warning("mm_processor_kwargs changes nothing: %s takes no images.", model)
    labels = checkpoint.label_ids  # raises now if a label is wrong; otherwise scores would be wrong
    if cross_encoder is not None and labels and cross_encoder.label_ids not in ((), labels):
        logger.warning(
            "The recipe %r scores the tokens %s, but sentence-transformers saved this model with the tokens %s. If the "
            "model was trained with other labels, pass recipe=ModelRecipe(...).",
            found.family,
            labels,
            cross_encoder.label_ids,
        )
    return checkpoint


def _recipe_of(files: CrossEncoderFiles, config: Mapping[str, Any], tokenizer: PromptTokenizer) -> ModelRecipe:
    """The recipe of a causal model that sentence-transformers saved with a `LogitScore`, which has the labels' ids."""
    labels = tuple(tokenizer.token(index) for index in files.label_ids)
    return ModelRecipe(
        family="sentence-transformers", architectures=tuple(config.get("architectures") or ()), labels=labels
    )
