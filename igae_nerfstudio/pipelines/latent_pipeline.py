"""Where scene model, decoder and losses meet: latent NeRF training as in section 3.2 of the paper.

x_p --E--> z_p            photos are encoded once, the encoder is frozen
p --F_theta--> z~_p       the scene model renders latents
z~_p --D_psi--> x~_p      the decoder turns them into pictures

latent supervision  (eq. 2)   L_F(theta; z_p, z~_p), the method's own loss
RGB alignment       (eq. 3)   || x_p - x~_p ||^2 over theta and psi
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Literal, Optional, Tuple, Type

import torch
import torch.nn.functional as F
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils import colormaps, profiler, writer
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import track
from torch import Tensor
from torch.nn import Parameter

from igae_nerfstudio import __version__
from igae_nerfstudio.autoencoder.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    decoder_from_architecture,
    downscale_of,
    load_autoencoder,
    receptive_margin,
)
from igae_nerfstudio.autoencoder.normalization import LatentNormalization, LatentNormalizer
from igae_nerfstudio.config_files import read_yaml, with_settings
from igae_nerfstudio.console import log, warn
from igae_nerfstudio.data.latent_datamanager import (
    LatentDataManager,
    LatentDataManagerConfig,
    LatentSplit,
    SplitName,
)
from igae_nerfstudio.data.memory import LARGE_STEP, SHARE, SMALLER_STEPS, check_fits, kept_bytes
from igae_nerfstudio.engine.phases import Phase, TwoPhaseSchedule
from igae_nerfstudio.engine.processes import first_process_first
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.metrics import ImageMetrics
from igae_nerfstudio.pipelines.decoded_scene import DecodedScene
from igae_nerfstudio.pipelines.evaluation_figure import evaluation_figure
from igae_nerfstudio.pipelines.finished_commands import prepare_command
from igae_nerfstudio.pipelines.viewer_panel import ViewerPanel


@dataclass
class LatentPipelineConfig(VanillaPipelineConfig):
    """A latent NeRF: autoencoder, data, scene model and the two phases."""

    _target: Type = field(default_factory=lambda: LatentPipeline)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """The latent space."""
    datamanager: LatentDataManagerConfig = field(default_factory=LatentDataManagerConfig)
    """The data."""
    preset: Literal["paper", "fast"] = "paper"
    """`fast`: scene models no larger than latents need (docs/performance.md), where a setting is not chosen by hand."""
    settings: Optional[Path] = None
    """YAML file of settings of this group, over all others, such as configs/latent_nerf/official.yaml."""
    latent_supervision_steps: int = 10_000
    """Steps of the first phase (paper, table 11: 10,000)."""
    rgb_alignment_steps: int = 15_000
    """Steps of the second phase (paper, table 11: 15,000)."""
    latent_supervision_lr_factor: float = 1.0
    """Factor on the scene's learning rates in the first phase (xi_LS in table 11)."""
    rgb_alignment_lr_factor: float = 1.0
    """Factor on the scene's learning rates in the second phase (xi_align in table 11)."""
    decoder_lr_decay: float = 0.9996
    """Factor on the decoder's learning rate per step of the second phase (table 11: 0.9996)."""
    regularize_alignment: bool = True
    """Keep the method's regularisers (TV, interlevel, distortion, coarse loss) in the second phase. Without them
    proposal and coarse networks get no gradient there; equation 3 is written without them."""
    latent_normalization: LatentNormalization = "standardize"
    """How latents are mapped to what the scene renders: per channel to mean 1/2 and standard deviation 1/4, by
    the authors' `tanh(0.02 z)`, or not at all."""

    def resolve(self) -> None:
        """Put preset and settings file into effect; once more changes nothing.

        Raises:
            InputError: the settings file cannot be read, or names a setting that does not exist.
        """
        if self.settings is not None:
            settings = with_settings(self, read_yaml(self.settings), str(self.settings))
            vars(self).update(vars(settings), settings=None)

    def schedule(self) -> TwoPhaseSchedule:
        """The two phases; raises InputError where they make no sense."""
        return TwoPhaseSchedule(
            self.latent_supervision_steps,
            self.rgb_alignment_steps,
            self.latent_supervision_lr_factor,
            self.rgb_alignment_lr_factor,
            self.decoder_lr_decay,
        )


