"""Scores in one file, which threads, processes and users may read and write at once without trusting each other.

The file is a table of slots at places that follow from their keys: a key, its logit, a checksum. It holds no name, no
length and no code, so whatever others write into it, the worst that comes of it is a wrong score. A database promises
less. SQLite, with all its protections on, deletes any file that a forged journal beside the database names, waits for
locks of processes that hang, and runs whatever view stands in the table's place.

There are no locks: of two that write one slot at once one loses its score. Half a score does not match its checksum.
"""

import os
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

from winnow.engines import is_logit

KEY_BYTES = 20
# Another layout gets another name.
_NAME = "scores-v1.bin"
# The order of bytes is fixed: machines may share the folder.
_SCORE = struct.Struct(f"<{KEY_BYTES}sd")
_CHECKSUM = struct.Struct("<I")
_SLOT = _SCORE.size + _CHECKSUM.size
_PAGE = 4096  # as operating systems cache files, and as disks read them
# How many pages each level has. A key has one page on each; when that is full, the next level's is used. So few scores
# make a small file and need one read each, and no number of them makes a file of more than 1 GiB.
_LEVELS = [12 * 4**level for level in range(8)]
# No links: they may lead out of the folder. No waiting: a pipe, or a file that a process has leased, is an error.
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class DiskScores:
    """Scores in a folder, up to 1 GiB, about 33 million; then new scores replace old ones.

    No file stays open between calls, because the process may fork, and the folder may disappear and come back.

    Args:
        folder: Made if it is not there, with the first score.
    """

    def __init__(self, folder: str | PathLike[str]):
        self._file = Path(os.path.expanduser(folder)) / _NAME  # noqa: PTH111 - Path raises where a user has no home

    def get(self, keys: Sequence[bytes]) -> list[float | None]:
        """The logits, None where there is none.

        Raises:
            OSError: The file cannot be read, or is not a plain file in this folder and no other.
        """
        try:
            with _opened(self._file, os.O_RDONLY) as file:
                return [_logit(_find(file, key)[1], key) for key in keys]
        except FileNotFoundError:
            return [None] * len(keys)

    def put(self, logits: Mapping[bytes, float]) -> None:
        """Keep logits.

        Raises:
            OSError: The file cannot be made or written, or is not a plain file in this folder and no other.
        """
        try:
            self._write(logits)
        except FileNotFoundError:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):  # another process was faster
                self._file.touch(exist_ok=False)
            self._write(logits)

    def _write(self, logits: Mapping[bytes, float]) -> None:
        with _opened(self._file, os.O_RDWR) as file:
            for key, logit in logits.items():
                os.pwrite(file, _slot(key, logit), _find(file, key)[0])


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """A file's descriptor. One that has another name elsewhere (a hard link) is refused like any other link."""
    file = os.open(path, flags | _FLAGS)
    try:
        named = path.lstat()
        if not (stat.S_ISREG(named.st_mode) and named.st_nlink == 1 and os.path.samestat(named, os.fstat(file))):
            raise OSError(f"{path} is not a plain file in this folder and no other")
        yield file
    finally:
        os.close(file)


def _slot(key: bytes, logit: float) -> bytes:
    score = _SCORE.pack(key, logit)
    return score + _CHECKSUM.pack(zlib.crc32(score))


def _logit(slot: bytes, key: bytes) -> float | None:
    """What a slot says of a key, if it is that key's and whole."""
    if len(slot) < _SLOT:
        return None
    _, logit = _SCORE.unpack_from(slot)
    return logit if is_logit(logit) and slot == _slot(key, logit) else None


def _find(file: int, key: bytes) -> tuple[int, bytes]:
    """Where a key's slot begins in the file, or the slot that it would get; and what is there."""
    number = int.from_bytes(key[:8], "little")
    level_begins = 0
    for pages in _LEVELS:
        begins = (level_begins + number % pages) * _PAGE
        page = os.pread(file, _PAGE, begins)
        at = page.find(key)
        if at % _SLOT:  # it is not there (-1), or where no slot begins
            at = -(-len(page.rstrip(b"\0")) // _SLOT) * _SLOT  # the first slot after all that are taken
        if at < _PAGE:
            break
        level_begins += pages
    else:
        at = key[-1] * _SLOT % _PAGE  # all are full: the key replaces the score that is there
    return begins + at, page[at : at + _SLOT]
