"""Scenes on a local Ray cluster of two workers: killed workers, a killed driver, an address without an answer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Callable, Iterator

import pytest
from many_scenes_data import small_config, train, write_data, write_scenes

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.joint.on_ray import RayOptions, on_ray

NAMES = ("a", "b", "c", "d")

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install ray")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`shared/` and four scenes to learn."""
    folder = tmp_path_factory.mktemp("ray")
    train(write_data(folder), folder / "shared")
    write_scenes(folder / "scenes", NAMES)
    return folder


def words(shared: Path, scenes: Path, out: Path) -> list[str]:
    folders = ["--scenes", scenes, "--shared", shared, "--output-dir", out]
    return [str(Path(sys.executable).parent / "igae-scenes"), "fit", *map(str, folders)]


@contextmanager
def started(shared: Path, scenes: Path, out: Path) -> Iterator[subprocess.Popen]:
    """`igae-scenes fit --ray` with two workers, as a process of its own."""
    script = [*words(shared, scenes, out), "--ray", "--ray-workers", "2"]
    env = {**os.environ, "XDG_CACHE_HOME": str(out), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    env |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "300"}
    out.mkdir(parents=True, exist_ok=True)
    with (out / "log.txt").open("a") as log:
        process = subprocess.Popen(script, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def workers(out: Path) -> list[int]:
    """The process ids of Ray's workers that are fitting a scene of this job just now."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            own = f"XDG_CACHE_HOME={out}".encode() in (folder / "environ").read_bytes().split(b"\0")
            if own and (folder / "cmdline").read_bytes().startswith(b"ray::_fit"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_for(what: Callable[[], object], process: subprocess.Popen | None = None, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        assert process is None or process.poll() is None or what(), "the process ended before"
        time.sleep(0.05)


def skip_where_ray_does_not_start(out: Path) -> None:
    """On a busy machine Ray's own processes may take longer than Ray waits for them."""
    shown = (out / "log.txt").read_text()
    if "Ray does not start here" in shown and "timed out during startup" in shown:
        pytest.skip("Ray itself does not start on this machine: its processes timed out")


def results(out: Path) -> dict[str, Path]:
    return {path.parent.name: path for path in out.glob("scenes/*/result.json")}


needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc to find workers in")


@needs_ray
@needs_proc
@pytest.mark.timeout(2400)
def test_a_killed_worker_and_a_killed_driver_cost_no_scene(job: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with started(job / "shared", job / "scenes", out) as driver:
        # A worker in the middle of its first scene.
        wait_for(lambda: list(out.glob("work/*/cache/planes")) or driver.poll() is not None)
        skip_where_ray_does_not_start(out)
        assert not results(out)
        (victim, *_) = workers(out)
        os.kill(victim, signal.SIGKILL)
        # Then the driver, as soon as a scene is finished.
        wait_for(lambda: results(out), driver)
        driver.kill()
        driver.wait()
    wait_for(lambda: not workers(out), seconds=60)  # they go with it
    first = {name: path.stat().st_mtime_ns for name, path in results(out).items()}
    assert 1 <= len(first) < len(NAMES)

    with started(job / "shared", job / "scenes", out) as driver:
        status = driver.wait(timeout=900)
        skip_where_ray_does_not_start(out)
        assert status == 0
    assert sorted(results(out)) == list(NAMES)
    assert {name: results(out)[name].stat().st_mtime_ns for name in first} == first
    shown = (out / "log.txt").read_text()
    assert f"{len(NAMES) - len(first)} learnt, {len(first)} there already, 0 failed" in shown
    assert "Traceback" not in shown
    assert all(json.loads(path.read_text())["rgb_alignment"]["psnr"] > 0 for path in results(out).values())
    assert not list((out / "work").iterdir())


@needs_ray
@needs_proc
@pytest.mark.timeout(2400)
def test_scenes_that_fail_are_listed_and_the_others_finish(job: Path, tmp_path: Path) -> None:
    """One scene has a damaged picture; the worker of another is killed once, and it finishes all the same."""
    scenes, out = write_scenes(tmp_path / "scenes", ("bad", "good")), tmp_path / "out"
    (scenes / "bad" / "train" / "r_003.png").write_bytes(b"no picture")
    with started(job / "shared", scenes, out) as driver:
        wait_for(lambda: list(out.glob("work/good/cache/planes")) or driver.poll() is not None)
        skip_where_ray_does_not_start(out)
        killed = workers(out)
        for victim in killed:
            os.kill(victim, signal.SIGKILL)
        assert driver.wait(timeout=900) == 1
    assert killed and list(results(out)) == ["good"]
    shown = (out / "log.txt").read_text()
    assert "1 learnt, 0 there already, 1 failed" in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("failed: bad:")]
    assert "r_003.png cannot be read" in line and "Traceback" not in shown


@needs_ray
def test_the_command_names_the_address_and_leaves_no_traceback(job: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        script = [*words(job / "shared", job / "scenes", tmp_path), "--ray-address", address]
        result = subprocess.run(script, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"the Ray cluster at {address} does not answer" in result.stderr.strip().splitlines()[-1]


def test_without_ray(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from igae_nerfstudio.joint import on_ray as module
    from igae_nerfstudio.joint.fit import fit_scenes

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install 'ray"):
        fit_scenes([job / "scenes"], job / "shared", tmp_path / "out", small_config(), on_ray(RayOptions()))


def test_nothing_imports_ray_unless_it_is_asked_for() -> None:
    code = "import sys; import igae_nerfstudio.joint.scenes_command, igae_nerfstudio.joint.on_ray; "
    code += "print('ray' in sys.modules)"
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    assert result.stdout.strip().endswith("False"), result.stdout + result.stderr
