"""Requests that schemathesis makes of the service's own OpenAPI description, right ones and wrong ones."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings

from running import Running, running
from winnow import Reranker

schemathesis = pytest.importorskip("schemathesis")
from schemathesis import GenerationMode as Mode  # noqa: E402
from schemathesis.specs.openapi.checks import response_schema_conformance  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(schemathesis|jsonschema|hypothesis).*"),
]

GOOD = {"query": "capital of China", "documents": ["Rice.", "Beijing is the capital of China."]}
# Of all routes together; for more, `WINNOW_FUZZ_CASES=5000 pytest tests/service/test_fuzz.py`.
CASES = int(os.environ.get("WINNOW_FUZZ_CASES", "400"))


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(Reranker("tiny", engine="fake"), max_documents=50) as service:
        yield service


def check(case: Any, answer: Any) -> None:
    """A right answer has the shape that is described; an error has that of all errors."""
    # A deadline of a millisecond has passed.
    assert answer.status_code < 500 or (answer.status_code == 504 and case.body["deadline"]), answer.text
    case.validate_response(answer, checks=[response_schema_conformance])
    if answer.status_code >= 400:
        body = answer.json()
        assert body["detail"] == body["message"] == body["error"]["message"]
        assert body["error"]["code"] == answer.status_code


def test_no_request_is_a_500_and_every_answer_has_its_shape(service: Running) -> None:
    with service.client() as client:
        expected = client.post("/rerank", json=GOOD).json()["results"]
        seen = fuzz(service)
        assert client.post("/rerank", json=GOOD).json()["results"] == expected
        assert client.get("/ready").status_code == 200
    assert seen.total() >= CASES - 20
    assert {200, 400} <= set(seen)


def fuzz(service: Running) -> Counter[int]:
    """How often each status was answered."""
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    operations = [operation.ok() for operation in schema.get_all_operations()]
    # Without a body nothing can be wrong.
    kinds = [(one, mode) for one in operations for mode in (list(Mode) if one.body else [Mode.POSITIVE])]
    each = CASES // sum(1 for one, _ in kinds if one.body)
    seen = Counter[int]()
    with requests.Session() as session:
        for operation, mode in kinds:

            @settings(max_examples=each, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(mode))
            def ask(case: Any) -> None:
                answer = case.call(session=session)
                seen[answer.status_code] += 1
                check(case, answer)

            ask()
    return seen
