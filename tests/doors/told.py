"""What an integration tells its framework of a call: all that the core says, in a form that can be written down."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from winnow import RankStats, Reranker

# A query and a document that are cut, and a document that is not scored.
QUERY = f"capital of China {'or another one ' * 400}"
TEXTS = ["", "Rice and noodles.", "Beijing is the capital of China.", "Paris.", "noodles " * 400]
SETTINGS: dict[str, Any] = {"max_length": 400, "max_query_tokens": 100, "max_document_tokens": 20}


def check_told(told: Mapping[str, Any]) -> None:
    """Check what was told of a call with this query, these texts and settings."""
    expected = Reranker("fake", engine="fake", **SETTINGS).rank(QUERY, TEXTS)
    assert told.keys() == {field.name for field in dataclasses.fields(RankStats)} | {"hits"}
    for field in dataclasses.fields(RankStats):
        if field.name != "elapsed_ms":
            assert told[field.name] == getattr(expected.stats, field.name), field.name
    assert told["query_truncated"]
    assert told["elapsed_ms"] > 0
    for hit, shown in zip(expected, told["hits"], strict=True):
        assert shown.keys() == {field.name for field in dataclasses.fields(hit)} - {"text"}
        for name in shown.keys() - {"logit"}:
            assert shown[name] == getattr(hit, name), name
    assert told["hits"][0]["logit"] == expected[0].logit
    assert told["truncated"] == sum(hit["truncated"] for hit in told["hits"]) > 0
    json.dumps(told, allow_nan=False)
