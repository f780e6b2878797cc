"""What `evaluate` measures, against values computed by hand and by ir_measures' own command."""

import asyncio
import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from gated_engine import GatedEngine, wait_until
from tokenizer_kinds import data_file
from winnow import ConfigurationError, DocumentError, Reranker
from winnow.evaluation import Collection, Run, evaluate, parse_metrics, read_collection, read_run
from winnow.evaluation.metrics import compare, measure
from winnow.evaluation.reranking import descending

DOCUMENTS = {
    "beijing": "Beijing is the capital of China.",
    "paris": "Paris is the capital of France.",
    "rice": "Rice and noodles.",
    "shanghai": "Shanghai is in China.",
}
COLLECTION = Collection(
    "cities",
    {"china": "capital of China", "food": "rice", "france": "capital of France", "none": "not judged"},
    DOCUMENTS,
    {"china": {"beijing": 2, "shanghai": 1, "paris": 0}, "food": {"rice": 1}, "france": {"paris": 1}},
)
# The retriever finds what is relevant last, or not at all.
RUN = {
    "china": {"rice": 4.0, "paris": 3.0, "shanghai": 2.0, "beijing": 1.0},
    "food": {"beijing": 2.0, "rice": 1.0},
    "france": {"beijing": 2.0, "rice": 1.0},
}


@pytest.fixture
def fake() -> Any:
    """A reranker whose scores are the shares of the query's words in the document."""
    with Reranker("fake", engine="fake", on_error="skip") as reranker:
        yield reranker


def dcg(gains: list[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))


def test_metrics_by_hand(fake: Reranker) -> None:
    found = evaluate(fake, COLLECTION, RUN, metrics="nDCG@3 RR@10 R@2")
    best = dcg([2, 1])
    assert found.summary["nDCG@3"] == {
        "run": pytest.approx((dcg([0, 0, 1]) / best + dcg([0, 1]) + 0) / 3),
        "run + fake": pytest.approx((dcg([2, 0, 1]) / best + 1 + 0) / 3),
    }
    assert found.summary["RR@10"] == {"run": pytest.approx((1 / 3 + 1 / 2) / 3), "run + fake": pytest.approx(2 / 3)}
    assert found.run.ranked("china")[:2] == ["beijing", "paris"]
    first = found.comparisons[0]
    assert (first.metric, first.against, first.queries, first.better, first.worse) == ("nDCG@3", "run", 3, 2, 0)
    assert first.difference == pytest.approx(first.after - first.before)
    assert first.p_value == pytest.approx(0.5)  # 4 of the 8 ways to give signs to (+, +, 0) are as far from 0


@pytest.mark.parametrize(("name", "ndcg"), [("noveleval", 0.705), ("apibench-huggingface", 0.233), ("scifact", 0.680)])
def test_the_known_values_of_bm25(name: str, ndcg: float) -> None:
    path = data_file(f"collections/{name}")
    collection, run = read_collection(path), read_run(path / "run.bm25.trec")
    found = measure(parse_metrics("nDCG@10"), collection.qrels, run)
    assert found.means["nDCG@10"] == pytest.approx(ndcg, abs=0.0005)
    by_hand = {
        query: dcg([max(judged.get(one, 0), 0) for one in run.ranked(query)[:10]])
        / dcg(sorted(judged.values(), reverse=True)[:10])
        for query, judged in collection.qrels.items()
    }
    assert found.per_query["nDCG@10"] == pytest.approx(by_hand)


def test_the_files_give_the_same_with_the_command_of_ir_measures(fake: Reranker, tmp_path: Path) -> None:
    path = data_file("collections/noveleval")
    collection, run = read_collection(path), read_run(path / "run.bm25.trec")
    found = evaluate(fake, collection, run, top_k=7, metrics=["nDCG@10", "RR@10", "R@20", "AP"])
    qrels = tmp_path / "qrels"
    lines = [f"{query} 0 {one} {value}\n" for query, of in collection.qrels.items() for one, value in of.items()]
    qrels.write_text("".join(lines), encoding="utf-8")
    reranked = tmp_path / "reranked.trec"
    found.run.write(reranked)
    for file, name in ((path / "run.bm25.trec", "run.bm25"), (reranked, "run.bm25 + fake")):
        command = [sys.executable, "-m", "ir_measures", "--places", "10", qrels, file, *found.metrics]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        values = dict(line.split("\t") for line in done.stdout.splitlines())
        assert {metric: float(value) for metric, value in values.items()} == pytest.approx(
            {metric: found.summary[metric][name] for metric in found.metrics}, abs=1e-9
        )
    for query in run.scores:  # what is not reranked follows in its order
        assert set(found.run.ranked(query)[:7]) == set(run.ranked(query)[:7])
        assert found.run.ranked(query)[7:] == run.ranked(query)[7:]


