"""What vLLM is started with."""

import os

import pytest

from winnow.engines.vllm.start import starting


@pytest.mark.parametrize("chosen", [None, "fork"])
def test_vllm_spawns_its_processes_unless_the_user_chose(chosen: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a GPU, where vLLM would fork this process, which may have looked for a GPU."""
    name = "VLLM_WORKER_MULTIPROC_METHOD"
    monkeypatch.delenv(name, raising=False)
    if chosen:
        monkeypatch.setenv(name, chosen)
    before = dict(os.environ)
    with starting():
        assert os.environ[name] == (chosen or "spawn")
    assert dict(os.environ) == before
