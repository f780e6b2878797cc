"""Calibrating: the curve is scikit-learn's, the numbers are held out, and the threshold does what it was chosen for."""

import json
import logging
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import brier_score_loss, log_loss
from typer.testing import CliRunner

from winnow import Calibration, ConfigurationError, EngineError, EngineScore, FakeEngine, Prompt, Reranker
from winnow.cli.main import app
from winnow.evaluation import CalibrationReport, Collection, JudgedPair, Run, calibrate, pairs_of, read_pairs
from winnow.evaluation.curves import estimator, fit, held_out, predicted
from winnow.evaluation.reliability import reliability
from winnow.evaluation.thresholds import choose, cut


class Given(FakeEngine):
    """Its logit of a document is the first number in it. "no" is a document that it refuses."""

    async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
        self.prompts += len(prompts)
        words = [self._parts(prompt)[3].split()[0] for prompt in prompts]
        return [EngineScore(0.0, error="refused") if word == "no" else EngineScore(float(word)) for word in words]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def made(queries: int, *, scale: float = 3.0, shift: float = 2.0, each: int = 20, seed: int = 0) -> list[JudgedPair]:
    """Pairs that are relevant with the probability sigmoid((logit − shift) / scale)."""
    chance = random.Random(seed)  # noqa: S311
    pairs = []
    for query in range(queries):
        for _ in range(each):
            truth = chance.gauss(-1.5, 2.0)
            label = int(chance.random() < sigmoid(truth))
            pairs.append(JudgedPair(query=f"query {query}", document=repr(truth * scale + shift), label=label))
    return pairs


def report_of(pairs: list[JudgedPair], **options: Any) -> CalibrationReport:
    with Reranker("m", engine=Given(), on_error="skip") as reranker:
        return calibrate(reranker, pairs, **options)


def arrays(pairs: list[JudgedPair]) -> tuple[Any, Any, Any]:
    groups = np.unique([pair.query for pair in pairs], return_inverse=True)[1]
    return np.array([float(pair.document) for pair in pairs]), np.array([pair.label > 0 for pair in pairs]), groups


# --- the curve --------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(-30, 30, width=32), st.booleans()), min_size=4, max_size=40), st.data())
@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_probabilities_are_those_of_scikit_learn(method: str, pairs: list[tuple[float, bool]], data: Any) -> None:
    logits, relevant = np.array([one for one, _ in pairs]), np.array([label for _, label in pairs])
    assume(np.ptp(logits) > 0)
    model = estimator(method, logits, relevant)
    try:
        calibration = fit(method, logits, relevant)
    except ConfigurationError:  # better documents have lower logits
        assert not predicted(model, np.array([30.0]))[0] > predicted(model, np.array([-30.0]))[0]
        return
    new = data.draw(st.lists(st.floats(-100, 100), max_size=20))
    expected = predicted(model, np.array([*logits, *new]))
    assert [calibration.probability(one) for one in [*logits.tolist(), *new]] == pytest.approx(expected, abs=1e-9)


