"""What the commands on finished runs see to: their config.yml, ffmpeg, the port, ctrl-C."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import latent_config

from igae_nerfstudio.engine.interruption import STATUS
from igae_nerfstudio.engine.port import check_port
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.pipelines import finished_commands
from igae_nerfstudio.pipelines.finished_commands import check_config_of_command, prepare_command, value_of


@pytest.fixture(autouse=True)
def _default_handler(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def taken_port():
    with socket.socket() as holder:
        holder.bind(("", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_ffmpeg_of_a_package_is_found(monkeypatch, tmp_path: Path) -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("ffmpeg") is None
    prepare_command(["/somewhere/ns-render", "interpolate"])
    assert Path(shutil.which("ffmpeg") or "").resolve() == Path(imageio_ffmpeg.get_ffmpeg_exe()).resolve()


def test_no_ffmpeg_at_all(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(InputError, match="a film needs ffmpeg.*pip install imageio-ffmpeg"):
        prepare_command(["ns-render", "camera-path"])
    prepare_command(["ns-render", "dataset"])  # writes pictures only


def test_a_taken_port(taken_port: int) -> None:
    with pytest.raises(InputError, match=f"port {taken_port} cannot be had.*--viewer.websocket-port"):
        prepare_command(["ns-viewer", "--viewer.websocket-port", str(taken_port)])
    with pytest.raises(InputError, match=f"port {taken_port}"):
        check_port(taken_port)


def test_a_taken_port_in_training(taken_port: int, blender_scene: Path, autoencoder_dir: Path, tmp_path: Path) -> None:
    config = latent_config("tensorf", blender_scene, autoencoder_dir, tmp_path)
    config.vis, config.viewer.websocket_port = "viewer", taken_port
    with pytest.raises(InputError, match=f"port {taken_port} cannot be had"):
        config.setup().setup()


@pytest.mark.parametrize("command", finished_commands.WHAT_IS_KEPT)
def test_ctrl_c(command: str, capsys) -> None:
    prepare_command([command, "dataset"])
    with pytest.raises(SystemExit) as end:
        os.kill(os.getpid(), signal.SIGINT)
    assert end.value.code == STATUS
    assert capsys.readouterr().out.startswith("Stopped by ctrl-C ")


def test_ctrl_c_that_ends_ffmpeg_too(tmp_path: Path) -> None:
    """A terminal sends it to both; mediapy then fails while it closes the film."""
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    code = f"""
import os, signal, sys
import mediapy, numpy as np
from igae_nerfstudio.pipelines.finished_commands import prepare_command
mediapy.set_ffmpeg({imageio_ffmpeg.get_ffmpeg_exe()!r})
prepare_command(["ns-render", "dataset"])
with mediapy.VideoWriter("film.mp4", (64, 64)) as film:
    for number in range(1000):
        film.add_image(np.full((64, 64, 3), number % 256, np.uint8))
        if number == 20:
            os.killpg(0, signal.SIGINT)
"""
    words = [sys.executable, "-c", code]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300, start_new_session=True)
    assert result.returncode == STATUS and "Traceback" not in result.stderr, result.stderr[-2000:]
    assert "Stopped by ctrl-C while rendering: " in result.stdout


def test_the_newest_checkpoint_is_whole(tmp_path: Path, autoencoder_dir: Path) -> None:
    config = latent_config("tensorf", tmp_path, autoencoder_dir, tmp_path / "runs")
    folder = config.get_checkpoint_dir()
    path = tmp_path / "config.yml"
    path.write_text(yaml.dump(config))
    words = ["ns-eval", "--load-config", str(path)]
    with pytest.raises(InputError, match=f"{folder} is not there"):
        prepare_command(words)
    folder.mkdir(parents=True)
    with pytest.raises(InputError, match=f"{folder} is empty: the run ended before its first checkpoint"):
        prepare_command(words)
    for step in (9, 20):
        torch.save({"step": step}, folder / f"step-{step:09d}.ckpt")
    prepare_command(words)
    newest = folder / "step-000000020.ckpt"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.raises(InputError, match=f"{newest} is damaged; remove it, and {folder}/step-000000009.ckpt is taken"):
        prepare_command(words)
    (folder / "step-000000009.ckpt").write_bytes(b"")
    with pytest.raises(InputError, match=f"{newest} is damaged; train again"):
        prepare_command(words)


@pytest.mark.parametrize("command", finished_commands.WHAT_IS_KEPT)
def test_a_config_that_is_not_whole(command: str, tmp_path: Path, autoencoder_dir: Path) -> None:
    whole = yaml.dump(latent_config("tensorf", tmp_path, autoencoder_dir, tmp_path / "runs"))
    path = tmp_path / "config.yml"
    words = [f"/somewhere/{command}", "dataset", "--load-config", str(path)]
    with pytest.raises(InputError, match=f"{path} is no file; pass the config.yml of a run"):
        check_config_of_command(words)
    path.write_text(whole)
    check_config_of_command(words)
    lines = whole.splitlines(keepends=True)
    vis = next(number for number, line in enumerate(lines) if line.startswith("vis:"))
    cut = "it is cut short, or not of a run"
    for text, reason in (
        ("", "it is empty"),
        (whole[: whole.index("machine:") + 4], "in line"),
        (whole[: whole.index("pipeline:")], cut),
        ("".join(lines[:vis]), cut),
        ("frames: []\n", cut),
        ("- 1\n", cut),
        ("\0", "special characters"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=f"config.yml cannot be read: .*{reason}.*{path}.*train again") as error:
            check_config_of_command(words)
        assert "\n" not in str(error.value)


def test_other_programs_are_left_alone() -> None:
    check_config_of_command(["pytest", "--load-config", "nowhere.yml"])
    check_config_of_command(["ns-eval"])
    check_config_of_command([])
    prepare_command(["pytest"])
    prepare_command([])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_values_of_options() -> None:
    words = ["x", "--a.b-c", "1", "--a.b_c=2", "--d", "3"]
    assert value_of("--a.b-c", words) == "2" and value_of("--d", words) == "3" and value_of("--e", words) is None
