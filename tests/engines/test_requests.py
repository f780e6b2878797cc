"""Many callers, one engine: shared requests, turns, withdrawal, bounded work, deadlines."""

import asyncio
import statistics
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gated_engine import PATIENCE, GatedEngine, loop_goes_on_until, wait_until
from winnow import EngineDeadError, EngineScore, FakeEngine, Prompt, Reranker
from winnow.engines.request_queue import Requests, Turn
from winnow.prompts.builder import PromptBuilder
from winnow.ranking import judging
from winnow.tokenizer import PromptTokenizer

QUERY = "capital of China"


class Recording(FakeEngine):
    """Notes what it is asked, and holds answers back until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, list[Prompt]]] = []
        self.cancelled = 0
        self.open = asyncio.Event()

    async def score(self, prompts: Any, *, priority: int = 0) -> list[EngineScore]:
        self.asked.append((priority, list(prompts)))
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return [EngineScore(float(prompt.ids[0])) for prompt in prompts]


def prompts(*numbers: int) -> list[Prompt]:
    return [Prompt([number]) for number in numbers]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_identical_prompts_under_way_share_one_request() -> None:
    async def main() -> None:
        engine = Recording()
        requests = Requests(engine)
        calls = [asyncio.ensure_future(requests.score(prompts(*numbers), Turn())) for numbers in ((1, 2), (2, 3), (1,))]
        await settle()
        assert [[prompt.ids[0] for prompt in asked] for _, asked in engine.asked] == [[1, 2], [3]]
        engine.open.set()
        found = await asyncio.gather(*calls)
        assert [[(score.score.logit, score.shared) for score in scores] for scores in found] == [
            [(1.0, False), (2.0, False)],
            [(2.0, True), (3.0, False)],
            [(1.0, True)],
        ]
        await requests.score(prompts(1), Turn())
        assert len(engine.asked) == 3  # what is over is asked again

    asyncio.run(main())


def test_a_request_is_withdrawn_when_the_last_who_waits_goes() -> None:
    async def main() -> None:
        engine = Recording()
        requests = Requests(engine)
        first, second = (asyncio.ensure_future(requests.score(prompts(1), Turn())) for _ in range(2))
        await settle()
        first.cancel()
        await settle()
        assert engine.cancelled == 0
        second.cancel()
        await settle()
        assert engine.cancelled == 1
        third = asyncio.ensure_future(requests.score(prompts(1), Turn()))  # does not join what was withdrawn
        await settle()
        engine.open.set()
        assert [found.score.logit for found in await third] == [1.0]

    asyncio.run(main())


@given(st.lists(st.lists(st.integers(0, 6), max_size=70), max_size=5))
def test_every_call_gets_its_own_scores_in_order(calls: list[list[int]]) -> None:
    async def main() -> None:
        engine = Recording()
        requests = Requests(engine)
        waiting = [asyncio.ensure_future(requests.score(prompts(*numbers), Turn())) for numbers in calls]
        await settle()
        sent = [prompt.ids[0] for _, asked in engine.asked for prompt in asked]
        assert sorted(sent) == sorted({number for numbers in calls for number in numbers})
        engine.open.set()
        for numbers, scores in zip(calls, await asyncio.gather(*waiting), strict=True):
            assert [found.score.logit for found in scores] == [float(number) for number in numbers]

    asyncio.run(main())


def test_a_small_call_goes_before_the_rest_of_a_large_one() -> None:
    async def main() -> None:
        engine = Recording()
        requests = Requests(engine)
        large = asyncio.ensure_future(requests.score(prompts(*range(1000)), Turn()))
        await settle()
        small = asyncio.ensure_future(requests.score(prompts(*range(1000, 1010)), Turn()))
        await settle()
        priorities = [priority for priority, _ in engine.asked]
        assert priorities[-1] < sorted(priorities[:-1])[1]
        engine.open.set()
        await asyncio.gather(large, small)
        late = asyncio.ensure_future(requests.score(prompts(2000), Turn()))
        await settle()
        assert engine.asked[-1][0] >= max(priorities)  # the clock has moved on: newcomers do not starve the others
        await late

    asyncio.run(main())


def test_callers_share_requests_and_say_so() -> None:
    engine = GatedEngine()
    documents = [f"China {number}" for number in range(50)]
    with Reranker("fake", engine=engine) as reranker, ThreadPoolExecutor(8) as threads:
        reranker.start()
        shared = reranker._lease._shared
        assert shared is not None
        calls = [threads.submit(reranker.rank, QUERY, documents) for _ in range(8)]
        wait_until(lambda: engine.waiting > 0 and len(shared.life._work) == 8)
        engine.gate.set()
        rankings = [call.result() for call in calls]
    assert engine.prompts < 8 * 50
    assert sum(ranking.stats.reused for ranking in rankings) == 8 * 50 - engine.prompts
    assert all(ranking.hits == rankings[0].hits for ranking in rankings)


def test_a_deadline_gives_up_and_withdraws() -> None:
    with Reranker("fake", engine=GatedEngine()) as reranker:
        with pytest.raises(TimeoutError):
            reranker.rank(QUERY, ["a"], deadline=0.2)
        with pytest.raises(TimeoutError):
            reranker.rank_many([(QUERY, ["a"])], deadline=0.2)
        with pytest.raises(TimeoutError):
            asyncio.run(reranker.arank(QUERY, ["a"], deadline=0.2))
    # Closing waits for calls under way. There are none, though the gate is shut.


def test_a_stream_of_queries_is_read_as_the_work_goes_on() -> None:
    class Counting(FakeEngine):
        answered = 0

        async def score(self, prompts: Any, *, priority: int = 0) -> list[EngineScore]:
            found = await super().score(prompts)
            self.answered += len(found)
            return found

    engine = Counting()
    ahead = []

    def stream() -> Iterator[tuple[str, list[str]]]:
        for number in range(600):
            ahead.append(number - engine.answered)
            yield f"query {number}", [f"document {number}"]

    with Reranker("fake", engine=engine) as reranker:
        rankings = reranker.rank_many(stream())
        assert [ranking[0].text for ranking in rankings] == [f"document {number}" for number in range(600)]
    assert max(ahead) <= 65


def test_a_long_call_keeps_few_prompts_in_flight() -> None:
    class Watching(FakeEngine):
        flying = most = 0

        async def score(self, prompts: Any, *, priority: int = 0) -> list[EngineScore]:
            self.flying += len(prompts)
            self.most = max(self.most, self.flying)
            await asyncio.sleep(0.001)
            self.flying -= len(prompts)
            return await super().score(prompts)

    engine = Watching()
    with Reranker("fake", engine=engine) as reranker:
        ranking = reranker.rank("document 77", [f"document {number}" for number in range(5000)])
    assert ranking.stats.unique == 5000
    assert ranking[0].index == 77
    assert engine.most <= 6 * 64


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many documents are tokenised at a stretch, each time."""
    build, sizes = PromptBuilder.build, []

    def recording(self: PromptBuilder, query: str, documents: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(documents))
        return build(self, query, documents, *args, **kwargs)

    monkeypatch.setattr(PromptBuilder, "build", recording)
    return sizes


