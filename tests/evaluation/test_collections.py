"""Judged collections and runs, read from files as people have them, and the errors that bad files give."""

import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from tokenizer_kinds import data_file
from winnow.evaluation import Collection, Run, check_run, read_collection, read_qrels, read_run

FILES = {
    "corpus.jsonl": '{"_id": "d1", "title": "China", "text": "Its capital is Beijing."}\n'
    '\n{"_id": "d2", "title": "", "text": "Pâris — 巴黎"}\n{"_id": "d3", "text": "Rice.", "metadata": {"url": "x"}}\n',
    "queries.jsonl": '{"_id": "q1", "text": "capital of China"}\n{"_id": "q2", "text": "food"}\n',
    "qrels.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td3\t1\n",
    "run.trec": "q1 Q0 d2 1 3.5 bm25\nq1 Q0 d1 2 3.25 bm25\nq2 Q0 d3 1 1e-1 bm25\n",
}
Write = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Write:
    """Makes a folder of the files above, some of them replaced."""

    def write(**changed: str) -> Path:
        for name, text in FILES.items():
            (tmp_path / name).write_text(changed.get(name.split(".")[0], text), encoding="utf-8")
        return tmp_path

    return write


def test_a_folder_in_the_layout_of_beir(folder: Write) -> None:
    path = folder()
    collection = read_collection(path)
    assert dict(collection.documents) == {"d1": "China Its capital is Beijing.", "d2": "Pâris — 巴黎", "d3": "Rice."}
    assert collection.queries == {"q1": "capital of China", "q2": "food"}
    assert collection.qrels == {"q1": {"d1": 2, "d2": 0}, "q2": {"d3": 1}}
    run = read_run(path / "run.trec")
    assert (run.name, run.ranked("q1"), run.documents(top_k=1)) == ("run", ["d2", "d1"], {"d2", "d3"})
    check_run(run, collection)


def test_other_layouts_give_the_same_collection(folder: Write) -> None:
    path = folder()
    expected = read_collection(path)
    texts = dict(expected.documents)  # read now: they stay in the file, which this test removes
    (path / "qrels").mkdir()
    (path / "qrels.tsv").rename(path / "qrels" / "test.tsv")
    assert read_collection(path).qrels == expected.qrels
    trec, bare, tabbed = path / "trec.qrels", path / "bare.tsv", path / "tabbed.txt"
    trec.write_text("q1 0 d1 2\nq1 0 d2 0\nq2 0 d3 1\n", encoding="utf-8")
    bare.write_text("q1\td1\t2\nq1\td2\t0\nq2\td3\t1\n", encoding="utf-8")
    tabbed.write_text("q1\t0\td1\t2\nq1\t0\td2\t0\nq2\t0\td3\t1\n", encoding="utf-8")
    assert [read_qrels(file) for file in (trec, bare, tabbed)] == [expected.qrels] * 3

    corpus, queries = path / "collection.tsv", path / "queries.tsv"
    corpus.write_text("".join(f"{name}\t{text}\r\n" for name, text in texts.items()), encoding="utf-8")
    queries.write_text("\ufeffq1\tcapital of China\nq2\tfood\n", encoding="utf-8")
    found = read_collection(corpus=corpus, queries=queries, qrels=trec)
    assert (dict(found.documents), found.queries) == (texts, expected.queries)

    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "run.trec"):
        (path / f"{name}.gz").write_bytes(gzip.compress((path / name).read_bytes()))
        (path / name).unlink()
    compressed = read_collection(path)
    assert (dict(compressed.documents), compressed.qrels) == (texts, expected.qrels)
    assert read_run(path / "run.trec.gz").name == "run"


def test_only_what_is_needed_of_a_corpus_is_kept(folder: Write) -> None:
    path = folder(qrels="q1\td1\t1\n")
    assert [*read_collection(path, only=["d3"]).documents] == ["d1", "d3"]


