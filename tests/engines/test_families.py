"""Every family, in both engines: vLLM's logits are transformers' logits are what the model card's own code computes."""

import dataclasses
import importlib.util
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from judges import FAMILIES, JUDGES
from winnow import ModelRecipe, Ranking, Reranker
from winnow.engines.choose import create_engine
from winnow.engines.vllm.defaults import attention_for
from winnow.models.checkpoint import open_checkpoint

pytestmark = pytest.mark.slow

QUERY = "what is the capital of China?"
DOCUMENTS = [
    "Beijing is the capital of China.",
    "Bread rises in the oven because yeast makes gas.",
    "x",
    "naïve café 日本語 🙂 \n second line\twith a tab!",
    "The tide falls twice a day. " * 12,
    "Yes or no? 0 or 1?",
]
MULTIMODAL = ("qwen3-vl-reranker-2b", "jina-reranker-m0")
JUDGE = ModelRecipe(family="judge", labels=("Bad", "Good"))
JUDGE_TEMPLATE = "Question: {{ query }}\nAnswer: {{ document }}\nVerdict: "
SETTINGS = {"judge": {"recipe": JUDGE, "template": JUDGE_TEMPLATE}}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of each family; its name is the family's."""
    if request.param == "jina-reranker-m0" and importlib.util.find_spec("torchvision") is None:
        pytest.skip("transformers saves its processor of videos only with torchvision")
    return FAMILIES[request.param](tmp_path_factory.mktemp("families") / request.param)


@pytest.fixture(scope="module", autouse=True)
def one_process_less() -> Iterator[None]:
    """VLLM's CPU build then runs the model in the engine's process: a third of the start-up time less."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        yield


def ranked(folder: Path, engine: str) -> Ranking:
    with Reranker(str(folder), engine=engine, **SETTINGS.get(folder.name, {})) as reranker:
        return reranker.rank(QUERY, DOCUMENTS)


def logits(ranking: Ranking) -> list[float]:
    return [hit.logit for hit in sorted(ranking, key=lambda hit: hit.index)]


def test_transformers_gives_what_the_model_card_computes(family: Path) -> None:
    ranking = ranked(family, "transformers")
    found = logits(ranking)
    assert found == pytest.approx([JUDGES[family.name](family, QUERY, text) for text in DOCUMENTS], abs=1e-4)
    assert max(found) - min(found) > 0.05  # the model tells the documents apart
    assert [hit.score for hit in ranking] == pytest.approx([1 / (1 + math.exp(-hit.logit)) for hit in ranking])


def test_vllm_gives_what_transformers_gives(family: Path) -> None:
    if family.name in MULTIMODAL and importlib.util.find_spec("torchvision") is None:
        pytest.skip("vLLM imports multimodal models only with torchvision: `make test` installs it, see tests/cpu")
    if family.name == "mxbai-rerank-base-v1":
        pytest.skip("vLLM has no DeBERTa")
    found, expected = (ranked(family, engine) for engine in ("vllm", "transformers"))
    assert logits(found) == pytest.approx(logits(expected), abs=1e-4)
    assert found.stats.prompt_tokens == expected.stats.prompt_tokens


def test_vllm_accepts_the_config_of_a_vision_model(tmp_path: Path) -> None:
    """Also where torchvision is absent: the settings for vLLM reach the places where it looks."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import Qwen3VLForSequenceClassificationConfig
    from vllm.transformers_utils.config import get_config

    folder = str(FAMILIES["qwen3-vl-reranker-2b"](tmp_path / "qwen3-vl-reranker-2b"))
    overrides = open_checkpoint(folder).recipe.vllm_overrides
    config = get_config(folder, trust_remote_code=False, hf_overrides_kw=overrides)
    config.update(overrides)
    Qwen3VLForSequenceClassificationConfig.verify_and_update_model_config(SimpleNamespace(hf_config=config))
    assert config.architectures == ["Qwen3VLForSequenceClassification"]
    assert config.get_text_config().classifier_from_token == ["no", "yes"]
    assert config.get_text_config().method == "from_2_way_softmax"
    assert "Qwen3VLForConditionalGeneration" in ModelRegistry.get_supported_archs()


def test_attention_on_older_gpus(caplog: pytest.LogCaptureFixture) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    with caplog.at_level(logging.INFO, logger="winnow"):
        assert attention_for((7, 5), {}) == {"attention_backend": "TRITON_ATTN"}
    assert "compute capability 7.5. FlashAttention needs 8.0" in caplog.text
    assert attention_for((7, 5), {"attention_backend": "FLEX_ATTENTION"}) == {}
    assert attention_for((9, 0), {}) == attention_for(None, {}) == {}
    assert "attention_backend" in {field.name for field in dataclasses.fields(AsyncEngineArgs)}


@pytest.mark.parametrize("name", [*MULTIMODAL, "mxbai-rerank-base-v1"])
def test_what_vllm_cannot_run_goes_to_transformers(name: str, tmp_path: Path) -> None:
    if name in MULTIMODAL and importlib.util.find_spec("torchvision") is not None:
        pytest.skip("torchvision is installed: vLLM runs it")
    folder = FAMILIES[name](tmp_path / name)
    assert create_engine(Reranker(str(folder))).name == "transformers"
