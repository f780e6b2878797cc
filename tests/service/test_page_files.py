"""The files of the page are served without a key and with a strict policy. tests/service/test_page.py uses the page."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from running import running
from winnow import Reranker
from winnow.service import page

pytestmark = pytest.mark.slow

FOLDER = Path(page.__file__).with_name("page")


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with running(Reranker("tiny", engine="fake"), keys=["the-key"]) as server, server.client() as client:
        yield client


def test_every_file_is_served_without_a_key(client: httpx.Client) -> None:
    for file in FOLDER.iterdir():
        answer = client.get("/" if file.name == "index.html" else f"/page/{file.name}")
        assert answer.status_code == 200
        assert answer.content == file.read_bytes()
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.head("/").status_code == 200
    assert client.get("/").headers["content-type"] == "text/html; charset=utf-8"
    assert client.get("/page/main.js").headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize("path", ["/page/", "/page/none.js", "/page/../keys.py", "/page/%2e%2e/keys.py", "/v1/models"])
def test_nothing_else_is(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 401


def test_the_policy_allows_the_page_its_own_files_alone(client: httpx.Client) -> None:
    given = client.get("/").headers["content-security-policy"]
    policy = dict(one.split(" ", 1) for one in given.split("; "))
    assert policy.pop("require-trusted-types-for") == "'script'"  # text cannot become an element
    assert policy.pop("default-src") == "'none'"
    assert set(policy.values()) == {"'self'", "'none'"}
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|<style|\sstyle=|\son[a-z]+=|https?://(?!www\.w3\.org)"
    )
    for file in FOLDER.iterdir():
        assert not forbidden.search(file.read_text(encoding="utf-8")), file.name
