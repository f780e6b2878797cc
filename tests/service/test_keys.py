"""With keys, every route needs one, but those that orchestrators ask."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from running import running
from winnow import ConfigurationError, Reranker
from winnow.service import ServiceConfig, keys_in_file

KEYS = ("first-key", "second-key")


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with running(Reranker("tiny", engine="fake"), keys=KEYS) as server, server.client() as client:
        yield client


@pytest.mark.slow
def test_every_route_needs_a_key_but_those_of_orchestrators(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()
    assert len(described["paths"]) > 10
    for path, methods in described["paths"].items():
        for method in methods:
            answer = client.request(method, path.replace("{name}", "tiny").replace("{model}", "tiny"), json={})
            needs_key = path not in ("/health", "/ready", "/ping")
            assert (answer.status_code == 401) == needs_key, (method, path)
            assert bool(methods[method].get("security", described["security"])) == needs_key, (method, path)
    assert client.get("/v1/cluster/auth").json() == {"auth": True}  # Xinference's client then sends its key
    assert described["components"]["securitySchemes"]["key"]["scheme"] == "bearer"  # so that /docs asks for it
    page = client.get("/docs")
    assert page.status_code == 200
    assert "/openapi.json" in page.text
    for path in ("/no-such-path", "/metrics"):
        answer = client.get(path)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_each_key_is_good(client: httpx.Client, key: str) -> None:
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} {key}"}
        assert client.post("/rerank", json={"query": "a", "documents": ["a"]}, headers=headers).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    "given", ["Bearer", "Bearer wrong", "Basic first-key", "first-key", "Bearer first-key x", "Bearer ü"]
)
def test_other_credentials_are_refused(client: httpx.Client, given: str) -> None:
    answer = client.post("/rerank", json={}, headers={"Authorization": given.encode()})
    assert answer.status_code == 401


@pytest.mark.slow
def test_metrics_may_be_open() -> None:
    with running(Reranker("tiny", engine="fake"), keys=KEYS, open_metrics=True) as server, server.client() as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/v1/models").status_code == 401


def test_a_file_has_a_key_a_line(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("# of the web shop\nfirst\n\n  second  \n")
    assert keys_in_file(file) == ["first", "second"]
    file.write_text("# none yet\n")
    with pytest.raises(ConfigurationError, match="holds no key"):
        keys_in_file(file)


def test_keys_are_not_shown() -> None:
    assert KEYS[0] not in repr(ServiceConfig(keys=KEYS))
