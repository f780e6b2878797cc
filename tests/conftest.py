"""Fixtures that several folders of tests share: tiny models, built once, and one running vLLM engine."""

import gc
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from tiny_model import build_tiny_reranker, read_passages
from winnow import Reranker
from winnow.engines import registry

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # tests send nothing
os.environ["WINNOW_DTYPE"] = "float32"  # what tests compare scores with is computed in float32

# Several processes share the cores. Each computes with one thread, because several wait for each other, for long where
# the cores are busy; and vLLM binds none of its processes to a core, because all of them would get the same one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

# A job that a shell starts with `&` inherits Ctrl-C as ignored, and so would the scripts that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No example has a time limit: the machine may be busy. In CI the same examples every time: a new counter-example is
# found at the desk, not in somebody else's change.
settings.register_profile("winnow", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("winnow")


SLOW_FIXTURES = {"needs_vllm", "start_servers", "ray_nodes"}
"""A test that uses one of these, itself or through another fixture, is marked `slow`."""

WITH_SERVERS = "tests/engines/test_server"
"""The paths of files with tests that share servers begin so."""

VLLM_BEFORE = pytest.StashKey[bool]()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what loads vLLM or waits for a server, before pytest selects by marks."""
    callspec = getattr(item, "callspec", None)
    on_vllm = callspec is not None and callspec.params.get("engine") == "vllm"
    fixtures = getattr(item, "fixturenames", ())
    if on_vllm or SLOW_FIXTURES.intersection(fixtures):
        item.add_marker(pytest.mark.slow)
    if "start_servers" in fixtures:
        assert item.nodeid.startswith(WITH_SERVERS), f"{item.nodeid} shares servers: rename its file"


class ServersTogether(LoadFileScheduling):
    """A file at a time to each process; all files that share servers to one, as there is no memory for these twice."""

    def _split_scope(self, nodeid: str) -> str:
        return WITH_SERVERS if nodeid.startswith(WITH_SERVERS) else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist there is no such hook
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    return ServersTogether(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(trylast=True)  # after pytest has put together what shares a parameter of a fixture
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files without slow tests first. Files stay whole, so that no fixture of a file is built twice."""
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path in slow_files)


def pytest_collection_finish() -> None:
    """The garbage collector need not look again and again at all that PyTorch and transformers hold."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else a library reports at the end that it leaked


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[VLLM_BEFORE] = "vllm" in sys.modules


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Fail a test that loads vLLM and is not marked as slow: `make test-fast` would not stay fast."""
    loaded = "vllm" in sys.modules and not item.stash[VLLM_BEFORE]
    assert not loaded or item.get_closest_marker("slow"), "the test loads vLLM: mark it with pytest.mark.slow"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a random two-layer Qwen3 reranker. Without PyTorch, as in `make test-newer`, there is none."""
    pytest.importorskip("torch")
    return str(build_tiny_reranker(tmp_path_factory.mktemp("models") / "qwen3-reranker-tiny"))


@pytest.fixture(scope="session")
def passages() -> list[str]:
    """Real text: the demo's passages."""
    return [passage["text"] for passage in read_passages()]


@pytest.fixture(scope="session")
def needs_vllm() -> None:
    """Skip where vLLM is not installed, as in `make test-lowest`."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")


@pytest.fixture(scope="session")
def vllm_model(needs_vllm: None, tiny_model: str) -> Iterator[str]:
    """Path of the tiny model, with vLLM running on it for the whole session: every reranker of it shares that "
    "engine."""
    with Reranker(tiny_model, engine="vllm").start():
        yield tiny_model


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[Any]:
    """A Ray cluster of two nodes, which this process is connected to."""
    pytest.importorskip("ray.data")
    from ray_nodes import connected_nodes

    nodes = connected_nodes()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in nodes.environment.items():
                patch.setenv(name, value)
            yield nodes
    finally:
        nodes.stop()


@pytest.fixture
def registered_engines() -> Iterator[None]:
    """Engines that the test registers are not known any more after it."""
    tables: list[dict[str, Any]] = [registry._RECORDS, registry.SETTINGS, registry.RERANKER_SETTINGS]
    before = [dict(table) for table in tables]
    yield
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)
