"""The stock commands, as processes of their own, on a run of a few steps: train, kill, resume, evaluate, render."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from command_server import command_scripts, server_folder
from conftest import tiny_autoencoder, write_blender_scene, write_nerfstudio_scene
from PIL import Image

TRAIN = """
--vis tensorboard --machine.device-type cpu
--pipeline.latent-supervision-lr-factor 1 --pipeline.rgb-alignment-lr-factor 1
--pipeline.datamanager.images-per-batch 2
--pipeline.model.num-uniform-samples 16 --pipeline.model.num-samples 8
--pipeline.model.init-resolution 16 --pipeline.model.final-resolution 24
--steps-per-eval-batch 5 --steps-per-eval-image 5
"""


@lru_cache(maxsize=1)
def scripts() -> Path:
    """Folder of this process's commands."""
    return command_scripts(server_folder() / f"bin-{os.getpid()}")


def command(*words: str | Path, cwd: Path, timeout: int = 600, check: bool = True) -> subprocess.CompletedProcess:
    """A console script, offline, as a process of its own that starts in a moment."""
    script = scripts() / str(words[0])
    result = subprocess.run(
        [str(script), *map(str, words[1:])],
        cwd=cwd,
        env=offline(cwd),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if check:
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result


def offline(home: Path) -> dict[str, str]:
    """Environment without hub, chatter or the user's cache, and with an ffmpeg, which `ns-render` looks for."""
    tools = home / "bin"
    if not tools.exists():
        imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
        tools.mkdir()
        (tools / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    quiet = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1", "COLUMNS": "300"}
    return {**os.environ, **quiet, "PATH": path, "XDG_CACHE_HOME": str(home / "cache")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of 6 + 6 steps whose autoencoder has been moved away since."""
    folder = tmp_path_factory.mktemp("commands")
    scene = write_blender_scene(folder / "scene")
    tiny_autoencoder().save_pretrained(folder / "autoencoder")
    train(folder, scene, "whole")
    (folder / "autoencoder").rename(folder / "moved")
    base = folder / "outputs" / "whole" / "igae-tensorf" / "run"
    return {"folder": folder, "scene": scene, "base": base, "config": base / "config.yml"}


def train_words(folder: Path, scene: Path, name: str, *more: str | Path) -> list[str | Path]:
    autoencoder = folder / ("autoencoder" if (folder / "autoencoder").exists() else "moved")
    phases = ["--pipeline.latent-supervision-steps", "6", "--pipeline.rgb-alignment-steps", "6"]
    where = ["--output-dir", folder / "outputs", "--experiment-name", name, "--timestamp", "run"]
    space = ["--pipeline.autoencoder.name-or-path", autoencoder]
    return ["ns-train", "igae-tensorf", "--data", scene, *TRAIN.split(), *where, *space, *phases, *more]


def train(folder: Path, scene: Path, name: str, *more: str | Path) -> str:
    result = command(*train_words(folder, scene, name, *more), "blender-data", cwd=folder)
    return result.stdout + result.stderr


def test_training_leaves_a_checkpoint_that_is_safe_to_load(run: dict[str, Path]) -> None:
    (checkpoint,) = (run["base"] / "nerfstudio_models").iterdir()
    assert checkpoint.name == "step-000000011.ckpt"
    assert torch.load(checkpoint, weights_only=True)["step"] == 11


def test_ns_eval_without_the_original_autoencoder(run: dict[str, Path]) -> None:
    out = run["folder"] / "eval.json"
    result = command("ns-eval", "--load-config", run["config"], "--output-path", out, cwd=run["folder"])
    results = json.loads(out.read_text())["results"]
    assert {"psnr", "ssim"} <= set(results) and "latent_psnr" not in results
    assert set(results["per_image"]) == {"r_000.png", "r_001.png"}
    assert result.stdout.count("is out of reach") == 1


@pytest.mark.parametrize("split", ["test"])
def test_ns_render_dataset(run: dict[str, Path], split: str) -> None:
    out = run["folder"] / "dataset"
    command(
        "ns-render",
        "dataset",
        "--load-config",
        run["config"],
        "--output-path",
        out,
        "--image-format",
        "png",
        cwd=run["folder"],
    )
    kinds = {path.name for path in (out / split).iterdir()}
    assert kinds == {"rgb", "gt-rgb", "depth", "accumulation", "latent"}
    for kind in kinds:
        images = sorted((out / split / kind).glob("*.png"))
        assert len(images) == 2 and Image.open(images[0]).size == (48, 48), kind
    truth = np.asarray(Image.open(out / split / "gt-rgb" / "r_000.png"))
    assert (truth[0, 0] == 255).all()  # composited on white, as in training


@pytest.mark.parametrize("trajectory", ["interpolate", "spiral", "camera-path"])
def test_ns_render_trajectories(run: dict[str, Path], trajectory: str) -> None:
    folder, out = run["folder"], run["folder"] / trajectory
    more: list[str | Path] = []
    if trajectory == "camera-path":
        pose = json.loads((run["scene"] / "transforms_test.json").read_text())["frames"][0]["transform_matrix"]
        camera = {"camera_to_world": np.array(pose).flatten().tolist(), "fov": 40.0, "aspect": 1.5}
        path = {"render_height": 40, "render_width": 60, "seconds": 1, "camera_path": [camera, camera]}
        (folder / "path.json").write_text(json.dumps(path))
        more = ["--camera-path-filename", folder / "path.json"]
    elif trajectory == "spiral":
        more = ["--seconds", "0.1"]
    else:
        more = [
            "--interpolation-steps",
            "2",
            "--pose-source",
            "eval",
            "--rendered-output-names",
            "rgb",
            "latent",
        ]
    env = offline(folder)
    script = scripts() / "ns-render"
    words = [
        script,
        trajectory,
        "--load-config",
        run["config"],
        "--output-path",
        out,
        "--output-format",
        "images",
    ]
    result = subprocess.run([str(w) for w in [*words, *more]], cwd=folder, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    frames = sorted(out.glob("*.jpg"))
    assert len(frames) >= 2
    assert (
        Image.open(frames[0]).size == {"interpolate": (96, 48), "spiral": (48, 48), "camera-path": (60, 40)}[trajectory]
    )


def test_a_video_of_rgb_and_latents_has_steady_colours(run: dict[str, Path]) -> None:
    """One camera, standing still, then far away, then still again: each picture of it is the same, and the preview is
    the run's own map of latents to colours, whatever else is in the film."""
    import cv2
    from nerfstudio.utils.eval_utils import eval_setup

    folder, out = run["folder"], run["folder"] / "film.mp4"
    frames = json.loads((run["scene"] / "transforms_test.json").read_text())["frames"]
    near, far = (np.array(frames[0]["transform_matrix"]) for _ in range(2))
    far[:3, 3] *= 3
    order = [near, near, far, far, near, near]
    path = [{"camera_to_world": pose.flatten().tolist(), "fov": 39.6, "aspect": 1.0} for pose in order]
    film = {"render_height": 96, "render_width": 96, "seconds": 0.5, "camera_path": path}
    (folder / "film.json").write_text(json.dumps(film))
    words = ["ns-render", "camera-path", "--load-config", run["config"], "--output-path", out]
    more = ["--camera-path-filename", folder / "film.json", "--rendered-output-names", "rgb", "latent"]
    command(*words, *more, cwd=folder)

    film, pictures = cv2.VideoCapture(str(out)), []
    while (read := film.read())[0]:
        pictures.append(read[1][..., ::-1].astype(float) / 255)
    assert len(pictures) == len(order) and pictures[0].shape == (96, 192, 3)
    for side in (slice(0, 96), slice(96, 192)):
        for later in (1, 4, 5):
            assert np.abs(pictures[0][:, side] - pictures[later][:, side]).mean() < 0.03  # as far as H.264 goes

    _, pipeline, _, _ = eval_setup(run["config"], test_mode="inference")
    for number in (0, 2):
        pose = torch.tensor(order[number][:3], dtype=torch.float32)
        focal = 48 / np.tan(np.radians(39.6) / 2)
        from nerfstudio.cameras.cameras import Cameras

        outputs = pipeline.model.get_outputs_for_camera(Cameras(pose[None], focal, focal, 48.0, 48.0, 96, 96))
        for name, side in (("rgb", slice(0, 96)), ("latent", slice(96, 192))):
            assert np.abs(pictures[number][:, side] - outputs[name].numpy()).mean() < 0.03, (number, name)


def test_a_second_run_encodes_nothing_and_kill_and_resume_goes_on(run: dict[str, Path]) -> None:
    """`kill -9` once a checkpoint is there, whatever is being written; then `--load-dir` ends at the same step."""
    folder = run["folder"]
    words = train_words(folder, run["scene"], "killed", "--steps-per-save", "1")
    words[words.index("--pipeline.rgb-alignment-steps") + 1] = "2000"
    script = [str(Path(sys.executable).parent / "ns-train"), *map(str, words[1:]), "blender-data"]
    log = folder / "killed.log"
    with log.open("w") as file:
        process = subprocess.Popen(script, cwd=folder, env=offline(folder), stdout=file, stderr=subprocess.STDOUT)
    models = folder / "outputs" / "killed" / "igae-tensorf" / "run" / "nerfstudio_models"
    deadline = time.time() + 300
    while time.time() < deadline and process.poll() is None:
        if models.is_dir() and any(int(p.stem[5:]) >= 8 for p in models.glob("step-*.ckpt")):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "6 latent images from the cache, 0 encoded" in log.read_text()
    saved = sorted(int(p.stem[5:]) for p in models.iterdir())  # every name in the folder is a checkpoint
    assert saved and 8 <= saved[-1] < 2000
    for step in saved:
        torch.load(models / f"step-{step:09d}.ckpt", weights_only=True)

    total = saved[-1] + 4
    words = train_words(folder, run["scene"], "resumed", "--load-dir", models)
    words[words.index("--pipeline.rgb-alignment-steps") + 1] = str(total - 6)
    result = command(*words, "blender-data", cwd=folder)
    assert f"Resuming after step {saved[-1]}" in result.stdout
    resumed = folder / "outputs" / "resumed" / "igae-tensorf" / "run" / "nerfstudio_models"
    assert [p.name for p in resumed.iterdir()] == [f"step-{total - 1:09d}.ckpt"]


def test_a_finished_run_without_its_dataset(run: dict[str, Path]) -> None:
    """Cameras come from the run's folder: rendering works, evaluation says what it lacks."""
    folder, away = run["folder"], run["scene"].with_name("scene-away")
    run["scene"].rename(away)
    try:
        out = folder / "without-dataset"
        words = ["ns-render", "interpolate", "--load-config", run["config"], "--pose-source", "train"]
        more = ["--interpolation-steps", "1", "--output-format", "images", "--output-path", out]
        result = command(*words, *more, cwd=folder)
        assert result.stdout.count("grey pictures stand in") == 1
        frames = sorted(out.glob("*.jpg"))
        assert len(frames) >= 5 and np.asarray(Image.open(frames[0])).std() > 0

        out = folder / "eval-without-dataset.json"
        result = command("ns-eval", "--load-config", run["config"], "--output-path", out, cwd=folder, check=False)
        assert result.returncode == 1 and "put them back" in result.stderr.strip().splitlines()[-1]
    finally:
        away.rename(run["scene"])


def test_bad_input_ends_in_one_line(run: dict[str, Path]) -> None:
    words = train_words(run["folder"], run["scene"], "bad")
    words[words.index("--pipeline.rgb-alignment-steps") + 1] = "0"
    result = command(*words, "blender-data", cwd=run["folder"], check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("igae-nerfstudio: --pipeline.rgb-alignment-steps is 0")


def test_every_command_after_training_on_a_dataset_without_a_test_split(tmp_path: Path) -> None:
    """And with one evaluation photo, which is evaluated, while films move between the training cameras."""
    tiny_autoencoder().save_pretrained(tmp_path / "autoencoder")
    lists = {"train_filenames": [f"images/{i:04d}.png" for i in range(4)], "val_filenames": ["images/0004.png"]}
    data = write_nerfstudio_scene(
        tmp_path / "scene", [np.full((32, 40, 3), 20 * i, np.uint8) for i in range(5)], **lists
    )
    words = ["ns-train", "igae-tensorf", "--data", data, *TRAIN.split(), "--timestamp", "run"]
    words += ["--output-dir", tmp_path / "runs", "--pipeline.autoencoder.name-or-path", tmp_path / "autoencoder"]
    words += ["--pipeline.latent-supervision-steps", "2", "--pipeline.rgb-alignment-steps", "2"]
    out = command(*words, cwd=tmp_path).stdout
    assert out.count("'val' (1 photo) takes the place of 'test'") == 1
    assert out.index("takes the place of") < out.index("Training images")
    config = tmp_path / "runs" / "scene" / "igae-tensorf" / "run" / "config.yml"
    assert "DatasetReader" not in config.read_text()

    command("ns-eval", "--load-config", config, "--output-path", tmp_path / "eval.json", cwd=tmp_path)
    assert set(json.loads((tmp_path / "eval.json").read_text())["results"]["per_image"]) == {"0004.png"}
    for gone in (False, True):
        if gone:
            data.rename(tmp_path / "moved")
        film = tmp_path / f"film-{gone}"
        words = ["ns-render", "interpolate", "--load-config", config, "--output-path", film]
        command(*words, "--interpolation-steps", "2", "--output-format", "images", cwd=tmp_path)
        assert len(list(film.glob("*.jpg"))) == 3 * 2
    (tmp_path / "moved").rename(data)
    words = ["ns-render", "dataset", "--load-config", config, "--split", "train+test"]
    command(*words, "--output-path", tmp_path / "views", "--rendered-output-names", "rgb", cwd=tmp_path)
    assert [len(list((tmp_path / "views" / split).rglob("*.jpg"))) for split in ("train", "test")] == [4, 1]
