"""The viewer's panel, without a browser: what each element changes, and what it must leave alone."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import viser.transforms as vtf
from conftest import latent_config
from nerfstudio.cameras.cameras import Cameras

from igae_nerfstudio.data.latent_cameras import latent_view
from igae_nerfstudio.pipelines.latent_pipeline import LatentPipeline
from igae_nerfstudio.pipelines.viewer_panel import FINE_TUNED, ORIGINAL, PREVIEW, ViewerPanel


@pytest.fixture
def pipeline(blender_scene: Path, autoencoder_dir: Path, tmp_path: Path) -> LatentPipeline:
    torch.manual_seed(0)
    config = latent_config("vanilla_nerf", blender_scene, autoencoder_dir, tmp_path).pipeline
    config.latent_supervision_steps, config.rgb_alignment_steps = 40, 60
    pipeline = config.setup(device="cpu")
    with torch.no_grad():  # a decoder that has been trained on
        for parameter in pipeline.model.decoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return pipeline.eval()


@pytest.fixture
def panel(pipeline: LatentPipeline) -> ViewerPanel:
    return pipeline._panel


def choose(element, value) -> None:
    """What a click in the page comes to."""
    element.value = value
    element.cb_hook(element)


def camera_of(pipeline: LatentPipeline, index: int = 0) -> Cameras:
    return pipeline.datamanager.train_dataset.cameras[index : index + 1]


def test_the_viewer_finds_the_elements_in_order(pipeline: LatentPipeline, panel: ViewerPanel) -> None:
    from nerfstudio.viewer.utils import parse_object
    from nerfstudio.viewer.viewer_elements import ViewerControl, ViewerElement

    found = parse_object(pipeline, ViewerElement, "Custom Elements")
    assert [element for _, element in found] == panel.elements()[:-1]
    assert all(path.count("/") == 1 for path, _ in found)  # no folder in the folder
    assert [control for _, control in parse_object(pipeline, ViewerControl, "x")] == [panel.control]
    assert not any("viewer" in name for name in pipeline.state_dict())


def test_the_decoder_can_be_chosen_and_only_the_viewer_notices(pipeline: LatentPipeline, panel: ViewerPanel) -> None:
    model, camera = pipeline.model, camera_of(pipeline)
    assert panel.decoder.options == [FINE_TUNED, ORIGINAL]
    fine_tuned = model.get_outputs_for_camera(camera)["rgb"]
    evaluated = model.render(camera).rgb

    def losses() -> dict[str, float]:  # of a step of RGB alignment
        torch.manual_seed(1)
        return {name: float(value) for name, value in pipeline.get_train_loss_dict(50)[1].items()}

    before, names = losses(), set(pipeline.state_dict())
    choose(panel.decoder, ORIGINAL)
    latents = model.normalizer.denormalize(model.render(camera).latent)[None].permute(0, 3, 1, 2)
    expected = pipeline.autoencoder.decode(latents, size=(48, 48))[0].permute(1, 2, 0)
    original = model.get_outputs_for_camera(camera)["rgb"]
    torch.testing.assert_close(original, expected, atol=1e-4, rtol=1e-4)
    assert float((original - fine_tuned).abs().mean()) > 1e-3
    assert torch.equal(model.render(camera).rgb, evaluated)  # what is measured and rendered to files
    assert losses() == before and set(pipeline.state_dict()) == names
    choose(panel.decoder, FINE_TUNED)
    assert torch.equal(model.get_outputs_for_camera(camera)["rgb"], fine_tuned)


def test_one_channel_or_the_preview(pipeline: LatentPipeline, panel: ViewerPanel) -> None:
    model, camera = pipeline.model, camera_of(pipeline)
    assert panel.latent.options == [PREVIEW, *(f"channel {i}" for i in range(1, 7))]
    preview = model.get_outputs_for_camera(camera)["latent"]
    choose(panel.latent, "channel 4")
    shown = model.get_outputs_for_camera(camera)["latent"]
    channel = model.render(camera).latent[..., 3].clamp(0, 1)
    for colour in range(3):
        assert torch.equal(shown[::8, ::8, colour], channel)
    choose(panel.latent, PREVIEW)
    assert torch.equal(model.get_outputs_for_camera(camera)["latent"], preview)


class Client:
    """As much of a page as the control touches."""

    client_id = 7

    def __init__(self) -> None:
        self.pose: torch.Tensor | None = None
        self.camera = SimpleNamespace(position=np.zeros(3), wxyz=np.array([1.0, 0, 0, 0]), fov=1.3, aspect=1.0)

    def atomic(self):
        return nullcontext()


def viewer_with(panel: ViewerPanel, client: Client, machine: Any) -> SimpleNamespace:
    """As much of Nerfstudio's viewer as the control touches, with one page open."""
    welcomes: list[Any] = []
    viewer = SimpleNamespace(
        control_panel=SimpleNamespace(max_res=512),
        render_statemachines={client.client_id: machine},
        viser_server=SimpleNamespace(on_client_connect=welcomes.append, get_clients=lambda: {client.client_id: client}),
        get_camera_state=lambda client: SimpleNamespace(fov=client.camera.fov, c2w=client.pose),
        config=SimpleNamespace(camera_frustum_scale=0.1),
        hide_images=SimpleNamespace(visible=True),
    )
    panel.control._setup(viewer)
    (welcome,) = welcomes
    welcome(client)
    return viewer


