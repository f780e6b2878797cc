"""The files of examples/deploy are valid, without Docker and without a cluster, and their commands are real ones."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml
from dockerfile_parse import DockerfileParser

from winnow.cli.main import app
from winnow.engines.server import serve_command
from winnow.models import open_checkpoint
from winnow.service.keys import OPEN_PATHS

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"
KUBERNETES = [DEPLOY / "kubernetes.yaml", DEPLOY / "vllm-servers.yaml"]
COMPOSE = DEPLOY / "compose.yaml"


def objects(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


def pods() -> list[dict[str, Any]]:
    """The specifications of all pods."""
    return [
        one["spec"]["template"]["spec"] for file in KUBERNETES for one in objects(file) if "template" in one["spec"]
    ]


def services() -> dict[str, dict[str, Any]]:
    """The services of the compose file."""
    return dict(yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"])


def commands(of: str) -> list[list[str]]:
    """The arguments of all containers of the service, or of vLLM."""
    containers = [container for pod in pods() for container in pod["containers"]]
    found = [container["args"] for container in containers if container["name"] == of]
    return found + [service["command"] for name, service in services().items() if name.startswith(of)]


def parsed(arguments: list[str]) -> dict[str, Any]:
    """The options of `winnow serve`, as its own parser reads them."""
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return dict(command.make_context("serve", list(arguments)).params)


@pytest.mark.parametrize("file", KUBERNETES, ids=lambda file: file.name)
def test_the_manifests_are_valid(file: Path) -> None:
    for one in objects(file):
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)


def test_the_compose_file_is_valid() -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_containers_start_the_service() -> None:
    with (DEPLOY / "Dockerfile").open("rb") as file:
        said = {one["instruction"]: one["value"] for one in DockerfileParser(fileobj=file).structure}
    program, command, *options = json.loads(said["ENTRYPOINT"])
    assert (program, command) == ("winnow", "serve")
    assert said["USER"] not in ("0", "root")
    assert f"http://127.0.0.1:{said['EXPOSE']}/health" in said["HEALTHCHECK"]
    found = [parsed([*options, *arguments]) for arguments in [json.loads(said["CMD"]), *commands("winnow")]]
    assert len(found) == 5
    for one in found:
        assert (one["host"], one["port"]) == ("0.0.0.0", int(said["EXPOSE"]))  # noqa: S104
    assert all(one["api_key_file"] for one in found[1:]), "whoever reaches them needs a key"


def test_the_service_has_the_address_of_each_server() -> None:
    [stateful] = [one for one in objects(KUBERNETES[1]) if one["kind"] == "StatefulSet"]
    name, replicas = stateful["metadata"]["name"], stateful["spec"]["replicas"]
    in_cluster, composed = (one for one in map(parsed, commands("winnow")) if one["url"])
    assert in_cluster["url"] == [f"http://{name}-{at}.{stateful['spec']['serviceName']}:8000" for at in range(replicas)]
    assert composed["url"] == [f"http://{name}:8000" for name in services() if name.startswith("vllm")]
    assert in_cluster["engine"] == composed["engine"] == "server"


def test_pods_are_asked_without_a_key_and_end_in_time() -> None:
    for pod in pods():
        [container] = pod["containers"]
        if container["name"] != "winnow":
            continue
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["path"] in OPEN_PATHS
        wait = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["terminationGracePeriodSeconds"] > wait + parsed(container["args"])["drain_seconds"]


@pytest.mark.slow
def test_the_servers_start_as_winnow_says(needs_vllm: None, tiny_model: str) -> None:
    """vLLM's own parser reads the command. The tiny model is of the same family."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    _, _, model, *options = shlex.split(serve_command(open_checkpoint(tiny_model)))
    expected = parser.parse_args(["--model", model, *options])
    found = [parser.parse_args(["--model", *arguments]) for arguments in commands("vllm")]
    assert len(found) == 3
    for one in found:
        assert one.model == "Qwen/Qwen3-Reranker-0.6B"
        assert (one.runner, one.hf_overrides) == (expected.runner, expected.hf_overrides)
