"""The folder of the output: whole parts, and what is known of them.

`_manifest.json` says what made the output. `_parts.jsonl` has a line for each part that is done, in the order in which
they ended; `_errors.jsonl` one for each row and document that could not be ranked. Readers of folders (Arrow, Spark,
Ray) pass over names that begin with `_`.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from winnow.bulk.jsonl_source import json_line
from winnow.bulk.parts import TEMPORARY, said_which, whole_file
from winnow.bulk.rows import BulkCosts
from winnow.errors import ConfigurationError

MANIFEST = "_manifest.json"
DONE = "_parts.jsonl"
ERRORS = "_errors.jsonl"
_LOCK = "_lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowError:
    """A row or a document that could not be ranked.

    Attributes:
        where: File and place of its row.
        document: The document's position in the row; None if it is the whole row.
        reason: Why.
    """

    where: str
    document: int | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DonePart:
    """A part that is done.

    Attributes:
        part: Its number.
        file: The name of its file.
        bytes: The file's size.
        costs: What it cost.
        errors: What could not be ranked.
    """

    part: int
    file: str
    bytes: int
    costs: BulkCosts
    errors: tuple[RowError, ...]

    def as_dict(self) -> dict[str, Any]:
        """Its fields, as plain data."""
        return asdict(self)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """The part whose fields `as_dict` gave."""
        errors = tuple(RowError(**error) for error in fields["errors"])
        return cls(**{**fields, "costs": BulkCosts(**fields["costs"]), "errors": errors})


class OutputFolder:
    """The folder of the output, which one run at a time writes to. Use it as a context.

    Args:
        folder: The folder, which is made if it is not there.
        made_by: What decides the output: an output that other settings began is refused.
        parts: How many parts there are.

    Attributes:
        path: The folder.
        done: The parts that are done, by their numbers.
        errors: How many rows and documents of them could not be ranked.

    Raises:
        ConfigurationError: The folder holds other files, or the output of other settings; or another run writes to it.
        OSError: It cannot be made or written.
    """

    def __init__(self, folder: Path, made_by: Mapping[str, Any], parts: int):
        self.path = folder
        self._manifest = {"parts": parts, **made_by}
        self.done: dict[int, DonePart] = {}
        self.errors = 0
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as opening:
            opening.enter_context(self._locked())
            self._check()
            for left in self.path.glob(f".*{TEMPORARY}"):  # of a run that was killed
                left.unlink(missing_ok=True)
            self._write_manifest(complete=False)
            self.done = {one.part: one for one in self._read_done() if self._is_there(one)}
            self.errors = sum(len(part.errors) for part in self.done.values())
            self._rewrite_done()  # half a line of a run that was killed would spoil the next one
            self._closing = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def add(self, part: DonePart) -> None:
        """Note that a part is done: its file is whole.

        Raises:
            OSError: It cannot be noted.
        """
        with said_which(self.path / DONE), (self.path / DONE).open("ab") as log:
            log.write(json_line(part.as_dict()))
            log.flush()
            os.fsync(log.fileno())
        self.done[part.part] = part
        self.errors += len(part.errors)

    def finish(self) -> None:
        """Write the errors, in the order of the input, and whether all parts are done."""
        ordered = [self.done[number] for number in sorted(self.done)]
        with whole_file(self.path / ERRORS) as file:
            for part in ordered:
                for error in part.errors:
                    file.write(json_line(asdict(error)))
        self._write_manifest(complete=len(ordered) == self._manifest["parts"])

    def _check(self) -> None:
        file = self.path / MANIFEST
        try:
            before = json.loads(file.read_text("utf-8"))
        except FileNotFoundError:
            if any(path.name != _LOCK for path in self.path.iterdir()):
                raise ConfigurationError(
                    f"{self.path} is not empty, and holds no output of Winnow that could be continued. Name another "
                    "folder."
                ) from None
            return
        except ValueError as error:
            raise ConfigurationError(f"{file} is damaged ({error}). Name another folder.") from None
        before.pop("complete", None)
        if different := list(_differences(before, json.loads(json.dumps(self._manifest)))):
            raise ConfigurationError(
                f"{self.path} holds output that was made in another way: {'; '.join(different)}. Give the settings "
                "and the input of that run to continue it, or name another folder."
            )

    def _write_manifest(self, *, complete: bool) -> None:
        with whole_file(self.path / MANIFEST) as file:
            file.write(json.dumps({**self._manifest, "complete": complete}, indent=2).encode() + b"\n")

    def _read_done(self) -> Iterator[DonePart]:
        with contextlib.suppress(FileNotFoundError), (self.path / DONE).open("rb") as file:
            for line in file:
                with contextlib.suppress(ValueError):  # half a line: the part is done again
                    yield DonePart.of(json.loads(line))

    def _rewrite_done(self) -> None:
        with whole_file(self.path / DONE) as file:
            for part in self.done.values():
                file.write(json_line(part.as_dict()))

    def _is_there(self, part: DonePart) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return (self.path / part.file).stat().st_size == part.bytes
        return False

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """A lock that ends with the process, however it ends."""
        with (self.path / _LOCK).open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(f"Another run writes to {self.path}. Wait until it ends.") from None
            yield


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], name: str = "") -> Iterator[str]:
    for key in sorted({*before, *now}):
        old, new, path = before.get(key), now.get(key), f"{name}{key}"
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{path}.")
        elif old != new:
            yield f"{path} was {old!r}, and is {new!r}"
