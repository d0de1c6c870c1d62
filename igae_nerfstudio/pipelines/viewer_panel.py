"""What Nerfstudio's viewer shows of a latent scene beside the picture: the phase, and a few choices.

Nerfstudio finds `ViewerElement`s and `ViewerControl`s among a pipeline's attributes. They change what the viewer
shows (`DecodedScene.viewer_state`) and nothing else.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.viewer.viewer_elements import (
    ViewerButton,
    ViewerCheckbox,
    ViewerControl,
    ViewerDropdown,
    ViewerElement,
)
from torch import Tensor

from igae_nerfstudio.phases import Phase

if TYPE_CHECKING:
    from igae_nerfstudio.pipelines.latent_pipeline import LatentPipeline

FINE_TUNED, ORIGINAL = "fine-tuned", "original"
PREVIEW = "preview"
SECONDS_BETWEEN_LINES = 0.5
"""The phase's line follows the training at this pace, so that the page is not flooded."""


class ViewerLine(ViewerElement[str]):
    """A line of text, in markdown, that only the program changes."""

    def __init__(self, text: str) -> None:
        super().__init__("")
        self._text = text

    def _create_gui_handle(self, viser_server) -> None:
        self.gui_handle = viser_server.gui.add_markdown(self._text)

    def install(self, viser_server) -> None:
        self._create_gui_handle(viser_server)

    @property
    def text(self) -> str:
        return self._text

    @text.setter
    def text(self, text: str) -> None:
        self._text = text
        handle: Any = self.gui_handle
        if handle is not None:
            handle.content = text


class ViewerPanel:
    """The elements of one pipeline.

    Args:
        pipeline: with its model, autoencoder and datamanager in place.
    """

    def __init__(self, pipeline: LatentPipeline) -> None:
        self._pipeline = pipeline
        self._line_at = 0.0
        self._autoencoded: Dict[int, Dict[str, Tensor]] = {}
        decoders = [FINE_TUNED] if pipeline.autoencoder is None else [FINE_TUNED, ORIGINAL]
        channels = [f"channel {i + 1}" for i in range(pipeline.model.scene.config.latent_channels)]
        self.phase = ViewerLine("")
        self.decoder = ViewerDropdown(
            "Decoder",
            FINE_TUNED,
            decoders,
            cb_hook=lambda element: self._choose_decoder(element.value),
            hint="What makes rgb of the latents: the decoder trained with the scene, or the autoencoder's own",
        )
        self.latent = ViewerDropdown(
            "Latent",
            PREVIEW,
            [PREVIEW, *channels],
            cb_hook=lambda element: self._choose_channel(element.options.index(element.value)),
            hint="The output `latent`: a projection of all channels to three colours, or one channel in grey",
        )
        self.photo = ViewerCheckbox(
            "Photo beside",
            False,
            disabled=pipeline.datamanager.photos_missing,
            cb_hook=lambda element: self._choose_photo(element.value),
            hint="Split the screen: left the render, right the nearest training photo through the autoencoder",
        )
        self.nearest = ViewerButton(
            "To the nearest training camera", cb_hook=lambda element: self.control.go_to_nearest_camera()
        )
        self.control = LatentViewerControl(self)
        self.show_steps(0)

    def elements(self) -> List[Union[ViewerElement, ViewerControl]]:
        """In the order in which they stand in the viewer."""
        return [self.phase, self.decoder, self.latent, self.photo, self.nearest, self.control]

    # The phase ------------------------------------------------------------------------------------------------

    def follow(self, step: int) -> None:
        """Say where the training is, at most twice a second and at the last step of each phase."""
        last = step + 1 in (self._pipeline.schedule.latent_supervision_steps, self._pipeline.schedule.total_steps)
        if last or time.monotonic() - self._line_at >= SECONDS_BETWEEN_LINES:
            self._line_at = time.monotonic()
            self.show_steps(step + 1)

    def show_steps(self, done: int) -> None:
        """Say which phase it is after so many steps."""
        schedule = self._pipeline.schedule
        phase, first, total = schedule.phase(max(done - 1, 0)), 0, schedule.latent_supervision_steps
        if phase is Phase.RGB_ALIGNMENT:
            first, total = total, schedule.rgb_alignment_steps
        self.phase.text = (
            f"Phase: **{phase.value}**, step {done - first:,} of {total:,}  \n"
            f"Run: step {done:,} of {schedule.total_steps:,}"
        )

    # Choices --------------------------------------------------------------------------------------------------

    def _choose_decoder(self, name: str) -> None:
        self._pipeline.model.viewer_state.decoder = self._pipeline.autoencoder.decode if name == ORIGINAL else None

    def _choose_channel(self, option: int) -> None:
        self._pipeline.model.viewer_state.channel = option - 1 if option > 0 else None

    def _choose_photo(self, beside: bool) -> None:
        self._pipeline.model.viewer_state.beside = self.nearest_photo if beside else None
        self.control.split_screen(beside)

    # Photos of training cameras -------------------------------------------------------------------------------

    def nearest_camera(self, camera: Cameras) -> int:
        """Index of the training camera nearest to a camera (1,) in place and direction."""
        poses, mine = self.training_cameras().camera_to_worlds, camera.camera_to_worlds.cpu().reshape(3, 4)
        place = (poses[:, :, 3] - mine[:, 3]).norm(dim=-1)
        direction = (poses[:, :, 2] - mine[:, 2]).norm(dim=-1)
        return int((place + direction).argmin())

    @torch.no_grad()
    def nearest_photo(self, camera: Cameras) -> Dict[str, Tensor]:
        """The nearest training camera's `photo` and `autoencoded_photo`, (H, W, 3), as a camera (1,) would see them.

        Turned and zoomed to the camera, which is exact where it stands at the training camera's place; elsewhere they
        are what was seen from the training camera. Grey where that saw nothing.
        """
        index = self.nearest_camera(camera)
        if index not in self._autoencoded:
            self._autoencoded = {index: self._photo_and_autoencoded(index)}  # one is enough: cameras move slowly
        grid, seen = _seen_from(camera, self.training_cameras()[index])
        pictures = {}
        for name, picture in self._autoencoded[index].items():
            warped = F.grid_sample(picture, grid.to(picture), mode="bilinear", padding_mode="border")
            pictures[name] = torch.where(seen.to(picture.device), warped[0].permute(1, 2, 0), 0.5)
        return pictures

    def _photo_and_autoencoded(self, index: int) -> Dict[str, Tensor]:
        photo = self._pipeline.datamanager.train_dataset.get_image_float32(index).permute(2, 0, 1)[None]
        pictures = {"photo": photo.to(self._pipeline.device)}
        autoencoder = self._pipeline.autoencoder
        if autoencoder is not None:
            size = (photo.shape[2], photo.shape[3])
            pictures["autoencoded_photo"] = autoencoder.decode(autoencoder.encode(photo), size=size)
        return pictures

    def training_cameras(self) -> Cameras:
        """Of all training photos, on the CPU."""
        return self._pipeline.datamanager.train_dataset.cameras.to("cpu")


