"""Scenes learnt on Ray: one task for each scene, on this machine's cores or GPUs or on those of a cluster.

Each scene learns alone beside the frozen shared part, so tasks need nothing of each other. All that they exchange is
files: every machine of a cluster must see the folders under the same paths. A task whose worker dies is run again by
Ray, and goes on from the scene's last checkpoint; a finished scene is known by its `result.json` and not learnt again.
"""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Dict, Iterator, Optional, Sequence, Tuple

from igae_nerfstudio.autoencoder.autoencoder import first_line
from igae_nerfstudio.console import log, warn
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.joint.exploit import Outcomes, RunAll, SceneOutcome, SceneTask, run_task

ANSWER_SECONDS = 5.0
"""A cluster that has not answered after so long is not there."""

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray will do anyway, and now warns of
    "RAY_worker_niceness": "0",  # by default 15, as if scenes were learnt in the background of something
    "RAY_worker_register_timeout_seconds": "600",  # by default 60, in which a busy machine may not import Ray
}
"""Environment of Ray's processes, where the user has set nothing else. Beside these, a scene that runs out of memory is
retried no more often than others, and not for ever."""

STARTS = 3
"""How often a cluster of this machine alone is tried to start. On a busy machine Ray's own processes may not be up
within the 15 seconds that it gives them (its issue 65983); the next time their files are in memory."""

OBJECT_STORE_BYTES = 128 << 20
"""Of a local cluster, whose tasks hand over names and nothing large."""


@dataclass(frozen=True)
class RayOptions:
    """Where tasks run, and what each of them gets."""

    address: Optional[str] = None
    """`HOST:PORT` of a cluster's head, or `auto` for the one that this machine belongs to; None: a cluster of this
    machine alone, which ends with the job."""
    workers: Optional[int] = None
    """Scenes at a time on a cluster of this machine alone; None: one for each core, or for each GPU where there are
    some."""
    gpus_per_scene: Optional[float] = None
    """Below 1, scenes share a GPU; None: 1 where the cluster has GPUs, else 0."""
    retries: int = 3
    """How often a scene whose worker died is taken up again."""

    def check(self) -> None:
        """Raises InputError for values that make no sense."""
        if self.workers is not None and self.workers < 1:
            raise InputError(f"--ray-workers is {self.workers}; it must be 1 or more")
        if self.gpus_per_scene is not None and self.gpus_per_scene < 0:
            raise InputError(f"--ray-gpus is {self.gpus_per_scene}; it must be 0 or more")
        if self.workers is not None and self.address is not None:
            raise InputError("--ray-workers is for a cluster of this machine alone; leave it out beside --ray-address")


def on_ray(options: RayOptions) -> RunAll:
    """What runs the tasks of a job on Ray (`exploit.RunAll`).

    Raises:
        InputError: Ray is not installed, or the cluster does not answer; when the first outcome is asked for.
    """
    options.check()

    def run_all(tasks: Sequence[SceneTask]) -> Outcomes:
        if tasks:
            with cluster(options) as ray:
                yield from _outcomes(ray, tasks, options)

    return run_all


def _outcomes(ray: Any, tasks: Sequence[SceneTask], options: RayOptions) -> Iterator[SceneOutcome]:
    gpus = options.gpus_per_scene
    there = ray.cluster_resources().get("GPU", 0)
    if gpus is None:
        gpus = min(1, int(there))
    elif gpus > there:
        warn(f"The cluster has {there:g} GPUs and a scene is to have {gpus:g}: scenes wait until more machines join.")
    # Ray runs a task again whose worker or machine was lost; what the task itself raises is an outcome.
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=options.retries)(_learn)
    waiting: Dict[Any, str] = {remote.remote(task): task.name for task in tasks}
    while waiting:
        ready, _ = ray.wait(list(waiting), num_returns=min(len(waiting), 64), timeout=0.5)
        for reference in ready:
            name = waiting.pop(reference)
            try:
                yield ray.get(reference)
            except ray.exceptions.RayError as error:
                yield SceneOutcome(name, _reason(error, options))


def _reason(error: Exception, options: RayOptions) -> str:
    """One line on why Ray gave a task up."""
    return f"Ray gave it up after {options.retries} retries ({type(error).__name__}: {first_line(error)})"


def _learn(task: SceneTask) -> SceneOutcome:
    """Runs in a worker, on the GPU that it was granted or on the CPU."""
    import ray

    if not ray.get_gpu_ids():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    return run_task(task)


# --- The cluster ---


@contextmanager
def cluster(options: RayOptions) -> Iterator[Any]:
    """Connected to a cluster, or with one of this machine alone; yields the module `ray`.

    Raises:
        InputError: Ray is not installed, or the cluster does not answer.
    """
    for name, value in {**SETTINGS, "RAY_task_oom_retries": str(options.retries)}.items():
        os.environ.setdefault(name, value)
    if find_spec("ray") is None:
        raise InputError("Ray is not installed; pip install 'igae-nerfstudio[ray]', or leave --ray out")
    if options.address is not None:
        check_answers(options.address)
    import ray

    try:
        _connect(ray, options)
    except Exception as error:
        what = "no Ray cluster can be started here" if options.address is None else _no_answer(options.address)
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{what} ({reason}); leave --ray out to learn in this process") from error
    try:
        resources = ray.cluster_resources()
        log(f"Ray: {resources.get('CPU', 0):g} cores and {resources.get('GPU', 0):g} GPUs")
        yield ray
    finally:
        ray.shutdown()


def _connect(ray: Any, options: RayOptions) -> None:
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    if options.address is not None:
        ray.init(address=options.address, **quiet)
        return
    own = {"num_cpus": options.workers, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    for left in reversed(range(STARTS)):
        try:
            ray.init(address="local", **own, **quiet)
            return
        except Exception as error:
            ray.shutdown()
            if not left:
                raise
            log(f"Ray did not start ({first_line(error)}); trying again.")


def check_answers(address: str) -> None:
    """Make sure that something speaks Ray's protocol at an address, which Ray itself takes minutes to find out.

    Raises:
        InputError: nothing does.
    """
    where = _host_and_port(address)
    if where is None:
        return
    try:
        with socket.create_connection(where, timeout=ANSWER_SECONDS) as connection:
            connection.settimeout(ANSWER_SECONDS)
            if os.environ.get("RAY_USE_TLS", "0") != "1" and not speaks_grpc(connection):
                raise OSError("it answers, but is no Ray cluster")
    except (OSError, OverflowError) as error:
        raise InputError(
            f"{_no_answer(address)} ({error}); check that `ray start --head` runs there and that its port can be "
            "reached, or leave --ray-address out"
        ) from error


def _no_answer(address: str) -> str:
    return f"the Ray cluster at {address} does not answer"


def _host_and_port(address: str) -> Optional[Tuple[str, int]]:
    """Of `HOST:PORT` or `ray://HOST:PORT`; None for `auto`, which Ray itself knows at once."""
    if address == "auto":
        return None
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--ray-address is {address}; it must be HOST:PORT, such as 10.0.0.1:6379, or auto")
    return host.strip("[]"), int(port)


def speaks_grpc(connection: socket.socket) -> bool:
    """Whether a server answers the preface of HTTP/2, gRPC's transport, with its settings (RFC 9113, section 3.4)."""
    empty_settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # a frame: length 0, type 4, no flags, stream 0
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + empty_settings)
    header = b""
    while len(header) < 9:
        part = connection.recv(9 - len(header))
        if not part:
            return False
        header += part
    return header[3] == 4
