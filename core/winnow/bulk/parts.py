"""Parts: the input in pieces that depend on nothing but the input, and files that are written whole or not at all."""

import errno
import hashlib
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from winnow.bulk.rows import RankedRow, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Consecutive rows of one file.

    Attributes:
        number: Its number, from 0, through all files.
        file: The file.
        begin: Where it begins in the file, in the unit of the format: a row (Parquet), or a byte.
        end: Where it ends, likewise.
        first: The number of its first row or line in the file.
        rows: How many rows it has.
    """

    number: int
    file: str
    begin: int
    end: int
    first: int
    rows: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What the input is.

    Attributes:
        parts: Its parts, in order.
        digests: A hash of each file by its name, with which another input is told from this one.
    """

    parts: list[Part]
    digests: dict[str, str]


@dataclass(frozen=True, slots=True)
class PartRows:
    """The rows of a part.

    Attributes:
        rows: The rows.
        content: What the format keeps of all of them together, to write them again.
    """

    rows: list[Row]
    content: Any = None


class Source(Protocol):
    """The files of one format. A driver scans them; workers read and write parts, each with a copy of its own."""

    @property
    def suffix(self) -> str:
        """What the names of the parts end with."""

    def scan(self, part_rows: int) -> Scan:
        """Check the files, and find their parts.

        Args:
            part_rows: Rows of a part.

        Raises:
            ValueError: A file is damaged, or lacks a column.
            OSError: A file cannot be read.
        """

    def read(self, part: Part) -> PartRows:
        """The rows of a part.

        Raises:
            ValueError: The file is damaged.
            OSError: It cannot be read.
        """

    def write(self, out: BinaryIO, part: PartRows, ranked: Sequence[RankedRow]) -> None:
        """Write the rows that were ranked. The same rows make the same bytes.

        Args:
            out: The file.
            part: The rows.
            ranked: The result of each. Those with a problem are left out.
        """


TEMPORARY = ".tmp"
"""What the names of files end with that are not whole."""


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which gets its name only when all of it is on the disk. If anything fails, nothing is left.

    Raises:
        OSError: As `said_which`.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        with said_which(path):
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def said_which(path: Path) -> Iterator[None]:
    """For a block that writes a file: its errors name the file, and say what to do. That of a full disk names none.

    Raises:
        OSError: The file cannot be written.
    """
    try:
        yield
    except OSError as error:
        what = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            what += ". Make room, and run the same again: the parts that are done stay"
        raise OSError(error.errno, what, str(path)) from error


def digest_of(file: Path) -> str:
    """A hash of a file's content."""
    with file.open("rb") as raw:
        return hashlib.file_digest(raw, "blake2b").hexdigest()[:32]
