"""Rows as JSONL: an object a line."""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from winnow.bulk.parts import Part, PartRows, Scan
from winnow.bulk.rows import BadRowError, Columns, RankedRow, Row
from winnow.errors import ConfigurationError

RANKING = "ranking"
SCORES = "scores"
RESULTS = (RANKING, SCORES)
"""The columns that are added to a row."""

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class JsonlSource:
    """JSONL files.

    Attributes:
        files: The files.
        columns: What they are called that is read.
        drop: Names that are left out of the output.
    """

    files: Sequence[Path]
    columns: Columns
    drop: Sequence[str] = ()

    @property
    def suffix(self) -> str:
        """See `Source`."""
        return ".jsonl"

    def scan(self, part_rows: int) -> Scan:
        """See `Source`."""
        parts: list[Part] = []
        digests = {}
        for file in self.files:
            digest = hashlib.blake2b(digest_size=16)
            begin = end = first = rows = 0
            with file.open("rb") as raw:
                for number, line in enumerate(raw, 1):
                    digest.update(line)
                    if line.strip():
                        if not rows:
                            begin, first = end, number
                        if not (parts and parts[-1].file == str(file)) and not rows:
                            self._check_first(file, number, line)
                        rows += 1
                    end += len(line)
                    if rows == part_rows:
                        parts.append(text_part(parts, file, begin, end, first, rows))
                        rows = 0
            if rows:
                parts.append(text_part(parts, file, begin, end, first, rows))
            digests[file.name] = digest.hexdigest()
        return Scan(parts, digests)

    def read(self, part: Part) -> PartRows:
        """See `Source`."""
        numbered = enumerate(lines_of(part), part.first)
        return PartRows([self._row(f"{part.file}, line {number}", line) for number, line in numbered if line.strip()])

    def write(self, out: BinaryIO, part: PartRows, ranked: Sequence[RankedRow]) -> None:
        """See `Source`."""
        for row, result in zip(part.rows, ranked, strict=True):
            if result.problem is not None:
                continue
            kept = {name: value for name, value in row.content.items() if name not in self.drop}
            out.write(json_line(kept | {RANKING: list(result.ranking), SCORES: list(result.scores)}))

    def _row(self, where: str, line: bytes) -> Row:
        try:
            record = _record(line)
            if taken := [name for name in RESULTS if name in record and name not in self.drop]:
                raise BadRowError(f"it has a {taken[0]!r} already, which is what the output adds: drop or rename it.")
            values = [record.get(name) for name in self.columns.names]
            return Row(where=where, content=record, request=self.columns.request(*values))
        except BadRowError as error:
            return Row(where=where, problem=str(error))

    def _check_first(self, file: Path, number: int, line: bytes) -> None:
        """What is wrong with the first row is most likely wrong with all: say so before the work begins."""
        try:
            record = _record(line)
        except BadRowError as error:
            raise ConfigurationError(f"{file}, line {number}: {error} JSONL has a JSON object a line.") from None
        check_columns(str(file), self.columns, list(record), self.drop)


def check_columns(file: str, columns: Columns, found: Sequence[str], drop: Sequence[str]) -> None:
    """Check that a file has the columns that are read, and those to drop, and none that are written.

    Raises:
        ConfigurationError: It has not.
    """
    for name in (*columns.names, *drop):
        if name not in found:
            raise ConfigurationError(f"{file} has no column {name!r}. It has {', '.join(map(repr, found)) or 'none'}.")
    for name in RESULTS:
        if name in found and name not in drop:
            raise ConfigurationError(
                f"{file} has a column {name!r} already, which is what the output adds: drop or rename it."
            )


def lines_of(part: Part) -> list[bytes]:
    """The lines of a part of a text file, blank ones too."""
    with Path(part.file).open("rb") as raw:
        raw.seek(part.begin)
        return io.BytesIO(raw.read(part.end - part.begin)).readlines()


def json_line(record: Any) -> bytes:
    """A line of JSONL."""
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON has only as an escape
        return json.dumps(record).encode() + b"\n"


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.removeprefix(_BOM).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRowError(f"it is no UTF-8 ({error}).") from None
    except (ValueError, RecursionError) as error:
        raise BadRowError(f"it is no JSON ({error}).") from None
    if not isinstance(record, dict):
        raise BadRowError("it is no JSON object.")
    return record


def text_part(parts: Sequence[Part], file: Path, begin: int, end: int, first: int, rows: int) -> Part:
    """The part that follows those before it."""
    return Part(number=len(parts), file=str(file), begin=begin, end=end, first=first, rows=rows)
