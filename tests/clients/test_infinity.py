"""Infinity's own client."""

import pytest
from served import DOCUMENTS, MODEL, QUERY, Service

infinity_client = pytest.importorskip("infinity_client", reason="runs in .venv-clients: make test-clients")
from infinity_client.api.default import rerank  # noqa: E402
from infinity_client.models import RerankInput  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("named", [True, False])
def test_it_ranks(service: Service, named: bool) -> None:
    """Without a model it sends a name that means none."""
    model = {"model": MODEL} if named else {}
    body = RerankInput(query=QUERY, documents=DOCUMENTS, top_n=2, **model)
    with infinity_client.AuthenticatedClient(base_url=service.url, token=service.key) as client:
        answer = rerank.sync(client=client, body=body)
    service.check([(result.index, result.relevance_score) for result in answer.results], 2)
    assert answer.model == MODEL
    assert answer.usage.prompt_tokens > 0