def test_the_engine_gets_its_first_prompts_soon(sizes: list[int]) -> None:
    with Reranker("fake", engine="fake") as reranker:
        reranker.rank(QUERY, [f"{number:02} {'a' * 1997}" for number in range(40)])
        assert sizes == [8, 32]
        sizes.clear()
        reranker.rank(QUERY, [f"{number:02} {'a' * 100_000}" for number in range(3)])
        assert sizes == [1, 2]  # a slice has one document at least


def test_the_last_few_documents_are_tokenised_with_those_before_them(sizes: list[int]) -> None:
    with Reranker("fake", engine="fake") as reranker:
        for documents, characters, expected in (
            (80, 10, [80]),
            (81, 10, [64, 17]),
            (144, 10, [64, 80]),
            (50, 340, [50]),
            (10, 2000, [10]),
            (11, 2000, [8, 3]),  # few, but not short
        ):
            sizes.clear()
            reranker.rank(QUERY, [f"{number:02}".ljust(characters, "a") for number in range(documents)])
            assert sizes == expected


@pytest.mark.parametrize("on_overflow", ["truncate", "window"])
def test_few_long_documents_are_tokenised_at_a_time(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int], on_overflow: str
) -> None:
    """Their prompts would fill the memory, and tokenising many at a stretch takes long."""
    monkeypatch.setattr(judging, "_SLICE_CHARACTERS", 10_000)
    monkeypatch.setattr(judging, "_FIRST_SLICE_CHARACTERS", 10_000)
    with Reranker("fake", engine="fake", on_overflow=on_overflow, max_length=256) as reranker:
        assert reranker.rank(QUERY, [f"{number} {'a' * 4000}" for number in range(6)]).stats.unique == 6
        # Half of each is not tokenised, or all of it is.
        assert sorted(sizes) == ([2, 4] if on_overflow == "truncate" else [2, 2, 2])
        sizes.clear()
        reranker.rank(QUERY, [f"document {number}" for number in range(256)])
        assert sizes == [64] * 4