class LatentViewerControl(ViewerControl):
    """Sizes and first camera that suit a decoder.

    While a camera moves, Nerfstudio asks for pictures so small that 30 a second can be rendered, on the assumption that
    half the pixels take half the time. A decoder always renders at the pixel size of its training
    (`DecodedScene.render`), so small pictures take as long as larger ones, the next picture would be asked for still
    smaller, and all would end at 30 pixels. Here moving pictures have the size at which they are decoded, which costs
    no more. A page opens at a training camera with its field of view, where the scene looks as in the photos; that
    camera's frustum, whose photo would hide the render, is hidden while a page stands there.
    """

    def __init__(self, panel: ViewerPanel) -> None:
        self._panel = panel
        self._hidden: Optional[int] = None

    def _setup(self, viewer) -> None:
        super()._setup(viewer)
        viewer.control_panel.update_output_options = photos_last(viewer.control_panel.update_output_options)
        viewer.viser_server.on_client_connect(self._welcome)  # after Nerfstudio's own

    def _welcome(self, client) -> None:
        machine: Any = self.viewer.render_statemachines[client.client_id]
        stock_size = machine._calculate_image_res

        def size(aspect: float) -> Tuple[int, int]:
            self._uncover(client)
            if machine.state == "high":
                return stock_size(aspect)
            fov = self.viewer.get_camera_state(client).fov
            return self.size_while_moving(aspect, fov, self.viewer.control_panel.max_res)

        machine._calculate_image_res = size
        camera = self._panel.training_cameras()[0]
        client.camera.fov = 2 * math.atan(float(camera.height) / 2 / float(camera.fy))
        self._go(client, 0)

    def _uncover(self, client) -> None:
        """Hide the frustum in which a page stands, and show again the one that it has left."""
        frusta, standing = getattr(self.viewer, "camera_handles", {}), None
        for index, frustum in frusta.items():
            if abs(frustum.position - client.camera.position).max() < 2 * self.viewer.config.camera_frustum_scale:
                standing = index
        if self._hidden in frusta and self._hidden != standing:
            frusta[self._hidden].visible = self.viewer.hide_images.visible  # unless all are hidden
        if standing is not None:
            frusta[standing].visible = False
        self._hidden = standing

    def size_while_moving(self, aspect: float, fov: float, largest: int) -> Tuple[int, int]:
        """Height and width at which a view is decoded, at most `largest`."""
        focal = float(self._panel._pipeline.model.focal_range[0])
        fov = min(fov, math.radians(120))  # fisheye and equirectangular previews have any
        height = min(2 * focal * math.tan(fov / 2), largest, largest / aspect)
        return max(round(height), 1), max(round(height * aspect), 1)

    def go_to_nearest_camera(self) -> None:
        """Move every page to the training camera nearest to where it is."""
        for client in self.viewer.viser_server.get_clients().values():
            state = self.viewer.get_camera_state(client)
            here = Cameras(state.c2w.float()[None], 1.0, 1.0, 0.5, 0.5, 1, 1)
            self._go(client, self._panel.nearest_camera(here))

    def _go(self, client, index: int) -> None:
        import numpy as np
        import viser.transforms as vtf
        from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO

        poses = self._panel.training_cameras().camera_to_worlds.double().cpu()
        focus = _focus(poses).numpy()
        pose = poses[index].numpy()
        rotation = vtf.SO3.from_matrix(pose[:, :3]) @ vtf.SO3.from_x_radians(np.pi)
        ahead = max(float((pose[:, 3] - focus) @ pose[:, 2]), 0.1)
        with client.atomic():
            client.camera.position = pose[:, 3] * VISER_NERFSTUDIO_SCALE_RATIO
            # What the mouse turns the view around: the point ahead that is nearest to what all cameras look at.
            client.camera.look_at = (pose[:, 3] - ahead * pose[:, 2]) * VISER_NERFSTUDIO_SCALE_RATIO
            client.camera.wxyz = rotation.wxyz

    def split_screen(self, on: bool) -> None:
        """Nerfstudio's own split screen; each page's next picture renews the menus (see `photos_last`).

        So do pictures begun before the choice. Otherwise, with two pages open, the first one's picture would put the
        photo into the menus, and one of the second's, begun before, would lack it.
        """
        viewer = getattr(self, "viewer", None)
        if viewer is None:
            return
        for machine in viewer.render_statemachines.values():
            machine.output_keys = set()
        viewer.control_panel._split.value = on