@pytest.mark.parametrize(
    ("part", "text", "message"),
    [
        (
            "corpus",
            '{"_id": "d1", "text": "a"}\n{"_id": "d1", "text": "b"}',
            "corpus.jsonl, line 2: the id 'd1' stands",
        ),
        (
            "corpus",
            '{"_id": "d1", "title": "a"}',
            'corpus.jsonl, line 1: each line must be a JSON object with an id in "_',
        ),
        ("corpus", '{"_id": "d1", "text": "a"', "corpus.jsonl, line 1: not JSON"),
        ("corpus", "d1 a text\n", "corpus.jsonl, line 1: neither JSON"),
        ("corpus", "\n", "corpus.jsonl is empty"),
        ("corpus", '{"_id": "x", "text": "a"}', "qrels.tsv, line 2: document 'd1' is not in"),
        ("queries", "", "queries.jsonl is empty"),
        ("queries", '{"_id": "q1", "text": "a"}', "qrels.tsv, line 4: query 'q2' is not in"),
        ("qrels", "query-id\tcorpus-id\tscore\n", "qrels.tsv is empty"),
        ("qrels", "q1\td1\n", "qrels.tsv, line 1: 2 columns"),
        ("qrels", "q1\td1\t1\nq1\td2\trelevant\n", "qrels.tsv, line 2: the judgement must be a whole number"),
        ("qrels", "q1\td1\t1\nq1\td1\t0\n", "qrels.tsv, line 2: document 'd1' is judged twice for query 'q1'"),
        ("run", "", "run.trec is empty"),
        ("run", "q1 d1 1\n", "run.trec, line 1: 3 columns. A run has six"),
        ("run", "q1 Q0 d1 1 nan bm25\n", "run.trec, line 1: the score must be a finite number"),
        ("run", "q1 Q0 d1 1 2 x\nq1 Q0 d1 2 1 x\n", "run.trec, line 2: document 'd1' stands twice under query 'q1'"),
        ("run", "q1 Q0 d1 1 2 x\nq3 Q0 d1 1 2 x\n", "run.trec, line 2: query 'q3' is not among the queries"),
        ("run", "q1 Q0 d1 1 2 x\nq1 Q0 d9 2 1 x\n", "run.trec, line 2: document 'd9', found for query 'q1', is not in"),
    ],
)
def test_an_error_names_file_and_line(folder: Write, part: str, text: str, message: str) -> None:
    path = folder(**{part: text})
    with pytest.raises(ValueError, match=message.replace(".", r"\.")) as error:
        check_run(read_run(path / "run.trec"), read_collection(path))
    assert str(path) in str(error.value)


def test_a_run_of_queries_without_judgements(folder: Write) -> None:
    path = folder(qrels="q1\td1\t1\n", run="q2 Q0 d3 1 1 x\n")
    with pytest.raises(ValueError, match="No query of the run run has judgements"):
        check_run(read_run(path / "run.trec"), read_collection(path))


def test_a_part_of_a_corpus_is_a_warning(folder: Write, caplog: pytest.LogCaptureFixture) -> None:
    path = folder(qrels="q1\td1\t1\nq2\td7\t1\nq2\td8\t1\n")
    with caplog.at_level(logging.WARNING, "winnow"):
        assert "d7" not in read_collection(path).documents
    assert "qrels.tsv, line 2: document 'd7' is not in" in caplog.text
    assert "This holds for 2 of 3 judged documents" in caplog.text


def test_a_folder_without_its_files_says_what_they_are(tmp_path: Path, folder: Write) -> None:
    with pytest.raises(FileNotFoundError, match=r"no corpus\.jsonl in this folder, as BEIR's layout has it"):
        read_collection(tmp_path)
    with pytest.raises(ValueError, match=r"qrels is missing: name its file, or a folder with qrels/test\.tsv or qrels"):
        read_collection(corpus="a", queries="b")
    (folder() / "run.gz").write_bytes(gzip.compress(FILES["run.trec"].encode())[:-9])
    with pytest.raises(ValueError, match=r"run\.gz is not a whole gzip file"):
        read_run(tmp_path / "run.gz")


def test_a_corpus_that_changes_is_noticed(folder: Write) -> None:
    path = folder()
    collection = read_collection(path)
    (path / "corpus.jsonl").write_text('{"_id": "other", "text": "a"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="has changed since it was read first"):
        collection.documents["d1"]


def test_a_run_that_is_written_reads_the_same(tmp_path: Path) -> None:
    run = Run("a model", {"q1": {"d1": 0.1, "d2": 1e-30, "d3": 0.1}})
    run.write(tmp_path / "out.trec")
    assert (tmp_path / "out.trec").read_text().splitlines()[0] == "q1 Q0 d3 1 0.1 a_model"
    assert read_run(tmp_path / "out.trec").scores == run.scores
    with pytest.raises(ValueError, match="The id 'd 1' cannot be written to a run"):
        Run("x", {"q1": {"d 1": 1.0}}).write(tmp_path / "bad.trec")
    assert not (tmp_path / "bad.trec").exists()


@pytest.mark.parametrize(
    ("name", "queries", "documents"),
    [("noveleval", 21, 420), ("apibench-huggingface", 830, 936), ("scifact", 300, 5183)],
)
def test_the_real_collections(name: str, queries: int, documents: int) -> None:
    path = data_file(f"collections/{name}")
    collection, run = read_collection(path), read_run(path / "run.bm25.trec")
    assert (len(collection.queries), len(collection.documents), len(run.scores)) == (queries, documents, queries)
    check_run(run, collection)
    with (path / "corpus.jsonl").open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    for record in (records[0], records[-1]):
        assert collection.documents[record["_id"]] == f"{record['title']} {record['text']}".strip()
    assert isinstance(collection, Collection)
