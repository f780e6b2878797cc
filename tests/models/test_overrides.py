"""`hf_overrides` over config.json: what is named changes, and nothing else."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tiny_families import FAMILIES
from winnow.engines.server.engine import serve_command
from winnow.models.checkpoint import open_checkpoint
from winnow.models.overrides import completed, merged, misspelt, overridden


def test_mappings_are_merged_at_any_depth() -> None:
    own = {"a": 1, "b": {"c": 2, "d": {"e": 3, "f": 4}}}
    assert merged(own, {"b": {"d": {"e": 5}, "g": 6}}) == {"a": 1, "b": {"c": 2, "d": {"e": 5, "f": 4}, "g": 6}}
    assert merged(own, {"b": 7, "a": {"x": 8}}) == {"a": {"x": 8}, "b": 7}
    assert own == {"a": 1, "b": {"c": 2, "d": {"e": 3, "f": 4}}}


YARN = {"type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("config", "overrides", "expected"),
    [
        # As Qwen's model cards say it, over a config.json of transformers 4 and one of transformers 5.
        (
            {"rope_theta": 1000000, "rope_scaling": None},
            {"rope_scaling": YARN},
            {"rope_theta": 1000000, "rope_parameters": {"rope_theta": 1000000, "rope_type": "yarn", "factor": 4.0}},
        ),
        (
            {"rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}},
            {"rope_scaling": YARN},
            {"rope_parameters": {"rope_theta": 1000000, "rope_type": "yarn", "factor": 4.0}},
        ),
        (
            {"rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}},
            {"rope_theta": 5},
            {"rope_theta": 5, "rope_parameters": {"rope_theta": 5, "rope_type": "default"}},
        ),
        ({"rope_theta": 1000000}, {"rope_theta": 5}, {"rope_theta": 5}),
        (
            {"rope_theta": 1000000, "rope_scaling": YARN},
            {"rope_parameters": {"factor": 2.0}},
            {"rope_theta": 1000000, "rope_parameters": {"rope_theta": 1000000, "rope_type": "yarn", "factor": 2.0}},
        ),
        (
            {"rope_parameters": {"full": {"rope_theta": 7}, "local": {"rope_theta": 8}}},
            {"rope_parameters": {"factor": 2.0}},
            {
                "rope_parameters": {
                    "full": {"rope_theta": 7, "factor": 2.0},
                    "local": {"rope_theta": 8, "factor": 2.0},
                }
            },
        ),
        (
            {"text_config": {"a": 1, "rope_parameters": {"rope_theta": 7}}, "b": 2},
            {"text_config": {"rope_scaling": YARN}},
            {"text_config": {"a": 1, "rope_parameters": {"rope_theta": 7, "rope_type": "yarn", "factor": 4.0}}, "b": 2},
        ),
        ({"rope_theta": 7}, {"rope_scaling": "yarn"}, {"rope_theta": 7, "rope_scaling": "yarn"}),
        ({"quantization_config": {"bits": 8, "x": 1}}, {"quantization_config": {"bits": 4}}, None),
    ],
)
def test_the_config_with_overrides(
    config: dict[str, Any], overrides: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    found = overridden(config, completed(config, overrides))
    assert found == (expected or {"quantization_config": {"bits": 4, "x": 1}})


def test_rope_scaling_can_be_switched_off() -> None:
    config = {"rope_theta": 7, "rope_scaling": YARN}
    found = overridden(config, completed(config, {"rope_scaling": None}))
    assert found["rope_parameters"]["rope_type"] == "default"
    assert found["rope_parameters"]["rope_theta"] == 7
    assert "rope_scaling" not in found


def test_nested_overrides_keep_what_the_recipe_says(tmp_path: Path) -> None:
    """Without its tie flag in `text_config`, vLLM gives Qwen3-VL an output embedding of zeros."""
    folder = str(FAMILIES["qwen3-vl-reranker-2b"](tmp_path / "qwen3-vl-reranker-2b"))
    own = open_checkpoint(folder)
    checkpoint = open_checkpoint(folder, hf_overrides={"text_config": {"rms_norm_eps": 0.5}})
    assert own.vllm_overrides["text_config"] == {"tie_word_embeddings": True}
    assert checkpoint.vllm_overrides["text_config"] == {"tie_word_embeddings": True, "rms_norm_eps": 0.5}
    assert checkpoint.vllm_overrides["classifier_from_token"] == ["no", "yes"]
    words = shlex.split(serve_command(checkpoint))
    assert json.loads(words[words.index("--hf-overrides") + 1]) == checkpoint.vllm_overrides
    assert checkpoint.config["text_config"] == {**own.config["text_config"], "rms_norm_eps": 0.5}
    assert checkpoint.max_length == own.max_length


@pytest.mark.parametrize(
    ("config", "overrides", "expected"),
    [
        (
            {"model_type": "qwen3", "rms_norm_eps": 1e-6},
            {"rms_norm_epsilon": 1.0},
            ("rms_norm_epsilon", "rms_norm_eps"),
        ),
        ({"model_type": "gpt2"}, {"n_position": 9}, ("n_position", "n_positions")),
        ({"model_type": "code of its own"}, {"rope_scalling": {}}, ("rope_scalling", "rope_scaling")),
        (
            {"model_type": "qwen3_vl", "text_config": {"model_type": "qwen3_vl_text"}},
            {"text_config": {"rms_norm_epsilon": 1.0}},
            ("rms_norm_epsilon", "rms_norm_eps"),
        ),
        ({"model_type": "gpt2"}, {"n_positions": 9, "max_position_embeddings": 9}, None),  # two names of one field
        ({"model_type": "qwen3"}, {"num_labels": 2, "torch_dtype": "float32", "rope_theta": 1e4}, None),
        ({"model_type": "qwen3"}, {"classifier_from_token": ["no"], "method": "x", "score_template": "x"}, None),
        ({"model_type": "qwen3"}, {"head_dtype": "float32", "pooling": "avg", "architectures": ["X"]}, None),  # vLLM's
    ],
)
def test_a_misspelt_name_has_a_hint(
    config: dict[str, Any], overrides: dict[str, Any], expected: tuple[str, str] | None
) -> None:
    assert list(misspelt(config, overrides)) == ([] if expected is None else [expected])


def test_overrides_that_may_change_nothing_are_logged(tiny_model: str, caplog: pytest.LogCaptureFixture) -> None:
    open_checkpoint(tiny_model, hf_overrides={"rms_norm_epsilon": 1.0})
    assert "'rms_norm_epsilon' in hf_overrides is no known field of the config of" in caplog.text
    assert "did you mean 'rms_norm_eps'?" in caplog.text
