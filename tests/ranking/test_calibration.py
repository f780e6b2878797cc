"""Calibrated scores: probabilities in the same order, from a file that is checked when it is read."""

import json
import logging
import math
import pickle
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from winnow import Calibration, ConfigurationError, EngineScore, FakeEngine, Prompt, Ranking, Reranker, RerankerConfig
from winnow.cli.main import app

QUERY = "capital of China"
TEXTS = ["Rice.", "Beijing is the capital of China.", "Paris is the capital of France.", " "]
PLATT = Calibration(method="platt", slope=0.5, intercept=-1.0)
ISOTONIC = Calibration(method="isotonic", knots=((-3.0, 0.1), (-1.0, 0.25), (1.0, 0.25), (3.5, 0.8)))
BOTH = pytest.mark.parametrize("calibration", [PLATT, ISOTONIC], ids=["platt", "isotonic"])

logits = st.floats(width=32, allow_nan=False, allow_infinity=False)
probabilities = st.floats(0, 1)


@st.composite
def calibrations(draw: st.DrawFn) -> Calibration:
    if draw(st.booleans()):
        slope = draw(st.floats(1e-6, 1e6))
        return Calibration(method="platt", slope=slope, intercept=draw(st.floats(-1e6, 1e6)))
    places = sorted(draw(st.sets(logits, min_size=2, max_size=8)))
    heights = sorted(draw(st.lists(probabilities, min_size=len(places), max_size=len(places))))
    return Calibration(method="isotonic", knots=tuple(zip(places, heights, strict=True)))


class Given(FakeEngine):
    """Its logit of a document is the number that the document is."""

    async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
        self.prompts += len(prompts)
        return [EngineScore(float(self._parts(prompt)[3])) for prompt in prompts]


def ranked(documents: Sequence[str | None], **options: Any) -> Ranking:
    with Reranker("m", **{"engine": "fake", **options}) as reranker:
        return reranker.rank(QUERY, documents)


# --- the curve --------------------------------------------------------------------------------------------------------


@given(calibrations(), st.lists(logits, max_size=20))
def test_a_larger_logit_never_has_a_smaller_probability(calibration: Calibration, given: list[float]) -> None:
    places = sorted({*given, *(logit for logit, _ in calibration.knots)})
    found = [calibration.probability(logit) for logit in places]
    assert found == sorted(found)
    assert all(0 <= one <= 1 for one in found)


def test_knots_are_met_and_straight_lines_join_them() -> None:
    assert [ISOTONIC.probability(logit) for logit, _ in ISOTONIC.knots] == [one for _, one in ISOTONIC.knots]
    assert ISOTONIC.probability(-2.0) == pytest.approx(0.175)
    assert (ISOTONIC.probability(-1e30), ISOTONIC.probability(1e30)) == (0.1, 0.8)
    assert PLATT.probability(2.0) == 0.5
    assert PLATT.probability(3.0) == pytest.approx(1 / (1 + math.exp(-0.5)))


@given(calibrations(), st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 7.0]) | logits, max_size=12))
def test_the_order_is_that_of_the_logits_also_where_probabilities_are_equal(
    calibration: Calibration, given: list[float]
) -> None:
    documents = [repr(logit) for logit in given]
    plain = ranked(documents, engine=Given())
    found = ranked(documents, engine=Given(), calibration=calibration)
    assert [hit.index for hit in found] == [hit.index for hit in plain]
    assert [hit.logit for hit in found] == [hit.logit for hit in plain]
    assert [hit.score for hit in found] == [calibration.probability(hit.logit) for hit in plain]


# --- rankings ---------------------------------------------------------------------------------------------------------


@BOTH
def test_a_threshold_is_a_probability_and_a_document_without_a_score_has_none(calibration: Calibration) -> None:
    with Reranker("m", engine="fake", calibration=calibration) as reranker:
        hits = reranker.rank(QUERY, TEXTS)
        assert [hit.score for hit in hits] == [*(calibration.probability(hit.logit) for hit in hits[:3]), 0.0]
        assert hits[:2] == reranker.rank(QUERY, TEXTS, score_threshold=hits[1].score).hits  # inclusive
        assert reranker.score(QUERY, TEXTS) == [hit.score for hit in sorted(hits, key=lambda hit: hit.index)]


def test_raw_scores_are_logits_whatever_the_calibration() -> None:
    assert ranked(TEXTS, raw_scores=True, calibration=PLATT).hits == ranked(TEXTS, raw_scores=True).hits


def test_a_fallback_on_another_engine_is_calibrated_too() -> None:
    class Failing(FakeEngine):
        async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
            raise RuntimeError("no")

    found = ranked(TEXTS, engine=Failing(), fallback="fake", calibration=PLATT)
    assert found.stats.fallback == "fake"
    assert found.hits == ranked(TEXTS, calibration=PLATT).hits
    other = RerankerConfig("other", engine="fake", calibration=ISOTONIC)
    assert (
        ranked(TEXTS, engine=Failing(), fallback=other, calibration=PLATT).hits
        == ranked(TEXTS, calibration=ISOTONIC).hits
    )


