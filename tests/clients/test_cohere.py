"""Cohere's SDK: the old one, which LangChain needs, in `.venv`, and the new one in `.venv-clients`."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from served import DOCUMENTS, MODEL, PRESET, QUERY, Service

cohere = pytest.importorskip("cohere")

pytestmark = pytest.mark.slow


@pytest.fixture(params=["Client", "ClientV2"])
def client(service: Service, request: pytest.FixtureRequest) -> Iterator[Any]:
    with getattr(cohere, request.param)(service.key, base_url=service.url) as client:
        yield client


def pairs(answer: Any) -> list[tuple[int, float]]:
    return [(result.index, result.relevance_score) for result in answer.results]


def test_both_versions_rank(service: Service, client: Any) -> None:
    answer = client.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS)
    service.check(pairs(answer))
    assert answer.id.startswith("rerank-")
    assert answer.meta.api_version.version == ("2" if isinstance(client, cohere.ClientV2) else "1")
    assert answer.meta.billed_units.search_units == 1
    service.check(pairs(client.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS, top_n=2)), 2)
    preset = client.rerank(model=PRESET, query=QUERY, documents=DOCUMENTS)
    service.check(pairs(preset), model=PRESET)


def test_version_1_has_objects_as_documents(service: Service) -> None:
    with cohere.Client(service.key, base_url=service.url) as client:
        documents = [{"text": text, "title": "a title"} for text in DOCUMENTS]
        answer = client.rerank(
            model=MODEL, query=QUERY, documents=documents, return_documents=True, max_chunks_per_doc=10
        )
        service.check(pairs(answer))
        assert [result.document.text for result in answer.results] == [DOCUMENTS[hit.index] for hit in answer.results]
        swapped = [{"body": text, "text": QUERY} for text in DOCUMENTS]
        service.check(pairs(client.rerank(model=MODEL, query=QUERY, documents=swapped, rank_fields=["body"])))


def test_version_2_cuts_documents(service: Service) -> None:
    with cohere.ClientV2(service.key, base_url=service.url) as client:
        answer = client.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS, max_tokens_per_doc=5)
        assert {score for _, score in pairs(answer)} != set(service.scores[MODEL])


def test_the_asynchronous_client_ranks(service: Service) -> None:
    async def rank() -> Any:
        async with cohere.AsyncClientV2(service.key, base_url=service.url) as client:
            return await client.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS)

    service.check(pairs(asyncio.run(rank())))


def test_an_error_says_what_is_wrong(service: Service, client: Any) -> None:
    with pytest.raises(cohere.NotFoundError) as error:
        client.rerank(model="other", query=QUERY, documents=DOCUMENTS)
    assert "No model of this name is served" in str(error.value)
    with cohere.ClientV2("wrong", base_url=service.url) as stranger, pytest.raises(cohere.UnauthorizedError):
        stranger.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS)
