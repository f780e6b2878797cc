"""One contract, three integrations: what each of them promises, whatever its framework calls it."""

import asyncio
import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from engine_threads import engine_threads
from haystack import Document as HaystackDocument
from langchain_core.documents import Document as LangChainDocument
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode

from gated_engine import gated_fake, loop_goes_on_until
from haystack_integrations.components.rankers.winnow import WinnowRanker
from winnow import Calibration, DocumentError, EngineLoadError, FakeEngine, ModelError, Reranker, TemplateError
from winnow_langchain import WinnowRerank as LangChainRerank
from winnow_llama_index import WinnowRerank as LlamaIndexRerank

QUERY = "capital of China"
TEXTS = [
    "Rice and noodles.",
    "Beijing is the capital of China.",
    "Paris is the capital of France.",
    "Paris.",
    "Shanghai is in China.",
    "Shanghai is in China.",
]
INSTRUCTION = "Find passages about France"

Items = list[Any]
Ranked = list[tuple[int, float]]  # position in the input and score, best first


@dataclass(frozen=True)
class Adapter:
    """How a framework's user makes a reranker, calls it, and reads what comes back."""

    make: Callable[..., Any]
    items: Callable[[Sequence[str], Sequence[dict[str, Any]]], Items]
    call: Callable[[Any, str, Items], Items]
    acall: Callable[[Any, str, Items], Any]
    read: Callable[[Any], tuple[str, float, dict[str, Any]]]  # id, score, metadata
    top: str
    fields: str  # the option that names the metadata to embed
    raw: dict[str, Any]


