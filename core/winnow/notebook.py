"""A ranking as an HTML table, which notebooks show instead of its `repr`."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from winnow.logits import sigmoid

# A notebook stores its output in its file, so only the top of a ranking and the beginning of texts are shown.
_ROWS = 50
_CHARACTERS = 200

_CELL = 'style="text-align:left;vertical-align:top;padding:0.2em 0.6em"'
_BAR = "display:inline-block;height:0.7em;background:#4c8bf5;margin-right:0.4em;width:{:.1f}em"
_BAR_WIDTH = 6.0  # em, of a score of 1


def html_of_ranking(ranking: Mapping[str, Any], texts: Sequence[str | None]) -> str:
    """The table: rank, score with a bar, index, the beginning of the text, and notes about the document.

    Texts of documents, models and servers are escaped.

    Args:
        ranking: What `Ranking.as_dict` gives.
        texts: The texts of the hits.
    """
    hits = list(zip(ranking["hits"], texts, strict=True))
    head = "".join(f"<th {_CELL}>{name}</th>" for name in ("rank", "score", "index", "text", ""))
    rows = "".join(f"<tr>{_cells(rank, hit, text)}</tr>" for rank, (hit, text) in enumerate(hits[:_ROWS], 1))
    below = [f"{len(hits) - _ROWS} more documents are not shown"] if len(hits) > _ROWS else []
    counts = [(name.replace("_", " "), value) for name, value in ranking.items() if type(value) is int and value]
    below.append(", ".join(f"{name}: {value}" for name, value in counts))
    below.append(f"{ranking['elapsed_ms']:.0f} ms")
    if ranking["query_truncated"]:
        below.append("the query was truncated")
    if ranking["fallback"] is not None:
        below.append(f"ranked by {ranking['fallback']}, because: {ranking['error']}")
    notes = "; ".join(escape(one) for one in below if one)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table><p>{notes}</p>"


def _cells(rank: int, hit: Mapping[str, Any], text: str | None) -> str:
    # The bar shows the score, or its sigmoid where the score is the logit.
    share = hit["score"] if hit["score"] != hit["logit"] else sigmoid(hit["logit"])
    bar = f'<span style="{_BAR.format(_BAR_WIDTH * share)}"></span>'
    score = "" if hit["error"] or not hit["windows"] else f"{bar}{hit['score']:.4f}"
    cells = (str(rank), score, str(hit["index"]), f"<bdi>{escape(_beginning(text or ''))}</bdi>", escape(_flags(hit)))
    return "".join(f"<td {_CELL}>{cell}</td>" for cell in cells)


def _beginning(text: str) -> str:
    """The beginning of a text on one line. It is cut first, because a text may have megabytes."""
    short = " ".join(text[: 2 * _CHARACTERS].split())
    return short if len(short) <= _CHARACTERS and len(text) <= 2 * _CHARACTERS else f"{short[:_CHARACTERS]}…"


def _flags(hit: Mapping[str, Any]) -> str:
    flags = ["truncated"] if hit["truncated"] else []
    if hit["windows"] > 1:
        flags.append(f"{hit['windows']} windows, best_window: {hit['best_window']}")
    if hit["error"]:
        flags.append(f"failed: {hit['error']}")
    return "; ".join(flags)
