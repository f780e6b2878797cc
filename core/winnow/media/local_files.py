"""Read files below a folder. No symbolic link can lead out of it, even if one is swapped in meanwhile."""

import errno
import os
import stat
from pathlib import Path

from winnow.media.limits import MAX_BYTES, MediumError


def read_below(root: Path, path: str | bytes) -> bytes:
    """The bytes of a file that is below a folder after all links are resolved.

    Links are resolved first and the result is checked. Then every part of it is opened by itself, inside the one
    before it, and no link is followed any more: a part that became a link in the meantime is refused.

    Args:
        root: The folder; it may be a link itself.
        path: The file's path. A relative one starts at the folder.

    Raises:
        MediumError: The file is missing, not below the folder, or too large, or it cannot be read.
    """
    name = os.fsdecode(path)
    if "\0" in name or "://" in name:
        raise MediumError(f"{name!r} is neither a local path nor an http(s) address")
    if os.open not in os.supports_dir_fd:  # Windows
        raise MediumError("paths cannot be read safely on this operating system: read the file, and give its bytes")
    outside = MediumError(
        f"the path {name!r} does not lie below root_path ({root}), where alone files are read; '..' and symbolic links "
        "do not lead out of it"
    )
    missing = MediumError(f"there is no file {name!r} below root_path ({root})")
    try:
        start = Path(os.path.realpath(root))
        below = _below(start, root.absolute(), Path(name))
        if below is None or not (file := Path(os.path.realpath(start / below))).is_relative_to(start):
            raise outside
        data = None if file == start else _content(start, file.relative_to(start).parts)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise outside from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
            raise missing from error
        raise MediumError(f"the file {name!r} cannot be read ({error.strerror})") from error
    if data is None:
        raise missing
    if len(data) > MAX_BYTES:
        raise MediumError(f"the file {name!r} is larger than {MAX_BYTES >> 20} MiB: reduce it")
    return data


def _below(start: Path, as_given: Path, path: Path) -> Path | None:
    """A path as it goes on from the root; None if it does not begin there, or goes up."""
    if path.is_absolute():
        # As given first: `..` in the root itself, as in `here/../images`, is the user's own.
        known = next((folder for folder in (as_given, start) if path.is_relative_to(folder)), None)
        if known is None:
            return None
        path = path.relative_to(known)
    return None if ".." in path.parts else path


def _content(start: Path, parts: tuple[str, ...]) -> bytes | None:
    """The first bytes of a file, opened folder by folder, one byte more than the limit; None if it is not a file."""
    folder = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    at = os.open(start, folder)
    try:
        for part in parts[:-1]:
            inner = os.open(part, folder, dir_fd=at)
            os.close(at)
            at = inner
        file = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)  # a pipe must not block
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        return None
    with os.fdopen(file, "rb") as opened:
        return opened.read(MAX_BYTES + 1)
