"""Ray: the cluster, and the pool of actors that does the parts."""

import json
import logging
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from winnow.bulk.output_folder import DonePart
from winnow.bulk.packages import needed
from winnow.bulk.part_worker import Job, PartWorker
from winnow.bulk.parts import Part
from winnow.engines import AUTO, record_of, resolve
from winnow.errors import ConfigurationError, EngineError, MissingExtraError, WinnowError
from winnow.ranking import RerankerConfig

logger = logging.getLogger(__name__)

# Bytes of the object store of a Ray that is started here. What passes through it is small: actors read and write files.
_OBJECT_STORE = 200_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """How many actors there are, and what each takes of the cluster.

    Attributes:
        concurrency: How many.
        num_cpus: Processors of each.
        num_gpus: GPUs of each.
    """

    concurrency: int
    num_cpus: float
    num_gpus: float

    def resources(self) -> dict[str, Any]:
        """Arguments of `map_batches`."""
        needed("ray.data")
        from ray.data import ActorPoolStrategy

        return {
            "compute": ActorPoolStrategy(size=self.concurrency, max_tasks_in_flight_per_actor=2),
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
        }


def environment_of_actors() -> dict[str, str]:
    """The variables of this process that set something in Winnow. Actors may run on other machines."""
    return {name: value for name, value in os.environ.items() if name.startswith("WINNOW_")}


def pool_of(config: RerankerConfig, concurrency: int | None, num_cpus: float, num_gpus: float | None) -> Pool:
    """The pool for a reranker, on the cluster that runs.

    Args:
        config: The reranker.
        concurrency: How many actors; None for one for each GPU, or for one if there is none.
        num_cpus: Processors of each.
        num_gpus: GPUs of each; None for as many as the engine uses, if the cluster has any.

    Raises:
        ConfigurationError: A number is out of range.
    """
    if concurrency is not None and (type(concurrency) is not int or concurrency < 1):
        raise ConfigurationError(f"concurrency must be a whole number > 0, but got {concurrency!r}")
    for name, value in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
            raise ConfigurationError(f"{name} must be a number from 0, but got {value!r}")
    there: Mapping[str, float] = needed("ray").cluster_resources()
    gpus = there.get("GPU", 0)
    if num_gpus is None:
        num_gpus = _gpus_of(config) if gpus else 0
    if concurrency is None:
        concurrency = max(int(gpus / num_gpus), 1) if num_gpus else 1
    for name, each in (("CPU", num_cpus), ("GPU", num_gpus)):
        if concurrency * each > there.get(name, 0):
            logger.warning(
                "%d workers with %g %ss each need more than the %g of the cluster: some or all of them wait.",
                concurrency,
                each,
                name,
                there.get(name, 0),
            )
    return Pool(concurrency=concurrency, num_cpus=num_cpus, num_gpus=num_gpus)


def _gpus_of(config: RerankerConfig) -> int:
    """How many GPUs the engine uses."""
    settings = resolve(config)
    record = record_of(settings.engine)
    if settings.engine != AUTO and (record is None or not record.reads_model or record.needs_url):
        return 0
    merged = {**settings.found, **settings.given}
    return int(merged.get("tensor_parallel_size") or 1) * int(merged.get("pipeline_parallel_size") or 1)


@contextmanager
def cluster() -> Iterator[None]:
    """Ray: as it runs in this process already, else the cluster of `RAY_ADDRESS` or of `ray start`, else a new one.

    Raises:
        MissingExtraError: Ray is not installed.
        EngineError: It cannot be started.
    """
    needed("ray.data")
    ray = needed("ray")
    if ray.is_initialized():
        yield
        return
    shown = logger.isEnabledFor(logging.INFO)
    quiet: dict[str, Any] = {
        "log_to_driver": shown,
        "logging_level": logging.INFO if shown else logging.ERROR,
        "namespace": "winnow",
    }
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray no longer hides the GPUs from actors that ask for none: it says so in a warning.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not shown:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        with nullcontext() if shown else _stderr_aside():
            _start(quiet)
    except Exception as error:
        raise EngineError(f"Ray does not start: {type(error).__name__}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _start(arguments: Mapping[str, Any]) -> None:
    """Join or start Ray. With the address "auto" it would also join that of another program, and end with it."""
    ray = needed("ray")
    if named := os.environ.get("RAY_ADDRESS"):
        if not _answers(named):
            raise ConnectionError(
                f"nothing answers at RAY_ADDRESS={named}. Give the address that `ray start --head` printed, or unset "
                "it, to use this machine alone."
            )
        ray.init(**arguments)
    elif (noted := _noted_by_ray_start()) and _answers(noted):
        ray.init(**arguments)
    else:
        ray.init(address="local", include_dashboard=False, object_store_memory=_OBJECT_STORE, **arguments)


def _noted_by_ray_start() -> str | None:
    """The address of the cluster that `ray start` made this machine a node of, which may have ended since."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - Ray's own rule
    with suppress(OSError):
        return Path(folder, "ray", "ray_current_cluster").read_text("utf-8").strip()
    return None


def _answers(address: str) -> bool:
    """Whether something listens there. Ray would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():  # "auto", "local"
        return True
    with suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout=10):
        return True
    return False