def photos_last(renew: Callable[[List[str]], None]) -> Callable[[List[str]], None]:
    """Nerfstudio's way to renew its menus of outputs, with the photos as the last of them.

    It does so whenever a picture has other outputs than the one before, and then takes the last for the right half of
    the split screen: its depth buffer, where depth is composited.
    """
    photos = ("photo", "autoencoded_photo")
    return lambda names: renew(sorted(names, key=lambda name: photos.index(name) if name in photos else -1))


def _focus(poses: Tensor) -> Tensor:
    """The point (3,) nearest to the optical axes of cameras (N, 3, 4); their middle where the axes are parallel."""
    axes, places = poses[:, :, 2], poses[:, :, 3]
    across = torch.eye(3).to(poses) - axes[:, :, None] * axes[:, None, :]
    little = 1e-4 * torch.eye(3).to(poses)
    target = (across @ places[:, :, None]).mean(dim=0)[:, 0] + little @ places.mean(dim=0)
    return torch.linalg.solve(across.mean(dim=0) + little, target)


def _seen_from(camera: Cameras, other: Cameras) -> Tuple[Tensor, Tensor]:
    """Where another camera, moved to a camera's place, sees the camera's pixels.

    Returns:
        (1, H, W, 2) for `grid_sample` in the other camera's picture, and (H, W, 1) whether it is inside.
    """
    camera, other = camera.to("cpu").reshape((1,)), other.to("cpu").reshape((1,))
    height, width = int(camera.height), int(camera.width)
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    x, y = (columns - camera.cx[0]) / camera.fx[0], -(rows - camera.cy[0]) / camera.fy[0]
    directions = torch.stack([x, y, -torch.ones_like(x)], dim=-1)
    turn = other.camera_to_worlds[0, :, :3].T @ camera.camera_to_worlds[0, :, :3]
    across, up, back = (directions @ turn.T).unbind(-1)
    front = back < -1e-6
    depth = torch.where(front, -back, torch.ones_like(back))
    u = (across / depth * other.fx[0] + other.cx[0]) * 2 / float(other.width) - 1
    v = (-up / depth * other.fy[0] + other.cy[0]) * 2 / float(other.height) - 1
    inside = front & (u.abs() <= 1) & (v.abs() <= 1)
    return torch.stack([u, v], dim=-1)[None], inside[..., None]