class LogitItself(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier whose decision is its input, as scikit-learn wants one to calibrate."""

    def fit(self, _: Any, labels: Any) -> "LogitItself":
        self.classes_ = np.unique(labels)
        return self

    def predict(self, logits: Any) -> Any:
        return self.decision_function(logits) > 0

    def decision_function(self, logits: Any) -> Any:
        return logits[:, 0]


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_the_curve_is_that_of_scikit_learns_calibration(method: str) -> None:
    logits, relevant, _ = arrays(made(20))
    column = logits.reshape(-1, 1)
    theirs = CalibratedClassifierCV(
        FrozenEstimator(LogitItself().fit(column, relevant)), method="sigmoid" if method == "platt" else "isotonic"
    ).fit(column, relevant)
    ours = fit(method, logits, relevant)
    places = np.linspace(-15, 15, 100)
    expected = theirs.predict_proba(places.reshape(-1, 1))[:, 1]
    # Theirs stops its search for Platt's two numbers earlier.
    assert [ours.probability(one) for one in places.tolist()] == pytest.approx(expected, abs=1e-4)


def test_pairs_that_a_threshold_separates_have_a_curve_that_ends() -> None:
    found = fit("platt", np.arange(-10.0, 10.0), np.arange(20) >= 10)
    assert found.slope is not None
    assert 0.2 < found.slope < 5
    assert found.probability(0.0) == pytest.approx(0.5, abs=0.1)


def test_the_curve_finds_the_truth_that_made_the_labels() -> None:
    found = report_of(made(400)).calibration
    assert found.method == "platt"
    assert (found.slope, found.intercept) == (pytest.approx(1 / 3, abs=0.03), pytest.approx(-2 / 3, abs=0.1))


def test_auto_takes_isotonic_for_many_pairs_with_another_curve_than_a_sigmoid() -> None:
    def step(queries: int) -> list[JudgedPair]:  # of three flat parts, which no sigmoid has
        chance = random.Random(1)  # noqa: S311
        pairs = []
        for at in range(queries * 20):
            logit = chance.uniform(-4, 4)
            label = chance.random() < (0.05 if logit < -2 else 0.5 if logit < 2 else 0.6)
            pairs.append(JudgedPair(query=f"query {at % queries}", document=repr(logit), label=label))
        return pairs

    assert report_of(step(20)).calibration.method == "platt"  # 400 pairs
    report = report_of(step(200))
    assert report.calibration.method == "isotonic"
    assert "its Brier score is clearly lower: platt 0." in report.why
    assert report_of(made(100)).calibration.method == "platt"  # a sigmoid made it
    assert report_of(step(20), method="isotonic").calibration.method == "isotonic"


def test_labels_that_are_inverted_are_an_error() -> None:
    pairs = [JudgedPair(query=one.query, document=one.document, label=1 - one.label) for one in made(20)]
    for method in ("platt", "isotonic"):
        with pytest.raises(ConfigurationError, match=r"no higher logits than the others.*labels are not inverted"):
            report_of(pairs, method=method)


# --- what is held out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_a_pair_does_not_know_the_labels_of_its_own_query(method: str) -> None:
    """Else the report would praise a curve that has learned them by heart."""
    logits, relevant, groups = arrays(made(10))
    before = held_out(method, logits, relevant, groups)
    # In each fold stay the same queries only if its shares stay: of one query two labels change places.
    own = np.flatnonzero(groups == 3)
    one, other = own[relevant[own]][0], own[~relevant[own]][0]
    changed = relevant.copy()
    changed[[one, other]] = changed[[other, one]]
    after = held_out(method, logits, changed, groups)
    assert after[own].tolist() == before[own].tolist()
    assert after.tolist() != before.tolist()


def test_the_numbers_are_those_of_scikit_learn() -> None:
    report = report_of(made(30))
    frame = report.to_dataframe()
    for found, scores in ((report.before, frame["before"]), (report.after, frame["after"])):
        assert found.brier == pytest.approx(brier_score_loss(frame["relevant"], scores))
        assert found.log_loss == pytest.approx(log_loss(frame["relevant"], scores))
        assert sum(one.pairs for one in found.bins) == len(frame) == 600
    assert [sigmoid(one) for one in frame["logit" if "logit" in frame else "logits"]] == pytest.approx(frame["before"])
    assert report.after.brier < report.before.brier
    assert report.after.ece < report.before.ece / 2


def test_the_expected_calibration_error_by_hand() -> None:
    scores, relevant = np.array([0.05, 0.09, 0.55, 0.95, 1.0]), np.array([False, True, True, True, True])
    found = reliability(scores, relevant)
    assert [(one.pairs, one.relevant) for one in found.bins] == [(2, 0.5), (1, 1.0), (2, 1.0)]
    assert found.ece == pytest.approx((2 * (0.5 - 0.07) + 0.45 + 2 * 0.025) / 5)
    assert reliability(np.array([0.0, 1.0]), np.array([True, False])).log_loss == pytest.approx(34.54, abs=0.01)


# --- the threshold ----------------------------------------------------------------------------------------------------


def test_a_threshold_for_a_precision_and_one_for_a_recall() -> None:
    pairs = made(60)
    for wanted, value in (("precision", 0.8), ("recall", 0.9)):
        report = report_of(pairs, **{wanted: value})
        chosen = report.threshold
        assert chosen is not None
        frame = report.to_dataframe()
        above = frame[frame["after"] >= chosen.threshold]
        assert chosen.precision == pytest.approx(above["relevant"].mean())
        assert chosen.recall == pytest.approx(above["relevant"].sum() / frame["relevant"].sum())
        assert chosen.passing == pytest.approx(len(above) / len(frame))
        assert getattr(chosen, wanted) >= value
        for low, high, inside in (
            (*chosen.threshold_interval, chosen.threshold),
            (*chosen.precision_interval, chosen.precision),
            (*chosen.recall_interval, chosen.recall),
        ):
            assert 0 <= low <= inside <= high <= 1
            assert high - low < 0.35
        # It is the lowest for a precision, and the highest for a recall: one score further it is missed.
        others = sorted(set(frame["after"]))
        if wanted == "precision":
            lower = max(one for one in others if one < chosen.threshold)
            assert report.cut(lower).precision < value
        else:
            higher = min(one for one in others if one > chosen.threshold)
            assert report.cut(math.nextafter(higher, 2)).recall < value
        assert report_of(pairs, **{wanted: value}).threshold == chosen  # the same each time


scored = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), st.booleans(), st.integers(0, 4)),
    min_size=20,
    max_size=60,
)


@given(scored, st.sampled_from(["precision", "recall"]), st.floats(0.05, 1))
def test_no_other_threshold_is_better(pairs: list[tuple[float, bool, int]], wanted: Any, value: float) -> None:
    scores, relevant = np.array([one for one, _, _ in pairs]), np.array([one for _, one, _ in pairs])
    groups = np.unique([one for _, _, one in pairs], return_inverse=True)[1]
    if not relevant.any():
        return
    cuts = [cut(scores, relevant, one) for one in sorted(set(scores))]
    if wanted == "precision":
        good = [one for one in cuts if one.precision >= value and one.passing * len(scores) >= 10]
        if not good:
            with pytest.raises(ConfigurationError, match=r"No threshold has a precision of .* Ask for less"):
                choose(scores, relevant, groups, wanted, value)
            return
        best = good[0]
    else:
        best = [one for one in cuts if one.recall >= value][-1]
    found = choose(scores, relevant, groups, wanted, value)
    assert (found.precision, found.recall, found.passing) == (best.precision, best.recall, best.passing)
    assert found.threshold <= best.threshold


def test_a_precision_that_none_reaches_is_an_error_that_says_the_best() -> None:
    chance = random.Random(2)  # noqa: S311
    pairs = [replace(pair, label=pair.label * (chance.random() < 0.5)) for pair in made(30)]
    with pytest.raises(ConfigurationError, match=r"precision of 0.999 on 10 .* the best is 0\.\d+, with a recall"):
        report_of(pairs, precision=0.999)


# --- pairs ------------------------------------------------------------------------------------------------------------


def written(pairs: list[JudgedPair], file: Path) -> Path:
    lines = [{"query": one.query, "document": one.document, "label": one.label} for one in pairs]
    file.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    return file


def test_pairs_of_a_file_with_grades_and_instructions(tmp_path: Path) -> None:
    file = tmp_path / "judged.jsonl"
    lines = [
        '{"query": "q", "document": "d", "label": true, "id": 7}',
        "",
        '{"query": "q", "document": "e", "label": 2.5}',
    ]
    lines.append('{"query": "q", "document": "d", "label": 0, "instruction": "Find cities"}')
    file.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    assert read_pairs(file) == [
        JudgedPair(query="q", document="d", label=1),
        JudgedPair(query="q", document="e", label=2.5),
        JudgedPair(query="q", document="d", label=0, instruction="Find cities"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("query,document,label", "line 2: not JSON"),
        ("[" * 100_000, "line 2: not JSON"),
        ("[1]", "line 2: not a JSON object"),
        ('{"query": "q", "text": "d", "label": 1}', 'line 2: "document" is missing'),
        ('{"query": " ", "document": "d", "label": 1}', 'line 2: "query" is blank'),
        ('{"query": "q", "document": "\\ud800", "label": 1}', "line 2: document holds the lone surrogate"),
        ('{"query": "q", "document": "d"}', 'line 2: "label" is None'),
        ('{"query": "q", "document": "d", "label": "1"}', "line 2: \"label\" is '1'"),
        ('{"query": "q", "document": "d", "label": NaN}', 'line 2: "label" is nan'),
        ('{"query": "q", "document": "d", "label": 1, "instruction": 3}', 'line 2: "instruction" must be a text'),
        ('{"query": "q", "document": "caf\udce9", "label": 1}', "line 2: the byte 0xe9"),
    ],
    ids=range(11),
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "judged.jsonl"
    good = '{"query": "q", "document": "d", "label": 1}\n'
    file.write_bytes((good + line).encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message) as caught:
        read_pairs(file)
    assert str(file) in str(caught.value)


def test_an_empty_file_says_what_belongs_there(tmp_path: Path) -> None:
    (tmp_path / "judged.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match='is empty: it should have a JSON object with "query"'):
        read_pairs(tmp_path / "judged.jsonl")


def test_pairs_of_a_collection_and_of_its_run() -> None:
    documents = {name: f"text {name}" for name in "abcd"}
    collection = Collection("c", {"1": "one", "2": "two"}, documents, {"1": {"a": 2, "b": 0, "gone": 1}})
    assert [(one.query, one.document, one.label) for one in pairs_of(collection)] == [
        ("one", "text a", 2),
        ("one", "text b", 0),
    ]
    run = Run("r", {"1": {"d": 3.0, "a": 2.0, "c": 1.0}, "2": {"a": 1.0}})
    assert [(one.document, one.label) for one in pairs_of(collection, run, top_k=2)] == [("text d", 0), ("text a", 2)]


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        ([replace(one, document="1.5") for one in made(20)], {}, "All pairs have the logit 1.5"),
        ([], {}, "0 pairs are relevant and 0 are not, of 0 queries.* the labels are none"),
        (made(4), {}, "of 4 queries.* needs 10 of each and 5 queries"),
        (made(5)[:15] + made(5)[-5:], {}, "Judge more documents"),
        (made(30), {"relevant_from": 2}, "0 pairs are relevant.*labels from 2, and the labels are 0, 1.*relevant_from"),
        (made(30), {"relevant_from": 0}, "600 pairs are relevant and 0 are not.*add its run"),
        (made(30), {"precision": 0.8, "recall": 0.8}, "precision or recall, not both"),
        (made(30), {"precision": 80}, "precision must be above 0 and at most 1, but got 80"),
        (made(30), {"recall": 0.0}, "recall must be above 0 and at most 1"),
        (made(30), {"method": "beta"}, "method must be one of 'platt', 'isotonic', 'auto', but got 'beta'"),
    ],
    ids=range(10),
)
def test_what_cannot_be_calibrated_is_an_error_that_says_what_to_do(
    pairs: list[JudgedPair], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        report_of(pairs, **options)


def test_relevant_pairs_of_one_query_alone_cannot_be_held_out() -> None:
    pairs = [JudgedPair(query="all", document=repr(3.0 + at), label=1) for at in range(20)]
    pairs += [JudgedPair(query=f"query {at}", document=repr(1.0 * at), label=0) for at in range(20)]
    with pytest.raises(ConfigurationError, match=r"are of the same queries.*judge documents of both kinds"):
        report_of(pairs)


def test_pairs_without_a_score_are_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    pairs = made(20)
    bad = [JudgedPair(query="query 1", document="no", label=1), JudgedPair(query="query 2", document=" ", label=1)]
    with caplog.at_level(logging.WARNING):
        report = report_of([*bad, *pairs])
    assert (report.left_out, report.calibration.pairs) == (2, 400)
    assert report.calibration == report_of(pairs).calibration
    assert (
        "2 of 402 pairs have no score and are left out, such as the document 'no' of the query 'query 1'" in caplog.text
    )
    assert "refused" in caplog.text
    assert "2 more have no score" in str(report)


def test_a_fallbacks_scores_are_refused() -> None:
    class Failing(FakeEngine):
        async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
            raise RuntimeError("broken")

    message = r"'fake' scored a query, because.*broken.*calibrate without"
    with (
        Reranker("m", engine=Failing(), fallback="fake") as reranker,
        pytest.raises(ConfigurationError, match=message),
    ):
        calibrate(reranker, made(20))
    with Reranker("m", engine=Failing()) as reranker, pytest.raises(EngineError, match="broken"):
        calibrate(reranker, made(20))


def test_what_it_was_fitted_on_is_kept() -> None:
    pairs = made(20)
    with Reranker("Qwen/Qwen3-Reranker-0.6B", engine=Given(), instruction="Find cities") as reranker:
        found = calibrate(reranker, pairs).calibration
        assert (found.model, found.instruction) == ("Qwen/Qwen3-Reranker-0.6B", "Find cities")
        assert (found.pairs, found.relevant, found.queries) == (400, sum(pair.label > 0 for pair in pairs), 20)
        own = [JudgedPair(query=one.query, document=one.document, label=one.label, instruction="x") for one in pairs]
        assert calibrate(reranker, own).calibration.instruction == "x"
        assert calibrate(reranker, pairs + own).calibration.instruction is None
    assert report_of(pairs).calibration.instruction == ""


# --- two models -------------------------------------------------------------------------------------------------------


def test_one_threshold_means_the_same_for_two_models_only_when_they_are_calibrated() -> None:
    """Two scales for the same pairs: without a calibration 0.6 lets half of them through, or almost none."""
    cuts = []
    for scale, shift in ((4.0, 5.0), (0.5, -2.0)):
        report = report_of(made(100, scale=scale, shift=shift))
        cuts.append((report.cut(0.6, calibrated=False), report.cut(0.6)))
    (loose, loose_after), (strict, strict_after) = cuts
    assert loose.passing > 0.4
    assert strict.passing < 0.01
    assert loose_after.passing == pytest.approx(strict_after.passing, abs=0.02)
    assert loose_after.precision == pytest.approx(strict_after.precision, abs=0.03)
    assert 0.6 < loose_after.precision < 0.85


# --- the command line -------------------------------------------------------------------------------------------------


FAKE = ("calibrate", "-m", "m", "--engine", "fake")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*FAKE, *map(str, arguments)])


@pytest.fixture
def collection(tmp_path: Path) -> list[str | Path]:
    """A collection that the fake engine ranks well: documents share words with relevant queries."""
    chance = random.Random(0)  # noqa: S311
    words = [f"word{at}" for at in range(40)]
    queries, corpus, qrels, found = [], [], [], []
    for query in range(30):
        text = chance.sample(words, 4)
        queries.append({"_id": f"q{query}", "text": " ".join(text)})
        for place in range(10):
            shared = chance.randint(0, 4)
            document = f"d{query}-{place}"
            corpus.append({"_id": document, "text": " ".join(text[:shared] + chance.sample(words, 5))})
            grade = int(chance.random() < shared / 4) * chance.choice([1, 2])
            if place:
                qrels.append(f"q{query} 0 {document} {grade}\n")
            found.append(f"q{query} Q0 {document} {place + 1} {10 - place} bm25\n")
    for name, lines in (("corpus", corpus), ("queries", queries)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    (tmp_path / "qrels.txt").write_text("".join(qrels), encoding="utf-8")
    (tmp_path / "bm25.trec").write_text("".join(found), encoding="utf-8")
    return [
        *("--corpus", tmp_path / "corpus.jsonl", "--queries", tmp_path / "queries.jsonl"),
        *("--qrels", tmp_path / "qrels.txt"),
    ]


def test_a_collection_becomes_a_file_a_threshold_and_a_plot(collection: list[str | Path], tmp_path: Path) -> None:
    plot, out = tmp_path / "plot.png", tmp_path / "out"
    options = ["--run", tmp_path / "bm25.trec", "--precision", "0.7", "--plot", plot, "--output", out]
    result = run(*collection, *options)
    assert result.exit_code == 0, result.output
    assert "300 pairs of 30 queries" in result.stdout
    assert "for a precision of 0.7" in result.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
    calibration = Calibration.load(out)
    assert (calibration.model, calibration.pairs, calibration.queries) == ("m", 300, 30)
    judged_alone = run(*collection, "--json", "--recall", "0.9", "--relevant-from", "2", "--method", "isotonic")
    assert judged_alone.exit_code == 0, judged_alone.output
    found = json.loads(judged_alone.stdout)
    assert (found["calibration"]["pairs"], found["calibration"]["method"]) == (270, "isotonic")
    assert found["calibration"]["relevant"] < calibration.relevant
    assert found["threshold"]["recall"] >= 0.9
    ranked = ["rank", "-m", "m", "--engine", "fake", "-q", "word1", "--calibration", str(out), "--json", "-"]
    scores = [
        hit["score"] for hit in json.loads(CliRunner().invoke(app, ranked, input="word1\nother").stdout)["results"]
    ]
    assert scores == pytest.approx([calibration.probability(4.0), calibration.probability(-4.0)], abs=1e-3)


def test_an_interrupted_command_goes_on_with_its_score_cache(tmp_path: Path) -> None:
    pairs = [*(JudgedPair(query=f"a{at} b", document=f"a{at} b", label=1) for at in range(20))]
    pairs += [JudgedPair(query=f"a{at} b", document=f"c{at}", label=0) for at in range(20)]
    file = written(pairs, tmp_path / "judged.jsonl")
    first = run("--pairs", file, "--score-cache", tmp_path / "scores", "--json")
    assert first.exit_code == 0, first.output
    again = run("--pairs", file, "--score-cache", tmp_path / "scores", "--json")
    assert again.stdout == first.stdout
    with Reranker("m", engine="fake", score_cache=tmp_path / "scores") as reranker:
        stats = reranker.rank("a1 b", ["a1 b", "c1"]).stats
    assert stats.cache_hits == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "give --pairs, or --collection, or --corpus"),
        (["--pairs", "a", "--corpus", "b"], 2, "give --pairs, or --collection"),
        (["--pairs", "a", "--run", "b"], 2, "--run belongs to a collection"),
        (["--pairs", "no.jsonl"], 1, "no.jsonl: No such file"),
        (["--corpus", "no.jsonl"], 1, "queries is missing"),
        (["--pairs", "a", "--plot", "plot.bmp"], 1, "plot.bmp: a plot's name must end with .png, .svg or .pdf"),
        (["--pairs", "a", "--method", "beta"], 2, "beta"),
        (["--pairs", "a", "--top-k", "0"], 2, "top-k"),
    ],
)
def test_wrong_arguments(arguments: list[str], code: int, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