def test_the_phase_is_shown(pipeline: LatentPipeline, panel: ViewerPanel) -> None:
    assert panel.phase.text == "Phase: **latent supervision**, step 0 of 40  \nRun: step 0 of 100"
    for step, line in ((39, "latent supervision**, step 40 of 40"), (99, "RGB alignment**, step 60 of 60")):
        panel.follow(step)  # the last steps of the phases are always shown
        assert line in panel.phase.text and f"Run: step {step + 1} of 100" in panel.phase.text
    panel.follow(50)
    assert "step 60 of 60" in panel.phase.text  # too soon after the last change
    panel._line_at -= 1
    panel.follow(50)
    assert "RGB alignment**, step 11 of 60" in panel.phase.text
    pipeline.load_pipeline(pipeline.state_dict(), 39)
    assert "latent supervision**, step 40 of 40" in panel.phase.text


def test_without_the_original_autoencoder(pipeline: LatentPipeline) -> None:
    cameras = pipeline.datamanager.train_dataset.cameras
    assert ViewerPanel(pipeline.model, pipeline.schedule, cameras, None).decoder.options == [FINE_TUNED]


def test_a_page_opens_at_a_training_camera_and_moves_at_decoded_size(
    pipeline: LatentPipeline, panel: ViewerPanel
) -> None:
    client = Client()
    machine = SimpleNamespace(state="high", _calculate_image_res=lambda aspect: (1, 2))
    viewer = viewer_with(panel, client, machine)
    pose = camera_of(pipeline).camera_to_worlds[0].double().numpy()
    np.testing.assert_allclose(client.camera.position / 10, pose[:, 3], atol=1e-6)
    towards = vtf.SO3(client.camera.wxyz).as_matrix()[:, 2]  # OpenCV: +z forward; Nerfstudio: -z
    np.testing.assert_allclose(towards, -pose[:, 2], atol=1e-6)
    np.testing.assert_allclose(client.camera.look_at, 0, atol=1e-3)  # the mouse turns the view around the scene
    assert machine._calculate_image_res(1.5) == (1, 2)  # standing still: Nerfstudio's own size
    machine.state = "low_move"
    assert machine._calculate_image_res(1.5) == (48, 72)  # moving: the photos' pixels, whatever the speed

    # The photo in the frustum in which the page stands would hide the render; Nerfstudio draws it later.
    places = [10 * camera_of(pipeline, i).camera_to_worlds[0, :, 3].numpy() for i in range(6)]
    viewer.camera_handles = {i: SimpleNamespace(position=place, visible=True) for i, place in enumerate(places)}

    def visible() -> list[int]:
        machine._calculate_image_res(1.5)
        return [i for i, frustum in viewer.camera_handles.items() if frustum.visible]

    assert visible() == [1, 2, 3, 4, 5]
    client.camera.position = places[4]
    assert visible() == [0, 1, 2, 3, 5]
    client.camera.position = 0.5 * places[4]
    assert visible() == [0, 1, 2, 3, 4, 5]


def test_a_training_starts_with_its_viewer(blender_scene: Path, autoencoder_dir: Path, tmp_path: Path) -> None:
    config = latent_config("vanilla_nerf", blender_scene, autoencoder_dir, tmp_path / "runs")
    config.vis = "viewer"
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()  # from Python, where no command has made the run's folder
    trainer.viewer_state.viser_server.stop()
    assert trainer.pipeline._panel.control.viewer is trainer.viewer_state


def test_pages_go_to_the_nearest_training_camera(pipeline: LatentPipeline, panel: ViewerPanel) -> None:
    client = Client()
    viewer_with(panel, client, SimpleNamespace(state="high", _calculate_image_res=lambda aspect: (1, 2)))
    target = camera_of(pipeline, 3).camera_to_worlds[0]
    client.pose = target + 0.05 * torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    panel.nearest.cb_hook(panel.nearest)
    np.testing.assert_allclose(client.camera.position / 10, target[:, 3].numpy(), atol=1e-6)


@pytest.mark.parametrize(("aspect", "degrees", "largest"), [(1.0, 39.5, 512), (1.77, 75, 512), (2.5, 100, 64)])
def test_moving_pictures_are_decoded_pixel_for_pixel(
    pipeline: LatentPipeline, panel: ViewerPanel, aspect: float, degrees: float, largest: int
) -> None:
    from nerfstudio.cameras.cameras import CameraType
    from nerfstudio.viewer.utils import CameraState, get_camera

    fov = math.radians(degrees)
    height, width = panel.control.size_while_moving(aspect, fov, largest)
    assert max(height, width) <= largest
    state = CameraState(fov, aspect, camera_of(pipeline).camera_to_worlds[0], CameraType.PERSPECTIVE)
    camera = get_camera(state, height, width)
    scale = latent_view(camera, 8, tuple(pipeline.model.focal_range.tolist())).scale
    if largest > 64:
        assert scale == pytest.approx((1, 1), abs=0.02)
    else:
        assert min(scale) > 1  # more is decoded than may be shown
