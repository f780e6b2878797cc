"""What the files of a model say: recipe, template, tokenizer and limits. Weights are looked at, never loaded."""

from winnow.models.adapters import is_classifier
from winnow.models.checkpoint import Checkpoint, open_checkpoint, whole_model, with_merged_weights
from winnow.models.cross_encoder_head import HeadModule
from winnow.models.families import ModelRecipe, recipe_for
from winnow.models.folder import folder_of, folder_with_weights, read_config, read_tokenizer_config
from winnow.models.hub import uses_modelscope
from winnow.models.judged_token import judges_last_token
from winnow.models.label_logits import change_of_logits, check_labels_on_vllm, why_not_on_vllm
from winnow.models.named_files import refuse_links_out
from winnow.models.new_folder import check_disk, whole_or_nothing, write_json
from winnow.models.shards import Shards, Tensor, find_shards, tensors_of, write_tensors
from winnow.models.template_binding import bind_template, template_for
from winnow.models.tokenizer_files import read_tokenizer
from winnow.models.weight_files import INDEX, read_index
from winnow.models.weights import check_files, check_weights, faults_of, untied_without_head

__all__ = [
    "INDEX",
    "Checkpoint",
    "HeadModule",
    "ModelRecipe",
    "Shards",
    "Tensor",
    "bind_template",
    "change_of_logits",
    "check_disk",
    "check_files",
    "check_labels_on_vllm",
    "check_weights",
    "faults_of",
    "find_shards",
    "folder_of",
    "folder_with_weights",
    "is_classifier",
    "judges_last_token",
    "open_checkpoint",
    "read_config",
    "read_index",
    "read_tokenizer",
    "read_tokenizer_config",
    "recipe_for",
    "refuse_links_out",
    "template_for",
    "tensors_of",
    "untied_without_head",
    "uses_modelscope",
    "whole_model",
    "whole_or_nothing",
    "why_not_on_vllm",
    "with_merged_weights",
    "write_json",
    "write_tensors",
]
