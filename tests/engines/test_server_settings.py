"""The HTTP engine's settings, and what it says without a server."""

import json
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from vllm_servers import FaultyProxy, free_port

from gated_engine import wait_until
from winnow import ConfigurationError, EngineLoadError, Reranker
from winnow.engines.server.engine import ServerEngine, serve_command
from winnow.models.checkpoint import open_checkpoint


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://gpu:8000", ["http://gpu:8000"]),
        (" http://gpu:8000/v1/ ", ["http://gpu:8000"]),
        ("https://gateway/rerank/", ["https://gateway/rerank"]),
        (["http://a", "http://b/", "http://a/"], ["http://a", "http://b"]),
    ],
)
def test_addresses_are_taken_as_people_write_them(tiny_model: str, url: str | list[str], expected: list[str]) -> None:
    assert ServerEngine(open_checkpoint(tiny_model), url, None, {})._urls == expected


@pytest.mark.parametrize(
    "url", ["", "gpu:8000", "ftp://gpu", "http://", "http://gpu:port", "http://gpu/?a=b", [], ["http://a", 5]]
)
def test_what_is_no_address_is_refused(tiny_model: str, url: Any) -> None:
    with pytest.raises(ConfigurationError, match="http://localhost:8000"):
        Reranker(tiny_model, engine="server", url=url).start()


def test_a_password_in_the_address_is_refused_and_not_shown(tiny_model: str) -> None:
    with pytest.raises(ConfigurationError, match="api_key") as error:
        ServerEngine(open_checkpoint(tiny_model), "http://me:hunter2@gpu:8000", None, {})
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("key", ["", "two words", "line\n", "schlüssel"])
def test_a_key_that_no_header_carries_is_refused_and_not_shown(tiny_model: str, key: str) -> None:
    with pytest.raises(ConfigurationError, match="api_key") as error:
        ServerEngine(open_checkpoint(tiny_model), "http://gpu", key, {})
    assert not key or key not in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"timout": 3}, "no 'timout'; did you mean 'timeout'"),
        ({"timeout": 0}, "timeout"),
        ({"max_retries": -1}, "max_retries"),
        ({"chunk_size": 1.5}, "chunk_size"),
        ({"concurrency": "many"}, "concurrency"),
        ({"concurrency": True}, "concurrency"),
        ({"dtype": "float16"}, "no 'dtype'"),
    ],
)
def test_wrong_settings_are_refused_by_name(tiny_model: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ServerEngine(open_checkpoint(tiny_model), "http://gpu", None, wrong)


def test_the_length_has_two_names(tiny_model: str) -> None:
    checkpoint = open_checkpoint(tiny_model)
    assert ServerEngine(checkpoint, "http://gpu", None, {"max_model_len": 512})._max_length == 512
    with pytest.raises(ConfigurationError, match=r"max_length=64 and engine_kwargs max_model_len=512"):
        ServerEngine(checkpoint, "http://gpu", None, {"max_model_len": 512}, max_length=64)


def test_the_serve_command_survives_a_shell(tiny_model: str) -> None:
    command = serve_command(open_checkpoint(tiny_model, hf_overrides={"note": "it's"}))
    words = subprocess.run(
        ["/bin/sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert words == shlex.split(command)
    assert words[:3] == ["vllm", "serve", tiny_model]
    overrides = json.loads(words[words.index("--hf-overrides") + 1])
    assert overrides["classifier_from_token"] == ["no", "yes"]
    assert overrides["note"] == "it's"
    assert words[words.index("--max-model-len") + 1] == "1024"
    assert "--trust-remote-code" not in words
    checkpoint = open_checkpoint(tiny_model)
    auto_map = {"AutoConfig": "configuration_own.OwnConfig"}
    own_code = replace(checkpoint, recipe=replace(checkpoint.recipe, local_code=True), config={"auto_map": auto_map})
    assert "--trust-remote-code" in serve_command(own_code)


def test_a_server_that_is_down_is_named_at_the_start_with_the_command_that_starts_it(tiny_model: str) -> None:
    urls = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
    reranker = Reranker(tiny_model, engine="server", url=urls)
    with pytest.raises(EngineLoadError, match=r"vllm serve .*--runner pooling") as error:
        reranker.score("a", ["b"])
    assert all(url in str(error.value) for url in urls)


def test_a_server_that_hangs_is_named_at_the_start(tiny_model: str) -> None:
    proxy = FaultyProxy("http://127.0.0.1:9")
    proxy.broken = "hang"
    with pytest.raises(EngineLoadError, match=rf"{proxy.url}/v1/models: no answer within 0.3 seconds"):
        Reranker(tiny_model, engine="server", url=proxy.url, engine_kwargs={"timeout": 0.3}).start()
    proxy.stop()


def test_a_start_that_waits_for_a_server_can_be_interrupted(tiny_model: str) -> None:
    proxy = FaultyProxy("http://127.0.0.1:9")
    proxy.broken = "hang"
    reranker = Reranker(tiny_model, engine="server", url=proxy.url)
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(reranker.score, "a", ["b"])
        wait_until(lambda: proxy.lookups > 0)
        reranker._lease.interrupt()
        with pytest.raises(EngineLoadError, match="interrupted"):
            call.result()
    reranker.close()
    proxy.stop()


def test_it_imports_neither_torch_nor_vllm_to_be_made() -> None:
    script = "import sys, winnow.engines.server.engine; print({'torch', 'vllm', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