@contextmanager
def _stderr_aside() -> Iterator[None]:
    """What Ray's C++ code writes to stderr is shown only if the block raises: it says which level its log has."""
    with tempfile.TemporaryFile() as aside, ExitStack() as after:
        kept = os.dup(2)
        after.callback(os.close, kept)
        os.dup2(aside.fileno(), 2)
        after.callback(os.dup2, kept, 2)
        try:
            yield
        except Exception:
            aside.seek(0)
            os.write(kept, aside.read())
            raise


def done_parts(job: Job, parts: Sequence[Part], pool: Pool) -> Iterator[DonePart]:
    """Do parts on the pool.

    Args:
        job: What to do.
        parts: The parts.
        pool: The pool.

    Yields:
        Each part when it is done, in any order.

    Raises:
        WinnowError: The reranker cannot be used, or Ray failed.
        ValueError: The input is damaged.
        OSError: The input cannot be read, or the output written.
    """
    data = needed("ray.data")
    pool = replace(pool, concurrency=min(pool.concurrency, len(parts)))  # more would load engines for nothing
    with quiet_data():
        rows = data.from_items([asdict(part) for part in parts], override_num_blocks=len(parts))
        results = rows.map_batches(PartActor, fn_constructor_args=(job,), batch_size=1, **pool.resources())
        with as_our_errors():
            for row in results.iter_rows():
                yield _result(json.loads(row["result"]))


class PartActor:
    """What Ray makes an actor of: it does one part after the other.

    The reranker is made with the first part, so that what is wrong with it is a result, which Ray does not retry.
    """

    def __init__(self, job: Job):
        self._job = job
        self._worker: PartWorker | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Do the parts of a batch, whose columns are the fields of `Part`."""
        columns = {name: values.tolist() for name, values in batch.items()}
        parts = [Part(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]
        return {"result": [json.dumps(self._do(part)) for part in parts]}

    def _do(self, part: Part) -> dict[str, Any]:
        try:
            if self._worker is None:
                self._worker = PartWorker(self._job)
            return self._worker.do(part).as_dict()
        except OSError as error:
            return {"error": (error.errno, error.strerror or str(error), error.filename)}
        except (WinnowError, ValueError) as error:
            return {"error": (type(error).__name__, str(error))}


def _result(result: Mapping[str, Any]) -> DonePart:
    """The part that is done.

    Raises:
        OSError: The actor had one.
        WinnowError: Likewise.
        ValueError: Likewise.
    """
    if "error" not in result:
        return DonePart.of(result)
    kind, message, *rest = result["error"]
    if rest:
        raise OSError(kind, message, *rest)
    classes: list[type[Exception]] = [WinnowError]
    for known in classes:
        classes += known.__subclasses__()
        if known.__name__ == kind and known is not MissingExtraError:
            raise known(message)
    raise ValueError(message)


@contextmanager
def as_our_errors() -> Iterator[None]:
    """Turns an error of Ray's into an `EngineError`.

    Raises:
        EngineError: Ray failed.
    """
    ray = needed("ray")
    try:
        yield
    except ray.exceptions.RayError as error:
        raise EngineError(f"Ray could not do the work: {error} The parts that are done stay.") from error


@contextmanager
def quiet_data() -> Iterator[None]:
    """Ray Data without its own progress bars and messages."""
    context = needed("ray.data").DataContext.get_current()
    before, context.enable_progress_bars = context.enable_progress_bars, False
    log = logging.getLogger("ray.data")
    level = log.level
    if not logger.isEnabledFor(logging.INFO):
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = before
        log.setLevel(level)
