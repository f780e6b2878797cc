"""An adapter, its base, and the folder that the two are merged into."""

import importlib.util
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from winnow.errors import MissingExtraError, ModelError
from winnow.locks import import_lock
from winnow.models.adapters.base import base_of, check_base, fetch_weights, folder_of_base
from winnow.models.adapters.cache import cache_of, key_of, made_once
from winnow.models.adapters.files import files_of_adapter, files_of_base, write_files
from winnow.models.adapters.new_head import is_classifier, makes_classifier
from winnow.models.adapters.plan import Merge, plan
from winnow.models.adapters.settings import CONFIG, read_settings
from winnow.models.adapters.tensors import WEIGHTS, read_tensors
from winnow.models.config_class import ties_embeddings
from winnow.models.folder import read_config
from winnow.models.hub import download, uses_modelscope
from winnow.models.named_files import refuse_links_out
from winnow.models.new_folder import check_disk, write_json
from winnow.models.shards import Shards, Tensor, find_shards, write_tensors
from winnow.models.weight_files import INDEX

logger = logging.getLogger(__name__)

# Files of a model that is more than an adapter.
_WHOLE = ("model*.safetensors", INDEX, "pytorch_model*.bin")
_LONGEST_NAME = 60  # characters of it in the name of its folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter with its base.

    Attributes:
        merge: What is merged.
        files: The adapter's files that win over the base's.
        base_folder: The base's folder; its weights are there if `is_local`.
        is_local: Whether the base is a folder of the user's.
        key: A hash of what both consist of: the adapter's contents, and the base's commit, or the sizes and times of
            its weights.
        place: The folder that they are merged into, which is made by `merged`.
        hub: `token` and `cache_dir` for the hub.
    """

    merge: Merge
    files: Mapping[str, Path]
    base_folder: Path
    is_local: bool
    key: str
    place: Path
    hub: Mapping[str, str | None] = field(repr=False)

    @property
    def base(self) -> str:
        """Name or path of the base."""
        return self.merge.base

    @property
    def is_merged(self) -> bool:
        """Whether the merged model is there."""
        return self.place.is_dir()

    def small_files(self) -> Path:
        """A folder with the merged model's small files, without weights.

        Raises:
            ConfigurationError: It cannot be written.
        """
        if self.is_merged:
            return self.place
        place = self.place.with_name(f"{self.place.name}.files")
        with made_once(place) as part:
            if part is not None:
                self._write_files(part)
        return place

    def check(self) -> None:
        """Check that the adapter fits its base, if the base's weights are on this machine.

        Raises:
            ModelError: It does not. The message says why.
        """
        if self.is_merged or not (self.is_local or any(self.base_folder.glob("*.safetensors"))):
            return
        self._plan(find_shards(self.base_folder, self.base), self.small_files())

    def merged(self) -> Path:
        """The folder of the merged model, which is written now unless it is there.

        The base's weights are downloaded if it is on a hub, and read a few megabytes at a time.

        Raises:
            ModelError: The adapter does not fit its base, or a file is missing or damaged.
            ConfigurationError: The folder cannot be written, or the disk is full.
            MissingExtraError: PyTorch is not installed.
        """
        if not self.is_merged and importlib.util.find_spec("torch") is None:
            raise MissingExtraError("torch", "transformers")
        from huggingface_hub.utils import are_progress_bars_disabled  # type: ignore[attr-defined]
        from tqdm.auto import tqdm

        model = self.merge.model
        with made_once(self.place) as part:
            if part is None:
                logger.info("%s is an adapter of %s, which were merged before: %s", model, self.base, self.place)
                return self.place
            if not self.is_local:
                fetch_weights(self.base, self.base_folder, self.merge.settings.revision, self.hub)
            refuse_links_out(self.base_folder, self.base)
            shards = find_shards(self.base_folder, self.base)
            self._write_files(part)
            planned = self._plan(shards, part)
            size = sum(one.bytes for tensors in planned.values() for one in tensors)
            check_disk(self.place, size)
            hidden = are_progress_bars_disabled()
            with tqdm(total=size, desc="merging", unit="B", unit_scale=True, delay=1, disable=hidden) as bar:
                for file, tensors in planned.items():
                    write_tensors(part / file, tensors, bar.update)
            if shards.indexed:
                weight_map = {one.name: file for file, tensors in planned.items() for one in tensors}
                write_json(part / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
        logger.info(
            "%s is an adapter of %s: merged into %s (%.1f MB), which is kept for the next time.",
            *(model, self.base, self.place, size / 1e6),
        )
        return self.place

    def _plan(self, shards: Shards, folder: Path) -> dict[str, list[Tensor]]:
        with import_lock:
            return plan(self.merge, shards, folder)

    def _write_files(self, part: Path) -> None:
        with import_lock:
            write_files(part, self.merge, self.files, files_of_base(self.base_folder, self.base))


def find_adapter(
    folder: Path,
    model: str,
    *,
    base_model: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | None = None,
) -> Adapter | None:
    """The adapter in a model's folder, with its base, of which the small files are downloaded; None if there is none.

    Args:
        folder: The model's folder, with its small files.
        model: Its name or path, as the user gave it.
        base_model: Name or path of the base, instead of the one that the adapter names.
        revision: Branch, tag or commit of the adapter; its base's is in adapter_config.json.
        token: Access token of the Hub.
        cache_dir: Folder for files from the Hub, and for merged models; None for the environment's.

    Raises:
        ModelError: The adapter is of a kind that Winnow does not merge, a file is missing or damaged, or the base is
            not found, or is quantised.
    """
    if not (folder / CONFIG).is_file():
        if base_model is not None:
            logger.warning("base_model changes nothing: %s is no adapter, there is no %s in it.", model, CONFIG)
        return None
    hub = {"token": token, "cache_dir": cache_dir}
    settings = read_settings(folder, model)
    if whole := next((file for pattern in _WHOLE for file in folder.glob(pattern)), None):
        raise ModelError(
            f"{model} holds an adapter ({CONFIG}) and a whole model ({whole.name}), so that it is not clear which one "
            f"is meant. If the adapter is merged into the model already, remove {CONFIG}, else the model."
        )
    is_local = Path(model).expanduser().is_dir()
    if not is_local:
        commit = revision if uses_modelscope() else folder.name
        download(model, [WEIGHTS, "*/model.safetensors", "LICENSE*"], revision=commit, **hub)
    tensors = read_tensors(folder, model, settings)
    base = base_of(settings, model, base_model, is_local)
    base_is_local = Path(base).expanduser().is_dir()
    if base_model not in (None, settings.base):
        settings = replace(settings, revision=None)  # which is of the other base
    base_folder = folder_of_base(base, model, settings.revision, base_is_local, hub)
    config = read_config(base_folder, base)
    check_base(config, base, model)
    has_new_head = makes_classifier(config, settings, tensors)
    with import_lock:
        is_tied = not has_new_head and not is_classifier(config) and bool(ties_embeddings(config))
    merge = Merge(
        model=model,
        settings=settings,
        tensors=tensors,
        base=base,
        base_config=config,
        is_tied=is_tied,
        is_untied=is_tied and tensors.unties(settings),
        has_new_head=has_new_head,
    )
    files = files_of_adapter(folder, model)
    read = {CONFIG: folder / CONFIG, WEIGHTS: folder / WEIGHTS, **files}
    of_base = {"config.json": base_folder / "config.json", **files_of_base(base_folder, base)}
    key = key_of(read, of_base, base_folder if base_is_local or uses_modelscope() else f"{base}@{base_folder.name}")
    name = re.sub(r"[^\w.-]+", "--", model if not is_local else folder.resolve().name)[-_LONGEST_NAME:].lstrip(".-")
    return Adapter(
        merge=merge,
        files=files,
        base_folder=base_folder,
        is_local=base_is_local,
        key=key,
        place=cache_of(cache_dir) / f"{name}-{key[:20]}",
        hub=hub,
    )
