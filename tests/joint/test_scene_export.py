"""A learnt scene as a run: what Nerfstudio's commands make of it is what `igae-scenes` measured."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import numpy as np
import pytest
import torch
import yaml
from many_scenes_data import RGB, small_config, train, write_data, write_scenes
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.utils.eval_utils import eval_setup
from nerfstudio.viewer.utils import CameraState, get_camera
from PIL import Image
from test_commands import command

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.joint.fit import fit_scenes
from igae_nerfstudio.joint.results import load_scene
from igae_nerfstudio.joint.scene_export import export_scene, find_learnt
from igae_nerfstudio.scenes.scene_views import SceneViews

NAMES = ("ball", "srn-ball")
SIZE = 48


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`shared/`, `scenes/` and, learnt, `out/`: a Blender scene and a ShapeNet-SRN one."""
    folder = tmp_path_factory.mktemp("export")
    shared, scenes = train(write_data(folder), folder / "shared"), write_scenes(folder / "scenes", NAMES)
    report = fit_scenes([scenes], shared, folder / "out", small_config())
    assert sorted(report.learnt) == list(NAMES) and not report.failed
    return folder


def result_of(job: Path, name: str) -> dict:
    return json.loads((job / "out" / "scenes" / name / "result.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_a_run_measures_and_renders_what_the_scene_did(job: Path, name: str, tmp_path: Path) -> None:
    path = export_scene(job / "out" / "scenes" / name, job / "scenes", tmp_path / "runs")
    config, pipeline, checkpoint, step = eval_setup(path, test_mode="test")
    result = result_of(job, name)
    phases = (result["latent_supervision"]["steps"], result["rgb_alignment"]["steps"])
    assert config.method_name == "igae-triplanes" and step == sum(phases) - 1
    assert (config.pipeline.latent_supervision_steps, config.pipeline.rgb_alignment_steps) == phases
    assert torch.load(checkpoint, weights_only=True)["step"] == step
    assert len(pipeline.datamanager.train_dataset) == result["views"] == 4

    metrics = pipeline.get_average_eval_image_metrics()
    for what in ("psnr", "ssim"):
        assert metrics[what] == pytest.approx(result["rgb_alignment"][what], abs=1e-3)
    assert metrics["num_images"] == result["held_out_views"] == 10
    assert {"latent_psnr", "autoencoder_psnr"} <= set(metrics)  # the autoencoder is where the shared part is

    learnt = load_scene(job / "out" / "scenes" / name)
    views = SceneViews.open(job / "scenes", SIZE, tmp_path / "cache", "test", only=[name])
    picture = learnt.images(views.cameras([0], [3]))[0].permute(1, 2, 0)
    camera = pipeline.datamanager.eval_dataset.cameras[3:4]
    torch.testing.assert_close(pipeline.model.get_outputs_for_camera(camera)["rgb"], picture, atol=2e-3, rtol=0)
    photo = pipeline.datamanager.eval_dataset.get_image_float32(3)
    torch.testing.assert_close(photo, views.images([0], [3])[0].permute(1, 2, 0))


def test_scenes_of_the_joint_training_too(job: Path, tmp_path: Path) -> None:
    found = find_learnt([job / "shared"])
    assert [path.name for path in found] == ["a", "b", "c", "d"]
    path = export_scene(found[1], job / "train" / "b", tmp_path / "runs", "now")
    assert path == tmp_path / "runs" / "b" / "igae-triplanes" / "now" / "config.yml"
    _, pipeline, _, _ = eval_setup(path, test_mode="inference")
    learnt = load_scene(found[1])
    torch.testing.assert_close(pipeline.model.scene.planes, learnt.planes)


def test_the_commands(job: Path, tmp_path: Path) -> None:
    """As processes: export, then ns-eval and ns-render on what it wrote, without the dataset and the shared part."""
    words = ["--learnt", job / "out" / "scenes" / "ball", "--scenes", job / "scenes", "--timestamp", "run"]
    shown = command("igae-scenes", "export", *words, "--output-dir", tmp_path / "runs", cwd=tmp_path).stdout
    run = tmp_path / "runs" / "ball" / "igae-triplanes" / "run"
    assert f"ns-viewer --load-config {run / 'config.yml'}" in shown
    assert {"config.yml", "scene.pt", "nerfstudio_models"} <= {path.name for path in run.iterdir()}
    out = tmp_path / "eval.json"
    command("ns-eval", "--load-config", run / "config.yml", "--output-path", out, cwd=tmp_path)
    found = json.loads(out.read_text())["results"]["psnr"]
    assert found == pytest.approx(result_of(job, "ball")["rgb_alignment"]["psnr"], abs=1e-3)

    scenes, shared = job / "scenes", job / "shared"
    scenes.rename(job / "scenes-away"), shared.rename(job / "shared-away")
    try:
        more = ["--pose-source", "eval", "--interpolation-steps", "1", "--output-format", "images"]
        where = ["--load-config", run / "config.yml", "--output-path", tmp_path / "frames"]
        command("ns-render", "interpolate", *where, *more, cwd=tmp_path)
        frames = sorted((tmp_path / "frames").glob("*.jpg"))
        assert len(frames) >= 8 and Image.open(frames[0]).size == (SIZE, SIZE)
        assert np.asarray(Image.open(frames[0])).std() > 0
    finally:
        (job / "scenes-away").rename(scenes), (job / "shared-away").rename(shared)


class Seen(Exception):
    """Ends the viewer's endless wait."""


def test_ns_viewer_serves_it(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that `ns-viewer` does before it waits for visitors; then a page is fetched and a picture rendered."""
    from nerfstudio.scripts.viewer import run_viewer

    path = export_scene(job / "out" / "scenes" / "ball", job / "scenes", tmp_path / "runs", "now")
    states, pages = [], []

    class State(run_viewer.ViewerState):
        def __init__(self, *arguments, **more) -> None:
            super().__init__(*arguments, **more)
            states.append(self)

    def visit(seconds: float) -> None:
        with urlopen(f"http://127.0.0.1:{port}", timeout=60) as page:
            pages.append((page.status, page.read(2000).lower()))
        raise Seen

    monkeypatch.setattr(run_viewer, "ViewerState", State)
    monkeypatch.setattr(run_viewer, "time", SimpleNamespace(sleep=visit))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = run_viewer.ViewerConfigWithoutNumRays(websocket_host="127.0.0.1", websocket_port=port)
    try:
        with pytest.raises(Seen):
            run_viewer.RunViewer(load_config=path, viewer=where).main()
        ((status, text),) = pages
        assert status == 200 and b"<html" in text
        (state,) = states
        assert len(state.camera_handles) == result_of(job, "ball")["views"]
        pose = state.pipeline.datamanager.train_dataset.cameras.camera_to_worlds[0]
        camera = get_camera(CameraState(0.69, 1.5, pose, CameraType.PERSPECTIVE), 40, 60)
        outputs = state.pipeline.model.get_outputs_for_camera(camera)
        assert outputs["rgb"].shape == (40, 60, 3) and float(outputs["rgb"].std()) > 0
    finally:
        for state in states:
            state.viser_server.stop()


def test_a_run_trains_on(job: Path, tmp_path: Path) -> None:
    """Its checkpoint is one that `ns-train --load-dir` goes on from."""
    path = export_scene(job / "out" / "scenes" / "ball", job / "scenes", tmp_path / "runs", "now")
    config = yaml.load(path.read_text(), Loader=yaml.Loader)
    config.load_dir, config.timestamp, config.vis = config.get_checkpoint_dir(), "more", "tensorboard"
    config.pipeline.rgb_alignment_steps += 3
    config.machine.device_type = "cpu"
    trainer = config.setup()
    trainer.setup()
    first = trainer._start_step
    before = trainer.pipeline.model.scene.planes.detach().clone()
    trainer.train()
    assert trainer.step == first + 2
    assert not torch.equal(before, trainer.pipeline.model.scene.planes)


# What can go wrong


def test_what_cannot_be_exported_is_named(job: Path, tmp_path: Path) -> None:
    ball, scenes = job / "out" / "scenes" / "ball", job / "scenes"

    def message(*arguments: object) -> str:
        with pytest.raises(InputError) as raised:
            export_scene(*arguments)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "scene.pt does not exist" in message(job / "out", scenes, tmp_path)
    assert "the views of scene ball are not in" in message(ball, job / "train", tmp_path)
    export_scene(ball, scenes, tmp_path, "now")
    assert "exists already; choose another --timestamp" in message(ball, scenes, tmp_path, "now")
    with pytest.raises(InputError, match="holds no learnt scene"):
        find_learnt([scenes])
    with pytest.raises(InputError, match="two scenes have the name 'ball'"):
        find_learnt([job / "out", ball])


def test_colours_are_no_latents(job: Path, tmp_path: Path) -> None:
    shared = train(job, tmp_path / "rgb", RGB)
    with pytest.raises(InputError, match="one of colours"):
        export_scene(shared / "scenes" / "a", job / "train", tmp_path / "runs")