class LatentPipeline(VanillaPipeline):
    """Trains and evaluates a scene model in the latent space of an autoencoder.

    Args:
        config: see `LatentPipelineConfig`.
        device: where scene and decoder live.
        test_mode: `val` for training, which needs the autoencoder; `test` or `inference` rebuild a finished run
            from `config.yml` and its checkpoint, and use the autoencoder, where it is in reach, for the latent
            and ceiling metrics only.
    """

    config: LatentPipelineConfig
    datamanager: LatentDataManager
    last_evaluation: Optional[Tuple[Dict[str, float], Dict[str, Tensor]]] = None
    """Metrics and pictures of the evaluation image that was looked at last."""
    autoencoder: Optional[Autoencoder]
    """E and the untouched D, or None where a finished run is used without them."""

    def __init__(
        self,
        config: LatentPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **kwargs: Any,
    ) -> None:
        del world_size, local_rank  # of no concern to a pipeline whose gradients the trainer averages
        config.resolve()
        if test_mode != "val":
            prepare_command()
        self.schedule = config.schedule()
        autoencoder = _autoencoder_for(config.autoencoder, device, test_mode)
        if autoencoder is not None:
            config.autoencoder.architecture = config.autoencoder.architecture or autoencoder.architecture
            decoder = autoencoder.make_decoder()
        else:
            decoder = decoder_from_architecture(config.autoencoder.architecture)
        latent_channels, downscale = _shape_of(config.autoencoder.architecture)
        scene_config: Any = config.model
        config.model = scene_config.resolved(config.preset, latent_channels)

        super().__init__(config, device, test_mode, **kwargs)  # datamanager and scene model
        # Neither is a module: the untouched autoencoder and LPIPS stay out of the checkpoint.
        self.autoencoder = autoencoder
        self.image_metrics = ImageMetrics()
        self.phase = self.schedule.phase(0)
        self._model = DecodedScene(
            scene=self._model,
            decoder=decoder,
            normalizer=LatentNormalizer(latent_channels, config.latent_normalization),
            architecture=config.autoencoder.architecture,
            downscale=downscale,
        ).to(device)
        self._panel = ViewerPanel(self)
        for i, element in enumerate(self._panel.elements()):
            setattr(self, f"viewer_element_{i}", element)  # Nerfstudio looks at attributes, in alphabetical order
        if test_mode == "val":
            self._enter_latent_space()

    def _enter_latent_space(self) -> None:
        """Encode the training photos and fit everything that is fixed for the scene."""
        with first_process_first():
            split = self.datamanager.encode_train_split(self.autoencoder)
        model = self.model
        latents = split.latents.float()
        model.normalizer.fit(latents)
        model.preview.fit(model.normalizer.normalize(latents))
        model.set_training_cameras(self.datamanager.train_dataset.cameras)
        model.scene.set_training_cameras(self.datamanager.train_dataset.cameras)
        colour = self.datamanager.train_dataset.background_colour
        background = self.autoencoder.encode_colour(colour).to(self.device)
        model.scene.set_background(model.normalizer.normalize(background))
        if self.datamanager.would_take_patches():
            self.datamanager.decoder_margin = self._decoder_margin()
        largest = max(self.next_batch(0, phase)[0].size for phase in Phase)
        if largest >= LARGE_STEP:
            self._check_step_fits(split, largest)

    def _decoder_margin(self) -> Optional[int]:
        """Latent pixels that patches need around them; None: the decoder looks at the whole picture.

        Raises:
            InputError: it does, and patches were asked for.
        """
        margin = receptive_margin(self.model.decoder, self.model.normalizer.mean.numel())
        if margin is not None:
            return margin
        if self.datamanager.config.alignment_patch_size:
            raise InputError(
                "the decoder looks at the whole picture, so it cannot be trained on patches; leave out "
                "--pipeline.datamanager.alignment-patch-size"
            )
        log("RGB alignment takes whole images, as this decoder looks at the whole picture.")
        return None

    def _check_step_fits(self, split: LatentSplit, count: int) -> None:
        """Try a small part of a step of `count` rays; raises InputError where the whole needs more than is free."""
        with torch.random.fork_rng():
            rays = split.rays[:1].flatten()
            rays = rays[torch.arange(0, len(rays), SHARE, device=rays.origins.device)]
            of_scene = kept_bytes(self.model, lambda: self.model.scene(rays)) * count / len(rays)
            tile = self.model.normalizer.normalize(split.latents[:1, :8, :8].float())
            of_decoder = kept_bytes(self.model, lambda: self.model.decode(tile)) * count / tile[..., 0].numel()
        # As much again goes for gradients on the way back, but not all at once.
        check_fits(1.5 * (of_scene + of_decoder), self.device, f"steps of {count} latent rays", SMALLER_STEPS)

    # Training ------------------------------------------------------------------------------------------------

    @profiler.time_function
    def get_train_loss_dict(self, step: int) -> Tuple[Dict[str, Any], Dict[str, Tensor], Dict[str, Tensor]]:
        """One step of the current phase on B images.

        Returns:
            The scene model's outputs, the losses (to be summed), and metrics.
        """
        return self._losses(*self.next_batch(step, self.phase))

    def next_batch(self, step: int, phase: Phase, split: SplitName = "train") -> Tuple[RayBundle, Dict[str, Any]]:
        """Rays and targets of a step: whole images, or what the phase takes of larger ones."""
        data = self.datamanager
        if phase is Phase.RGB_ALIGNMENT:
            if data.alignment_patch_size():
                return data.next_patches(step, split)
        elif data.random_latent_rays():
            return data.next_rays(step, split)
        return data.next_train(step) if split == "train" else data.next_eval(step)

    @profiler.time_function
    def get_eval_loss_dict(self, step: int) -> Tuple[Dict[str, Any], Dict[str, Tensor], Dict[str, Tensor]]:
        """The losses of the current phase on evaluation images."""
        self.eval()
        with torch.no_grad():
            result = self._losses(*self.next_batch(step, self.phase, "eval"))
        self.train()
        return result

    def _losses(self, rays, batch) -> Tuple[Dict[str, Any], Dict[str, Tensor], Dict[str, Tensor]]:
        scene = self.model.scene
        encoded = self.model.normalizer.normalize(batch["latent"])  # z_p, normalised
        outputs = scene(rays.flatten())  # z~_p and what the method's losses need
        target = {"latent": encoded.flatten(0, -2)}
        metrics = scene.get_metrics_dict(outputs, target)
        losses = scene.get_loss_dict(outputs, target, metrics)  # equation 2

        if self.phase is Phase.RGB_ALIGNMENT:
            rendered = outputs[scene.latent_output].view(encoded.shape)
            decoded = self.model.decode(rendered, size=batch["image"].shape[1:3])  # x~_p
            alignment = _squared_error(decoded, batch["image"], batch.get("inside"))
            del losses[scene.reconstruction_loss]
            regularizers = losses if self.config.regularize_alignment else {}
            losses = {"rgb_alignment_loss": alignment, **regularizers}  # equation 3
            metrics = {**metrics, "psnr": -10 * torch.log10(alignment.detach())}
        return outputs, losses, metrics

    def get_param_groups(self) -> Dict[str, List[Parameter]]:
        """The scene's groups under the method's own names, and `decoder`."""
        return {**self.datamanager.get_param_groups(), **self.model.get_param_groups()}

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> List[TrainingCallback]:
        """The switch of the phases, before everything else that happens in a step."""

        def enter_phase(step: int) -> None:
            phase = self.schedule.phase(step)
            if phase is not self.phase:
                log(f"Step {step}: {phase.value} begins")
            self.phase = phase
            rates = self.schedule.set_learning_rates(attributes.optimizers, step)
            self._panel.follow(step)
            switch_at = self.schedule.latent_supervision_steps
            if step % 100 == 0 or step in (switch_at - 1, switch_at):  # the curves have an edge at the switch
                writer.put_dict(name="learning_rate_in_phase", scalar_dict=rates, step=step)
                writer.put_scalar(name="Phase", scalar=phase.number, step=step)

        switch = TrainingCallback(
            where_to_run=[TrainingCallbackLocation.BEFORE_TRAIN_ITERATION],
            update_every_num_iters=1,
            func=enter_phase,
        )
        return [switch, *super().get_training_callbacks(attributes)]

    # Evaluation ----------------------------------------------------------------------------------------------

    @profiler.time_function
    def get_eval_image_metrics_and_images(self, step: int) -> Tuple[Dict[str, float], Dict[str, Tensor]]:
        """Metrics and pictures of one evaluation image."""
        self.eval()
        camera, batch = self.datamanager.next_eval_image(step)
        metrics, images = self._evaluate(camera, batch)
        self.train()
        self.last_evaluation = (metrics, images)
        return {**metrics, "num_rays": int(camera.height * camera.width)}, images

    @profiler.time_function
    def get_average_eval_image_metrics(
        self, step: Optional[int] = None, output_path: Optional[Path] = None, get_std: bool = False
    ) -> Dict[str, Any]:
        """Metrics over all evaluation images; what `ns-eval` writes.

        `psnr`, `ssim`, `lpips`: decoded render against photo. `latent_psnr`, `latent_ssim`: rendered against
        encoded latents, normalised, data range 1. `autoencoder_psnr`, `autoencoder_ssim`, `autoencoder_lpips`:
        photo through the untouched autoencoder, the ceiling. The latter two families need the autoencoder.

        Args:
            step: the training step; None when called by `ns-eval`, which also gets `per_image` by file name.
            output_path: folder for pictures.
            get_std: add `NAME_std`.

        Raises:
            InputError: the photos of a finished run are gone.
        """
        if self.datamanager.photos_missing:
            raise InputError(
                f"metrics compare renders with the photos of {self.datamanager.config.data}, which are not there; put "
                "them back"
            )
        self.eval()
        dataset = self.datamanager.eval_dataset
        per_image: Dict[str, Dict[str, float]] = {}
        loader = self.datamanager.fixed_indices_eval_dataloader
        for camera, batch in track(loader, "Evaluating", total=len(dataset), transient=True, console=CONSOLE):
            path = dataset.image_filenames[int(batch["image_idx"])]
            metrics, images = self._evaluate(camera, batch)
            per_image[_unique_name(path, per_image)] = metrics
            if output_path is not None:
                _save_images(images, output_path, path.stem)
        self.train()
        result: Dict[str, Any] = {}
        for name in next(iter(per_image.values())):
            values = torch.tensor([metrics[name] for metrics in per_image.values()], dtype=torch.float64)
            result[name] = float(values.mean())
            if get_std:
                result[f"{name}_std"] = float(values.std()) if len(values) > 1 else 0.0
        if step is None:
            result["num_images"] = len(per_image)
            result["per_image"] = per_image
        return result

    @torch.no_grad()
    def _evaluate(self, camera: Cameras, batch: Dict[str, Any]) -> Tuple[Dict[str, float], Dict[str, Tensor]]:
        """Metrics and pictures of one camera and its photo."""
        model, photo = self.model, batch["image"].to(self.device)
        photo = photo if photo.ndim == 3 else photo[0]
        view = model.render(camera)
        metrics = self.image_metrics(view.rgb, photo)
        pictures, previews = [photo, view.rgb], [model.preview(view.latent)]
        autoencoded = encoded = None
        if self.autoencoder is not None:
            latents = self.autoencoder.encode(photo.permute(2, 0, 1)[None])
            encoded = model.normalizer.normalize(latents[0].permute(1, 2, 0))
            metrics.update(self.image_metrics(view.latent, encoded, prefix="latent_"))
            autoencoded = self.autoencoder.decode(latents, size=tuple(photo.shape[:2]))[0].permute(1, 2, 0)
            metrics.update(self.image_metrics(autoencoded, photo, prefix="autoencoder_"))
            pictures.append(autoencoded)
            previews.append(model.preview(encoded))
        images = {
            "img": torch.cat(pictures, dim=1),  # photo | decoded render | photo through the autoencoder
            "latent": torch.cat(previews, dim=1),  # rendered | encoded
            "accumulation": colormaps.apply_colormap(view.accumulation),
            "depth": colormaps.apply_depth_colormap(view.depth, accumulation=view.accumulation),
            "figure": evaluation_figure(photo, view.rgb, autoencoded, view.latent, encoded),
        }
        return metrics, images

    # Checkpoints ---------------------------------------------------------------------------------------------

    def load_pipeline(self, loaded_state: Dict[str, Any], step: int) -> None:
        """Load a checkpoint's weights.

        Raises:
            InputError: the checkpoint was trained in another latent space; both are named.
        """
        saved = loaded_state.get("_model._extra_state")
        if saved is None:
            raise InputError("the checkpoint is not one of a latent NeRF; use the method that trained it")
        mine = self.model.get_extra_state()
        for what in ("latent_channels", "downscale", "autoencoder"):
            if saved[what] != mine[what]:
                name = {"autoencoder": "architecture"}.get(what, what).replace("_", " ")
                values = ("", "") if what == "autoencoder" else (f" {saved[what]}", f" {mine[what]}")
                raise InputError(
                    f"the checkpoint was trained with an autoencoder of {name}{values[0]}, which differs from that of "
                    f"'{self.config.autoencoder.name_or_path}'{values[1]}; pass the one it was trained with to "
                    "--pipeline.autoencoder.name-or-path"
                )
        self.phase = self.schedule.phase(step)
        try:
            super().load_pipeline(loaded_state, step)
        except RuntimeError as error:  # torch lists keys and shapes, one a line
            version = saved.get("version", "an earlier version")
            raise InputError(
                f"the checkpoint does not fit the model ({' '.join(str(error).split())[:200]} ...); it was written by "
                f"igae-nerfstudio {version}, and this is {__version__}: pass the model options that it was trained "
                "with, or install that version"
            ) from error
        self._panel.show_steps(step + 1)


