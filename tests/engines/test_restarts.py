"""`max_restarts`: how often an engine that died is started again, and what is said when it is not."""

import pytest
from slow_engine import SlowEngine

from winnow import ConfigurationError, EngineDeadError, EngineLoadError, Reranker

SECONDS = 0.02  # that a start takes


def fails(reranker: Reranker, error: type[EngineDeadError | EngineLoadError] = EngineDeadError) -> str:
    with pytest.raises(error) as caught:
        reranker.score("a", ["a"])
    assert type(caught.value) is error
    return str(caught.value)


def test_a_dead_engine_says_so_and_the_next_call_starts_it_again() -> None:
    engine = SlowEngine(SECONDS)
    engine.die = 1
    with Reranker("fake", engine=engine) as reranker:
        assert fails(reranker) == "life 1 ended\nThe next call starts it again."
        assert engine.closed == 1
        assert reranker.score("a", ["a"])
        assert engine.started == 2


@pytest.mark.parametrize("most", [0, 1, 3])
def test_it_is_started_again_so_many_times_in_a_row(most: int) -> None:
    engine = SlowEngine(SECONDS)
    engine.die = 10
    with Reranker("fake", engine=engine, max_restarts=most) as reranker:
        for life in range(1, most + 1):
            assert fails(reranker) == f"life {life} ended\nThe next call starts it again."
        last = (
            f"life {most + 1} ended\nIt is not started again (max_restarts={most}): close() the reranker, and its next "
            "call starts it afresh."
        )
        for _ in range(3):  # the one that saw it die, and those that find it dead
            assert fails(reranker) == last
            assert (engine.started, engine.closed) == (most + 1, most + 1)
        with pytest.raises(EngineDeadError, match="not started again"):
            reranker.start()
        assert reranker.score("a", [" "])  # what needs no engine goes on


def test_a_score_in_between_sets_the_count_back() -> None:
    engine = SlowEngine(SECONDS)
    with Reranker("fake", engine=engine) as reranker:
        for life in range(1, 5):
            assert reranker.score("a", ["a"])
            engine.dies = True
            assert fails(reranker) == f"life {life} ended\nThe next call starts it again."


def test_starting_alone_sets_nothing_back() -> None:
    engine = SlowEngine(SECONDS)
    engine.die = 2
    with Reranker("fake", engine=engine) as reranker:
        fails(reranker)
        reranker.start()
        assert "not started again" in fails(reranker)


def test_after_close_it_is_started_afresh_also_where_another_reranker_holds_it() -> None:
    engine = SlowEngine(SECONDS)
    engine.die = 2
    with Reranker("fake", engine=engine) as reranker, Reranker("fake", engine=engine, instruction="b") as other:
        for _ in range(3):
            fails(other)
        assert "not started again" in fails(reranker)
        reranker.close()
        assert reranker.score("a", ["a"])
        assert other.score("a", ["a"])
        assert engine.started == 3
    engine.die = 2
    with Reranker("fake", engine=engine) as reranker:
        for _ in range(2):
            fails(reranker)
        reranker.close()
        assert reranker.score("a", ["a"])


def test_a_restart_that_fails_counts_and_says_why() -> None:
    engine = SlowEngine(SECONDS)
    engine.die = 1
    with Reranker("fake", engine=engine) as reranker:
        fails(reranker)
        engine.fail_to_start = 1
        assert fails(reranker, EngineLoadError) == "no memory"
        assert fails(reranker).startswith("no memory\nIt is not started again")
        assert engine.started == 2


def test_a_first_start_that_fails_is_tried_again_by_every_call() -> None:
    engine = SlowEngine(SECONDS)
    engine.fail_to_start = 3
    with Reranker("fake", engine=engine, max_restarts=0) as reranker:
        for _ in range(3):
            assert fails(reranker, EngineLoadError) == "no memory"
        assert reranker.score("a", ["a"])


def test_who_shares_an_engine_shares_the_count_but_not_the_limit() -> None:
    engine = SlowEngine(SECONDS)
    engine.die = 1
    with (
        Reranker("fake", engine=engine, max_restarts=0) as strict,
        Reranker("fake", engine=engine, max_restarts=1) as patient,
    ):
        assert strict.engine_key == patient.engine_key
        assert "(max_restarts=0)" in fails(strict)
        assert "(max_restarts=0)" in fails(strict)
        assert engine.started == 1
        assert patient.score("a", ["a"]) == strict.score("a", ["a"])
        assert engine.started == 2


def test_a_fallback_does_not_hide_a_death() -> None:
    engine = SlowEngine(SECONDS)
    engine.die = 2
    with Reranker("fake", engine=engine, fallback="retrieval order") as reranker:
        assert reranker.rank("a", ["a"]).stats.error == "life 1 ended"
        assert engine.closed == 1
        assert reranker.rank("a", ["a"]).stats.error == "life 2 ended"
        ranking = reranker.rank("a", ["a"])  # at once: it may not start again
        assert ranking.stats.error == "life 2 ended"
        assert (engine.started, engine.closed) == (2, 2)


@pytest.mark.parametrize("wrong", [-1, 1.5, True, None])
def test_wrong_values_are_refused(wrong: int) -> None:
    with pytest.raises(ConfigurationError, match="max_restarts must be a whole number from 0"):
        Reranker("fake", engine="fake", max_restarts=wrong)
