"""Convert a causal reranker to a sequence-classification checkpoint with one label.

The labels' rows of the output embedding become a score head:

    logit[positive] − logit[negative] = (W[positive] − W[negative]) · h        (from_2_way_softmax)
    logit[positive]                   =  W[positive] · h                       (no_post_processing)

The names are those of vLLM's conversion at load time (`models/adapters.py`). The result needs no settings: it loads in
transformers' `AutoModelForSequenceClassification`, in sentence-transformers' `CrossEncoder`, in vLLM and in Winnow.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from winnow.convert.files import (
    settle_tokenizer,
    write_config,
    write_tokenizer,
    write_weights,
)
from winnow.convert.prompts import check_prompts, pad_token_for, write_templates
from winnow.convert.score_head import layout_of, score_head
from winnow.convert.verify import TOLERANCE, largest_difference
from winnow.engines import resolve
from winnow.errors import ConfigurationError, MissingExtraError, ModelError
from winnow.models import (
    Checkpoint,
    ModelRecipe,
    change_of_logits,
    check_disk,
    faults_of,
    find_shards,
    folder_of,
    folder_with_weights,
    is_classifier,
    open_checkpoint,
    read_config,
    recipe_for,
    refuse_links_out,
    template_for,
    whole_model,
    whole_or_nothing,
)
from winnow.ranking import RerankerConfig
from winnow.templates import TemplateLike

Method = Literal["from_2_way_softmax", "no_post_processing"]
METHODS: dict[str, int] = {"from_2_way_softmax": 2, "no_post_processing": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """The result of a conversion.

    Attributes:
        folder: The new checkpoint.
        formula: The formula of its logit.
        bytes: Size of its weights.
        difference: Largest difference of a logit from the original's, in float32; None if it was not verified.
    """

    folder: Path
    formula: str
    bytes: int
    difference: float | None = None


def convert(
    model: str | Path,
    out: str | Path,
    *,
    method: Method | None = None,
    labels: Sequence[str] | None = None,
    recipe: str | ModelRecipe | None = None,
    template: TemplateLike | None = None,
    revision: str | None = None,
    base_model: str | None = None,
    verify: bool = False,
    progress: bool = False,
) -> Conversion:
    """Write a causal reranker as a sequence-classification checkpoint with one label.

    The weights are copied file by file, a few megabytes at a time, in their own types. The score head is float32,
    because bfloat16 would round the difference of two bfloat16 rows. An adapter is merged into its base first; one that
    has a score head is written as it is then. `out` appears when it is complete, or not at all. `revision`,
    `base_model`, `hf_token` and `cache_dir` may come from the environment, as for a `Reranker` (docs/settings.md).

    Args:
        model: A local folder, or the name of a repository on the Hugging Face Hub.
        out: The folder to write. It must be empty or not exist.
        method: "from_2_way_softmax" takes two labels, "no_post_processing" one; by default the labels decide.
        labels: (negative, positive) or (positive,), each one token; by default the recipe's.
        recipe: A recipe or the name of a family, if the model's name does not identify the family.
        template: The score template that is saved with it; by default the model's own, else its family's.
        revision: Branch, tag or commit on the Hub.
        base_model: The base of an adapter, if it is not the one that the adapter names.
        verify: Score a few pairs with both models in float32, and write nothing if a logit differs by more than
            `TOLERANCE`.
        progress: Show a progress bar on stderr if it takes longer than a second.

    Raises:
        ConfigurationError: `out` is in use, the disk is full, or method and labels do not go together.
        ModelError: The model is not a causal model, a label is not one token, a file is missing or damaged, or the
            converted model gives other scores.
        TemplateError: The model has no score template.
        MissingExtraError: PyTorch is not installed.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("torch", "transformers") from error
    model, out = str(model), Path(out).expanduser().absolute()
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigurationError(f"{out} already exists. Remove it, or name another folder.")
    named = model
    config = RerankerConfig(
        model=model, base_model=base_model, engine="transformers", engine_kwargs={"revision": revision}
    )
    settings = resolve(config).of_checkpoint()
    hub = {name: settings[name] for name in ("revision", "token", "cache_dir")}
    model = whole_model(model, base_model=settings["base_model"], **hub)
    if model != named and is_classifier(read_config(Path(model), named)):
        return _copy(model, out, recipe, verify)
    checkpoint = _open(model, recipe, labels, method, hub)
    score_template = template_for(checkpoint, template)
    if score_template is None:
        raise ModelError(f"{model} has no labels: it is not a causal model that a score head can be made of.")
    folder = folder_with_weights(model, **hub)
    refuse_links_out(folder, model)
    shards = find_shards(folder, model)
    if faults := faults_of(checkpoint):
        raise ModelError("\n".join(faults))
    check_disk(out, shards.bytes)
    layout = layout_of(shards, model)
    head = score_head(shards, layout, checkpoint)
    difference = None
    with whole_or_nothing(out) as part:
        pad = pad_token_for(checkpoint, score_template)
        write_tokenizer(shards.folder, part, pad)
        write_config(part, checkpoint, layout, checkpoint.tokenizer.token_id(pad))
        settle_tokenizer(part, model)
        write_templates(part, checkpoint, score_template)
        size = write_weights(part, shards, layout, head, progress)
        check_prompts(part, checkpoint, score_template)
        if verify:
            difference = largest_difference(str(shards.folder), str(part), checkpoint, score_template)
            if not difference <= TOLERANCE:
                raise ModelError(
                    f"The converted model gives other scores than {model}: a logit differs by {difference:.2g}, and "
                    f"{TOLERANCE:g} is allowed. Nothing was written. Does {model} change its logits after the output "
                    "embedding?"
                )
    return Conversion(folder=out, formula=checkpoint.recipe.formula, bytes=size, difference=difference)


