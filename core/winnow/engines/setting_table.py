"""Settings of the engines: their names, their values, and the environment variables that set them.

`winnow.engines.settings` reads these variables.
"""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from winnow.engines.setting_values import DEVICE, DTYPE, FLAG, MAPPING, TEXT, Values, choice, number, whole
from winnow.errors import ConfigurationError

PREFIX = "WINNOW_"


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of an engine.

    Attributes:
        name: Its name in `engine_kwargs`.
        values: The values that it takes; None means the engine's default.
        text: What it does, for the docs, in which docs/generate.py writes it.
        default: Its default, if that is Winnow's own; None if the engine has one, or finds it.
        secret: True if messages must not show its value.
        changes_scores: False if it changes the speed or the place of a computation, but not its result. The score
            cache's keys cover all others.
        engines: The engines that take it, from their records.
    """

    name: str
    values: Values
    text: str = ""
    default: Any = None
    secret: bool = False
    changes_scores: bool = True
    engines: tuple[str, ...] = ()

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return PREFIX + self.name.upper()

    def check(self, value: Any, source: str) -> None:
        """Refuse a value that the setting does not take.

        Args:
            value: The value.
            source: Where it comes from, for the error.

        Raises:
            ConfigurationError: It is of the wrong type or out of range.
        """
        if value is not None and not self.values.accepts(value):
            raise self._error(value, source)

    def parse(self, text: str, source: str) -> Any:
        """Read a value from text.

        Args:
            text: The text.
            source: Where it comes from, for the error.

        Raises:
            ConfigurationError: It is malformed or out of range.
        """
        try:
            value = self.values.parse(text.strip())
        except (ValueError, KeyError):
            raise self._error(text, source) from None
        self.check(value, source)
        return value

    def _error(self, value: Any, source: str) -> ConfigurationError:
        shown = "something else" if self.secret else repr(value)
        return ConfigurationError(f"{source} must be {self.values.text}, but got {shown}")


SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        # The model's files.
        Setting("revision", TEXT, "Branch, tag or commit on the Hub."),
        Setting(
            "trust_remote_code",
            FLAG,
            "Whether code from the model's repository may run; by default it may not.",
        ),
        Setting(
            "hf_token",
            TEXT,
            "Access token of the Hub; `HF_TOKEN` in the environment works, too.",
            secret=True,
            changes_scores=False,
        ),
        Setting(
            "cache_dir",
            TEXT,
            "Folder that files from the Hub are kept in. For vLLM it is the same as `download_dir`, where weights go; "
            "vLLM keeps its own copy of the small files in `HF_HOME`.",
            changes_scores=False,
        ),
        Setting(
            "hf_overrides",
            MAPPING,
            "What replaces values of the model's config.json; see docs/settings.md#overrides-of-configjson.",
        ),
        Setting(
            "mm_processor_kwargs",
            MAPPING,
            "`min_pixels` and `max_pixels`, between which images are resized.",
        ),
        # Numbers and memory.
        Setting(
            "dtype",
            DTYPE,
            "By default the checkpoint's; on a CPU float32, unless the checkpoint is quantised, or in bfloat16 and the "
            "CPU multiplies that (AVX512-BF16, AMX); see docs/performance.md#data-type-on-a-cpu.",
        ),
        Setting("quantization", TEXT, "A method of vLLM, such as fp8; by default what the checkpoint says."),
        Setting("max_model_len", whole(1), "vLLM's name for `max_length`; an error if the two differ."),
        Setting(
            "gpu_memory_utilization",
            number("a number above 0, at most 1", lambda value: 0 < value <= 1),
            "Share of the GPU's memory that vLLM takes; on a CPU, the share of main memory that must be free.",
            changes_scores=False,
        ),
        Setting(
            "kv_cache_memory_bytes",
            whole(1),
            "Size of vLLM's cache, instead of what `gpu_memory_utilization` leaves; 1 GiB by default on a CPU.",
            changes_scores=False,
        ),
        Setting("tensor_parallel_size", whole(1), "How many GPUs one model is spread over."),
        Setting("max_num_batched_tokens", whole(1), "Most tokens of one step.", changes_scores=False),
        Setting("max_num_seqs", whole(1), "Most prompts of one step.", changes_scores=False),
        Setting(
            "enable_prefix_caching",
            FLAG,
            "Whether vLLM computes only once what prompts share, where the model allows it.",
            changes_scores=False,
        ),
        Setting(
            "enable_sleep_mode",
            FLAG,
            "Whether `reranker.sleep()` can free the GPU's memory; not on a CPU.",
            changes_scores=False,
        ),
        Setting("enforce_eager", FLAG, "True starts faster and runs slower; true by default on a CPU."),
        Setting(
            "attention_backend",
            TEXT,
            '"auto", or a backend of vLLM, such as FLASHINFER; see docs/settings.md#attention-backend.',
        ),
        # Compiling with the first prompts takes minutes, and so does one long prompt on a CPU.
        Setting(
            "stall_timeout",
            number("a number of seconds from 1", lambda value: value >= 1),
            "An engine that scores nothing for so long while prompts wait counts as dead; see "
            "docs/operations.md#an-engine-that-hangs.",
            default=600.0,
            changes_scores=False,
        ),
        # vLLM's other values give no scores.
        Setting("runner", choice("auto", "pooling"), "How vLLM runs the model; pooling by default."),
        Setting(
            "convert",
            choice("auto", "none", "classify"),
            "How vLLM makes a pooling model of the checkpoint; auto by default.",
        ),
        # PyTorch.
        Setting(
            "device",
            DEVICE,
            "A GPU by default if there is one, also Apple's or Intel's. vLLM takes the kind that it was built for; "
            "`CUDA_VISIBLE_DEVICES` chooses its GPU.",
        ),
        Setting(
            "batch_tokens",
            whole(1),
            "Most tokens of a batch, each prompt counted as the longest one; on a CPU 2048 by default. A batch that "
            "runs out of memory halves it.",
            default=16384,
            changes_scores=False,
        ),
        Setting("attn_implementation", TEXT, "As in transformers."),
        # HTTP.
        Setting(
            "timeout",
            number("a number of seconds from 0.001", lambda value: value >= 0.001),
            "Most seconds for a request, up to the end of its answer.",
            default=120.0,
            changes_scores=False,
        ),
        Setting(
            "max_retries",
            whole(0),
            "How often a failed request is sent again; one that a server refuses is not.",
            default=4,
            changes_scores=False,
        ),
        Setting(
            "chunk_size",
            whole(1),
            "How many prompts a request holds; a prompt with images is sent alone.",
            default=32,
            changes_scores=False,
        ),
        Setting("concurrency", whole(1), "Most requests in flight on each server.", default=16, changes_scores=False),
        Setting(
            "served_model_name",
            TEXT,
            "The model's name on the servers, if it is another one.",
        ),
    )
}
"""The settings that Winnow knows; `engine_kwargs` of vLLM takes any other field of `AsyncEngineArgs`, too.

