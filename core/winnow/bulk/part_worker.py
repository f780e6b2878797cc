"""What an actor of the pool does: read a part, rank its rows, write its file."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from winnow.bulk.output_folder import DonePart, RowError
from winnow.bulk.parts import TEMPORARY, Part, Source, said_which, whole_file
from winnow.bulk.row_ranker import RowRanker
from winnow.bulk.rows import BulkCosts, RankedRow
from winnow.errors import EngineError
from winnow.ranking import RerankerConfig

# How often a part is begun: one that uses up the memory must not kill its workers for ever, and Ray would let it.
_ATTEMPTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What every actor is told once.

    Attributes:
        source: The input.
        folder: The folder of the output.
        digits: Least number of digits in the names of parts.
        config: The settings of the reranker.
        top_k: How many documents of each row are kept; None for all.
        environment: What `environment_of_actors` gave in the driver.
    """

    source: Source
    folder: Path
    digits: int
    config: RerankerConfig
    top_k: int | None
    environment: Mapping[str, str]

    def file_of(self, part: Part) -> Path:
        """The file of a part in the output."""
        return self.folder / f"part-{part.number:0{self.digits}}{self.source.suffix}"


class PartWorker:
    """Does parts, one after the other, with one reranker.

    Args:
        job: What to do.
    """

    def __init__(self, job: Job):
        self._job = job
        os.environ.update(job.environment)
        self._ranker = RowRanker(job.config, job.top_k)

    def do(self, part: Part) -> DonePart:
        """Do a part. Its file is whole when this returns; if it raises, there is none.

        Raises:
            WinnowError: The reranker cannot be used, or failed.
            ValueError: The input is damaged.
            OSError: The input cannot be read, or the output written.
        """
        file = self._job.file_of(part)
        attempts = file.with_name(f".{file.name}.attempts{TEMPORARY}")
        _count(attempts, part)
        read = self._job.source.read(part)
        ranked = self._ranker.rank_rows(read.rows)
        with whole_file(file) as out:
            self._job.source.write(out, read, ranked)
        attempts.unlink(missing_ok=True)
        return DonePart(
            part=part.number,
            file=file.name,
            bytes=file.stat().st_size,
            costs=sum((row.costs for row in ranked), BulkCosts()),
            errors=tuple(
                RowError(where=row.where, document=document, reason=reason)
                for row, result in zip(read.rows, ranked, strict=True)
                for document, reason in _problems(result)
            ),
        )


def _count(attempts: Path, part: Part) -> None:
    """Count in a file how often a part was begun.

    Raises:
        EngineError: It was begun too often.
        OSError: The file cannot be written.
    """
    with said_which(attempts), attempts.open("ab") as file:
        if file.tell() >= _ATTEMPTS:
            raise EngineError(
                f"{_ATTEMPTS} workers died at the part that begins with row or line {part.first} of {part.file}, most "
                "likely because the machine's memory was used up. Give parts fewer rows, or the machine fewer workers. "
                "What the workers said last is in Ray's logs (/tmp/ray/session_latest/logs)."
            )
        file.write(b".")


def _problems(ranked: RankedRow) -> list[tuple[int | None, str]]:
    return list(ranked.failed.items()) if ranked.problem is None else [(None, ranked.problem)]