def test_scores_keep_the_order_in_every_tool() -> None:
    import numpy

    logits = [3e38, 20.000001, 20.0, 20.0, 1e-30, 0.0, 0.0, -5.0, -math.inf, -math.inf]
    scores = descending(logits)
    assert scores[1:3] == pytest.approx([20.000001, 20.0])
    assert scores[-2:] == [-6.0, -7.0]
    as_read = numpy.asarray(scores, dtype="float32")
    assert (as_read[1:] < as_read[:-1]).all()
    assert descending([-math.inf, -math.inf])[0] == 0.0
    assert all(map(math.isfinite, descending([-3.4e38, -3.4e38, -math.inf])))


@pytest.mark.parametrize(
    ("differences", "p_value"),
    [([0.5], None), ([0.0, 0.0], 1.0), ([0.1, 0.2, 0.3, 0.4], 2 / 16), ([0.25] * 5 + [-0.25] * 5, 1.0)],
)
def test_the_p_value_of_few_queries_is_exact(differences: list[float], p_value: float | None) -> None:
    qrels = {str(at): {"d": 1} for at in range(len(differences))}
    found = measure(parse_metrics("RR"), qrels, Run("r", {query: {"d": 1.0} for query in qrels}))
    before = type(found)(found.means, {"RR": {str(at): 1 - one for at, one in enumerate(differences)}})
    assert compare("RR", found, before, "b").p_value == (None if p_value is None else pytest.approx(p_value))


def test_the_p_value_of_many_queries() -> None:
    """Of normal differences it is that of the t-test, but for the 10,000 draws."""
    import numpy
    from scipy import stats

    values = numpy.random.default_rng(0).normal(0.1, 1.0, 300)
    qrels = {str(at): {"d": 1} for at in range(300)}
    found = measure(parse_metrics("RR"), qrels, Run("r", {query: {"d": 1.0} for query in qrels}))
    before = type(found)(found.means, {"RR": {str(at): 1 - one for at, one in enumerate(values)}})
    p_value = compare("RR", found, before, "b").p_value
    assert p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.02)
    assert p_value == compare("RR", found, before, "b").p_value


def test_a_result_as_dataframe_and_as_json(fake: Reranker) -> None:
    found = evaluate(fake, COLLECTION, RUN)
    table = found.to_dataframe()
    assert list(table.index) == ["china", "food", "france"]
    assert list(table.columns)[:3] == ["query", "nDCG@10", "nDCG@10 of run"]
    assert table["nDCG@10"].mean() == pytest.approx(found.summary["nDCG@10"]["run + fake"])
    assert list(table["documents"]) == [4, 2, 2]
    as_json = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert as_json["metrics"] == found.summary
    assert [one["query_id"] for one in as_json["per_query"]] == list(table.index)
    assert as_json["costs"]["run + fake"]["documents"] == 8
    assert as_json["comparisons"][0]["p_value"] == found.comparisons[0].p_value
    assert [(one.query, one.before < one.after) for one in found.winners()] == [("china", True), ("food", True)]
    assert found.losers() == []
    assert [one.query for one in found.winners(1, metric="RR@10", against="run")] == ["china"]
    with pytest.raises(ValueError, match=r"metric must be one of 'nDCG@10', 'RR@10', but got 'MAP'"):
        found.winners(metric="MAP")


def test_against_a_run_a_reranker_and_an_evaluation(fake: Reranker, tmp_path: Path) -> None:
    Run("x", {"china": {"beijing": 1.0}}).write(tmp_path / "other.trec")
    with Reranker("fake", engine="fake", max_document_tokens=5) as other:
        first = evaluate(other, COLLECTION, RUN)
        found = evaluate(fake, COLLECTION, RUN, against=[tmp_path / "other.trec", other, first])
        one = evaluate(fake, COLLECTION, RUN, against=other)
    names = ["run", "other", "run + fake", "run + fake (2)"]
    assert [each.run.name for each in found.others] == names
    assert found.run.name == "run + fake (3)"
    assert [each.costs is not None for each in found.measured] == [False, False, True, True, True]
    assert [each.against for each in found.comparisons[::2]] == names
    assert found.others[2].costs.truncated == first.costs.truncated == 8  # type: ignore[union-attr]
    assert found.others[3].metrics == first.reranked.metrics == one.others[1].metrics
    assert found.others[1].metrics.per_query["RR@10"] == {"china": 1.0, "food": 0.0, "france": 0.0}


def test_what_happened_to_documents_is_counted(tmp_path: Path) -> None:
    texts = {"long": "word " * 300, "short": "word", "broken": "half \ud800", "blank": ""}
    collection = Collection("c", {"q": "word", "long": "word " * 300}, texts, {"q": {"long": 1}, "long": {"short": 1}})
    run = {query: dict.fromkeys(texts, 1.0) for query in collection.queries}
    with Reranker("fake", engine="fake", max_length=600, on_error="skip") as reranker:
        found = evaluate(reranker, collection, run)
    assert (found.costs.documents, found.costs.truncated, found.costs.windowed, found.costs.failed) == (8, 2, 0, 2)
    assert found.costs.queries_truncated == 1
    assert list(found.per_query["q"].failed) == ["broken"]
    assert "surrogate" in found.as_dict()["per_query"][0]["errors"]["broken"]
    assert set(found.run.ranked("q")[2:]) == {"broken", "blank"}
    with Reranker("fake", engine="fake", max_length=600, on_overflow="window", on_error="skip") as reranker:
        assert evaluate(reranker, collection, run, limit=1).costs.windowed == 1
    with (
        Reranker("fake", engine="fake") as reranker,
        pytest.raises(DocumentError, match=r"Query 'q', document 'broken': Document 2 holds the lone surrogate"),
    ):
        evaluate(reranker, collection, run, limit=1)


