"""`ns-export gaussian-splat` of latent Gaussians: places, and colours of the view that sees most of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import latent_config, write_blender_scene

from igae_nerfstudio.pipelines.decoded_scene import RenderedView
from igae_nerfstudio.rendering.splatting import project


@pytest.mark.parametrize("degree", [0, 1])
def test_gaussians_get_decoded_colours(
    degree: int, autoencoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One training view whose decoded picture is red and blue, left and right; a Gaussian behind it is grey."""
    from nerfstudio.scripts.exporter import ExportGaussianSplat

    scene = write_blender_scene(tmp_path / "scene", counts=(1, 1, 1))
    config = latent_config("splatfacto", scene, autoencoder_dir, tmp_path).pipeline
    config.model.sh_degree = degree
    trained = config.setup(device="cpu")
    parameters = trained.model.scene.gauss_params
    parameters["opacities"].data.fill_(1.0)
    parameters["opacities"].data[:5] = -9
    camera = trained.datamanager.train_dataset.cameras[0:1]
    parameters["means"].data[9] = (camera.camera_to_worlds[0] @ torch.tensor([0.0, 0.0, 2.0, 1.0])).float()
    pipeline = config.setup(device="cpu", test_mode="inference")
    pipeline.load_pipeline(trained.state_dict(), 0)
    picture = torch.zeros(48, 48, 3)
    picture[:, :24, 0], picture[:, 24:, 2] = 1, 1
    rest = torch.zeros(48, 48, 1)
    pipeline.model.render = lambda camera: RenderedView(picture, rest, rest)
    monkeypatch.setattr("nerfstudio.scripts.exporter.eval_setup", lambda path, **_: (None, pipeline, path, 0))
    ExportGaussianSplat(load_config=tmp_path, output_dir=tmp_path / "out", ply_color_mode="rgb").main()

    header, _, body = (tmp_path / "out" / "splat.ply").read_bytes().partition(b"end_header\n")
    kinds = {b"float": "f4", b"uchar": "u1"}
    fields = [line.split()[1:] for line in header.split(b"\n") if line.startswith(b"property")]
    points = np.frombuffer(body, [(name.decode(), kinds[kind]) for kind, name in fields])
    assert len(points) == 145  # those of next to no opacity are left out
    means = torch.from_numpy(np.stack([points[name] for name in "xyz"], axis=-1))
    torch.testing.assert_close(means, parameters["means"].detach()[5:])
    colours = np.stack([points[name] for name in ("red", "green", "blue")], axis=-1)
    assert tuple(colours[4]) == (127, 127, 127)
    places = project(trained.model.scene.gaussians(camera), camera).means.detach()[5:]
    for x, colour in zip(places[:, 0].tolist(), colours.tolist()):
        if colour != [127, 127, 127] and abs(x - 24) > 1:
            assert np.allclose(colour, [255, 0, 0] if x < 24 else [0, 0, 255], atol=2)
    assert {(255, 0, 0), (0, 0, 255)} <= set(map(tuple, colours.tolist()))
