"""A finished run of any method, latent or RGB: render its scene from any camera, and evaluate it."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any, Sequence

import torch
import yaml
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.utils.eval_utils import eval_setup
from torch import Tensor

from igae_nerfstudio.errors import InputError, one_line
from igae_nerfstudio.metrics import ImageMetrics, PerceptualNetwork, common_names
from igae_nerfstudio.pipelines.decoded_scene import RenderedView


class Run:
    """A trained pipeline and the views that it is evaluated on.

    Args:
        name: a title.
        pipeline: Nerfstudio's, of any method.
        dataset: the evaluation views.
    """

    def __init__(self, name: str, pipeline: Any, dataset: Any) -> None:
        self.name, self.pipeline, self.dataset = name, pipeline, dataset
        self._metrics = ImageMetrics()

    @property
    def cameras(self) -> Cameras:
        """The cameras (N,) of the evaluation views."""
        return self.dataset.cameras

    def photo(self, view: int) -> Float[Tensor, "height width 3"]:
        """An evaluation photo in [0, 1], on white where it is transparent."""
        return self._photo_and_mask(view)[0]

    def _photo_and_mask(self, view: int) -> tuple[Tensor, Tensor | None]:
        """The same, and (H, W, 1) bool, True where it is a target; None: everywhere."""
        data = self.dataset[view]
        image = data["image"]
        photo = image if image.shape[-1] == 3 else image[..., :3] * image[..., 3:] + 1 - image[..., 3:]
        return photo, data.get("mask")

    @torch.no_grad()
    def render(self, camera: Cameras) -> RenderedView:
        """Render one camera of any size, of batch shape () or (1,); on the CPU."""
        pipeline = self.pipeline.eval()
        camera = (camera.reshape((1,)) if camera.shape == () else camera).to(pipeline.device)
        if hasattr(pipeline.model, "render"):  # a latent scene with its decoder
            view: dict[str, Any] = vars(pipeline.model.render(camera))
            there = {name: value.cpu() for name, value in view.items() if value is not None}
            return RenderedView(**there)
        outputs = pipeline.model.get_outputs_for_camera(camera)
        fine = "_fine" if "rgb_fine" in outputs else ""  # as Nerfstudio's vanilla NeRF has it
        return RenderedView(*(outputs[name + fine].cpu() for name in ("rgb", "depth", "accumulation")))

    def evaluate(
        self, views: Sequence[int] | None = None, networks: Sequence[PerceptualNetwork] = ("alex",)
    ) -> dict[str, float]:
        """`psnr` (dB), `ssim` and, where their weights can be had, `lpips` (AlexNet) and, if asked for, `lpips_vgg`:
        means over evaluation views.

        Args:
            views: indices of the views; by default all.
            networks: of LPIPS; `vgg` takes long on a CPU (docs/guide.md).

        Raises:
            InputError: the dataset of the run is gone.
        """
        if getattr(self.dataset, "photos_missing", False):
            raise InputError(f"{self.name} cannot be evaluated: the photos of its dataset are gone; put them back")
        views = range(len(self.dataset)) if views is None else views
        found = []
        for view in views:
            photo, mask = self._photo_and_mask(view)
            rendered = self.render(self.cameras[view : view + 1]).rgb
            found.append(self._metrics(rendered, photo, mask=mask, networks=networks))
        return {name: sum(metrics[name] for metrics in found) / len(found) for name in common_names(found)}


def load_run(folder: Path | str) -> Run:
    """A run with its newest checkpoint; its evaluation views are those of the test split, as in `ns-eval`.

    Args:
        folder: of the run, or its config.yml. Of several runs below the folder the newest is taken.

    Raises:
        InputError: there is no run, or it cannot be loaded.
    """
    path = Path(folder)
    if not path.is_file():
        found = sorted(path.glob("**/config.yml"), key=lambda config: config.stat().st_mtime)
        if not found:
            raise InputError(f"there is no run in {folder}: no config.yml; pass a folder that `ns-train` made")
        path = found[-1]

    def with_checkpoints_beside(config: TrainerConfig) -> TrainerConfig:
        """Nerfstudio's own path holds only in the folder where the run was trained."""
        config.relative_model_dir = path.absolute().parent / config.relative_model_dir
        return config

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            config, pipeline, _, _ = eval_setup(
                path, test_mode="inference", update_config_callback=with_checkpoints_beside
            )
    except InputError:
        raise
    except yaml.YAMLError as error:
        raise InputError(
            f"{path} cannot be read: {one_line(error)}; restore the file, or install the versions of Nerfstudio and of "
            "its plugins that made the run"
        ) from error
    except (Exception, SystemExit) as error:  # Nerfstudio ends the process where there is no checkpoint
        raise InputError(
            f"the run {path} cannot be loaded ({type(error).__name__}: {one_line(error)[:200]}); check that its "
            "checkpoints are there and load with this version of torch"
        ) from error
    return Run(f"{config.method_name} {config.experiment_name}", pipeline, pipeline.datamanager.eval_dataset)