def test_the_score_cache_holds_logits_so_every_calibration_finds_them(tmp_path: Path) -> None:
    for calibration, hits in ((None, 0), (PLATT, 3), (ISOTONIC, 3)):
        found = ranked(TEXTS, calibration=calibration, score_cache=tmp_path / "scores")
        assert found.stats.cache_hits == hits
        assert found.hits == ranked(TEXTS, calibration=calibration).hits


@BOTH
def test_a_notebook_shows_the_bar_of_the_probability(calibration: Calibration) -> None:
    def widths(ranking: Ranking) -> list[float]:
        return [float(width) for width in re.findall(r"width:([\d.]+)em", ranking._repr_html_())]

    found = ranked(TEXTS, calibration=calibration)
    assert widths(found) == [pytest.approx(6 * hit.score, abs=0.051) for hit in found[:3]]
    assert widths(ranked(TEXTS, raw_scores=True, calibration=calibration)) == widths(ranked(TEXTS))


# --- the warning ------------------------------------------------------------------------------------------------------


def warnings_of(caplog: pytest.LogCaptureFixture, calibration: Calibration, model: str, **options: Any) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING), Reranker(model, engine="fake", calibration=calibration) as reranker:
        for _ in range(2):
            reranker.rank(QUERY, TEXTS, **options)
    return [record.message for record in caplog.records]


def test_a_calibration_of_another_model_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    fitted = Calibration(method="platt", slope=1.0, intercept=0.0, model="Qwen/Qwen3-Reranker-0.6B")
    (warning,) = warnings_of(caplog, fitted, "Qwen/Qwen3-Reranker-4B")
    assert "fitted on the model Qwen/Qwen3-Reranker-0.6B, and this is Qwen/Qwen3-Reranker-4B" in warning
    assert warnings_of(caplog, fitted, "/models/qwen3-reranker-0.6b/") == []
    assert warnings_of(caplog, PLATT, "any") == []  # which does not say what it was fitted on


@pytest.mark.parametrize(
    ("fitted", "used", "warning"),
    [
        ("", None, None),
        ("Find cities", "Find cities", None),
        (None, "Find cities", None),
        ("", "Find cities", "another instruction (the default; now it is 'Find cities')"),
        ("Find cities", None, "another instruction ('Find cities'; now it is the default)"),
    ],
)
def test_a_calibration_of_another_instruction_is_one_warning(
    caplog: pytest.LogCaptureFixture, fitted: str | None, used: str | None, warning: str | None
) -> None:
    calibration = Calibration(method="platt", slope=1.0, intercept=0.0, model="m", instruction=fitted)
    found = warnings_of(caplog, calibration, "m", instruction=used)
    assert len(found) == (warning is not None)
    assert all(str(warning) in one for one in found)


# --- the file ---------------------------------------------------------------------------------------------------------


