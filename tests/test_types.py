"""What a ranking is to notebooks and data frames."""

import math
from html.parser import HTMLParser
from typing import Any

import pandas as pd
import pytest

from winnow import Document, RankedDocument, Ranking, RankStats, Reranker

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">\u202e'


class Table(HTMLParser):
    """The cells of a table, row by row, and what stands below it; knows tags, not text that looks like them."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.below = ""
        self._into: list[str] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self._into = [""]
        elif tag == "p":
            self._into = None

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._into is not None:
            self.rows[-1].append(self._into[0])
            self._into = None

    def handle_data(self, data: str) -> None:
        if self._into is None:
            self.below += data
        else:
            self._into[0] += data


@pytest.fixture(scope="module")
def ranking() -> Ranking:
    documents = ["red fish", None, f"fish {HOSTILE}", "fish " * 2000, Document(image=b"?")]
    settings: dict[str, Any] = {"on_error": "skip", "max_length": 300, "on_overflow": "window"}
    with Reranker("any", engine="fake", **settings) as reranker:
        return reranker.rank("red fish", documents)


def test_a_notebook_shows_a_table(ranking: Ranking) -> None:
    table = Table(ranking._repr_html_())
    head, *rows = table.rows
    assert head[:4] == ["rank", "score", "index", "text"]
    assert len(rows) == len(ranking) == 5
    for rank, (row, hit) in enumerate(zip(rows, ranking, strict=True), 1):
        assert row[0] == str(rank)
        assert row[1] == (f"{hit.score:.4f}" if hit.windows else "")
        assert row[2] == str(hit.index)
    by_index = {int(row[2]): row for row in rows}
    assert by_index[0][3:] == ["red fish", ""]
    assert by_index[3][3].startswith("fish fish")
    assert by_index[3][3].endswith("…")
    assert len(by_index[3][3]) == 201
    long = next(hit for hit in ranking if hit.index == 3)
    assert long.windows > 1
    assert by_index[3][4] == f"{long.windows} windows, best_window: {long.best_window}"
    assert "failed: Document 4" in by_index[4][4]
    assert "documents: 5" in table.below
    assert "failed: 1" in table.below


def test_what_documents_hold_is_shown_and_not_run(ranking: Ranking) -> None:
    table = Table(ranking._repr_html_())
    assert table.tags == {"table", "thead", "tbody", "tr", "th", "td", "span", "bdi", "p"}
    assert any(HOSTILE in row[3] for row in table.rows)


def test_the_bar_is_as_long_as_the_relevance_also_where_the_score_is_the_logit() -> None:
    hits = tuple(
        RankedDocument(index=at, score=logit, logit=logit, text="t") for at, logit in enumerate((800.0, 0.0, -800.0))
    )
    html = Ranking(hits)._repr_html_()
    assert [part.split("em")[0] for part in html.split("width:")[1:]] == ["6.0", "3.0", "0.0"]


def test_of_a_long_ranking_the_top_is_shown() -> None:
    hits = tuple(RankedDocument(index=at, score=0.5, logit=0.0, text=None) for at in range(60))
    table = Table(Ranking(hits)._repr_html_())
    assert len(table.rows) == 51
    assert "10 more documents are not shown" in table.below


def test_a_notebook_says_who_ranked_and_why() -> None:
    stats = RankStats(documents=1, failed=1, fallback="retrieval order", error="<b>dead</b>", query_truncated=True)
    hit = RankedDocument(index=0, score=0.0, logit=-math.inf, text="t", windows=0, error="<b>dead</b>")
    table = Table(Ranking((hit,), stats)._repr_html_())
    assert "ranked by retrieval order, because: <b>dead</b>" in table.below
    assert "the query was truncated" in table.below
    assert "b" not in table.tags


def test_a_data_frame_holds_every_field(ranking: Ranking) -> None:
    frame = ranking.to_dataframe()
    assert list(frame.columns) == list(RankedDocument.__slots__)
    assert list(frame.index) == [1, 2, 3, 4, 5]
    assert frame.index.name == "rank"
    for row, hit in zip(frame.to_dict("records"), ranking, strict=True):
        assert {name: None if pd.isna(value) else value for name, value in row.items()} == {
            name: getattr(hit, name) for name in RankedDocument.__slots__
        }
    assert frame["score"].dtype == float
    assert Ranking().to_dataframe().empty
