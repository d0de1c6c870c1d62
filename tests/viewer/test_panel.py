"""The viewer's panel, without a browser: what each element changes, and what it must leave alone."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
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
    pipeline.phase = type(pipeline.phase).RGB_ALIGNMENT

    def losses() -> dict[str, float]:
        torch.manual_seed(1)
        return {name: float(value) for name, value in pipeline.get_train_loss_dict(3)[1].items()}

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


def test_the_photo_beside_the_render(pipeline: LatentPipeline, panel: ViewerPanel) -> None:
    """At a training camera it is that camera's photo; zoomed out it is smaller, with grey around."""
    model, dataset = pipeline.model, pipeline.datamanager.train_dataset
    assert list(model.get_outputs_for_camera(camera_of(pipeline))) == ["rgb", "depth", "accumulation", "latent"]
    choose(panel.photo, True)
    for index in (0, 4):
        outputs = model.get_outputs_for_camera(camera_of(pipeline, index))
        assert list(outputs)[-2:] == ["photo", "autoencoded_photo"]  # the last is what the split screen takes
        photo = dataset.get_image_float32(index)
        torch.testing.assert_close(outputs["photo"], photo, atol=1e-3, rtol=0)
        batch = photo.permute(2, 0, 1)[None]
        expected = pipeline.autoencoder.decode(pipeline.autoencoder.encode(batch), size=(48, 48))[0].permute(1, 2, 0)
        torch.testing.assert_close(outputs["autoencoded_photo"], expected, atol=1e-3, rtol=0)
    wide = deepcopy(camera_of(pipeline, 4))
    wide.fx, wide.fy = wide.fx / 2, wide.fy / 2
    zoomed = model.get_outputs_for_camera(wide)["photo"]
    assert bool((zoomed[:11] == 0.5).all()) and bool((zoomed[:, 37:] == 0.5).all())
    smaller = torch.nn.functional.avg_pool2d(photo.permute(2, 0, 1), 2).permute(1, 2, 0)
    assert float((zoomed[12:36, 12:36] - smaller).abs().mean()) < 0.01
    choose(panel.photo, False)
    assert "photo" not in model.get_outputs_for_camera(camera_of(pipeline))


class Client:
    """As much of a page as the control touches."""

    client_id = 7

    def __init__(self) -> None:
        self.camera = SimpleNamespace(position=np.zeros(3), wxyz=np.array([1.0, 0, 0, 0]), fov=1.3, aspect=1.0)
        self.pictures: list[np.ndarray] = []
        self.scene = SimpleNamespace(set_background_image=lambda picture, **how: self.pictures.append(picture))

    def atomic(self):
        from contextlib import nullcontext

        return nullcontext()


class Menus:
    """As much of Nerfstudio's control panel as pages and the panel's control touch."""

    def __init__(self) -> None:
        from nerfstudio.utils.colormaps import ColormapOptions

        self.max_res, self.split_percentage = 512, 0.5
        self._split = SimpleNamespace(value=False)
        self.colormap_options = self.split_colormap_options = ColormapOptions()
        self.renewals: list[list[str]] = []

    @property
    def split(self) -> bool:
        return self._split.value

    def update_output_options(self, names: list[str]) -> None:
        self.renewals.append(names)
        self.output_render, self.split_output_render = names[0], names[-1]  # as Nerfstudio's does


def viewer_with(
    panel: ViewerPanel, machines: dict[int, Any], on_client_connect=lambda welcome: None
) -> SimpleNamespace:
    """As much of Nerfstudio's viewer as those touch, with the panel's control in place."""
    viewer = SimpleNamespace(
        control_panel=Menus(),
        render_statemachines=machines,
        viser_server=SimpleNamespace(on_client_connect=on_client_connect),
        update_colormap_options=lambda **facts: None,
        update_split_colormap_options=lambda **facts: None,
        config=SimpleNamespace(jpeg_quality=75, image_format="png", camera_frustum_scale=0.1),
        stats_markdown=SimpleNamespace(content=""),
        make_stats_markdown=lambda *facts: "",
        hide_images=SimpleNamespace(visible=True),
    )
    panel.control._setup(viewer)
    return viewer


