"""Each client's request gets the answer that this client can read."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from running import running
from winnow import Reranker

pytestmark = pytest.mark.slow

QUERY = "capital of China"
DOCUMENTS = ["Rice.", "Beijing is the capital of China.", "A capital."]


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with running(Reranker("tiny", engine="fake")) as server, server.client() as client:
        yield client


def post(client: httpx.Client, path: str, **body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerank_answers_in_the_shape_that_satisfies_all_clients(client: httpx.Client, path: str) -> None:
    found = post(client, path, query=QUERY, documents=DOCUMENTS, model="tiny")
    assert [result["index"] for result in found["results"]] == [1, 2, 0]
    scores = [result["relevance_score"] for result in found["results"]]
    assert scores == pytest.approx([hit.score for hit in Reranker("tiny", engine="fake").rank(QUERY, DOCUMENTS)])
    assert all(0 <= score <= 1 for score in scores)
    assert found["object"] == "rerank"
    assert found["model"] == "tiny"
    assert isinstance(found["id"], str)
    tokens = found["usage"]["prompt_tokens"]
    assert tokens > 0
    assert found["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert found["meta"]["tokens"] == {"input_tokens": tokens, "output_tokens": 0}
    assert found["results"][0]["truncated"] is False
    assert found["results"][0]["windows"] == 1
    documents = [result.get("document") for result in found["results"]]
    # Cohere v2 has no documents in its answer unless asked; the others always have.
    assert documents == [None] * 3 if path == "/v2/rerank" else [{"text": DOCUMENTS[at]} for at in (1, 2, 0)]


def test_return_documents_is_honoured_on_every_path(client: httpx.Client) -> None:
    asked = post(client, "/v2/rerank", query=QUERY, documents=DOCUMENTS, return_documents=True)
    assert asked["results"][0]["document"] == {"text": DOCUMENTS[1]}
    refused = post(client, "/v1/rerank", query=QUERY, documents=DOCUMENTS, return_documents="false")
    assert "document" not in refused["results"][0]  # absent, not null, which LiteLLM cannot read


def test_nulls_text_booleans_and_unknown_fields_are_taken(client: httpx.Client) -> None:
    nulls = dict.fromkeys(("top_n", "top_k", "return_documents", "instruction", "score_threshold", "rank_fields"))
    sent = {"return_documents": "true", "kwargs": "{}", "user": "me", "relevant_spans": None, "raw_scores": ""}
    found = post(client, "/v1/rerank", query=QUERY, documents=DOCUMENTS, **{**nulls, **sent})
    assert len(found["results"]) == 3
    assert found["results"][0]["document"] == {"text": DOCUMENTS[1]}


@pytest.mark.parametrize(("top_n", "count"), [(2, 2), ("2", 2), (9, 3), (0, 3), (None, 3)])
def test_top_n_cuts_the_ranking(client: httpx.Client, top_n: Any, count: int) -> None:
    assert len(post(client, "/rerank", query=QUERY, documents=DOCUMENTS, top_n=top_n)["results"]) == count


def test_score_threshold_and_raw_scores(client: httpx.Client) -> None:
    found = post(client, "/rerank", query=QUERY, documents=DOCUMENTS, score_threshold=0.5)
    assert [result["index"] for result in found["results"]] == [1]
    raw = post(client, "/rerank", query=QUERY, documents=[*DOCUMENTS, None], raw_scores=True, score_threshold=0)
    assert [result["index"] for result in raw["results"]] == [1]
    assert raw["results"][0]["relevance_score"] == pytest.approx(4.0, abs=0.1)
    vllm = post(client, "/rerank", query=QUERY, documents=DOCUMENTS, use_activation=False)
    assert vllm["results"][0] == raw["results"][0]


def test_blank_and_null_documents_are_answered_last_with_a_number(client: httpx.Client) -> None:
    found = post(client, "/rerank", query=QUERY, documents=[None, " ", {"content": []}, "Rice."])
    assert [result["index"] for result in found["results"]] == [3, 0, 1, 2]
    assert [result["relevance_score"] for result in found["results"]][1:] == [0.0] * 3
    assert [result["document"] for result in found["results"]] == [{"text": text} for text in ("Rice.", "", " ", "")]
    raw = post(client, "/rerank", query=QUERY, documents=[None], raw_scores="true")
    assert raw["results"][0]["relevance_score"] < -1e38  # JSON has no infinity


def test_documents_may_be_objects_and_parts(client: httpx.Client) -> None:
    documents = [
        {"text": DOCUMENTS[1], "title": "Beijing"},
        {"content": [{"type": "text", "text": DOCUMENTS[1]}]},
        [{"type": "text", "text": "Beijing is the"}, {"type": "text", "text": "capital of China."}],
    ]
    found = post(client, "/v1/rerank", query={"text": QUERY}, documents=documents)
    assert len({round(result["relevance_score"], 4) for result in found["results"]}) == 1
    shown = {result["index"]: result["document"] for result in found["results"]}
    assert shown[0] == documents[0]  # with all its fields, as Cohere v1 has it
    assert shown[1] == {"text": DOCUMENTS[1]}
    assert shown[2] == {"text": "Beijing is the\ncapital of China."}


def test_rank_fields_say_what_is_read_of_an_object(client: httpx.Client) -> None:
    documents = [{"text": "Rice.", "title": QUERY}, {"text": "Rice.", "title": "Rice."}]
    found = post(client, "/v1/rerank", query=QUERY, documents=documents, rank_fields=["title", "text"])
    assert [result["index"] for result in found["results"]] == [0, 1]
    assert found["results"][0]["relevance_score"] > 0.9 > found["results"][1]["relevance_score"]


def test_teis_clients_get_a_bare_list_with_one_result_for_each_text(client: httpx.Client) -> None:
    body = {"query": QUERY, "texts": [*DOCUMENTS, None], "top_n": 1, "truncate": True, "raw_scores": False}
    found = post(client, "/rerank", **body)
    assert [result["index"] for result in found] == [1, 2, 0, 3]
    assert {name for result in found for name in result} == {"index", "score"}
    asked = post(client, "/rerank", **body, return_text=True)
    assert [result["text"] for result in asked] == [DOCUMENTS[1], DOCUMENTS[2], DOCUMENTS[0], ""]


def test_voyages_clients_get_data_with_texts(client: httpx.Client) -> None:
    found = post(client, "/v1/rerank", query=QUERY, documents=DOCUMENTS, top_k=2, truncation=True, model="tiny")
    assert found["object"] == "list"
    assert [result["index"] for result in found["data"]] == [1, 2]
    assert found["data"][0]["document"] == DOCUMENTS[1]
    assert found["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("path", ["/v1/ranking", "/ranking", "/v1/retrieval/nvidia/any-model/reranking"])
def test_nvidias_clients_get_logits(client: httpx.Client, path: str) -> None:
    passages = [{"text": text} for text in DOCUMENTS]
    found = post(client, path, query={"text": QUERY}, passages=passages, model="tiny", truncate="END")
    logits = [hit.logit for hit in Reranker("tiny", engine="fake").rank(QUERY, DOCUMENTS)]
    assert [result["index"] for result in found["rankings"]] == [1, 2, 0]
    assert [result["logit"] for result in found["rankings"]] == pytest.approx(logits)


SPELLINGS = [("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")]


@pytest.mark.parametrize(("first", "second"), SPELLINGS)
@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_score_takes_all_spellings_of_vllm(client: httpx.Client, path: str, first: str, second: str) -> None:
    expected = Reranker("tiny", engine="fake").score(QUERY, DOCUMENTS)
    one_to_many = post(client, path, **{first: QUERY, second: DOCUMENTS})
    assert [score["score"] for score in one_to_many["data"]] == pytest.approx(expected)
    assert [(score["index"], score["object"]) for score in one_to_many["data"]] == [(at, "score") for at in range(3)]
    pairs = post(client, path, **{first: [QUERY] * 3, second: DOCUMENTS})
    assert pairs["data"] == one_to_many["data"]
    single = post(client, path, **{first: QUERY, second: DOCUMENTS[1]})
    assert [score["score"] for score in single["data"]] == pytest.approx([expected[1]])
    part = post(client, path, **{first: QUERY, second: [{"type": "text", "text": DOCUMENTS[1]}]})
    assert part["data"] == single["data"]
    assert set(single["usage"]) == {
        *("prompt_tokens", "total_tokens", "completion_tokens"),
        *("prompt_tokens_details", "completion_tokens_details"),
    }


def test_the_models_are_listed_as_clients_read_them(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()
    [card] = listed["data"]
    assert listed["object"] == "list"
    assert card["id"] == card["root"] == "tiny"  # `vllm bench serve` loads the tokenizer from root
    assert client.get("/v1/models/tiny").json()["model_type"] == "rerank"
    assert client.get("/v1/models/other").status_code == 404
    assert client.get("/v1/cluster/auth").json() == {"auth": False}


def test_health_version_and_metrics(client: httpx.Client) -> None:
    for path in ("/health", "/ready", "/ping", "/version"):
        assert client.get(path).status_code == 200, path
    assert client.post("/ping").status_code == 200
    post(client, "/rerank", query=QUERY, documents=DOCUMENTS)
    shown = client.get("/metrics").text
    assert 'winnow_pairs_total{engine="fake",model="tiny"}' in shown
    assert 'winnow_http_requests_total{route="/rerank",status="200"}' in shown


def test_openapi_has_every_route_and_examples_that_are_answered(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()
    assert {"/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score", "/v1/ranking"} <= set(described["paths"])
    for name, path in (("RerankRequest", "/rerank"), ("ScoreRequest", "/score"), ("RankingRequest", "/v1/ranking")):
        for example in described["components"]["schemas"][name]["examples"]:
            post(client, path, **example)
