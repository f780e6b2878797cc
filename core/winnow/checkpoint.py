"""A model's small files (config, tokenizer, templates), read once; never its weights."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.errors import ModelError, TemplateError
from winnow.recipes import ModelRecipe, recipe_for
from winnow.templates import Content, ScoreTemplate, Segment, TemplateLike, built_in, find_in_model_folder, from_user
from winnow.tokenization import PromptTokenizer

logger = logging.getLogger(__name__)

_SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.py"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What Winnow needs of a model before any weight is loaded.

    Attributes:
        model: Name or path as the user gave it; engines load their weights from it.
        config: The contents of config.json.
        recipe: How the model is loaded, prompted and scored.
        tokenizer: The model's tokenizer, safe for contents.
        template: The template that the model brings or that its family has; None for the tokenizer's pair encoding.
        max_length: Most tokens of a prompt: the model's own limit, or less if the family's reference code says so.
    """

    model: str
    config: Mapping[str, Any]
    recipe: ModelRecipe
    tokenizer: PromptTokenizer
    template: ScoreTemplate | None
    max_length: int

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
) -> Checkpoint:
    """Read a model's small files from a folder or the Hugging Face Hub.

    Args:
        model: A local folder, or the name of a repository on the Hub.
        recipe: A recipe or the name of a family, for models whose name does not tell.
        hf_overrides: Values that replace those of config.json, as for vLLM.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Whether the tokenizer may run code from the repository.

    Raises:
        ModelError: The model is not found, is no reranker, or a file is missing or damaged. The message says which.
    """
    folder = _folder_of(model, revision)
    config = {**_read_json(folder / "config.json", model), **(hf_overrides or {})}
    found = recipe_for(str(model), config, recipe)
    tokenizer, own_limit = _load_tokenizer(folder, model, trust_remote_code)
    template = find_in_model_folder(folder, config, tokenizer.special_tokens)
    if template is None and found.template is not None:
        template = built_in(found.template)
    limits = [own_limit, _positions(config), found.max_length]
    max_length = min((limit for limit in limits if limit is not None), default=512)
    checkpoint = Checkpoint(
        model=model, config=config, recipe=found, tokenizer=tokenizer, template=template, max_length=max_length
    )
    _ = checkpoint.label_ids  # a wrong label is an error now, not a wrong score later
    return checkpoint


def bind_template(
    checkpoint: Checkpoint,
    template: TemplateLike | None,
    template_kwargs: Mapping[str, Any] | None,
    *,
    with_instruction: bool,
) -> tuple[Segment, ...] | None:
    """Bind the user's template, or else the model's, to a model: render it, check it, and say what it drops.

    Args:
        checkpoint: The model.
        template: What the user gave.
        template_kwargs: Variables that the user gave.
        with_instruction: Whether there is an instruction.

    Returns:
        The prompt's segments, or None for a model that takes the tokenizer's pair encoding.

    Raises:
        TemplateError: There is none where the model needs one, or it is wrong.
    """
    chosen = from_user(template) if template is not None else checkpoint.template
    if chosen is None:
        if checkpoint.recipe.labels:
            raise TemplateError(
                f"{checkpoint.model} is a causal language model ({checkpoint.recipe.family}) and no score template was "
                "found for it: not in the call, "
                "not in the reranker, no score_template in its config, no score_template.jinja or chat template for "
                "query and "
                "document in its folder, none built in for its family. Pass template=..."
            )
        if with_instruction:
            logger.warning(
                "%s takes no instruction: its prompt is the pair of query and document. It is ignored.",
                checkpoint.model,
            )
        return None
    segments = chosen.segments(
        with_instruction=with_instruction,
        template_kwargs=template_kwargs,
        special_tokens=checkpoint.tokenizer.special_tokens,
    )
    if with_instruction and not any(isinstance(part, Content) and part.field == "instruction" for part in segments):
        logger.warning("The template from %s takes no instruction: it is ignored.", chosen.origin)
    if chosen.drops_final_newline:
        logger.warning(
            "The template from %s ends with a newline, which Jinja does not render. If the prompt needs it, end the "
            'file with {{ "\\n" }}.',
            chosen.origin,
        )
    return segments


def _folder_of(model: str, revision: str | None) -> Path:
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ModelError(f"The model folder {model} does not exist.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=_SMALL_FILES))
    except HFValidationError as error:
        raise ModelError(f"{model!r} is neither a folder nor a name on the Hugging Face Hub: {error}") from error
    except (RepositoryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{model!r} is not a local folder, and the Hugging Face Hub did not give it ({type(error).__name__}). "
            "Check the spelling; a gated "
            "or private model needs HF_TOKEN; without a network, give the path of a folder."
        ) from error


def _read_json(path: Path, model: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{model} has no {path.name} ({path}): it is not a model folder, or the download is incomplete."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} of {model} is damaged: {error}. Download it again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} of {model} is damaged: it should hold a JSON object. Download it again.")
    return content


def _load_tokenizer(folder: Path, model: str, trust_remote_code: bool) -> tuple[PromptTokenizer, int | None]:
    """The tokenizer as transformers loads it, which every reference implementation uses, and its length limit."""
    if not any(
        (folder / name).is_file()
        for name in ("tokenizer.json", "tokenizer.model", "vocab.txt", "spiece.model", "vocab.json")
    ):
        raise ModelError(
            f"{model} has no tokenizer: there is no tokenizer.json in {folder}. Save the tokenizer beside the model."
        )
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        backend = loaded.backend_tokenizer
    except Exception as error:  # transformers raises whatever its parsers raise
        raise ModelError(
            f"The tokenizer of {model} cannot be read from {folder}: {type(error).__name__}: {error}"
        ) from error
    special = {name: str(token) for name, token in loaded.special_tokens_map.items() if isinstance(token, str)}
    limit = loaded.model_max_length
    typed = "token_type_ids" in loaded.model_input_names
    return PromptTokenizer(backend, special, token_types=typed), limit if limit < 10**9 else None


def _positions(config: Mapping[str, Any]) -> int | None:
    """Most positions of the model; RoBERTa-like models lose the two before the first."""
    text = config.get("text_config") or config
    positions = text.get("max_position_embeddings")
    if positions and config.get("model_type") in ("roberta", "xlm-roberta", "camembert"):
        return int(positions) - 2
    return int(positions) if positions else None