An engine's record names those that it takes, and may add its own.
"""

RERANKER_SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("engine", choice()),  # the names come from the engines' records
        Setting("url", TEXT),
        Setting("api_key", TEXT, secret=True),
        Setting("max_length", whole(1)),
        Setting("base_model", TEXT),
    )
}
"""Arguments of a reranker that are not in `engine_kwargs`, but have environment variables."""

_NOT_OF_AN_ENGINE = {"model", *RERANKER_SETTINGS}


def check_keywords(what: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Refuse unknown keywords.

    Raises:
        ConfigurationError: A keyword is unknown; the message suggests the most similar one.
    """
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
            raise ConfigurationError(f"{what} has no {name!r}; {hint}")


def check_values(engine_kwargs: Mapping[str, Any], max_length: int | None) -> int | None:
    """Check the value of each setting that Winnow knows.

    Args:
        engine_kwargs: The user's settings.
        max_length: The user's length.

    Returns:
        `max_length`, or `max_model_len`, which is vLLM's name for it.

    Raises:
        ConfigurationError: A value is of the wrong type or out of range, or the two lengths differ.
    """
    for name, value in engine_kwargs.items():
        if name in _NOT_OF_AN_ENGINE:
            raise ConfigurationError(
                f"engine_kwargs holds {name!r}, which is an argument of the reranker: give it there"
            )
        if name in SETTINGS:
            SETTINGS[name].check(value, f"engine_kwargs {name}")
    length = engine_kwargs.get("max_model_len")
    if None not in (length, max_length) and length != max_length:
        raise ConfigurationError(
            f"max_length={max_length} and engine_kwargs max_model_len={length} are two names of one setting and "
            "differ: give max_length alone"
        )
    return max_length if length is None else length


def parse_argument(text: str) -> tuple[str, Any]:
    """Read one of `engine_kwargs` from the text `name=value`, as on the command line.

    The value of a setting that Winnow does not know is read as JSON if it is JSON, else as text.

    Raises:
        ConfigurationError: It is malformed.
    """
    name, equals, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not name:
        raise ConfigurationError(f"an engine setting looks like dtype=float16, but got {text!r}")
    if name in SETTINGS:
        return name, SETTINGS[name].parse(value, name)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
