"""The base of an adapter: which one it is, and its files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from winnow.errors import ModelError
from winnow.models.adapters.settings import CONFIG, LoraSettings
from winnow.models.folder import WEIGHT_FILES, folder_of
from winnow.models.hub import download, uses_modelscope
from winnow.outside_text import shown


def base_of(settings: LoraSettings, model: str, base_model: str | None, is_local: bool) -> str:
    """Name or path of the base: the user's, or what the adapter says, which may be wrong on this machine.

    Args:
        settings: What the adapter says of itself.
        model: Its name or path.
        base_model: The user's base.
        is_local: Whether the adapter is a folder. Only then its base may be one: what others publish names no folders.

    Raises:
        ModelError: No base is named, or it is not clear which, or it is not here.
    """
    if base_model is not None:
        return base_model
    base = settings.base
    if base is None:
        raise ModelError(f"{model} is an adapter that does not name its base. Give the base, base_model=...")
    is_path = Path(base).is_absolute() or base.startswith((".", "~")) or base.count("/") > 1 or "\\" in base
    is_here = Path(base).expanduser().is_dir()
    if is_path and not (is_here and is_local):
        why = "a folder, which an adapter from a hub may not name" if is_here else "which is no folder on this machine"
        raise ModelError(f"{model} is an adapter of {shown(repr(base), 200)}, {why}. Give the base, base_model=...")
    if is_here and not is_path:
        raise ModelError(
            f"{model} is an adapter of {shown(repr(base), 200)}, which is a folder here and may be a name on the Hub, "
            f"too. Say which, base_model=...: {'./' + base!r}, or a folder of the Hub's files."
        )
    return base


def folder_of_base(base: str, model: str, revision: str | None, is_local: bool, hub: Mapping[str, str | None]) -> Path:
    """The base's folder, its small files downloaded if it is on a hub.

    Raises:
        ModelError: It is not found, or is an adapter itself.
    """
    folder = folder_of(base, None if is_local else revision, **hub)
    if (folder / CONFIG).is_file():
        raise ModelError(
            f"The base {base} of {model} is an adapter itself: merge that one first, with winnow convert or peft's "
            "merge_and_unload, and give the result, base_model=..."
        )
    if not is_local and uses_modelscope():  # its folders do not tell which commit they hold
        fetch_weights(base, folder, revision, hub)
    return folder


def check_base(config: Mapping[str, Any], base: str, model: str) -> None:
    """Refuse a base that nothing can be added to.

    Raises:
        ModelError: It is quantised.
    """
    for part in (config, config.get("text_config") or {}):
        if quantization := part.get("quantization_config"):
            raise ModelError(
                f"The base {base} of {model} is quantised ({shown(str(quantization.get('quant_method')), 40)}), and an "
                "adapter is merged into weights that are not: give the model that it was quantised from, "
                'base_model=..., with engine_kwargs={"quantization": "fp8"} if memory is short.'
            )


def fetch_weights(base: str, folder: Path, revision: str | None, hub: Mapping[str, str | None]) -> None:
    """Download the base's weights, of the commit that its small files are of."""
    download(base, WEIGHT_FILES, revision=revision if uses_modelscope() else folder.name, **hub)