def _autoencoder_for(config: AutoencoderConfig, device: str, test_mode: str) -> Optional[Autoencoder]:
    """The autoencoder of a run; None where a finished run can be used without it."""
    if test_mode == "inference":
        return None if config.architecture is not None else load_autoencoder(config).to(device)
    try:
        return load_autoencoder(config).to(device)
    except InputError:
        if test_mode == "val" or config.architecture is None:
            raise
        warn(
            f"The original autoencoder '{config.name_or_path}' is out of reach: latent and autoencoder "
            "metrics are left out. The fine-tuned decoder comes from the checkpoint."
        )
        return None


def _squared_error(decoded: Tensor, photos: Tensor, inside: Optional[Tensor]) -> Tensor:
    """Mean over images (B, H, W, 3); with `inside` (B, H, W, 1), where that is 1."""
    if inside is None:
        return F.mse_loss(decoded, photos)
    return (inside * (decoded - photos).square()).sum() / (3 * inside.sum()).clamp_min(1)


def _shape_of(architecture: str) -> Tuple[int, int]:
    """c and l of a saved architecture."""
    import json

    config = json.loads(architecture)
    return config["latent_channels"], downscale_of(config)


def _unique_name(path: Path, taken: Dict[str, Any]) -> str:
    """A file's name, with its folder where another file has the same name."""
    return path.name if path.name not in taken else str(Path(path.parent.name) / path.name)


def _save_images(images: Dict[str, Tensor], folder: Path, stem: str) -> None:
    from torchvision.utils import save_image

    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        save_image(image.permute(2, 0, 1).cpu(), folder / f"{stem}_{name}.png")
