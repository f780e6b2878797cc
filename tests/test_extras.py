"""What works without the optional packages, and what the error says that names the extra."""

import subprocess
import sys
from importlib.metadata import metadata

import pytest
from packaging.requirements import Requirement

import winnow

# Import name and distribution of every optional package.
OPTIONAL = {
    "vllm": "vllm",
    "torch": "torch",
    "haystack": "haystack-ai",
    "llama_index": "llama-index-core",
    "langchain_core": "langchain-core",
    "PIL": "pillow",
    "av": "av",
    "prometheus_client": "prometheus-client",
    "opentelemetry": "opentelemetry-api",
    "pandas": "pandas",
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "ir_measures": "ir-measures",
    "scipy": "scipy",
    "ray": "ray",
}
# Packages that Winnow needs and loads when it first uses them, so that `import winnow` stays fast.
LOADED_LATER = [
    "httpx",
    "huggingface_hub",
    "jinja2",
    "numpy",
    "regex",
    "rich",
    "tenacity",
    "tokenizers",
    "tqdm",
    "transformers",
]
HIDE = """
import sys
from importlib.machinery import PathFinder
hidden = set({hidden!r})
find = PathFinder.find_spec
PathFinder.find_spec = staticmethod(lambda name, *rest: None if name.split(".")[0] in hidden else find(name, *rest))
"""


def run_without(hidden: list[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter that does not find some packages."""
    return subprocess.run(
        [sys.executable, "-c", HIDE.format(hidden=hidden) + code], capture_output=True, text=True, check=False
    )


def requirements(extra: str) -> set[str]:
    """Distributions that an extra brings, by the installed metadata."""
    known = metadata("winnow-rerank")
    assert extra in (known.get_all("Provides-Extra") or [])
    wanted = map(Requirement, known.get_all("Requires-Dist") or [])
    return {entry.name for entry in wanted if entry.marker and entry.marker.evaluate({"extra": extra})}


def test_winnow_imports_and_ranks_without_any_extra() -> None:
    code = """
import winnow, winnow.cli
with winnow.Reranker("any", engine="fake") as reranker:
    print(reranker.rank("capital of China", ["Paris", "Beijing, capital of China"])[0].index)
loaded = hidden & {name.split(".")[0] for name in sys.modules}
assert not loaded, loaded
"""
    done = run_without([*OPTIONAL], code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1"]


def test_import_winnow_loads_no_package_before_it_is_needed() -> None:
    code = f"import winnow, sys; print([name for name in {[*OPTIONAL, *LOADED_LATER]!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("package", "code"),
    [
        ("haystack", "import haystack_integrations.components.rankers.winnow"),
        ("llama_index", "import winnow_llama_index"),
        ("langchain_core", "import winnow_langchain"),
    ],
)
def test_an_integration_without_its_framework_names_its_extra(package: str, code: str) -> None:
    check_error_names_extra(package, code)


@pytest.mark.parametrize(("package", "engine"), [("vllm", "vllm"), ("torch", "transformers")])
def test_an_engine_without_its_package_names_its_extra(package: str, engine: str, tiny_model: str) -> None:
    check_error_names_extra(
        package, f"import winnow; winnow.Reranker({tiny_model!r}, engine={engine!r}).score('a', ['b'])"
    )


@pytest.mark.parametrize(
    ("package", "code"),
    [
        (
            "PIL",
            "import asyncio, winnow.media.images as i; asyncio.run(i.MediaLoader().load(object(), b'', 'The query'))",
        ),
        ("av", "import winnow.media.videos; winnow.media.videos.decoded(b'', max)"),
        ("prometheus_client", "import winnow.observability.metrics; winnow.observability.metrics.enable()"),
        ("pandas", "import winnow; winnow.Ranking().to_dataframe()"),
        ("sklearn", "import winnow, winnow.evaluation as e; e.calibrate(winnow.Reranker('m', engine='fake'), [])"),
        ("matplotlib", "import winnow.evaluation as e; e.check_picture_file('a.png')"),
        ("fastapi", "import winnow.service"),
        ("uvicorn", "import winnow.service"),
        ("ir_measures", "import winnow.evaluation as e; e.parse_metrics('nDCG@10')"),
        ("ray", "import winnow.bulk as b; b.rerank_files('a.jsonl', 'out', model='m')"),
        ("scipy", "import winnow.evaluation.metrics as m; m._p_value([0.1, 0.2])"),
    ],
)
def test_what_is_switched_on_without_its_package_names_its_extra(package: str, code: str) -> None:
    check_error_names_extra(package, code)


def check_error_names_extra(package: str, code: str) -> None:
    caught = f"""
from winnow import MissingExtraError
try:
    {code}
except ImportError as error:  # catchable as what it is everywhere else
    assert isinstance(error, MissingExtraError)
    print(error.extra)
    print(error)
"""
    done = run_without([package], caught)
    assert done.returncode == 0, done.stderr
    extra, message = done.stdout.strip().split("\n", 1)
    assert f'pip install "winnow-rerank[{extra}]"' in message
    assert OPTIONAL[package] in requirements(extra)


def test_all_brings_every_extra() -> None:
    extras = set(metadata("winnow-rerank").get_all("Provides-Extra") or []) - {"all"}
    assert requirements("all") == set.union(*map(requirements, extras))


def test_the_public_names() -> None:
    assert winnow.__all__ == sorted(winnow.__all__)
    assert set(winnow.__all__) == {
        "Calibration",
        "CallLimits",
        "ConfigurationError",
        "Document",
        "DocumentError",
        "Engine",
        "EngineDeadError",
        "EngineError",
        "EngineLoadError",
        "EngineScore",
        "EngineUnavailableError",
        "FakeEngine",
        "MissingExtraError",
        "ModelError",
        "ModelRecipe",
        "Prompt",
        "RankStats",
        "RankedDocument",
        "Ranking",
        "Reranker",
        "RerankerConfig",
        "TemplateError",
        "WinnowError",
        "metrics",
    }
    assert all(hasattr(winnow, name) for name in winnow.__all__)
