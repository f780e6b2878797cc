"""Where merged models are kept, under a key of what they are made of, each made once, whole or not at all."""

import glob
import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from winnow.errors import ConfigurationError
from winnow.models.new_folder import whole_or_nothing

# Part of every key: another way to merge gets another number.
_VERSION = "2"


def cache_of(cache_dir: str | None) -> Path:
    """Where merged models are kept, beside what the Hub's client keeps."""
    from huggingface_hub import constants

    return Path(cache_dir or constants.HF_HOME).expanduser() / "winnow" / "merged"


def key_of(files: Mapping[str, Path], base_files: Mapping[str, Path], weights: Path | str) -> str:
    """A hash of what an adapter and its base consist of.

    Args:
        files: The adapter's files.
        base_files: The base's small files.
        weights: What tells the base's weights: their name and commit, or the folder in which they are, of which the
            sizes and times are taken.
    """
    digest = hashlib.sha256(_VERSION.encode())
    for name, file in [*sorted(files.items()), *sorted(base_files.items())]:
        with file.open("rb") as reader:
            digest.update(f"\n{name!r} {hashlib.file_digest(reader, 'sha256').hexdigest()}".encode())
    if isinstance(weights, Path):
        found = [(file.name, file.stat()) for file in sorted(weights.glob("*.safetensors"))]
        weights = repr([str(weights.resolve()), *((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)])
    digest.update(weights.encode())
    return digest.hexdigest()


@contextmanager
def made_once(place: Path) -> Iterator[Path | None]:
    """A folder that becomes `place` when it is complete, while other processes wait; None if `place` is there."""
    if place.is_dir():
        yield None
        return
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = ExitStack()
        lock.enter_context(WeakFileLock(place.with_name(f".{place.name}.lock")))
    except OSError as error:
        raise ConfigurationError(
            f"{place} cannot be written: {error.strerror}. Merged models are kept there: name another folder, "
            "cache_dir=... or HF_HOME in the environment."
        ) from error
    with lock:
        if place.is_dir():
            yield None
            return
        for left in place.parent.glob(f".{glob.escape(place.name)}.*.part"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        with whole_or_nothing(place) as part:
            yield part
