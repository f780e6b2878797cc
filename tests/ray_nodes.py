"""A Ray cluster of two nodes on this machine, as `ray start` makes it on two."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tenacity import retry, retry_if_exception_type, stop_after_attempt


@retry(stop=stop_after_attempt(3), retry=retry_if_exception_type(RuntimeError), reraise=True)
def connected_nodes() -> "RayNodes":
    """A cluster that this process is connected to. Ray's parts have fixed times to start, which a busy machine misses.

    Raises:
        RuntimeError: Ray does not start, in three tries.
    """
    nodes = RayNodes()
    try:
        nodes.connect()
    except BaseException:
        nodes.stop()
        raise
    return nodes


class RayNodes:
    """Two nodes with a processor each. `stop` ends all of its processes."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self._folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        # No token: both nodes are of this test. Ray's own messages are not what is tested.
        self.environment = {
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_monitor_refresh_ms": "0",  # Ray would kill workers because others use the memory
            "RAY_ADDRESS": self.address,
            "RAY_TMPDIR": self._folder,
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self._folder}"]
        self._start(*head)
        self._start(f"--address={self.address}")

    def _start(self, *arguments: str) -> None:
        environment = {**os.environ, **self.environment}
        del environment["RAY_ADDRESS"]
        with (Path(self._folder) / f"node-{len(self._processes)}.log").open("wb") as log:
            command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block"]
            sizes = ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=100000000"]
            process = subprocess.Popen(
                [*command, *sizes, "--node-ip-address=127.0.0.1", *arguments], env=environment, stdout=log, stderr=log
            )
        self._processes.append(process)

    def connect(self) -> None:
        """Make this process a driver, and wait for both nodes."""
        import ray

        def is_connected() -> bool:
            with contextlib.suppress(ConnectionError), pytest.MonkeyPatch.context() as patch:
                for name, value in self.environment.items():
                    patch.setenv(name, value)
                ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
            return ray.is_initialized()

        self._wait(is_connected)
        self._wait_for_both()

    def _wait_for_both(self) -> None:
        import ray

        self._wait(lambda: ray.cluster_resources().get("CPU") == 2)

    def _wait(self, is_true: Callable[[], bool]) -> None:
        end = time.monotonic() + 180
        while not is_true():
            for process in self._processes:
                if process.poll() is not None:
                    logs = sorted(Path(self._folder).glob("node-*.log"))
                    raise RuntimeError(
                        "Ray ended: " + "\n".join(log.read_text(errors="replace")[-2000:] for log in logs)
                    )
            if time.monotonic() > end:
                raise RuntimeError("Ray does not come up")
            time.sleep(0.2)

    def workers(self) -> list[psutil.Process]:
        """The processes of the actors that rank."""
        found = []
        for node in self._processes:
            for process in psutil.Process(node.pid).children(recursive=True):
                try:
                    if "Actor)" in " ".join(process.cmdline()):
                        found.append(process)
                except psutil.Error:  # it has just ended
                    continue
        return found

    def lose_second(self) -> None:
        """Kill the second node: what a machine that fails looks like to the others."""
        _kill(self._processes.pop())

    def add_second(self) -> None:
        """Start a second node again, and wait for it."""
        self._start(f"--address={self.address}")
        self._wait_for_both()

    def stop(self) -> None:
        """End the cluster."""
        import ray

        ray.shutdown()
        _kill(*self._processes)
        shutil.rmtree(self._folder, ignore_errors=True)


def _kill(*nodes: subprocess.Popen[bytes]) -> None:
    own = [psutil.Process(node.pid) for node in nodes]
    every = [*own, *(child for node in own for child in node.children(recursive=True))]
    for process in every:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    for node in nodes:
        node.wait()
    psutil.wait_procs(every, timeout=30)
