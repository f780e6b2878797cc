"""LiteLLM, as each of the providers that it can take the service for."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from served import DOCUMENTS, MODEL, PRESET, QUERY, Service

litellm = pytest.importorskip("litellm", reason="runs in .venv-clients: make test-clients")

pytestmark = pytest.mark.slow

PROVIDERS = ["hosted_vllm", "cohere", "jina_ai", "voyage", "huggingface"]


def rerank(service: Service, provider: str, model: str = MODEL, **fields: Any) -> Any:
    return litellm.rerank(
        model=f"{provider}/{model}",
        api_base=service.url,
        api_key=service.key,
        **{"query": QUERY, "documents": DOCUMENTS, **fields},
    )


def pairs(answer: Any) -> list[tuple[int, float]]:
    return [(result["index"], result["relevance_score"]) for result in answer.results]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_each_provider_ranks(service: Service, provider: str) -> None:
    service.check(pairs(rerank(service, provider, top_n=2)), None if provider == "huggingface" else 2)


@pytest.mark.parametrize("provider", ["hosted_vllm", "cohere", "jina_ai"])
def test_results_have_documents_and_usage(service: Service, provider: str) -> None:
    answer = rerank(service, provider, return_documents=True)
    service.check(pairs(answer))
    texts = [result["document"]["text"] for result in answer.results]
    assert texts == [DOCUMENTS[index] for index, _ in pairs(answer)]
    kind, name = ("billed_units", "total_tokens") if provider == "jina_ai" else ("tokens", "input_tokens")
    assert answer.meta[kind][name] > 0


def test_infinity_ranks_without_documents(service: Service) -> None:
    """It wants a document as a text, where vLLM, Cohere and Jina have an object."""
    service.check(pairs(rerank(service, "infinity", return_documents=False)))


def test_a_preset_is_a_model_and_an_instruction_passes(service: Service) -> None:
    service.check(pairs(rerank(service, "hosted_vllm", PRESET)), model=PRESET)
    instructed = rerank(service, "hosted_vllm", instruction="Find Beijing and rice")
    service.check(pairs(instructed), model=PRESET)


def test_the_asynchronous_call_ranks(service: Service) -> None:
    answer = asyncio.run(
        litellm.arerank(
            model=f"hosted_vllm/{MODEL}",
            api_base=f"{service.url}/v1",
            api_key=service.key,
            query=QUERY,
            documents=DOCUMENTS,
        )
    )
    service.check(pairs(answer))


@pytest.mark.parametrize("provider", ["hosted_vllm", "cohere", "jina_ai"])
def test_an_error_says_what_is_wrong(service: Service, provider: str) -> None:
    with pytest.raises(Exception, match="No model of this name is served"):
        rerank(service, provider, "other")


def test_the_example_of_the_docs_runs(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "service.md").read_text(encoding="utf-8")
    [program] = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "import litellm" in block]
    its = {"http://127.0.0.1:8000": service.url, "Qwen/Qwen3-Reranker-0.6B": MODEL, "the-key": service.key or ""}
    for name, value in its.items():
        assert name in program
        program = program.replace(name, value)
    exec(compile(program, "service.md", "exec"), {})  # noqa: S102
    assert "Beijing" in capsys.readouterr().out