def _copy(model: str, out: Path, recipe: str | ModelRecipe | None, verify: bool) -> Conversion:
    """Copy a merged adapter that has a score head."""
    folder = Path(model)
    checkpoint = open_checkpoint(model, recipe=recipe)
    files = [file for file in folder.rglob("*") if file.is_file()]
    check_disk(out, sum(file.stat().st_size for file in files))
    difference = None
    with whole_or_nothing(out) as part:
        for file in files:
            target = part / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        if verify:
            difference = largest_difference(model, str(part), checkpoint, template_for(checkpoint, None))
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    return Conversion(folder=out, formula=checkpoint.recipe.formula, bytes=size, difference=difference)


def _open(
    model: str,
    recipe: str | ModelRecipe | None,
    labels: Sequence[str] | None,
    method: str | None,
    hub: Mapping[str, Any],
) -> Checkpoint:
    """The checkpoint, with the recipe that the arguments describe.

    Raises:
        ConfigurationError: Method, labels and recipe do not go together.
        ModelError: The model cannot be converted.
    """
    if method is not None and method not in METHODS:
        raise ConfigurationError(f"method must be one of {', '.join(METHODS)}, but got {method!r}.")
    folder = folder_of(model, **hub)
    config = read_config(folder, model)
    architecture = next(iter(config.get("architectures") or ()), "model without architectures in config.json")
    if architecture.endswith("ForSequenceClassification"):
        raise ModelError(
            f"{model} is a {architecture}: it has a score head already. transformers, sentence-transformers, vLLM and "
            "Winnow load it as it is."
        )
    if not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise ModelError(
            f"{model} is a {architecture}. Only causal language models (…ForCausalLM) can be converted; Winnow scores "
            "the others as they are."
        )
    if (quantization := config.get("quantization_config")) is not None:
        raise ModelError(
            f"{model} is quantised ({quantization.get('quant_method')}), and a score head is not. "
            "Convert the original, then quantise the result; or score it as it is."
        )
    if (change := change_of_logits(config)) is not None:
        raise ModelError(
            f"{model} changes its logits after the output embedding ({change}), which a score head cannot do. Score it "
            "as it is."
        )
    if labels:
        recipe = replace(_row(model, config, recipe), labels=tuple(labels))
    checkpoint = open_checkpoint(model, recipe=recipe, **hub)
    found = checkpoint.recipe
    if method is not None and len(found.labels) != METHODS[method]:
        wanted = "two labels, negative and positive" if METHODS[method] == 2 else "one label, the positive one"
        raise ConfigurationError(f"{method} takes {wanted}, but got {found.labels}. Name them with labels.")
    if found.shift:
        raise ConfigurationError(f"{found.formula} cannot be a score head, which has no bias: set shift=0.")
    return checkpoint


def _row(model: str, config: Mapping[str, Any], recipe: str | ModelRecipe | None) -> ModelRecipe:
    """The recipe of a model whose labels are given: its family's, or that of a user's own judge."""
    try:
        return recipe_for(model, config, recipe)
    except ModelError:
        return ModelRecipe(family="judge", architectures=tuple(config["architectures"]))
