"""What Nerfstudio's viewer shows of a latent scene beside the picture: the phase, and a few choices.

Nerfstudio finds `ViewerElement`s and `ViewerControl`s among a pipeline's attributes. They change what the viewer shows
(`DecodedScene.viewer_state`); training, evaluation, the other commands and checkpoints know nothing of them.
"""

from __future__ import annotations

import math
import time
from typing import Any, Callable

import numpy as np
import torch
import viser.transforms as vtf
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.viewer.viewer_elements import ViewerButton, ViewerControl, ViewerDropdown, ViewerElement
from torch import Tensor

from igae_nerfstudio.phases import Phase, TwoPhaseSchedule
from igae_nerfstudio.pipelines.decoded_scene import DecodedScene

FINE_TUNED, ORIGINAL = "fine-tuned", "original"
PREVIEW = "preview"
SECONDS_BETWEEN_LINES = 0.5
"""The phase's line follows the training at this pace, so that the page is not flooded."""


class ViewerLine(ViewerElement[str]):
    """Text, in markdown, that only the program changes."""

    text = ""

    def __init__(self) -> None:
        super().__init__("")

    def _create_gui_handle(self, viser_server: Any) -> None:
        self.gui_handle = viser_server.gui.add_markdown(self.text)

    def install(self, viser_server: Any) -> None:
        self._create_gui_handle(viser_server)

    def show(self, text: str) -> None:
        self.text = text
        handle: Any = self.gui_handle
        if handle is not None:
            handle.content = text