def test_a_call_that_is_over_is_not_tokenised_on(monkeypatch: pytest.MonkeyPatch) -> None:
    build, encode, encoded = PromptBuilder.build, PromptTokenizer.encode_with_offsets, []
    go_on, ended = threading.Event(), threading.Event()

    def telling(*args: Any, **kwargs: Any) -> Any:
        try:
            return build(*args, **kwargs)
        finally:
            ended.set()

    def waiting(self: PromptTokenizer, texts: Sequence[str]) -> Any:
        encoded.append(texts)
        go_on.wait(PATIENCE)
        return encode(self, texts)

    monkeypatch.setattr(PromptBuilder, "build", telling)
    monkeypatch.setattr(PromptTokenizer, "encode_with_offsets", waiting)
    with Reranker("fake", engine="fake", on_overflow="window", max_length=256) as reranker:
        with pytest.raises(TimeoutError):
            reranker.rank(QUERY, ["a" * 50_000], deadline=0.1)
        go_on.set()
        if encoded:  # else the deadline passed before
            assert ended.wait(PATIENCE)
    assert len(encoded) < 10  # of hundreds


def test_an_error_in_a_stream_names_the_request_and_ends_the_rest() -> None:
    with Reranker("fake", engine="fake") as reranker, pytest.raises(ValueError, match="surrogate") as caught:
        reranker.rank_many([("a", ["a"]), ("b", ["\ud800"])])
    assert "request 1" in "".join(caught.value.__notes__)
    with Reranker("fake", engine="fake") as reranker, pytest.raises(ValueError, match="query of request 1 must be"):
        reranker.rank_many(iter([("a", ["a"]), (" ", ["a"])]))


def test_a_failing_engine_fails_all_who_wait() -> None:
    class Dying(FakeEngine):
        async def score(self, prompts: Any, *, priority: int = 0) -> list[EngineScore]:
            await asyncio.sleep(0.05)
            raise EngineDeadError("gone")

    with Reranker("fake", engine=Dying()) as reranker, ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(reranker.rank, QUERY, ["a", str(number % 2)]) for number in range(4)]
        assert all(isinstance(call.exception(), EngineDeadError) for call in calls)


# --- real vLLM --------------------------------------------------------------------------------------------------------


def unfinished(model: str) -> int:
    """Requests that vLLM works on, by its own count."""
    from winnow.engines import shared

    [found] = [
        running.engine
        for key, engine in shared._registry.items()
        if model in repr(key) and (running := engine.life._running) is not None and running.engine.name == "vllm"
    ]
    return len(found._llm.output_processor.request_states)  # type: ignore[attr-defined]