@given(calibrations(), st.none() | st.text(), st.none() | st.text(), st.integers(0, 10**9))
def test_what_is_saved_is_equal_when_it_is_read(
    tmp_path_factory: pytest.TempPathFactory, curve: Calibration, model: str, instruction: str, count: int
) -> None:
    known = {"model": model, "instruction": instruction, "pairs": count, "relevant": count // 2, "queries": 7}
    calibration = Calibration(**{**asdict(curve), **known})
    folder = tmp_path_factory.mktemp("saved")
    assert calibration.save(folder) == folder / "calibration.json"
    assert calibration.save(str(folder / "new" / "mine.json")) == folder / "new" / "mine.json"
    assert Calibration.load(folder) == Calibration.load(folder / "new" / "mine.json") == calibration
    assert sorted(file.name for file in folder.iterdir()) == ["calibration.json", "new"]
    config = RerankerConfig("m", engine="fake", calibration=calibration)
    assert RerankerConfig(**json.loads(json.dumps(asdict(config)))) == config
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301


def test_a_reranker_takes_the_object_its_file_and_its_folder(tmp_path: Path) -> None:
    expected = ranked(TEXTS, calibration=PLATT).hits
    assert expected != ranked(TEXTS).hits
    PLATT.save(tmp_path)
    for way in (tmp_path, str(tmp_path), tmp_path / "calibration.json", asdict(PLATT)):
        assert ranked(TEXTS, calibration=way).hits == expected


def test_the_environment_and_a_copy_change_nothing(tmp_path: Path) -> None:
    PLATT.save(tmp_path)
    with Reranker("m", engine="fake", calibration=tmp_path) as reranker:
        assert reranker.calibration == str(tmp_path)
        ISOTONIC.save(tmp_path)
        assert reranker.rank(QUERY, TEXTS).hits == ranked(TEXTS, calibration=PLATT).hits  # read when it was made
        with pickle.loads(pickle.dumps(reranker)) as copied:  # noqa: S301
            assert copied.rank(QUERY, TEXTS).hits == ranked(TEXTS, calibration=ISOTONIC).hits


GOOD: dict[str, Any] = {"winnow_calibration": 1, "method": "platt", "slope": 2, "intercept": -0.5}
KNOTS: dict[str, Any] = {"winnow_calibration": 1, "method": "isotonic", "knots": [[-1, 0], [0.5, 0.5], [2, 1]]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "Expecting value"),
        ("[1, 2]", "no JSON object with 'winnow_calibration'"),
        ('{"method": "platt"}', "no JSON object with 'winnow_calibration'"),
        (GOOD | {"winnow_calibration": 2}, "version 2, and this Winnow reads 1: update it"),
        (GOOD | {"intercpt": 1, "a": 2}, "fields that no calibration has: a, intercpt"),
        ({"winnow_calibration": 1}, "it names no method"),
        (GOOD | {"method": "beta"}, "method of the calibration must be one of 'platt', 'isotonic', but is 'beta'"),
        (GOOD | {"slope": 0}, "slope .* must be above 0"),
        (GOOD | {"slope": -1}, "slope .* must be above 0"),
        (GOOD | {"slope": None}, "slope .* must be a finite number"),
        (GOOD | {"slope": True}, "slope .* must be a finite number .* but is True"),
        (GOOD | {"slope": float("nan")}, "slope .* must be a finite number .* but is nan"),
        (GOOD | {"intercept": float("-inf")}, "intercept .* must be a finite number"),
        (GOOD | {"intercept": 10**400}, "intercept .* must be a finite number"),
        ('{"winnow_calibration": 1, "method": "platt", "slope": ' + "9" * 5000 + "}", "no calibration .*digits"),
        ("[" * 100_000, "no calibration that Winnow can use"),
        (GOOD | {"intercept": "0"}, "intercept .* must be a finite number"),
        (GOOD | {"knots": [[0, 0], [1, 1]]}, 'knots .* belong to the method "isotonic"'),
        (KNOTS | {"slope": 1}, 'slope and intercept .* belong to the method "platt"'),
        (KNOTS | {"knots": [[0, 0.5]]}, "knots .* must be two or more pairs"),
        (KNOTS | {"knots": {"0": 1}}, "knots .* must be two or more pairs"),
        (KNOTS | {"knots": [[0, 0], [1]]}, r"knots\[1\] .* must be a pair"),
        (KNOTS | {"knots": [[0, 0], [1, 1.01]]}, r"knots\[1\] .* a probability from 0 to 1"),
        (KNOTS | {"knots": [[0, 0], [float("nan"), 1]]}, r"knots\[1\] .* must be a finite number"),
        (KNOTS | {"knots": [[0, 0], [0, 1]]}, r"knots\[1\] .* must be at a larger logit than 0.0"),
        (KNOTS | {"knots": [[0, 0.2], [1, 0.1]]}, r"knots\[1\] .* must be no lower than 0.2"),
        (GOOD | {"model": 3}, "model .* must be a text, but is 3"),
        (GOOD | {"pairs": -1}, "pairs .* must be a whole number of 0 or more, but is -1"),
        (GOOD | {"pairs": 1.5}, "pairs .* must be a whole number"),
    ],
    ids=range(29),
)
def test_a_file_with_anything_else_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=message) as caught:
        Reranker("m", engine="fake", calibration=tmp_path)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(file))


def test_the_good_files_of_that_test_are_read(tmp_path: Path) -> None:
    for content in (GOOD, KNOTS):
        (tmp_path / "calibration.json").write_text(json.dumps(content), encoding="utf-8")
        assert Calibration.load(tmp_path).probability(0.25) == 0.5 if content is GOOD else 5 / 12


def test_no_file_is_an_error_that_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"calibration\.json cannot be read: No such file.*winnow calibrate"):
        Reranker("m", engine="fake", calibration=tmp_path)


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_command_prints_probabilities(tmp_path: Path) -> None:
    ISOTONIC.save(tmp_path)
    command = ["rank", "-m", "m", "--engine", "fake", "-q", QUERY, "--json", "-"]
    arguments = ["--calibration", str(tmp_path), "--threshold", "0.2"]
    result = CliRunner().invoke(app, [*command, *arguments], input="\n".join(TEXTS[:3]))
    assert result.exit_code == 0, result.output
    expected = [hit.score for hit in ranked(TEXTS[:3], calibration=ISOTONIC) if hit.score >= 0.2]
    assert [hit["score"] for hit in json.loads(result.stdout)["results"]] == expected
    assert 0 < len(expected) < 3
