"""Engines that several tests share: two real vLLM servers, and each engine in turn on a multimodal model."""

from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import pytest
from vllm_servers import FaultyProxy, VllmServer

from winnow import Reranker

TEMPLATE = Path(str(resources.files("winnow_templates"))) / "qwen3_reranker.jinja"


@pytest.fixture(scope="session")
def start_servers(
    tiny_model: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], list[VllmServer]]]:
    """Two servers of the tiny model are on their way; a call waits for them, and replaces dead ones."""
    servers: list[VllmServer] = []
    folder = tmp_path_factory.mktemp("servers")

    def begin() -> None:
        servers[:] = [server for server in servers if server.alive]
        servers.extend(
            VllmServer(tiny_model, folder / f"{number}.log", template=TEMPLATE) for number in range(len(servers), 2)
        )

    def start() -> list[VllmServer]:
        begin()
        for server in servers:
            server.wait_until_up()
        return list(servers)

    begin()
    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def servers(start_servers: Callable[[], list[VllmServer]]) -> list[VllmServer]:
    """Two running servers of the tiny model."""
    return start_servers()


@pytest.fixture
def proxies(servers: list[VllmServer]) -> Iterator[list[FaultyProxy]]:
    """A proxy in front of each of these servers, which can be told to answer badly."""
    proxies = [FaultyProxy(server.url) for server in servers]
    yield proxies
    for proxy in proxies:
        proxy.stop()
        proxy.client.close()


@pytest.fixture(scope="module", params=["transformers", "vllm"])
def engine(request: pytest.FixtureRequest, model: Path) -> Iterator[str]:
    """An engine's name, while that engine runs the test module's `model` for all who ask."""
    if request.param == "vllm":
        pytest.importorskip("vllm", minversion="0.32")  # with videos
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        with Reranker(str(model), engine=request.param).start():
            yield request.param
