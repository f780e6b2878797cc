"""Rows as Parquet."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from winnow.bulk.jsonl_source import RANKING, SCORES, check_columns
from winnow.bulk.packages import needed
from winnow.bulk.parts import Part, PartRows, Scan
from winnow.bulk.rows import BadRowError, Columns, RankedRow, Row
from winnow.errors import ConfigurationError

_BATCH = 1024  # rows that are decoded at once


@dataclass(slots=True)
class ParquetSource:
    """Parquet files.

    Attributes:
        files: The files.
        columns: What they are called that is read.
        drop: Columns that are left out of the output.
    """

    files: Sequence[Path]
    columns: Columns
    drop: Sequence[str] = ()
    _stream: "_RowStream | None" = field(default=None, init=False)

    @property
    def suffix(self) -> str:
        """See `Source`."""
        return ".parquet"

    def scan(self, part_rows: int) -> Scan:
        """See `Source`."""
        parts: list[Part] = []
        digests = {}
        for file in self.files:
            opened = _opened(str(file))
            check_schema(str(file), opened.schema_arrow, self.columns, self.drop)
            rows = opened.metadata.num_rows
            for begin in range(0, rows, part_rows):
                end = min(begin + part_rows, rows)
                parts.append(
                    Part(number=len(parts), file=str(file), begin=begin, end=end, first=begin, rows=end - begin)
                )
            digests[file.name] = _digest(file, opened.metadata.serialized_size)
        return Scan(parts, digests)

    def read(self, part: Part) -> PartRows:
        """See `Source`."""
        if self._stream is None or not self._stream.is_before(part):
            self._stream = _RowStream(part)
        try:
            table = self._stream.take(part)
        except (OSError, ValueError) as error:
            self._stream = None
            raise ValueError(
                f"{part.file}, rows {part.begin} to {part.end - 1}: the file is damaged ({error}). Write it again."
            ) from None
        return PartRows(rows_of(table, self.columns, f"{part.file}, row ", part.begin), table)

    def write(self, out: BinaryIO, part: PartRows, ranked: Sequence[RankedRow]) -> None:
        """See `Source`."""
        good = [at for at, row in enumerate(ranked) if row.problem is None]
        kept = part.content.drop_columns(list(self.drop)).take(good)
        table = with_results(kept, [ranked[at] for at in good])
        needed("pyarrow.parquet").write_table(table, out, compression="zstd")


def rows_of(table: Any, columns: Columns, where: str, first: int = 0) -> list[Row]:
    """The rows of an Arrow table, checked.

    Args:
        table: The table.
        columns: The columns that are read.
        where: What errors call a row, before its number.
        first: The number of the first one.
    """
    rows = []
    for number, values in enumerate(
        zip(*(table.column(name).to_pylist() for name in columns.names), strict=True), first
    ):
        try:
            rows.append(Row(where=f"{where}{number}", request=columns.request(*values)))
        except BadRowError as error:
            rows.append(Row(where=f"{where}{number}", problem=str(error)))
    return rows


def with_results(table: Any, ranked: Sequence[RankedRow]) -> Any:
    """An Arrow table with the columns of the results."""
    pyarrow = needed("pyarrow")
    for name, kind in ((RANKING, pyarrow.int32()), (SCORES, pyarrow.float64())):
        values = [list(getattr(row, name)) for row in ranked]
        table = table.append_column(name, pyarrow.array(values, pyarrow.list_(kind)))
    return table


def check_schema(file: str, schema: Any, columns: Columns, drop: Sequence[str] = ()) -> None:
    """Check names and types of the columns that are read.

    Args:
        file: What errors call the file.
        schema: The schema of Arrow.
        columns: The columns that are read.
        drop: Columns that must be there, too.

    Raises:
        ConfigurationError: A column is missing or of another type.
    """
    types = needed("pyarrow").types

    def is_text(kind: Any) -> bool:
        if types.is_dictionary(kind):
            kind = kind.value_type
        return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))

    def is_texts(kind: Any) -> bool:
        is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        return is_list and (is_text(kind.value_type) or types.is_null(kind.value_type))

    check_columns(file, columns, schema.names, drop)
    for name, fits, wanted in (
        (columns.query, is_text, "texts"),
        (columns.documents, is_texts, "lists of texts"),
        (columns.instruction, is_text, "texts"),
    ):
        if name is None:
            continue
        kind = schema.field(name).type
        if not (fits(kind) or types.is_null(kind)):
            raise ConfigurationError(
                f"{file}: the column {name!r} is of the type {kind}, and must hold {wanted}. Write the texts into a "
                "column of their own; the other columns are kept as they are."
            )


class _RowStream:
    """Reads a file from a row onwards, a few rows at a time: a row group may be larger than the memory.

    Args:
        part: Where it begins.
    """

    def __init__(self, part: Part):
        opened = _opened(part.file)
        metadata = opened.metadata
        self._file, self._at, group = part.file, 0, 0
        while group < metadata.num_row_groups - 1:
            rows = metadata.row_group(group).num_rows
            if self._at + rows > part.begin:
                break
            self._at += rows
            group += 1
        groups = range(group, metadata.num_row_groups)
        self._batches = opened.iter_batches(batch_size=_BATCH, row_groups=groups)
        self._rest: Any = None

    def is_before(self, part: Part) -> bool:
        """Whether the rows of a part are still to come."""
        return self._file == part.file and self._at <= part.begin

    def take(self, part: Part) -> Any:
        """The rows of a part, as a table."""
        pyarrow = needed("pyarrow")
        found = []
        while self._at < part.end:
            batch = next(self._batches) if self._rest is None else self._rest
            begin = max(part.begin - self._at, 0)
            taken = batch.slice(begin, part.end - self._at - begin) if begin < len(batch) else batch.slice(0, 0)
            found.append(taken)
            used = min(len(batch), part.end - self._at)
            self._at += used
            self._rest = batch.slice(used) if used < len(batch) else None
        return pyarrow.Table.from_batches(found)


def _opened(file: str) -> Any:
    parquet, pyarrow = needed("pyarrow.parquet"), needed("pyarrow")
    try:
        return parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file} is not a whole Parquet file ({error}). Write it again.") from None


def _digest(file: Path, footer: int) -> str:
    """A hash of the file's size and footer, which says where each column's data is and what its least value is."""
    with file.open("rb") as raw:
        size = raw.seek(0, 2)
        raw.seek(max(size - footer - 8, 0))
        return hashlib.blake2b(raw.read() + str(size).encode(), digest_size=16).hexdigest()