def haystack_items(texts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Items:
    return [HaystackDocument(id=str(at), content=text, meta=metadata[at]) for at, text in enumerate(texts)]


def llama_index_items(texts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Items:
    return [
        NodeWithScore(
            node=TextNode(
                id_=str(at),
                text=text,
                metadata=metadata[at],
                excluded_embed_metadata_keys=["at", "nested", "relevance_score"],
            ),
            score=0.5,
        )
        for at, text in enumerate(texts)
    ]


def langchain_items(texts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Items:
    return [LangChainDocument(id=str(at), page_content=text, metadata=metadata[at]) for at, text in enumerate(texts)]


async def haystack_acall(adapter: WinnowRanker, query: str, items: Items) -> Items:
    documents: Items = (await adapter.run_async(query=query, documents=items))["documents"]
    return documents


ADAPTERS = {
    "haystack": Adapter(
        make=WinnowRanker,
        items=haystack_items,
        call=lambda adapter, query, items: adapter.run(query=query, documents=items)["documents"],
        acall=haystack_acall,
        read=lambda document: (document.id, document.score, document.meta),
        top="top_k",
        fields="meta_fields_to_embed",
        raw={"scale_score": False},
    ),
    "llama_index": Adapter(
        make=lambda model, **options: LlamaIndexRerank(model=model, **options),
        items=llama_index_items,
        call=lambda adapter, query, items: adapter.postprocess_nodes(items, query_str=query),
        acall=lambda adapter, query, items: adapter.apostprocess_nodes(items, query_str=query),
        read=lambda hit: (hit.node.node_id, hit.score, hit.node.metadata),
        top="top_n",
        fields="metadata_mode",
        raw={"raw_scores": True},
    ),
    "langchain": Adapter(
        make=lambda model, **options: LangChainRerank(model=model, **options),
        items=langchain_items,
        call=lambda adapter, query, items: adapter.compress_documents(items, query),
        acall=lambda adapter, query, items: adapter.acompress_documents(items, query),
        read=lambda document: (document.id, document.metadata["relevance_score"], document.metadata),
        top="top_n",
        fields="metadata_fields",
        raw={"raw_scores": True},
    ),
}


class Subject:
    """One integration, called in one way."""

    def __init__(self, adapter: Adapter, how: str):
        self.adapter = adapter
        self._how = how
        self._made: list[Any] = []

    def make(self, model: str = "fake", *, top: int | None = None, **options: Any) -> Any:
        settings = {"engine": "fake", self.adapter.top: top, **options}
        made = self.adapter.make(model, **settings)
        self._made.append(made)
        return made

    def items(self, texts: Sequence[str] = TEXTS, metadata: Sequence[dict[str, Any]] | None = None) -> Items:
        return self.adapter.items(texts, metadata or [{"at": at} for at in range(len(texts))])

    def call(self, made: Any, query: str, items: Items) -> Items:
        if self._how == "sync":
            return self.adapter.call(made, query, items)
        return asyncio.run(self.adapter.acall(made, query, items))

    def rank(self, made: Any, texts: Sequence[str] = TEXTS, query: str = QUERY) -> Ranked:
        return self.read(self.call(made, query, self.items(texts)))

    def read(self, found: Items) -> Ranked:
        return [(int(name), score) for name, score, _ in map(self.adapter.read, found)]

    def close(self) -> None:
        for made in self._made:
            if hasattr(made, "close"):
                made.close()


@pytest.fixture(params=ADAPTERS)
def adapter(request: pytest.FixtureRequest) -> Adapter:
    return ADAPTERS[request.param]


@pytest.fixture(params=["sync", "async"])
def subject(adapter: Adapter, request: pytest.FixtureRequest) -> Iterator[Subject]:
    made = Subject(adapter, request.param)
    yield made
    made.close()


def core(query: str = QUERY, texts: Sequence[str] = TEXTS, **options: Any) -> Ranked:
    """What the core says of the same texts."""
    settings = {name: options.pop(name) for name in ("raw_scores", "calibration") if name in options}
    with Reranker("fake", engine="fake", **settings) as reranker:
        return [(hit.index, hit.score) for hit in reranker.rank(query, texts, **options)]


def test_order_and_scores_are_the_cores(subject: Subject) -> None:
    ranked = subject.rank(subject.make())
    assert ranked == core()
    assert all(type(score) is float for _, score in ranked)


def test_ties_keep_the_order_of_the_input(subject: Subject) -> None:
    assert [at for at, _ in subject.rank(subject.make(), ["b b", "a a", "b b", "a a"], "zzz")] == [0, 1, 2, 3]


def test_raw_scores_are_logits(subject: Subject) -> None:
    assert subject.rank(subject.make(**subject.adapter.raw)) == core(raw_scores=True)


@pytest.mark.parametrize(
    "calibration",
    [
        Calibration(method="platt", slope=0.7, intercept=-1.5),
        Calibration(method="isotonic", knots=((-4.0, 0.05), (0.0, 0.05), (2.0, 0.6))),
    ],
    ids=["platt", "isotonic"],
)
def test_a_calibration_makes_probabilities_also_as_a_file(
    subject: Subject, calibration: Calibration, tmp_path: Path
) -> None:
    calibrated = [(at, calibration.probability(logit)) for at, logit in core(raw_scores=True)]
    assert calibrated == core(calibration=calibration) != core()
    assert subject.rank(subject.make(calibration=calibration)) == calibrated
    assert subject.rank(subject.make(calibration=calibration.save(tmp_path))) == calibrated
    threshold = calibrated[1][1]
    expected = [(at, score) for at, score in calibrated if score >= threshold]
    assert subject.rank(subject.make(calibration=tmp_path, score_threshold=threshold)) == expected
    assert subject.rank(subject.make(calibration=calibration, **subject.adapter.raw)) == core(raw_scores=True)


def test_the_instruction_is_used(subject: Subject) -> None:
    ranked = subject.rank(subject.make(instruction=INSTRUCTION))
    assert ranked == core(instruction=INSTRUCTION) != core()


def test_the_template_and_its_variables_are_used(subject: Subject) -> None:
    template = "<i>{{ extra }}<q>{{ query }}<d>{{ document }}<e>"
    ranked = subject.rank(subject.make(template=template, template_kwargs={"extra": "France"}))
    assert ranked == core(template=template, template_kwargs={"extra": "France"}) != core()


def test_top_and_threshold(subject: Subject) -> None:
    best = core()
    assert subject.rank(subject.make(top=2)) == best[:2]
    threshold = best[1][1]
    assert subject.rank(subject.make(score_threshold=threshold)) == best[:2]  # inclusive
    assert subject.rank(subject.make(score_threshold=threshold, top=1)) == best[:1]
    assert subject.rank(subject.make(score_threshold=0.0)) == best  # 0.0 is a threshold, not "none"


def test_top_zero_is_an_error(subject: Subject) -> None:
    with pytest.raises(ValueError, match=r"greater than or equal to 1|must be > 0, but got 0"):
        subject.make(top=0)


def test_no_documents_give_none_and_touch_no_engine(subject: Subject) -> None:
    engine = FakeEngine()
    options = {"engine": engine} if subject.adapter is ADAPTERS["haystack"] else {}
    running = engine_threads()
    assert subject.rank(subject.make("no such model", **{"engine": "vllm", **options}), []) == []
    assert engine.started == 0
    assert engine_threads() <= running


def test_a_blank_query_is_an_error(subject: Subject) -> None:
    made = subject.make()
    with pytest.raises(ValueError, match="query"):
        subject.rank(made, query="  \n")


def test_blank_documents_rank_last(subject: Subject) -> None:
    ranked = subject.rank(subject.make(), ["", *TEXTS[:3], " \n"])
    assert [at for at, _ in ranked] == [2, 3, 1, 0, 4]
    assert [score for _, score in ranked[3:]] == [0.0, 0.0]


def test_a_bad_document_is_named_and_skipped_on_demand(subject: Subject) -> None:
    texts = ["capital", "bad \ud800", "China"]
    with pytest.raises(DocumentError, match="Document 1"):
        subject.rank(subject.make(), texts)
    ranked = subject.rank(subject.make(on_error="skip"), texts)
    assert ranked[-1] == (1, 0.0)
    assert len(ranked) == 3


def test_a_model_that_is_not_there_is_an_error_that_says_so(subject: Subject) -> None:
    with pytest.raises(ModelError, match="/no/such/model"):
        subject.rank(subject.make("/no/such/model", engine="transformers"))


def test_a_broken_template_is_an_error(subject: Subject) -> None:
    with pytest.raises(TemplateError, match="document"):
        subject.rank(subject.make(template="{{ query }}"))


def test_nothing_the_caller_gave_is_changed(subject: Subject) -> None:
    metadata = [{"at": at, "nested": {"list": [at]}, "relevance_score": "stale"} for at in range(len(TEXTS))]
    items = subject.items(TEXTS, metadata)
    before = copy.deepcopy(items)
    found = subject.call(subject.make(), QUERY, items)
    assert items == before
    assert all(new is not old for new in found for old in items)


def test_ids_metadata_and_class_are_kept(subject: Subject) -> None:
    items = subject.items()
    found = subject.call(subject.make(), QUERY, items)
    assert {type(new) for new in found} == {type(items[0])}
    for new in found:
        name, _, metadata = subject.adapter.read(new)
        assert metadata["at"] == int(name)


def test_metadata_before_the_text_zero_included_none_left_out(subject: Subject) -> None:
    texts = ["x", "x", "x"]
    metadata = [{"title": None, "year": 0}, {"title": "capital", "year": 0}, {"title": "capital of China", "year": 0}]
    llama_index = subject.adapter.fields == "metadata_mode"
    fields: Any = MetadataMode.EMBED if llama_index else ["title", "year"]
    found = subject.call(subject.make(**{subject.adapter.fields: fields}), f"{QUERY} 0", subject.items(texts, metadata))
    assert [at for at, _ in subject.read(found)] == [2, 1, 0]
    if not llama_index:
        joined = ["0\nx", "capital\n0\nx", "capital of China\n0\nx"]
        assert subject.read(found) == core(f"{QUERY} 0", joined)


def test_long_documents_are_cut_or_scored_in_windows(subject: Subject) -> None:
    texts = ["word " * 2000 + QUERY, "capital"]
    assert [at for at, _ in subject.rank(subject.make(), texts)] == [1, 0]
    assert [at for at, _ in subject.rank(subject.make(on_overflow="window"), texts)] == [0, 1]
    with pytest.raises(DocumentError, match=r"Document 0 .* does not fit"):
        subject.rank(subject.make(on_overflow="error"), texts)


def test_many_threads_get_the_same_as_one(subject: Subject) -> None:
    made = subject.make()
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda _: subject.rank(made), range(24))) == [core()] * 24


def test_two_event_loops_one_after_the_other(adapter: Adapter) -> None:
    subject = Subject(adapter, "async")
    made = subject.make()
    assert subject.rank(made) == subject.rank(made) == core()  # an asyncio.run each
    subject.close()


def test_an_event_loop_goes_on_meanwhile(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = gated_fake(monkeypatch)

    async def main() -> None:
        subject = Subject(adapter, "async")
        call = asyncio.ensure_future(adapter.acall(subject.make(), QUERY, subject.items()))
        try:
            await loop_goes_on_until(lambda: engine.waiting == 1)
        finally:
            engine.gate.set()
        assert subject.read(await call) == core()
        subject.close()

    asyncio.run(main())


def test_closed_and_used_again(subject: Subject) -> None:
    made = subject.make()
    before = subject.rank(made)
    made.close()
    made.close()
    assert subject.rank(made) == before


def test_where_the_engine_fails_the_fallback_ranks(
    subject: Subject, tiny_model: str, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("httpx")
    dead: dict[str, Any] = {"engine": "server", "url": "http://127.0.0.1:9", "engine_kwargs": {"max_retries": 0}}
    items = subject.items(metadata=[{"at": at, "relevance_score": at / 10} for at in range(len(TEXTS))])
    with pytest.raises(EngineLoadError, match=r"127\.0\.0\.1:9"):
        subject.call(subject.make(tiny_model, **dead), QUERY, items)
    assert subject.rank(subject.make(tiny_model, fallback="fake", **dead)) == core()
    caplog.clear()
    made = subject.make(tiny_model, fallback="retrieval order", top=4, score_threshold=0.9, **dead)
    found = subject.call(made, QUERY, items)
    assert subject.read(found) == subject.read(items)[:4]  # order and scores are the retriever's
    assert "fallback='retrieval order' ranks 6 documents" in caplog.text
    if subject.adapter is ADAPTERS["haystack"]:
        meta = made.run(query=QUERY, documents=items)["meta"]
        assert meta["fallback"] == "retrieval order"
        reasons = [meta["error"], *meta["failed"].values()]
    else:
        reasons = [subject.adapter.read(new)[2]["rerank_error"] for new in found]
    assert all("127.0.0.1:9" in reason for reason in reasons)


def test_the_three_integrations_share_one_engine_and_its_scores_on_real_vllm(
    vllm_model: str, passages: list[str]
) -> None:
    running = engine_threads()
    results: dict[str, Ranked] = {}
    for name, adapter in ADAPTERS.items():
        for how in ("sync", "async"):
            subject = Subject(adapter, how)
            made = subject.make(vllm_model, engine="vllm", instruction=INSTRUCTION)
            results[f"{name} {how}"] = subject.rank(made, passages)
            subject.close()
    assert engine_threads() <= running  # they all used the engine of the fixture
    with Reranker(vllm_model, engine="transformers") as reference:
        expected = [(hit.index, hit.score) for hit in reference.rank(QUERY, passages, instruction=INSTRUCTION)]
    for ranked in results.values():
        assert dict(ranked) == pytest.approx(dict(expected), abs=1e-4)
        assert [at for at, _ in ranked] == [at for at, _ in results["haystack sync"]]


def test_a_query_reaches_real_vllm_as_it_came(vllm_model: str, passages: list[str], subject: Subject) -> None:
    """Tools and chat engines append line breaks. What is done about a query is done once, in the core."""
    made = subject.make(vllm_model, engine="vllm")
    with Reranker(vllm_model, engine="vllm") as core_reranker:
        bare, *others = (core_reranker.score(query, passages) for query in (QUERY, f"{QUERY}\n", f"  {QUERY}"))
    for query, scores in zip((f"{QUERY}\n", f"  {QUERY}"), others, strict=True):
        assert scores != pytest.approx(bare, abs=1e-4)  # the model reads it
        assert dict(subject.rank(made, passages, query)) == pytest.approx(dict(enumerate(scores)), abs=1e-5)