def test_the_split_screen_has_the_render_left_and_the_autoencoded_photo_right(
    pipeline: LatentPipeline, panel: ViewerPanel
) -> None:
    """Through Nerfstudio's own code, up to the pictures that two pages get."""
    from nerfstudio.viewer.render_state_machine import RenderStateMachine

    client, machines = Client(), {}
    viewer = viewer_with(panel, machines)
    machines.update({page: RenderStateMachine(viewer, 10.0, client) for page in (1, 2)})
    camera, dataset = camera_of(pipeline, 4), pipeline.datamanager.train_dataset
    before = pipeline.model.get_outputs_for_camera(camera)
    for machine in machines.values():
        machine._send_output_to_viewer(before)
    choose(panel.photo, True)
    after = pipeline.model.get_outputs_for_camera(camera)
    machines[1]._send_output_to_viewer(after)
    machines[2]._send_output_to_viewer(before)  # was begun before the choice
    machines[2]._send_output_to_viewer(after)

    first, _, second = (picture.astype(float) / 255 for picture in client.pictures[2:])
    render = pipeline.model.render(camera).rgb.numpy()
    batch = dataset.get_image_float32(4).permute(2, 0, 1)[None]
    photo = pipeline.autoencoder.decode(pipeline.autoencoder.encode(batch), size=(48, 48))[0].permute(1, 2, 0).numpy()
    for shown in (first, second):
        assert np.abs(shown[:, :24] - render[:, :24]).max() < 0.01
        assert np.abs(shown[:, 25:] - photo[:, 25:]).max() < 0.01  # the line between them is one pixel wide
    apart = np.abs(render - photo)
    assert apart[:, :24].max() > 0.05 and apart[:, 25:].max() > 0.05  # neither could stand for the other


def test_turned_away_there_is_no_photo(pipeline: LatentPipeline, panel: ViewerPanel) -> None:
    away = deepcopy(camera_of(pipeline, 2))
    away.camera_to_worlds[0, :, [0, 2]] *= -1
    pictures = ViewerPanel.nearest_photo(panel, away)
    index = panel.nearest_camera(away)
    facing = pipeline.datamanager.train_dataset.cameras.camera_to_worlds[index, :, 2] @ away.camera_to_worlds[0, :, 2]
    assert float(facing) > 0 or bool((pictures["photo"] == 0.5).all())
    assert panel.nearest_camera(camera_of(pipeline, 3)) == 3


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


def test_without_the_original_autoencoder(pipeline: LatentPipeline, tmp_path: Path) -> None:
    config = deepcopy(pipeline.config)
    config.autoencoder.name_or_path = str(tmp_path / "moved away")
    finished = config.setup(device="cpu", test_mode="test").eval()
    assert finished._panel.decoder.options == [FINE_TUNED]
    choose(finished._panel.photo, True)
    outputs = finished.model.get_outputs_for_camera(camera_of(finished))
    assert "photo" in outputs and "autoencoded_photo" not in outputs


def test_a_page_opens_at_a_training_camera_and_moves_at_decoded_size(
    pipeline: LatentPipeline, panel: ViewerPanel
) -> None:
    import viser.transforms as vtf
    from nerfstudio.viewer.render_state_machine import RenderStateMachine

    client, welcomes, machines = Client(), [], {}
    viewer = viewer_with(panel, machines, welcomes.append)
    viewer.get_camera_state = lambda client: SimpleNamespace(fov=client.camera.fov)
    machine = machines[7] = RenderStateMachine(viewer, 10.0, client)
    machine.state, machine._calculate_image_res = "high", lambda aspect: (1, 2)
    (welcome,) = welcomes
    welcome(client)
    first = camera_of(pipeline)
    pose = first.camera_to_worlds[0].double().numpy()
    np.testing.assert_allclose(client.camera.position / 10, pose[:, 3], atol=1e-6)
    towards = vtf.SO3(client.camera.wxyz).as_matrix()[:, 2]  # OpenCV: +z forward; Nerfstudio: -z
    np.testing.assert_allclose(towards, -pose[:, 2], atol=1e-6)
    np.testing.assert_allclose(client.camera.look_at, 0, atol=1e-3)  # the mouse turns the view around the scene
    assert machine._calculate_image_res(1.5) == (1, 2)  # standing still: Nerfstudio's own size
    machine.state = "low_move"
    assert machine._calculate_image_res(1.5) == (48, 72)  # moving: the photos' pixels, whatever the speed
    choose(panel.photo, True)
    assert viewer.control_panel._split.value
    outputs = pipeline.model.get_outputs_for_camera(camera_of(pipeline))
    machine._send_output_to_viewer({**outputs, "gl_z_buf_depth": outputs["depth"]})  # where depth is composited
    menus = viewer.control_panel.renewals
    assert menus[-1][-1] == "autoencoded_photo" and machine.output_keys == set(menus[-1])
    # A picture from before is on its way and renews the menus; so does the next one, with the depth buffer at its end.
    viewer.control_panel.update_output_options(["rgb", "depth", "gl_z_buf_depth"])
    viewer.control_panel.update_output_options(["rgb", "photo", "autoencoded_photo", "gl_z_buf_depth"])
    assert menus[-1] == ["rgb", "gl_z_buf_depth", "photo", "autoencoded_photo"]

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
