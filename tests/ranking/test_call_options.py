"""What one call may set for itself: lengths, logits, its place in the queue; and what its prompts count as usage."""

import pytest

from reading_engine import ReadingEngine
from winnow import CallLimits, ConfigurationError, Reranker

QUERY = "who?"
LONG = "first words " + "dark and stormy night " * 50 + "last words"


def test_a_call_has_limits_of_its_own() -> None:
    engine = ReadingEngine()
    with Reranker("any", engine=engine, max_document_tokens=300) as reranker:
        [whole] = reranker.rank(QUERY, [LONG])
        [short] = reranker.rank(QUERY, [LONG], limits=CallLimits(max_document_tokens=11))
        [again] = reranker.rank(QUERY, [LONG])
        assert (whole.document_tokens, short.document_tokens, again.document_tokens) == (300, 11, 300)
        assert short.truncated
        [windows] = reranker.rank(QUERY, [LONG], limits=CallLimits(on_overflow="window"))
        assert windows.windows > 1
        with pytest.raises(ValueError, match="does not fit"):
            reranker.rank(QUERY, [LONG], limits=CallLimits(on_overflow="error"))
        cut = reranker.rank(LONG, [LONG], limits=CallLimits(max_query_tokens=5))
        assert cut.stats.query_truncated
        [[many]] = reranker.rank_many([(QUERY, [LONG])], limits=CallLimits(max_document_tokens=11))
        assert many == short


def test_a_call_cannot_have_longer_prompts_than_its_reranker() -> None:
    with Reranker("any", engine="fake", max_length=100) as reranker:
        shorter = reranker.rank(QUERY, [LONG], limits=CallLimits(max_length=50))
        longer = reranker.rank(QUERY, [LONG], limits=CallLimits(max_length=1000))
    assert (shorter.stats.prompt_tokens, longer.stats.prompt_tokens) == (50, 100)


def test_the_end_of_a_document_may_be_kept() -> None:
    engine = ReadingEngine()
    with Reranker("any", engine=engine) as reranker:
        for length in (1, 10, 100, 500):
            limits = CallLimits(max_document_tokens=length, keep="end")
            [hit] = reranker.rank(QUERY, [LONG], limits=limits)
            assert hit.truncated
            assert hit.document_tokens == length
            assert engine.read[-1].endswith(f"<d>{LONG[-length:]}<e>")
        [hit] = reranker.rank(QUERY, ["short"], limits=CallLimits(keep="end"))
        assert not hit.truncated
        # A grapheme is not split: the flag has eight bytes, of which seven fit.
        [hit] = reranker.rank(QUERY, ["night " * 20 + "🇨🇳12"], limits=CallLimits(max_document_tokens=9, keep="end"))
        assert hit.document_tokens == 2


def test_a_call_may_ask_for_logits_or_for_scores() -> None:
    with Reranker("any", engine="fake") as scores, Reranker("any", engine="fake", raw_scores=True) as logits:
        for given in (scores, logits):
            raw = given.rank(QUERY, ["who", None], raw_scores=True)
            assert [hit.score for hit in raw] == [hit.logit for hit in raw]
            assert given.rank(QUERY, ["who", None], raw_scores=False).hits == scores.rank(QUERY, ["who", None]).hits
        assert logits.rank(QUERY, ["who"])[0].score > 1


def test_a_priority_moves_a_call_in_the_queue() -> None:
    engine = ReadingEngine()
    with Reranker("any", engine=engine) as reranker:
        for priority in (0, 5000, -5000):
            reranker.rank(QUERY, [f"document {priority}"], priority=priority)
        later = reranker.rank(QUERY, ["another"])
    first, low, high, last = engine.priorities
    assert low - first >= 5000
    assert high < first
    assert first <= last < low  # it did not move the clock for others
    assert later.stats.usage_tokens == later.stats.prompt_tokens


def test_usage_counts_documents_that_were_not_computed() -> None:
    with Reranker("any", engine="fake", score_cache=100) as reranker:
        once = reranker.rank(QUERY, ["one"]).stats.usage_tokens
        repeated = reranker.rank(QUERY, ["one", "one", "", "one"]).stats
    assert repeated.usage_tokens == 3 * once
    assert repeated.prompt_tokens == 0


@pytest.mark.parametrize(
    "wrong", [{"max_length": 0}, {"max_document_tokens": 1.5}, {"on_overflow": "drop"}, {"keep": "middle"}]
)
def test_wrong_limits_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        CallLimits(**wrong)  # type: ignore[arg-type]


def test_what_the_models_files_say_is_known_when_it_is_loaded() -> None:
    with Reranker("any", engine="fake") as reranker:
        assert reranker.checkpoint is None
        assert reranker.start().checkpoint is not None
