"""A finished run of any method, ready to render: what `igae-compare` puts side by side."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Dict, List

import numpy as np
import torch
import yaml
from nerfstudio.cameras.camera_paths import get_interpolated_camera_path
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.eval_utils import eval_setup
from rich.progress import track
from torch import Tensor

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.figures import photo_of, rendered_rgb, to_uint8
from igae_nerfstudio.metrics import ImageMetrics
from igae_nerfstudio.pipelines.finished_commands import check_checkpoint, check_config


class FinishedRun:
    """A run of a latent or RGB method, with its newest checkpoint.

    Args:
        path: its folder or config.yml.

    Raises:
        InputError: it cannot be found or loaded.
    """

    def __init__(self, path: Path) -> None:
        self.config_path = config_of(path)
        try:
            check_config(self.config_path)
            check_checkpoint(self.config_path)
            with contextlib.redirect_stdout(io.StringIO()):
                config, self.pipeline, _, _ = eval_setup(self.config_path, test_mode="inference")
        except InputError:
            raise
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or " ".join(str(error).split())
            raise InputError(
                f"{self.config_path} cannot be read: {problem}; restore the file, or install the versions of "
                "Nerfstudio and of its plugins that made the run"
            ) from error
        except (Exception, SystemExit) as error:  # Nerfstudio ends the process where a checkpoint is missing
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason given"]
            raise InputError(
                f"the run {self.config_path} cannot be loaded ({type(error).__name__}: {lines[0]}); check that its "
                "checkpoints are there and load with this version of torch"
            ) from error
        self.name = f"{config.method_name} {config.experiment_name}"
        self.dataset = self.pipeline.datamanager.eval_dataset
        self.pipeline.eval()

    def views(self, count: int) -> List[int]:
        """Indices of evaluation views, evenly spread."""
        count = min(count, len(self.dataset))
        return [i * len(self.dataset) // count for i in range(count)]

    def cameras(self, views: List[int]) -> Cameras:
        """The cameras (n,) of evaluation views."""
        return self.dataset.cameras[torch.tensor(views)]

    def path(self, frames: int) -> Cameras:
        """Cameras (frames,) on a way through all evaluation cameras."""
        cameras = self.dataset.cameras
        if len(cameras) == 1:
            return cameras[torch.zeros(frames, dtype=torch.long)]
        steps = max(2, -(-frames // (len(cameras) - 1)))
        path = get_interpolated_camera_path(cameras, steps=steps, order_poses=True)
        path.height[:], path.width[:] = int(cameras.height[0]), int(cameras.width[0])
        return path[torch.arange(frames) * len(path) // frames]

    def check_same_scene(self, other: FinishedRun) -> None:
        """Raises InputError where cameras or their coordinates are not those of another run."""
        mine, others = (run.dataset.cameras.camera_to_worlds.cpu() for run in (self, other))
        if mine.shape != others.shape or not torch.allclose(mine, others, atol=1e-4):
            raise InputError(
                f"{self.config_path} and {other.config_path} have other evaluation cameras; compare runs of one "
                "dataset, trained with the same dataparser options"
            )

    def photo(self, view: int) -> Tensor:
        """An evaluation photo (H, W, 3) in [0, 1]."""
        return photo_of(self.dataset, view)

    @torch.no_grad()
    def outputs(self, camera: Cameras) -> Dict[str, Tensor]:
        """All that the model renders for a camera of batch shape (1,)."""
        return self.pipeline.model.get_outputs_for_camera(camera.to(self.pipeline.device))

    def render(self, camera: Cameras) -> Tensor:
        """A picture (H, W, 3) in [0, 1] of a camera of batch shape (1,), on the CPU."""
        return rendered_rgb(self.outputs(camera)).cpu()

    def pictures(self, cameras: Cameras) -> List[np.ndarray]:
        """Renders (H, W, 3), uint8, of cameras (n,)."""
        numbers = track(range(len(cameras)), "Rendering", transient=True)
        return [to_uint8(self.render(cameras[i : i + 1])) for i in numbers]

    def metrics(self, views: List[int]) -> Dict[str, float]:
        """`psnr`, `ssim` and `lpips` (where its weights can be had), means over evaluation views."""
        measure = ImageMetrics()
        found = [measure(self.render(self.dataset.cameras[view : view + 1]), self.photo(view)) for view in views]
        return {name: sum(metrics[name] for metrics in found) / len(found) for name in found[0]}


def config_of(path: Path) -> Path:
    """The config.yml of a run; of several below a folder, the newest.

    Raises:
        InputError: there is none.
    """
    if path.is_file():
        return path
    found = sorted(path.glob("**/config.yml"), key=lambda config: config.stat().st_mtime)
    if not found:
        raise InputError(f"there is no run in {path}: no config.yml; pass a folder that `ns-train` made")
    return found[-1]
