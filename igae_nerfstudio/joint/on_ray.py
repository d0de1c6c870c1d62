"""Scenes fitted on Ray: one task for each scene, on this machine's cores or GPUs or on those of a cluster.

Each scene is fitted alone beside the frozen basis, so tasks need nothing of each other. All that they exchange is
files: every machine of a cluster must see the folders under the same paths. A task whose worker dies is run again by
Ray, and goes on from the scene's last checkpoint; a finished scene is known by its `result.json` and not fitted again.
"""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Generator, Iterator, Sequence

from igae_nerfstudio.console import log
from igae_nerfstudio.errors import InputError, one_line
from igae_nerfstudio.joint.fit import Outcome, RunAll, SceneTask, run_task

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray will do anyway, and now warns of
    "RAY_worker_niceness": "0",  # by default 15, as if scenes were fitted in the background of something
    "RAY_worker_register_timeout_seconds": "600",  # by default 60, in which a busy machine may not import Ray
}
"""Environment of Ray's processes, where the user has set nothing else."""

RETRIES = 3
"""How often a scene whose worker died is taken up again, and a cluster of this machine alone is tried to start: a busy
machine may take longer than the 15 seconds that Ray gives its processes (its issue 65983), and less the next time."""


@dataclass(frozen=True)
class RayOptions:
    """Where tasks run, and what each of them gets."""

    address: str | None = None
    """`HOST:PORT` of a cluster's head, or `auto`; None: a cluster of this machine alone, which ends with the job."""
    workers: int | None = None
    """Scenes at a time on a cluster of this machine alone; None: one for each core."""
    gpus_per_scene: float | None = None
    """Below 1, scenes share a GPU; None: 1 where the cluster has GPUs, else 0."""


def on_ray(options: RayOptions) -> RunAll:
    """What runs the tasks of a job on Ray.

    Raises:
        InputError: Ray is not installed, or the cluster does not answer; when the first outcome is asked for.
    """

    def run_all(tasks: Sequence[SceneTask]) -> Generator[Outcome, None, None]:
        with cluster(options) as ray:
            gpus = options.gpus_per_scene
            gpus = min(1, int(ray.cluster_resources().get("GPU", 0))) if gpus is None else gpus
            # Ray runs a task again whose worker or machine was lost; what the task itself raises is an outcome.
            remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_fit)
            waiting = {remote.remote(task): task.scene.name for task in tasks}
            while waiting:
                (ready,), _ = ray.wait(list(waiting), num_returns=1)
                name = waiting.pop(ready)
                try:
                    yield ray.get(ready)
                except ray.exceptions.RayError as error:
                    yield name, f"Ray gave it up after {RETRIES} retries ({one_line(error)})"

    return run_all


def _fit(task: SceneTask) -> Outcome:
    """Runs in a worker, on the GPU that it was granted or on the CPU."""
    import ray

    if not ray.get_gpu_ids():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    return run_task(task)


@contextmanager
def cluster(options: RayOptions) -> Iterator[Any]:
    """Connected to a cluster, or with one of this machine alone; yields the module `ray`.

    Raises:
        InputError: Ray is not installed, or the cluster does not answer.
    """
    for name, value in {**SETTINGS, "RAY_task_oom_retries": str(RETRIES)}.items():
        os.environ.setdefault(name, value)
    if find_spec("ray") is None:
        raise InputError("Ray is not installed; pip install 'ray>=2.48', or leave --ray out")
    import ray

    try:
        _connect(ray, options)
    except Exception as error:
        what = f"the Ray cluster at {options.address} does not answer" if options.address else "Ray does not start here"
        raise InputError(f"{what} ({one_line(error)}); leave --ray out to fit scenes in this process") from error
    try:
        resources = ray.cluster_resources()
        log(f"Ray: {resources.get('CPU', 0):g} cores and {resources.get('GPU', 0):g} GPUs")
        yield ray
    finally:
        ray.shutdown()


def _connect(ray: Any, options: RayOptions) -> None:
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    if options.address is not None:
        host, _, port = options.address.removeprefix("ray://").rpartition(":")
        if host:  # Ray itself waits for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        ray.init(address=options.address, **quiet)
        return
    for left in reversed(range(RETRIES)):
        try:
            ray.init("local", num_cpus=options.workers, object_store_memory=128 << 20, include_dashboard=False, **quiet)
            return
        except Exception:
            ray.shutdown()
            if not left:
                raise
