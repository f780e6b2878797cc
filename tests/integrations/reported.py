"""What an integration reports to its framework about a call: all that the core says, as plain data."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from winnow import RankStats, Reranker

# A query and a document that are cut, and a document that is not scored.
QUERY = f"capital of China {'or another one ' * 400}"
TEXTS = ["", "Rice and noodles.", "Beijing is the capital of China.", "Paris.", "noodles " * 400]
SETTINGS: dict[str, Any] = {"max_length": 400, "max_query_tokens": 100, "max_document_tokens": 20}


def check_reported(reported: Mapping[str, Any]) -> None:
    """Check what was reported about a call with this query, these texts and settings."""
    expected = Reranker("fake", engine="fake", **SETTINGS).rank(QUERY, TEXTS)
    assert reported.keys() == {field.name for field in dataclasses.fields(RankStats)} | {"hits"}
    for field in dataclasses.fields(RankStats):
        if field.name != "elapsed_ms":
            assert reported[field.name] == getattr(expected.stats, field.name), field.name
    assert reported["query_truncated"]
    assert reported["elapsed_ms"] > 0
    for hit, shown in zip(expected, reported["hits"], strict=True):
        assert shown.keys() == {field.name for field in dataclasses.fields(hit)} - {"text"}
        for name in shown.keys() - {"logit"}:
            assert shown[name] == getattr(hit, name), name
    assert reported["hits"][0]["logit"] == expected[0].logit
    assert reported["truncated"] == sum(hit["truncated"] for hit in reported["hits"]) > 0
    json.dumps(reported, allow_nan=False)
