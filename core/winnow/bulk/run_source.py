"""Rows as a run of a retriever, in TREC's format, whose texts are in a collection."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from winnow.bulk.jsonl_source import lines_of, text_part
from winnow.bulk.parts import Part, PartRows, Scan, digest_of
from winnow.bulk.rows import BadRowError, Columns, RankedRow, Row
from winnow.errors import ConfigurationError
from winnow.evaluation import Run, descending, parsed_run_line, read_corpus, read_queries

_COLUMNS = Columns("the query", "the documents")


@dataclass(slots=True)
class RunSource:
    """Runs in TREC's format, with the lines of a query together.

    Attributes:
        files: The runs.
        corpus: The file of the documents' texts.
        queries: The file of the queries' texts.
    """

    files: Sequence[Path]
    corpus: Path
    queries: Path
    _texts: tuple[Mapping[str, str], Mapping[str, str]] | None = field(default=None, init=False)

    @property
    def suffix(self) -> str:
        """See `Source`."""
        return ".trec"

    def scan(self, part_rows: int) -> Scan:
        """See `Source`."""
        parts: list[Part] = []
        digests = {file.name: digest_of(file) for file in (self.corpus, self.queries)}
        for file in self.files:
            digest = hashlib.blake2b(digest_size=16)
            begin = end = rows = 0
            first, last = 1, b""
            seen: set[bytes] = set()
            with file.open("rb") as raw:
                for number, line in enumerate(raw, 1):
                    digest.update(line)
                    query = _query_of(line) if line.strip() else last
                    if query != last:
                        if query in seen:
                            raise ConfigurationError(
                                f"{file}, line {number}: the query {query.decode(errors='replace')!r} was there "
                                "before, with others after it. Bring the lines of each query together, as "
                                "`sort --stable --key=1,1` does."
                            )
                        if not seen:
                            parsed_run_line(line, f"{file}, line {number}")  # is it a run at all?
                        seen.add(query)
                        if rows == part_rows:
                            parts.append(text_part(parts, file, begin, end, first, rows))
                            begin, first, rows = end, number, 0
                        rows += 1
                        last = query
                    end += len(line)
            if rows:
                parts.append(text_part(parts, file, begin, end, first, rows))
            digests[file.name] = digest.hexdigest()
        return Scan(parts, digests)

    def read(self, part: Part) -> PartRows:
        """See `Source`."""
        found: dict[bytes, list[tuple[int, bytes]]] = {}
        for number, line in enumerate(lines_of(part), part.first):
            if line.strip():
                found.setdefault(_query_of(line), []).append((number, line))
        return PartRows([self._row(part.file, query.decode(errors="replace"), of) for query, of in found.items()])

    def write(self, out: BinaryIO, part: PartRows, ranked: Sequence[RankedRow]) -> None:
        """See `Source`."""
        for row, result in zip(part.rows, ranked, strict=True):
            if result.problem is not None:
                continue
            query, documents = row.content
            best = [documents[at] for at in result.ranking]
            # Equal scores would be ordered by the documents' ids where the run is read.
            for rank, (document, score) in enumerate(zip(best, descending(result.scores), strict=True), 1):
                out.write(f"{query} Q0 {document} {rank} {score!r} winnow\n".encode())

    def _row(self, file: str, query: str, lines: Sequence[tuple[int, bytes]]) -> Row:
        where = f"{file}, query {query!r}"
        try:
            scores: dict[str, float] = {}
            for number, line in lines:
                pair = parsed_run_line(line, f"line {number}")
                if pair.document in scores:
                    raise BadRowError(f"line {number}: the document {pair.document!r} stands twice.")
                scores[pair.document] = pair.value
            documents = Run("", {query: scores}).ranked(query)
            queries, corpus = self._read_texts()
            if query not in queries:
                raise BadRowError(f"it is not in {self.queries}.")
            if missing := [document for document in documents if document not in corpus]:
                raise BadRowError(f"its document {missing[0]!r} is not in {self.corpus}.")
            request = _COLUMNS.request(queries[query], [corpus[document] for document in documents])
            return Row(where=where, content=(query, documents), request=request)
        except ValueError as error:
            return Row(where=where, problem=str(error))

    def _read_texts(self) -> tuple[Mapping[str, str], Mapping[str, str]]:
        if self._texts is None:
            self._texts = read_queries(self.queries), read_corpus(self.corpus)
        return self._texts


def _query_of(line: bytes) -> bytes:
    return line.split(b"\t" if b"\t" in line else None, 1)[0].strip()
