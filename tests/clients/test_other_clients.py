"""LangChain's Cohere compressor, and the clients of Voyage and Xinference."""

import asyncio

import pytest
from served import DOCUMENTS, MODEL, QUERY, Service

langchain_cohere = pytest.importorskip("langchain_cohere")
voyageai = pytest.importorskip("voyageai")
xinference_client = pytest.importorskip("xinference_client")
from langchain_core.documents import Document  # noqa: E402

pytestmark = pytest.mark.slow


def test_langchain_cohere(service: Service) -> None:
    reranker = langchain_cohere.CohereRerank(model=MODEL, base_url=service.url, cohere_api_key=service.key, top_n=2)
    found = reranker.compress_documents([Document(text) for text in DOCUMENTS], QUERY)
    service.check([(DOCUMENTS.index(one.page_content), one.metadata["relevance_score"]) for one in found], 2)
    objects = reranker.rerank([{"text": text} for text in DOCUMENTS], QUERY, rank_fields=["text"], top_n=None)
    assert len(objects) == len(DOCUMENTS)


def test_voyage(service: Service) -> None:
    client = voyageai.Client(api_key=service.key, base_url=f"{service.url}/v1")
    found = client.rerank(QUERY, DOCUMENTS, model=MODEL, top_k=2)
    service.check([(result.index, result.relevance_score) for result in found.results], 2)
    assert found.total_tokens > 0
    with pytest.raises(voyageai.error.APIError) as error:
        client.rerank(QUERY, DOCUMENTS, model="other")
    assert "No model of this name is served" in str(error.value)

    async def rank() -> list[tuple[int, float]]:
        found = await voyageai.AsyncClient(api_key=service.key, base_url=f"{service.url}/v1").rerank(
            QUERY, DOCUMENTS, model=MODEL, truncation=False
        )
        return [(result.index, result.relevance_score) for result in found.results]

    service.check(asyncio.run(rank()))


@pytest.mark.parametrize("with_key", [True, False])
def test_xinference(service: Service, open_service: Service, with_key: bool) -> None:
    """It asks the server whether there are keys, and sends its own only if there are."""
    one = service if with_key else open_service
    client = xinference_client.RESTfulClient(one.url, api_key=service.key)
    try:
        model = client.get_model(MODEL)
        for documents in (DOCUMENTS, [{"text": text} for text in DOCUMENTS]):
            found = model.rerank(documents, QUERY, return_documents=True)["results"]
            one.check((result["index"], result["relevance_score"]) for result in found)
        assert found[0]["document"]["text"] == DOCUMENTS[found[0]["index"]]
        with pytest.raises(RuntimeError, match="top_n"):
            model.rerank(DOCUMENTS, QUERY, top_n=-1)
        with pytest.raises(RuntimeError, match="No model of this name is served"):
            client.get_model("other")
    finally:
        client.close()
