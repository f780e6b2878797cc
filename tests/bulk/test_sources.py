"""Parts of each format: rows go in and come out as they are, whatever the size of a part; bad files are named."""

import json
from pathlib import Path
from typing import Any

import pytest
from bulk_inputs import alone, records_in, rows, write_collection, write_jsonl

from winnow import ConfigurationError, Reranker
from winnow.bulk.jsonl_source import JsonlSource
from winnow.bulk.parquet_source import ParquetSource
from winnow.bulk.rows import Columns
from winnow.bulk.run_source import RunSource
from winnow.evaluation import read_run

COLUMNS = Columns()
ROWS = rows(23)


def expected(records: list[dict[str, Any]], top_k: int | None = None) -> list[tuple[list[int], list[float]]]:
    with Reranker("any", engine="fake") as reranker:
        rankings = reranker.rank_many([(row["query"], row["documents"]) for row in records], top_k=top_k)
    return [([hit.index for hit in ranking], [hit.score for hit in ranking]) for ranking in rankings]


@pytest.mark.parametrize("part_rows", [1, 4, 23, 1000])
def test_jsonl_rows_come_out_in_order_with_their_other_columns(tmp_path: Path, part_rows: int) -> None:
    first = write_jsonl(tmp_path / "a.jsonl", ROWS[:9])
    second = tmp_path / "b.jsonl"
    second.write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(json.dumps(row).encode() for row in ROWS[9:]))
    parts = alone(JsonlSource([first, second], COLUMNS, ("documents",)), tmp_path / "out", part_rows, top_k=3)
    assert len(parts) == -(-9 // part_rows) + -(-14 // part_rows)
    found = records_in(parts)
    assert [row.keys() for row in found] == [{"id", "query", "ranking", "scores"}] * 23
    assert [row["id"] for row in found] == list(range(23))
    assert [(row["ranking"], row["scores"]) for row in found] == expected(ROWS, top_k=3)


@pytest.mark.parametrize(("part_rows", "group_rows"), [(4, 10), (10, 3), (7, 1000), (1000, 5)])
def test_parquet_rows_come_out_in_order_with_their_types(tmp_path: Path, part_rows: int, group_rows: int) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist(ROWS).append_column("when", pyarrow.array([7] * 23, pyarrow.timestamp("s")))
    parquet.write_table(table, tmp_path / "in.parquet", row_group_size=group_rows)
    source = ParquetSource([tmp_path / "in.parquet"], COLUMNS)
    parts = alone(source, tmp_path / "out", part_rows)
    assert len(parts) == -(-23 // part_rows)
    found = parquet.read_table(tmp_path / "out")
    assert found.drop_columns(["ranking", "scores"]).equals(parquet.read_table(tmp_path / "in.parquet"))
    columns = (found.column("ranking").to_pylist(), found.column("scores").to_pylist())
    assert list(zip(*columns, strict=True)) == expected(ROWS)


def test_parts_of_parquet_can_be_read_in_any_order(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "in.parquet", row_group_size=6)
    source = ParquetSource([tmp_path / "in.parquet"], COLUMNS)
    parts = source.scan(4).parts
    for at in (3, 1, 1, 5, 0, 4):
        read = source.read(parts[at])
        assert read.content.column("id").to_pylist() == list(range(at * 4, min(at * 4 + 4, 23)))
        queries = [row.request[0] for row in read.rows if row.request is not None]
        assert queries == [row["query"] for row in ROWS[at * 4 : at * 4 + 4]]


def test_a_run_comes_out_as_a_run_in_the_order_of_its_scores(tmp_path: Path) -> None:
    run, collection = write_collection(tmp_path, ROWS)
    source = RunSource([run], collection / "corpus.jsonl", collection / "queries.jsonl")
    parts = alone(source, tmp_path / "out", 5, top_k=4)
    assert len(parts) == 5
    whole = tmp_path / "whole.trec"
    whole.write_bytes(b"".join(parts.values()))
    reranked = read_run(whole)
    assert [reranked.ranked(f"q{row['id']}") for row in ROWS] == [
        [f"d{row['id']}-{at}" for at in order] for row, (order, _) in zip(ROWS, expected(ROWS, top_k=4), strict=True)
    ]


def test_each_rows_own_instruction_is_used(tmp_path: Path) -> None:
    template = "<i>{{ instruction }}<q>{{ query }}<d>{{ document }}<e>"
    records = [{**rows(1)[0], "how": how} for how in ("briefly", None)]
    source = JsonlSource([write_jsonl(tmp_path / "a.jsonl", records)], Columns("query", "documents", "how"))
    found = records_in(alone(source, tmp_path / "out", 10, template=template, instruction="at length, please"))
    with Reranker("any", engine="fake", template=template) as reranker:
        for row, how in zip(found, ("briefly", "at length, please"), strict=True):
            ranking = reranker.rank(row["query"], row["documents"], instruction=how)
            assert row["scores"] == [hit.score for hit in ranking]


BAD = [
    ({"query": " ", "documents": ["a"]}, "'query' must be a text that is not blank, but is blank."),
    ({"documents": ["a"]}, "'query' must be a text that is not blank, but is missing."),
    ({"query": "a", "documents": []}, "'documents' is an empty list: there is nothing to rank."),
    ({"query": "a", "documents": "b"}, "'documents' must be a list of texts, but is a text."),
    ({"query": "a", "documents": ["b", {"text": "c"}]}, "'documents' must hold texts, but document 1 is an object."),
    ({"query": "a", "documents": [["b"]]}, "'documents' must hold texts, but document 0 is a list."),
    ({"query": "a", "documents": ["b"], "scores": 1}, "it has a 'scores' already"),
    ([1], "it is no JSON object."),
]


@pytest.mark.parametrize(("record", "problem"), BAD)
def test_a_bad_row_has_a_reason_and_the_others_are_ranked(tmp_path: Path, record: Any, problem: str) -> None:
    source = JsonlSource([write_jsonl(tmp_path / "a.jsonl", [ROWS[0], record, ROWS[1]])], COLUMNS)
    [part] = source.scan(10).parts
    problems = [(row.where, row.problem) for row in source.read(part).rows]
    assert problems[0][1] is None
    assert problems[2][1] is None
    assert problems[1][0] == f"{tmp_path}/a.jsonl, line 2"
    assert problem in str(problems[1][1])
    assert [row["id"] for row in records_in(alone(source, tmp_path / "out", 10))] == [0, 1]


@pytest.mark.parametrize("line", [b'{"query": "a", "docum\n', b'{"query": "\xff", "documents": ["a"]}\n', b"[" * 9999])
def test_a_line_that_is_no_json_is_a_bad_row(tmp_path: Path, line: bytes) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", ROWS[:1])
    file.write_bytes(file.read_bytes() + line)
    source = JsonlSource([file], COLUMNS)
    [part] = source.scan(10).parts
    assert "it is no " in str(source.read(part).rows[1].problem)


def test_what_a_run_lacks_is_a_bad_row(tmp_path: Path) -> None:
    run, collection = write_collection(tmp_path, ROWS[1:4])
    run.write_text(
        run.read_text().replace("d2-1 ", "nowhere ").replace("q3 Q0 d3-0 1 100 bm25", "q3 Q0 d3-0 1 much bm25")
        + "q9 Q0 d1-0 1 1 bm25\n"
    )
    source = RunSource([run], collection / "corpus.jsonl", collection / "queries.jsonl")
    [part] = source.scan(10).parts
    problems = [row.problem for row in source.read(part).rows]
    assert problems[0] is None
    assert problems[1:] == [
        f"its document 'nowhere' is not in {collection}/corpus.jsonl.",
        "line 6: the score must be a finite number, but is 'much'.",
        f"it is not in {collection}/queries.jsonl.",
    ]


def test_a_run_whose_queries_are_mixed_is_refused(tmp_path: Path) -> None:
    run, collection = write_collection(tmp_path, ROWS[:3])
    run.write_text(run.read_text() + "q0 Q0 d2-0 9 1 bm25\n")
    source = RunSource([run], collection / "corpus.jsonl", collection / "queries.jsonl")
    with pytest.raises(ConfigurationError, match=r"bm25.trec, line 7: the query 'q0' was there before.*sort --stable"):
        source.scan(10)


def test_a_missing_column_is_refused_with_those_that_are_there(tmp_path: Path) -> None:
    jsonl = JsonlSource([write_jsonl(tmp_path / "a.jsonl", ROWS)], Columns("question", "documents"))
    with pytest.raises(ConfigurationError, match=r"a.jsonl has no column 'question'. It has 'id', 'query'"):
        jsonl.scan(10)
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    with pytest.raises(ConfigurationError, match=r"a.parquet has no column 'question'. It has 'id', 'query'"):
        ParquetSource([tmp_path / "a.parquet"], Columns("question", "documents")).scan(10)
    with pytest.raises(ConfigurationError, match="no column 'notes'"):
        ParquetSource([tmp_path / "a.parquet"], COLUMNS, ("notes",)).scan(10)


@pytest.mark.parametrize("documents", [[{"text": "a"}], [["a"]], [1], "a"])
def test_nested_and_other_types_of_parquet_are_refused(tmp_path: Path, documents: Any) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist([{"query": "a", "documents": documents}])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ConfigurationError, match=r"'documents' is of the type .*, and must hold lists of texts"):
        ParquetSource([tmp_path / "a.parquet"], COLUMNS).scan(10)


def test_a_parquet_file_that_is_cut_or_damaged_is_named(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows(5000)), file, row_group_size=1000, write_page_checksum=True)
    whole = file.read_bytes()
    source = ParquetSource([file], COLUMNS)
    parts = source.scan(1000).parts
    damaged = bytearray(whole)
    damaged[len(whole) // 2 : len(whole) // 2 + 5000] = bytes(5000)
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"a.parquet, rows \d+ to \d+: the file is damaged"):
        _ = [source.read(part) for part in parts]
    file.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"a.parquet is not a whole Parquet file"):
        source.scan(1000)
