"""A threshold means the same for two different models once they are calibrated, and not before."""

from contextlib import ExitStack
from statistics import fmean, pstdev

import pytest

from tiny_model import build_tiny_reranker, read_passages
from winnow import Reranker
from winnow.evaluation import CalibrationReport, JudgedPair, calibrate

THRESHOLD = 0.8


def standardised(reranker: Reranker, queries: list[str], texts: list[str]) -> list[float]:
    """The logits of all pairs, on a common scale."""
    rankings = reranker.rank_many([(query, texts) for query in queries])
    found = [hit.logit for ranking in rankings for hit in sorted(ranking, key=lambda hit: hit.index)]
    return [(one - fmean(found)) / pstdev(found) for one in found]


@pytest.fixture(scope="module")
def reports(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> list[CalibrationReport]:
    """Of two models with other weights, the second of which is eight times as sure."""
    import torch
    from safetensors.torch import load_file, save_file

    other = build_tiny_reranker(tmp_path_factory.mktemp("models") / "qwen3-reranker-sure", seed=1)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * torch.tensor(8.0)
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    passages = read_passages()
    texts = [passage["text"] for passage in passages]
    queries = [passage["id"] for passage in passages[:8]]
    with ExitStack() as stack:
        rerankers = [
            stack.enter_context(Reranker(model, engine="transformers", score_cache=1000))
            for model in (tiny_model, str(other))
        ]
        # Random models know nothing. So what is relevant is what the two of them say together.
        logits = [standardised(reranker, queries, texts) for reranker in rerankers]
        both = [sum(each) for each in zip(*logits, strict=True)]
        least = sorted(both)[len(both) * 6 // 10]
        labels = iter([one >= least for one in both])
        pairs = [JudgedPair(query=query, document=text, label=next(labels)) for query in queries for text in texts]
        return [calibrate(reranker, pairs) for reranker in rerankers]


def test_two_models_before_and_after(reports: list[CalibrationReport]) -> None:
    """The numbers are in docs/calibration.md."""
    quiet, sure = (report.cut(THRESHOLD, calibrated=False) for report in reports)
    assert quiet.passing < 0.05
    assert sure.passing > 0.5
    assert sure.precision < 0.7
    quiet, sure = (report.cut(THRESHOLD) for report in reports)
    assert quiet.passing == pytest.approx(sure.passing, abs=0.1)
    assert min(quiet.precision, sure.precision) >= THRESHOLD
    assert all(report.after.ece < report.before.ece / 2 for report in reports)
