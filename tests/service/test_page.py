"""The page for people at `/`, in a real Chromium: a ranking, its prompts, files, keys, and readers of every kind."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_core_python.selenium import Axe
from browser import MISSING, Browser, browser, is_installed

from gated_engine import GatedEngine
from running import Running, running
from winnow import FakeEngine, Reranker
from winnow.service import Preset

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not is_installed(), reason=MISSING)]

KEY = "the-key"
QUERY = "capital of China"
ATTACK = "<img src=x onerror=document.title='taken'></p><script>document.title='taken'</script> capital"
LONG = "capital " * 100


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    engine = FakeEngine(max_length=300)
    presets = {"strict": Preset(template="P {query} {document}")}
    with running(Reranker("tiny", engine=engine, on_error="skip"), keys=[KEY], presets=presets) as server:
        yield server


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as one:
        yield one


@pytest.fixture
def page(chromium: Browser, server: Running) -> Iterator[Browser]:
    """The page with its key; at the end nothing went wrong that the browser knows of."""
    chromium.open(server.url)
    chromium.run("sessionStorage.setItem('winnow.key', arguments[0])", KEY)
    chromium.open(server.url)
    chromium.until("#model option")
    chromium.complaints()
    yield chromium
    assert chromium.complaints() == []


def rank(page: Browser, *documents: str) -> None:
    page.write("#query", QUERY)
    page.write("#documents", "\n".join(documents))
    page.click("#rank")
    page.until(".result, #fault:not(:empty)")


def texts(page: Browser) -> list[str]:
    return [one.text for one in page.all(".result .text")]


def file_of(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_key_is_asked_for_and_stays_in_the_tab(chromium: Browser, server: Running) -> None:
    chromium.open(server.url)
    chromium.run("sessionStorage.clear()")
    chromium.open(server.url)
    assert chromium.until("#key-section:not([hidden])").text.startswith("API key")
    chromium.write("#key", "wrong\n")
    assert "A valid API key is missing" in chromium.until("#fault:not(:empty)").text
    chromium.write("#key", f"{KEY}\n")
    chromium.until("#model option")
    assert not chromium("#key-section").is_displayed()
    assert chromium("#served").text == "tiny"
    assert chromium.run("return [localStorage.length, document.cookie, location.href]") == [0, "", f"{server.url}/"]
    chromium.open(server.url)
    assert chromium.until("#model option").is_enabled(), "a reload keeps it"


def test_the_ranking_is_that_of_the_service(page: Browser, server: Running) -> None:
    documents = ["Rice.", "Beijing is the capital of China.", "A capital."]
    rank(page, *documents)
    assert texts(page) == [documents[1], documents[2], documents[0]]
    with server.client(headers={"Authorization": f"Bearer {KEY}"}) as client:
        expected = client.post("/v1/rerank", json={"query": QUERY, "documents": documents}).json()["results"]
    assert [one.text for one in page.all(".number")] == [f"{one['relevance_score']:.4f}" for one in expected]
    shares = [
        page.run("return arguments[0].clientWidth / arguments[0].parentElement.clientWidth", bar)
        for bar in page.all(".bar > span")
    ]
    assert shares == pytest.approx([one["relevance_score"] for one in expected], abs=0.02)
    assert page("#summary").text.startswith("3 documents ranked in ")


def test_what_documents_hold_stays_text(page: Browser) -> None:
    rank(page, ATTACK)
    assert texts(page) == [ATTACK]
    page.click(".result button[aria-haspopup]")
    page.until("#prompt-text .document")
    assert ATTACK in page("#prompt-text").get_attribute("textContent")
    assert page.all("#results img, #results script, #prompt img, #prompt script") == []
    assert page.driver.title.startswith("Winnow")


def test_the_prompt_is_shown_in_its_parts(page: Browser) -> None:
    page.write("#instruction", "Find facts")
    rank(page, "Beijing <d> is one.")
    page.click(".result button[aria-haspopup]")
    page.until("#prompt-text .document")
    marks = page.all("#prompt-text .part")
    assert [(mark.get_attribute("class"), mark.text) for mark in marks] == [
        ("part control", "⟦<i>⟧"),
        ("part instruction", "instruction Find facts"),
        ("part control", "⟦<q>⟧"),
        ("part query", f"query {QUERY}"),
        ("part control", "⟦<d>⟧"),
        ("part document", "document Beijing <d> is one."),
        ("part control", "⟦<e>⟧"),
    ]
    properties = ("color", "background-color")
    looks = {tuple(map(mark.value_of_css_property, properties)) for mark in marks}
    assert len(looks) == len({mark.get_attribute("class") for mark in marks}) == 4
    legend = page("#prompt-legend").text
    for expected in ("instruction 10 tokens", f"query {len(QUERY)} tokens", "document 19 tokens", "template 4 tokens"):
        assert expected in legend
    assert "of at most 300" in page("#prompt-facts").text


def test_what_was_cut_and_what_failed_is_said(page: Browser, tmp_path: Path) -> None:
    documents = [LONG, "capital of China", "", {"text": "half \ud83d"}]
    page("#file").send_keys(file_of(tmp_path, "documents.json", json.dumps({"query": QUERY, "documents": documents})))
    page.until("#remove-file:not([hidden])")
    assert page("#query").get_attribute("value") == QUERY
    assert page("#documents-count").text == "4 documents from documents.json"
    page.click("#rank")
    page.until(".result")
    notes = {
        result.find_element("css selector", ".row .hint").text: [
            note.text for note in result.find_elements("css selector", ".notes li")
        ]
        for result in page.all(".result")
    }
    assert notes["Document 1"] == ["Cut: the model did not read all of it"]
    assert notes["Document 2"] == []
    assert notes["Document 3"] == ["Not scored: it is blank"]
    assert "Not scored: Document 3 holds the lone surrogate" in notes["Document 4"][0]
    assert page("#summary").text.endswith("1 cut · 2 not scored.")
    assert [one.text for one in page.all(".number")][-2:] == ["–", "–"]
    folded = page(".folded")
    button = page(f"[aria-controls={folded.get_attribute('id')}]")
    button.click()
    assert button.get_attribute("aria-expanded") == "true"
    assert page.all(".folded") == []


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "a.jsonl",
            '"one"\n\n{"text": "two\\nlines"}\n{"contents": "three"}\n',
            ["one", "two\nlines", "three"],
        ),
        ("a.json", '["one", {"document": "two"}, [{"type": "text", "text": "three"}]]', ["one", "two", "three"]),
        ("a.json", '{"texts": ["one"]}', ["one"]),
        ("a.txt", "one\r\ntwo\n\n\nthree", ["one", "two", "three"]),
    ],
)
def test_a_file_is_read(page: Browser, tmp_path: Path, name: str, text: str, expected: list[str]) -> None:
    page.write("#query", QUERY)
    page("#file").send_keys(file_of(tmp_path, name, text))
    page.until_text("#documents-count", f"{len(expected)} document")
    page.click("#rank")
    page.until(".result")
    assert sorted(texts(page)) == sorted(expected)


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("a.jsonl", '"one"\n{nonsense}', "Line 2 of a.jsonl is not JSON."),
        ("a.jsonl", '"one"\n{"title": "two"}', "Line 2 of a.jsonl has no “text”."),
        ("a.json", '{"query": "x"}', "a.json must hold a list of documents, or an object with “documents”."),
        ("a.json", '["one", 2]', "Document 2 of a.json must be a text, or an object with “text”."),
    ],
)
def test_a_file_that_cannot_be_read_says_where(page: Browser, tmp_path: Path, name: str, text: str, fault: str) -> None:
    page("#file").send_keys(file_of(tmp_path, name, text))
    page.until_text("#fault", fault)
    assert page("#documents").is_displayed()


def test_blank_lines_can_end_documents(page: Browser) -> None:
    page.click("[name=split][value=blank]")
    page.write("#query", QUERY)
    page.write("#documents", "one\nline\n \n\ntwo")
    assert page("#documents-count").text == "2 documents"
    page.click("#rank")
    page.until(".result")
    assert sorted(texts(page)) == ["one\nline", "two"]


def test_options_go_with_the_request(page: Browser) -> None:
    page.click("summary")
    page.run("document.getElementById('model').value = 'strict'")
    page.click("#raw")
    page.write("#most", "1")
    page.write("#length", "5")
    rank(page, "capital of China", "capital of Chile")
    assert len(texts(page)) == 1
    assert page(".notes .warning").text.startswith("Cut")
    page.click(".result button[aria-haspopup]")
    assert page.until("#prompt-text .document").text == "document capit"
    assert page("#prompt-text").text.startswith("P ")
    page.click("#prompt-close")
    page.write("#template", "{{ query }}")
    page.click("#rank")
    assert "places the document 0 times" in page.until_text("#fault", "document").text
    page.complaints()  # the browser logs the status 400


def test_what_is_missing_is_said_before_anything_is_sent(page: Browser) -> None:
    page.click("#rank")
    assert page("#fault").text.endswith("Write a query first.")
    assert page.focused() == "query"
    page.write("#query", QUERY)
    page.click("#rank")
    assert "There are no documents yet" in page("#fault").text


def test_all_of_it_works_with_the_keyboard(page: Browser) -> None:
    page.press("Tab")
    assert page.run("return document.activeElement.className") == "skip"
    order = []
    while page.focused() != "rank":
        page.press("Tab")
        order.append(page.focused())
    assert [one for one in order if one] == ["query", "instruction", "documents", "file", "rank"]
    page.write("#query", QUERY)
    page.write("#documents", "Beijing is the capital of China.")
    page.press("Control+Enter")
    page.until(".result")
    while page.run("return document.activeElement.textContent") != "Prompt":
        page.press("Tab")
    page.press("Enter")
    page.until("#prompt-text .document")
    assert page.focused() == "prompt-title"
    page.press("Escape")
    assert not page("#prompt").is_displayed()
    assert page.run("return document.activeElement.textContent") == "Prompt", "the focus is where it was"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_readers_of_every_kind_can_use_it(page: Browser, dark: bool) -> None:
    """axe-core looks at names, roles, contrasts and more."""
    page.prefer(dark=dark)
    page.click("summary")
    page.write("#instruction", "Find facts")
    rank(page, LONG, "Beijing is the capital of China.")
    assert faults(page) == []
    page.click(".result button[aria-haspopup]")
    page.until("#prompt-text .document")
    assert faults(page) == []
    ground = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(18, 22, 20)") == dark


def test_nothing_sticks_out_on_a_phone(page: Browser) -> None:
    with page.size(360, 740):
        rank(page, "word" * 200, "capital of China")
        page.click(".result button[aria-haspopup]")
        page.until("#prompt-text .document")
        assert page.run("return document.documentElement.scrollWidth - window.innerWidth") <= 0
        assert page.run("const box = document.getElementById('prompt'); return box.scrollWidth - box.clientWidth") <= 0


def test_it_says_whether_the_model_is_loaded_and_can_stop(chromium: Browser) -> None:
    engine = GatedEngine()
    with running(Reranker("tiny", engine=engine), until_ready=False) as server:
        chromium.open(server.url)
        chromium.until_text("#state", "loading")
        engine.gate.set()
        chromium.until_text("#state", "ready")
        engine.gate.clear()
        chromium.write("#query", QUERY)
        chromium.write("#documents", "one")
        chromium.click("#rank")
        chromium.until("#stop:not([hidden])")
        chromium.click("#stop")
        chromium.until_text("#summary", "Stopped.")
        engine.gate.set()
    chromium.complaints()  # the browser logs the status 503


def faults(page: Browser) -> list[Any]:
    found = Axe().run(page.driver)
    assert found["passes"]
    return [(one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]]
