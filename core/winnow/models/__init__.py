"""What the files of a model say: recipe, template, tokenizer and limits. Weights are looked at, never loaded."""

from winnow.models.checkpoint import Checkpoint, open_checkpoint
from winnow.models.cross_encoder_head import HeadModule
from winnow.models.families import ModelRecipe, recipe_for
from winnow.models.folder import folder_of, folder_with_weights, read_config, read_tokenizer_config
from winnow.models.hub import uses_modelscope
from winnow.models.judged_token import is_causal_classifier
from winnow.models.label_logits import change_of_logits, check_labels_on_vllm, why_not_on_vllm
from winnow.models.named_files import refuse_links_out
from winnow.models.template_binding import bind_template, template_for
from winnow.models.tokenizer_files import read_tokenizer
from winnow.models.weights import (
    INDEX,
    check_files,
    check_folder,
    check_weights,
    faults_of,
    read_header,
    read_index,
    shapes_in,
    untied_without_head,
)

__all__ = [
    "INDEX",
    "Checkpoint",
    "HeadModule",
    "ModelRecipe",
    "bind_template",
    "change_of_logits",
    "check_files",
    "check_folder",
    "check_labels_on_vllm",
    "check_weights",
    "faults_of",
    "folder_of",
    "folder_with_weights",
    "is_causal_classifier",
    "open_checkpoint",
    "read_config",
    "read_header",
    "read_index",
    "read_tokenizer",
    "read_tokenizer_config",
    "recipe_for",
    "refuse_links_out",
    "shapes_in",
    "template_for",
    "untied_without_head",
    "uses_modelscope",
    "why_not_on_vllm",
]
