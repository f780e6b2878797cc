"""The service for the rerank clients that people already run: one that asks for a key, and one that does not.

The clients do not fit into one environment. Most run in `.venv` (`make test`), the others in `.venv-clients`
(`make test-clients`), which has neither Winnow nor what that needs.
"""

import gc
from collections.abc import Iterator

import pytest
from served import Service, serving


def pytest_itemcollected(item: pytest.Item) -> None:
    """What clients warn of, and what they leave open, is theirs."""
    item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(autouse=True)
def leaks_stay_here() -> Iterator[None]:
    """Sockets that a client has left open are closed in its own test, not in one that is strict."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """It asks for a key."""
    with serving(tmp_path_factory.mktemp("service"), "key-of-the-tests") as service:
        yield service


@pytest.fixture(scope="session")
def open_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """It asks for none: for clients that can send none."""
    with serving(tmp_path_factory.mktemp("open-service"), None) as service:
        yield service