def test_a_cancelled_call_is_withdrawn_from_vllm_at_once(vllm_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Reranker(vllm_model, engine="vllm") as reranker:
            await reranker.arank(QUERY, ["warm"])
            before = completed(monkeypatch)
            call = asyncio.ensure_future(
                reranker.arank(QUERY, [f"{number} " + "word " * 300 for number in range(2000)])
            )
            await loop_goes_on_until(lambda: unfinished(vllm_model) > 0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await loop_goes_on_until(lambda: unfinished(vllm_model) == 0)
            assert len(before) < 1000  # the rest was not scored

    asyncio.run(main())


def test_128_callers_at_once_of_whom_a_tenth_gives_up(vllm_model: str) -> None:
    queries = [f"question {number} about China" for number in range(32)]
    documents = [f"passage {number} " + "word " * (number % 7) for number in range(16)]

    async def no_block_is_taken(started: Any) -> bool:
        requests = await started()
        assert not requests._flying
        free: bool = await requests.engine._llm.reset_prefix_cache()  # vLLM refuses while a request has a block
        return free

    async def main() -> None:
        async with Reranker(vllm_model, engine="vllm") as reranker:
            alone = [await reranker.ascore(query, documents) for query in queries]
            calls = [asyncio.ensure_future(reranker.ascore(query, documents)) for query in queries * 4]
            await loop_goes_on_until(lambda: unfinished(vllm_model) > 100)
            for call in calls[::10]:
                call.cancel()
            found = await asyncio.gather(*calls, return_exceptions=True)
            for number, scores in enumerate(found):
                if number % 10 or not isinstance(scores, asyncio.CancelledError):
                    assert scores == pytest.approx(alone[number % 32], abs=1e-5)
            assert any(isinstance(scores, asyncio.CancelledError) for scores in found)
            await loop_goes_on_until(lambda: unfinished(vllm_model) == 0)
            assert await reranker._await(no_block_is_taken)

    asyncio.run(main())


def completed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the prompts that vLLM has scored since, in the order in which it has."""
    from winnow.engines.vllm.engine import VllmEngine

    lengths: list[int] = []
    original = VllmEngine._score_of

    def noted(self: VllmEngine, prompt: Prompt, output: Any) -> EngineScore:
        lengths.append(len(prompt.ids))
        return original(self, prompt, output)

    monkeypatch.setattr(VllmEngine, "_score_of", noted)
    return lengths


def test_a_small_query_does_not_wait_for_a_large_one_on_vllm(vllm_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much of the large one is done meanwhile is counted, not timed: the machine may be busy."""
    lengths = completed(monkeypatch)
    documents = [f"{at} " + "word " * 40 for at in range(6_000)]
    with Reranker(vllm_model, engine="vllm") as reranker, ThreadPoolExecutor(1) as threads:
        large = threads.submit(reranker.rank, QUERY, documents)
        wait_until(lambda: len(lengths) > 300)
        meanwhile = []
        for number in range(8):
            before = len(lengths)
            reranker.rank(f"{number} {QUERY}", [f"{number} {at} " + "word " * 40 for at in range(32)])
            meanwhile.append(len(lengths) - before - 32)
        assert not large.done()
        assert len(large.result()) == len(documents)
    print(f"of the large query {statistics.median(meanwhile)} documents are scored during a small one")
    assert statistics.median(meanwhile) < 600, meanwhile


def test_the_shared_prefix_is_computed_once(vllm_model: str) -> None:
    instruction = "Judge whether the passage helps a careful reader to answer the question. " * 8
    with Reranker(vllm_model, engine="vllm", instruction=instruction) as reranker:
        stats = reranker.rank(QUERY, [f"passage {number} about cities" for number in range(40)]).stats
    shared = stats.prompt_tokens / 40 - 20  # at least, of each prompt
    assert stats.cached_tokens > 0.9 * 39 * (shared // 32 * 32)
