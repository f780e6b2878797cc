"""Make vLLM read config.json of checkpoints that have code of their own, without running that code."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from vllm.transformers_utils.config import register_config_parser
from vllm.transformers_utils.config_parser_base import ConfigParserBase

from winnow.engines.local_code import own_config

CONFIG_FORMAT = "winnow"
"""The value of vLLM's `config_format` for such a checkpoint."""


@register_config_parser(CONFIG_FORMAT)
class LocalConfigParser(ConfigParserBase):
    """Used instead of vLLM's `HFConfigParser`, which calls transformers and so needs `trust_remote_code`."""

    def parse(
        self,
        model: str | Path,
        trust_remote_code: bool,  # noqa: ARG002 - vLLM's signature
        revision: str | None = None,
        code_revision: str | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> tuple[dict[str, Any], PreTrainedConfig]:
        """The contents of config.json, and the configuration made of them."""
        kwargs.pop("hf_overrides", None)  # vLLM applies them afterwards
        content, _ = PreTrainedConfig.get_config_dict(model, revision=revision, **kwargs)
        return content, own_config(content)
