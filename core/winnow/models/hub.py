"""Download models. The hub is the one that vLLM uses, so that all files come from the same hub."""

import os
from collections.abc import Sequence
from pathlib import Path

from winnow.errors import ModelError
from winnow.outside_text import shown, shown_address


def uses_modelscope() -> bool:
    """Whether vLLM loads models from ModelScope instead of the Hugging Face Hub (vllm/envs.py)."""
    return os.environ.get("VLLM_USE_MODELSCOPE", "").strip().lower() in ("1", "true")


def download(
    model: str,
    patterns: Sequence[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | None = None,
) -> Path:
    """Download files of a model, or find them in the cache.

    They come from ModelScope if `VLLM_USE_MODELSCOPE` is set, else from the Hugging Face Hub or its mirror
    (`HF_ENDPOINT`).

    Args:
        model: Its name there.
        patterns: Which files, as "*.json".
        revision: Branch, tag or commit.
        token: Access token of the Hugging Face Hub; ModelScope has its own (`MODELSCOPE_API_TOKEN`).
        cache_dir: Folder that files are kept in.

    Returns:
        The folder with the files.

    Raises:
        ModelError: There is no such model or revision, no network, or a package is missing. The message says which.
    """
    if uses_modelscope():
        return _from_modelscope(model, patterns, revision, cache_dir)
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(
            snapshot_download(model, revision=revision, token=token, cache_dir=cache_dir, allow_patterns=list(patterns))
        )
    except HFValidationError as error:
        raise ModelError(f"{model!r} is neither a folder nor a name on the Hugging Face Hub: {error}") from error
    except ValueError as error:  # names of files that lead out of the cache
        raise ModelError(f"{model!r} cannot be downloaded from the Hugging Face Hub: {error}") from error
    except (RepositoryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        own = constants.ENDPOINT == "https://huggingface.co"
        mirror = "" if own else f" at HF_ENDPOINT={shown_address(constants.ENDPOINT)}"
        raise ModelError(
            f"{model!r} is not a local folder, and the Hugging Face Hub{mirror} did not give {_wanted(revision)} "
            f"({type(error).__name__}). Check the spelling; a gated or private model needs hf_token or HF_TOKEN; "
            "without a network, give the path of a folder."
        ) from error


def _from_modelscope(model: str, patterns: Sequence[str], revision: str | None, cache_dir: str | None) -> Path:
    """As vLLM does (vllm/model_executor/model_loader/weight_utils.py)."""
    from huggingface_hub import constants

    try:
        from modelscope.hub.snapshot_download import snapshot_download
    except ImportError as error:
        raise ModelError(
            "VLLM_USE_MODELSCOPE is set, but modelscope is not installed: pip install 'modelscope>=1.18.1'. To load "
            "models from the Hugging Face Hub, unset it."
        ) from error
    try:
        return Path(
            snapshot_download(
                model_id=model,
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=constants.HF_HUB_OFFLINE,
                allow_patterns=list(patterns),
            )
        )
    except Exception as error:  # its client raises all errors of its libraries
        raise ModelError(
            f"{model!r} is not a local folder, and ModelScope (VLLM_USE_MODELSCOPE) did not give {_wanted(revision)} "
            f"({type(error).__name__}: {shown(str(error))}). Check the spelling; a private model needs "
            "MODELSCOPE_API_TOKEN; without a network, give the path of a folder."
        ) from error


def _wanted(revision: str | None) -> str:
    return "it" if revision is None else f"its revision {revision!r}"
