"""Folders that Winnow writes: each appears when it is complete, or not at all."""

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from winnow.errors import ConfigurationError


@contextmanager
def whole_or_nothing(out: Path) -> Iterator[Path]:
    """A folder beside `out`. It is renamed to `out` at the end, or removed if there is any error, also by Ctrl-C."""
    part = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.mkdir(parents=True)
        yield part
        part.replace(out)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError | UnicodeEncodeError):  # JSON may hold half a character, which UTF-8 cannot
            raise ConfigurationError(f"{out} cannot be written: {error}") from error
        raise


def check_disk(out: Path, size: int) -> None:
    """Check that the disk has space for a new folder.

    Args:
        out: The folder.
        size: Bytes of its files.

    Raises:
        ConfigurationError: The disk is too full.
    """
    existing = next(parent for parent in out.parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < size:
        raise ConfigurationError(
            f"{out} needs {size / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free there. Make room, or name "
            "another folder."
        )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object as people read it."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
