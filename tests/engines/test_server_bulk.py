"""Bulk work on a Ray cluster of two nodes whose workers score on a fleet of vLLM servers."""

import json
from pathlib import Path

import pytest
from vllm_servers import API_KEY, FaultyProxy

from ray_nodes import RayNodes
from winnow import Reranker
from winnow.bulk import rerank_files

pytestmark = pytest.mark.slow


def test_workers_share_a_fleet_and_give_what_rank_many_gives(
    ray_nodes: RayNodes, proxies: list[FaultyProxy], tiny_model: str, passages: list[str], tmp_path: Path
) -> None:
    records = [
        {"query": text[:30], "documents": passages[at % 5 : at % 5 + 7]} for at, text in enumerate(passages[:12])
    ]
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    fleet = {"engine": "server", "url": [proxy.url for proxy in proxies], "api_key": API_KEY}
    report = rerank_files(file, tmp_path / "out", model=tiny_model, part_rows=2, concurrency=2, num_cpus=0.5, **fleet)
    assert report.costs.pairs == sum(len(record["documents"]) for record in records)
    parts = sorted((tmp_path / "out").glob("part-*"))
    found = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
    with Reranker(tiny_model, **fleet) as reranker:  # type: ignore[arg-type]
        rankings = reranker.rank_many([(record["query"], record["documents"]) for record in records])
    assert [row["ranking"] for row in found] == [[hit.index for hit in ranking] for ranking in rankings]
    for row, ranking in zip(found, rankings, strict=True):
        assert row["scores"] == pytest.approx([hit.score for hit in ranking], abs=1e-6)
    assert API_KEY not in (tmp_path / "out" / "_manifest.json").read_text()
