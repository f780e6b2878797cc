"""The small files of a merged model: the base's, with what the adapter's folder has in their place.

As peft's users expect it, the adapter's tokenizer, templates and image settings win over the base's.
"""

import copy
import shutil
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import Any

from winnow.models.adapters.new_head import config_of_classifier, labels_of_head, with_labels
from winnow.models.adapters.plan import Merge
from winnow.models.families import label_count
from winnow.models.folder import SMALL_FILES, read_modules, read_tokenizer_config
from winnow.models.named_files import refuse_links_out
from winnow.models.new_folder import write_json
from winnow.models.weight_files import is_embedding

_VOCABULARIES = ("tokenizer.json", "vocab.*", "tekken.json", "*.model", "*.tiktoken")
_TOKENIZER = (*_VOCABULARIES, "tokenizer*", "special_tokens_map.json", "added_tokens.json", "merges.txt")
_MEDIA = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
# What sentence-transformers writes beside a CrossEncoder.
_CROSS_ENCODER = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")
_OF_ADAPTER = (*_TOKENIZER, "*.jinja", *_MEDIA, *_CROSS_ENCODER)
_OF_BASE = (*SMALL_FILES, "LICENSE*", "NOTICE*")
_NEVER = ("config.json", "adapter_config.json", "calibration.json")  # written anew, or of another model


def files_of_adapter(folder: Path, model: str) -> dict[str, Path]:
    """The adapter's files that win over its base's, by their path in the folder.

    Raises:
        ModelError: One is a link that leads out of the folder, or modules.json names what is outside.
    """
    return dict(_named(folder, model, _OF_ADAPTER))


def files_of_base(folder: Path, model: str) -> dict[str, Path]:
    """The base's small files but config.json, by their path in the folder.

    Raises:
        ModelError: As for `files_of_adapter`.
    """
    return dict(_named(folder, model, _OF_BASE))


def write_files(part: Path, merge: Merge, adapter: Mapping[str, Path], base: Mapping[str, Path]) -> None:
    """Write the small files of a merged model.

    Args:
        part: The new folder.
        merge: What is merged.
        adapter: The files of the adapter.
        base: The files of the base.
    """
    left_out = set(_names(base, _TOKENIZER)) if _names(adapter, _VOCABULARIES) else set()
    # A base without a head has those of an embedder, and vLLM would put the embedder's pooling before the new head.
    if "modules.json" in adapter or merge.has_new_head:
        left_out |= {*_names(base, _CROSS_ENCODER), *(name for name in base if "/" in name)}
    kept = {name: file for name, file in base.items() if name not in left_out}
    for name, file in {**kept, **adapter}.items():
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, part / name)
    config = _config_of(merge)
    # Where both have a template, one of the base's may be in a place that is looked at first.
    tokenizer_config = read_tokenizer_config(part, merge.model)
    if "score_template.jinja" in adapter:
        config.pop("score_template", None)
        if tokenizer_config.pop("score_template", None) is not None:
            write_json(part / "tokenizer_config.json", tokenizer_config)
    if (
        "chat_template.jinja" not in adapter
        and "tokenizer_config.json" in adapter
        and "chat_template" in tokenizer_config
    ):
        (part / "chat_template.jinja").unlink(missing_ok=True)
    write_json(part / "config.json", config)


def _config_of(merge: Merge) -> dict[str, Any]:
    config = copy.deepcopy(dict(merge.base_config))
    if merge.has_new_head:
        config = config_of_classifier(config, merge.tensors, merge.model)
    elif (count := labels_of_head(merge.tensors)) not in (None, label_count(config)):
        config = with_labels(config, count or 0)
    rows = [one.shape[0] for name, one in merge.tensors.replaced.items() if is_embedding(name)]
    for part in (config, config.get("text_config") or {}):
        if merge.is_untied:
            part["tie_word_embeddings"] = False
        if rows and "vocab_size" in part:
            part["vocab_size"] = rows[0]
    # The name of its base may be what tells the family.
    own = str(config.get("_name_or_path") or "") if Path(merge.base).is_dir() else ""
    config["_name_or_path"] = str(PurePath(own, Path(merge.base).name)) if own else merge.base
    return config


def _names(files: Iterable[str], patterns: Iterable[str]) -> list[str]:
    return [name for name in files if "/" not in name and any(fnmatch(name, pattern) for pattern in patterns)]


def _named(folder: Path, model: str, patterns: Iterable[str]) -> Iterator[tuple[str, Path]]:
    refuse_links_out(folder, model)
    for name in _names(sorted(file.name for file in folder.iterdir() if file.is_file()), patterns):
        if name not in _NEVER and not name.endswith(".index.json"):
            yield name, folder / name
    for module in read_modules(folder, model):
        below = module.get("path") or ""
        if below and (folder / below).is_dir():
            refuse_links_out(folder, model, below)
            for file in sorted((folder / below).iterdir()):
                if file.is_file():
                    yield f"{below}/{file.name}", file