class ViewerPanel:
    """The elements of one pipeline.

    Args:
        model: what the viewer renders.
        schedule: of the training.
        training_cameras: (N,), in the order of the photos.
        original_decoder: of the untouched autoencoder, (1, c, h, w) -> (1, 3, H, W); None: it is out of reach.
    """

    def __init__(
        self,
        model: DecodedScene,
        schedule: TwoPhaseSchedule,
        training_cameras: Cameras,
        original_decoder: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self._schedule = schedule
        self._line_at = 0.0
        decoders = {FINE_TUNED: None, **({} if original_decoder is None else {ORIGINAL: original_decoder})}
        channels = {PREVIEW: None, **{f"channel {i + 1}": i for i in range(len(model.normalizer.mean))}}
        state = model.viewer_state
        self.phase = ViewerLine()
        self.decoder = ViewerDropdown(
            "Decoder",
            FINE_TUNED,
            list(decoders),
            cb_hook=lambda element: setattr(state, "decoder", decoders[element.value]),
            hint="What makes rgb of the latents: the decoder trained with the scene, or the autoencoder's own",
        )
        self.latent = ViewerDropdown(
            "Latent",
            PREVIEW,
            list(channels),
            cb_hook=lambda element: setattr(state, "channel", channels[element.value]),
            hint="The output `latent`: a projection of all channels to three colours, or one channel in grey",
        )
        self.control = LatentViewerControl(model, training_cameras.to("cpu"))
        self.nearest = ViewerButton(
            "To the nearest training camera", cb_hook=lambda element: self.control.go_to_nearest_camera()
        )
        self.show_steps(0)

    def elements(self) -> list[ViewerElement | ViewerControl]:
        """In the order in which they stand in the viewer."""
        return [self.phase, self.decoder, self.latent, self.nearest, self.control]

    def follow(self, step: int) -> None:
        """Show where the training is, at most twice a second and at the last step of each phase."""
        last = step + 1 in (self._schedule.latent_supervision_steps, self._schedule.total_steps)
        if last or time.monotonic() - self._line_at >= SECONDS_BETWEEN_LINES:
            self._line_at = time.monotonic()
            self.show_steps(step + 1)

    def show_steps(self, done: int) -> None:
        """Show the phase after so many steps."""
        schedule = self._schedule
        phase, first, total = schedule.phase(max(done - 1, 0)), 0, schedule.latent_supervision_steps
        if phase is Phase.RGB_ALIGNMENT:
            first, total = total, schedule.rgb_alignment_steps
        self.phase.show(
            f"Phase: **{phase.value}**, step {done - first:,} of {total:,}  \n"
            f"Run: step {done:,} of {schedule.total_steps:,}"
        )


class LatentViewerControl(ViewerControl):
    """Size of moving pictures, and the camera at which a page opens.

    A page opens at a training camera with its field of view, where the scene looks as in the photos. The frustum of a
    camera is hidden while the page stands there, since its photo would cover the render.

    Args:
        model: what the viewer renders.
        training_cameras: (N,), on the CPU.
    """

    def __init__(self, model: DecodedScene, training_cameras: Cameras) -> None:
        self._model = model
        self._cameras = training_cameras
        self._hidden: int | None = None

    def _setup(self, viewer: Any) -> None:
        super()._setup(viewer)
        viewer.viser_server.on_client_connect(self._welcome)  # after Nerfstudio's own

    def _welcome(self, client: Any) -> None:
        viewer: Any = self.viewer
        machine = viewer.render_statemachines[client.client_id]
        nerfstudios_size = machine._calculate_image_res

        def size(aspect: float) -> tuple[int, int]:
            self._hide_frustum_at(client)
            if machine.state == "high":
                return nerfstudios_size(aspect)
            return self.size_while_moving(aspect, viewer.get_camera_state(client).fov, viewer.control_panel.max_res)

        # Nerfstudio has no setting for this private method: it asks for moving pictures so small that 30 a second can
        # be rendered, as if half the pixels took half the time. A decoder always renders at the pixel size of its
        # training, so the next picture would be asked for still smaller, down to 30 pixels.
        machine._calculate_image_res = size
        client.camera.fov = 2 * math.atan(float(self._cameras.height[0]) / 2 / float(self._cameras.fy[0]))
        self._go(client, 0)

    def _hide_frustum_at(self, client: Any) -> None:
        viewer: Any = self.viewer
        frusta, standing = getattr(viewer, "camera_handles", {}), None  # drawn after the first pages may open
        for index, frustum in list(frusta.items()):
            if abs(frustum.position - client.camera.position).max() < 2 * viewer.config.camera_frustum_scale:
                standing = index
        if self._hidden in frusta and self._hidden != standing:
            frusta[self._hidden].visible = viewer.hide_images.visible  # unless all are hidden
        if standing is not None:
            frusta[standing].visible = False
        self._hidden = standing

    def size_while_moving(self, aspect: float, fov: float, largest: int) -> tuple[int, int]:
        """Height and width at which a view is decoded, at most `largest`; `fov` is vertical, in radians."""
        focal = float(self._model.focal_range[0])
        fov = min(fov, math.radians(120))  # fisheye and equirectangular previews have any
        height = min(2 * focal * math.tan(fov / 2), largest, largest / aspect)
        return max(round(height), 1), max(round(height * aspect), 1)

    def nearest_camera(self, pose: Tensor) -> int:
        """Index of the training camera nearest to a pose (3, 4) in place and direction."""
        poses = self._cameras.camera_to_worlds
        place, direction = ((poses[:, :, i] - pose.to(poses)[:, i]).norm(dim=-1) for i in (3, 2))
        return int((place + direction).argmin())

    def go_to_nearest_camera(self) -> None:
        """Move every page to the training camera nearest to where it is."""
        for client in self.viewer.viser_server.get_clients().values():
            self._go(client, self.nearest_camera(self.viewer.get_camera_state(client).c2w))

    def _go(self, client: Any, index: int) -> None:
        from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO as SCALE

        poses = self._cameras.camera_to_worlds.double()
        focus, pose = _focus(poses).numpy(), poses[index].numpy()
        rotation = vtf.SO3.from_matrix(pose[:, :3]) @ vtf.SO3.from_x_radians(np.pi)
        ahead = max(float((pose[:, 3] - focus) @ pose[:, 2]), 0.1)
        with client.atomic():
            client.camera.position = pose[:, 3] * SCALE
            # What the mouse turns the view around: the point ahead that is nearest to what all cameras look at.
            client.camera.look_at = (pose[:, 3] - ahead * pose[:, 2]) * SCALE
            client.camera.wxyz = rotation.wxyz


def _focus(poses: Tensor) -> Tensor:
    """The point (3,) nearest to the optical axes of cameras (N, 3, 4); their middle where the axes are parallel."""
    axes, places = poses[:, :, 2], poses[:, :, 3]
    across = torch.eye(3).to(poses) - axes[:, :, None] * axes[:, None, :]
    little = 1e-4 * torch.eye(3).to(poses)
    target = (across @ places[:, :, None]).mean(dim=0)[:, 0] + little @ places.mean(dim=0)
    return torch.linalg.solve(across.mean(dim=0) + little, target)