def test_only_what_is_judged_is_reranked(fake: Reranker, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "winnow"):
        found = evaluate(fake, COLLECTION, {"none": {"rice": 1.0}, "france": {"paris": 1.0}})
    assert "no documents for 2 of 3 queries with judgements, such as 'china'" in caplog.text
    assert (found.costs.queries, list(found.run.scores), list(found.queries)) == (
        1,
        ["france"],
        ["china", "food", "france"],
    )
    assert found.summary["RR@10"]["run + fake"] == pytest.approx(1 / 3)
    assert list(found.to_dataframe()["documents"]) == [0, 0, 1]
    assert list(evaluate(fake, COLLECTION, RUN, limit=2).queries) == ["china", "food"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": "nDCG@10 relevance"}, "'relevance' is no metric of ir_measures"),
        ({"metrics": "nDCG@ten"}, "'nDCG@ten' is no metric of ir_measures"),
        ({"metrics": []}, "metrics must name at least one metric"),
        ({"metrics": "alpha_nDCG@10"}, r"ir_measures cannot compute alpha_nDCG@10: Unsupported measures"),
        ({"top_k": 0}, "top_k must be > 0, but got 0"),
        ({"limit": 0}, "limit must be > 0, but got 0"),
        ({"against": {"q9": {"d": 1.0}}}, "The run other run: query 'q9' is not among the queries of cities"),
    ],
)
def test_mistakes_are_found_before_anything_is_scored(options: dict[str, Any], message: str) -> None:
    engine = GatedEngine()  # would wait for ever
    with Reranker("x", engine=engine) as reranker, pytest.raises(ValueError, match=message) as error:
        evaluate(reranker, COLLECTION, RUN, **options)
    assert engine.started == 0
    assert "metric" not in message or isinstance(error.value, ConfigurationError)


def many(queries: int, documents: int) -> tuple[Collection, dict[str, dict[str, float]]]:
    names = [f"q{at}" for at in range(queries)]
    texts = {f"d{at}": f"word {at}" for at in range(documents)}
    run = {query: {name: float(-at) for at, name in enumerate(texts)} for query in names}
    return Collection(
        "c", {query: f"word {query}" for query in names}, texts, {query: {"d0": 1} for query in names}
    ), run


def test_the_engine_has_enough_to_do_and_not_all_at_once() -> None:
    collection, run = many(100, 100)
    engine = GatedEngine()
    found = []
    with Reranker("x", engine=engine) as reranker:
        thread = threading.Thread(target=lambda: found.append(evaluate(reranker, collection, run)))
        thread.start()
        wait_until(lambda: engine.waiting >= 24)  # 6 queries in requests of 32 pairs
        assert engine.waiting <= 24
        engine.gate.set()
        thread.join()
    assert found[0].costs.documents == 10_000
    assert list(found[0].run.scores) == list(collection.queries)


def test_it_works_where_an_event_loop_runs_as_in_notebooks(fake: Reranker) -> None:
    async def cell() -> float:
        return evaluate(fake, COLLECTION, RUN).summary["RR@10"]["run + fake"]

    assert asyncio.run(cell()) == pytest.approx(2 / 3)


def test_an_interrupt_withdraws_what_is_under_way() -> None:
    collection, run = many(20, 10)
    engine = GatedEngine()

    def interrupt() -> None:
        wait_until(lambda: engine.waiting > 0)
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C: it wakes the main thread

    with Reranker("x", engine=engine) as reranker:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            evaluate(reranker, collection, run)
        thread.join()
        wait_until(lambda: engine.waiting == 0)
    assert engine.prompts == 0


def test_a_real_model_ranks_as_it_does_alone(tiny_model: str, passages: list[str]) -> None:
    texts = {f"d{at}": text for at, text in enumerate(passages[:12])}
    queries = {"q1": "What is the capital of China?", "q2": "How do bees make honey?"}
    run = {query: {name: float(-at) for at, name in enumerate(texts)} for query in queries}
    collection = Collection("passages", queries, texts, {"q1": {"d3": 1}, "q2": {"d5": 1, "d7": 2}})
    with Reranker(tiny_model, engine="transformers") as reranker:
        found = evaluate(reranker, collection, run, top_k=10, instruction="Find what answers")
        for query, text in queries.items():
            alone = reranker.rank(text, passages[:10], instruction="Find what answers")
            assert found.run.ranked(query) == [f"d{hit.index}" for hit in alone] + ["d10", "d11"]
            for hit in alone:
                assert found.run.scores[query][f"d{hit.index}"] == pytest.approx(hit.logit, abs=1e-4)
    assert found.costs.prompt_tokens > 1000
    assert found.costs.pairs_per_second is not None
