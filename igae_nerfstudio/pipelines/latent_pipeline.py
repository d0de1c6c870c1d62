"""Where scene model, decoder and losses meet: latent NeRF training as in section 3.2 of the paper.

x_p --E--> z_p            photos are encoded once, the encoder is frozen
p --F_theta--> z~_p       the scene model renders latents (equation 1)
z~_p --D_psi--> x~_p      the decoder turns them into pictures

latent supervision  (eq. 2)   L_F(theta; z_p, z~_p), the method's own loss
RGB alignment       (eq. 3)   || x_p - x~_p ||^2 over theta and psi
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Callable, Literal, Sequence, Type

import torch
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
    architecture_shape,
    decoder_from_architecture,
    load_autoencoder,
    resolve_autoencoder,
)
from igae_nerfstudio.autoencoder.normalization import LatentNormalization, LatentNormalizer
from igae_nerfstudio.config_files import read_yaml, with_settings
from igae_nerfstudio.console import warn
from igae_nerfstudio.data.latent_datamanager import LatentDataManager, LatentDataManagerConfig
from igae_nerfstudio.engine.processes import first_process_first
from igae_nerfstudio.errors import InputError, one_line
from igae_nerfstudio.figures import evaluation_figure
from igae_nerfstudio.metrics import ImageMetrics, PerceptualLoss, PerceptualNetwork, common_names
from igae_nerfstudio.phases import Phase, TwoPhaseSchedule
from igae_nerfstudio.pipelines.decoded_scene import DecodedScene
from igae_nerfstudio.pipelines.viewer_panel import ViewerPanel

StepResult = tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]
"""The scene model's outputs, the losses (to be summed), and metrics."""


@dataclass
class LatentPipelineConfig(VanillaPipelineConfig):
    """A latent NeRF: autoencoder, data, scene model and the two phases."""

    _target: Type = field(default_factory=lambda: LatentPipeline)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """The latent space."""
    datamanager: LatentDataManagerConfig = field(default_factory=LatentDataManagerConfig)
    """The data."""
    preset: Literal["paper", "fast", "quick"] = "paper"
    """Size of the scene model where its own options do not say it; `fast`: no larger than latents need. `quick`: the
    same, and `ns-train` takes phases and learning rates for minutes on a CPU where you set none (`quick.yaml`)."""
    settings: Path | None = None
    """YAML file of settings of this group, such as configs/latent_nerf/official.yaml; they win over all others."""
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
    colour_head: bool = False
    """The scene renders three more channels, the photos' colours averaged over the l x l pixels of a latent pixel.
    Photos of a place agree where its latents do not, so the scene finds its geometry (not in the paper)."""
    colour_weight: float = 4.0
    """Weight of the squared error of a colour channel, in latent supervision; a latent channel has 1."""
    alignment_colour_weight: float = 1.0
    """Weight of the mean squared error of the normalised colours in RGB alignment."""
    colour_rays: int = 0
    """Each step of latent supervision also renders so many random pixels of the step's photos along the rays of the
    photos' own cameras, and compares the colour head with their colours; `colour_weight` holds for them too (not in
    the paper; after RLS-NeRF, arXiv 2310.17880)."""
    perceptual_weight: float = 0.0
    """Weight of LPIPS (AlexNet) between decoded renders and photos in RGB alignment, after its first third: the
    squared error alone teaches the decoder to blur what it is not sure of (not in the paper)."""
    latent_normalization: LatentNormalization = "standardize"
    """How latents are mapped to what the scene renders: per channel to mean 1/2 and standard deviation 1/4, by
    the authors' `tanh(0.02 z)`, or not at all."""

    def with_file(self) -> LatentPipelineConfig:
        """A copy with the settings of the file, if there is one."""
        if self.settings is None:
            return self
        return with_settings(replace(self, settings=None), read_yaml(self.settings), str(self.settings))

    def resolved(self) -> LatentPipelineConfig:
        """A copy in which the settings file, the preset and the autoencoder's architecture are filled in.

        Resolving it again changes nothing, and reads neither file nor autoencoder.

        Raises:
            InputError: the settings file or the autoencoder cannot be used.
        """
        config = self.with_file()
        autoencoder = resolve_autoencoder(config.autoencoder)
        assert autoencoder.architecture is not None
        latent_channels, _ = architecture_shape(autoencoder.architecture)
        model: Any = config.model
        channels = latent_channels + (3 if config.colour_head else 0)
        size = "paper" if config.preset == "paper" else "fast"
        return replace(config, autoencoder=autoencoder, model=model.resolved(size, channels))

    def schedule(self) -> TwoPhaseSchedule:
        """The two phases; raises InputError where they make no sense."""
        return TwoPhaseSchedule(**{item.name: getattr(self, item.name) for item in fields(TwoPhaseSchedule)})


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
    autoencoder: Autoencoder | None
    """E and the untouched D, or None where a finished run is used without them."""
    last_evaluation: tuple[dict[str, float], dict[str, Tensor]] | None = None
    """Metrics and pictures of the evaluation image that was looked at last."""

    def __init__(
        self,
        config: LatentPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **kwargs: Any,
    ) -> None:
        del world_size, local_rank  # no DistributedDataParallel: the trainer averages the gradients
        config = config.resolved()
        for name in ("colour_weight", "alignment_colour_weight", "perceptual_weight"):
            if not 0 <= getattr(config, name) < float("inf"):
                raise InputError(
                    f"--pipeline.{name.replace('_', '-')} is {getattr(config, name)}; it must be 0 or a positive number"
                )
        if config.colour_rays < 0 or (config.colour_rays and not config.colour_head):
            raise InputError(
                f"--pipeline.colour-rays is {config.colour_rays}; it must be 0 or, with --pipeline.colour-head True, a "
                "positive number"
            )
        super().__init__(config, device, test_mode, **kwargs)  # datamanager and scene model
        if config.colour_rays and self._model.renders_pictures:
            raise InputError(
                "--pipeline.colour-rays is for methods of rays; igae-splatfacto renders pictures: set it to 0"
            )
        self.schedule = config.schedule()
        # Neither is a module: the untouched autoencoder and LPIPS stay out of the checkpoint.
        self.autoencoder = _autoencoder_for(config.autoencoder, device, test_mode)
        self.image_metrics = ImageMetrics()
        self._perceptual = None if test_mode != "val" else _perceptual_loss(config.perceptual_weight, device)
        self._model = self._decoded_scene(self._model).to(device)
        if test_mode == "val":
            self._encode_photos()
        original_decoder = None if self.autoencoder is None else self.autoencoder.decode
        cameras = self.datamanager.train_dataset.cameras
        self._panel = ViewerPanel(self.model, self.schedule, cameras, original_decoder)
        for i, element in enumerate(self._panel.elements()):
            setattr(self, f"viewer_element_{i}", element)  # Nerfstudio looks at attributes, in alphabetical order

    def _decoded_scene(self, scene: Any) -> DecodedScene:
        """The scene model with a trainable copy of the decoder behind it."""
        architecture = self.config.autoencoder.architecture
        assert architecture is not None
        latent_channels, downscale = architecture_shape(architecture)
        if self.autoencoder is not None:
            decoder = self.autoencoder.make_decoder()
        else:
            decoder = decoder_from_architecture(architecture)
        normalizer = LatentNormalizer(latent_channels, self.config.latent_normalization)
        parts = (scene, decoder, normalizer, architecture, downscale, self.config.colour_head)
        # The abstract methods about losses and metrics are the pipeline's here.
        if self.test_mode == "inference" and hasattr(scene, "gauss_params"):  # ns-export, or ns-render
            from igae_nerfstudio.pipelines.exported_splats import ExportedSplats

            return ExportedSplats(self.datamanager.train_dataset.cameras, *parts)
        return DecodedScene(*parts)  # type: ignore[abstract]

    def _encode_photos(self) -> None:
        """Encode the training photos and fit everything that is fixed for the scene."""
        assert self.autoencoder is not None
        with first_process_first():
            split = self.datamanager.encode(
                self.autoencoder,
                self.schedule,
                self.config.colour_head,
                self.config.colour_rays,
                self.model.scene.renders_pictures,
            )
        model, cameras = self.model, self.datamanager.train_dataset.cameras
        latents, colours = split.sample()
        model.normalizer.fit(latents)
        if model.colour_normalizer is not None and colours is not None:
            model.colour_normalizer.fit(colours)
        model.preview.fit(model.normalizer.normalize(latents))
        model.set_training_cameras(cameras)
        model.scene.set_training_cameras(cameras)
        colour = self.datamanager.train_dataset.background_colour.to(self.device)
        model.scene.set_background(model.targets(self.autoencoder.encode_colour(colour).to(self.device), colour))

    # Training ------------------------------------------------------------------------------------------------

    @profiler.time_function
    def get_train_loss_dict(self, step: int) -> StepResult:
        """One step on B images, or on what its phase takes of larger ones (`LatentDataManager.next_train`)."""
        return self._losses(step, *self.datamanager.next_train(step))

    @profiler.time_function
    def get_eval_loss_dict(self, step: int) -> StepResult:
        """The same on evaluation images, without gradient."""
        self.eval()
        with torch.no_grad():
            result = self._losses(step, *self.datamanager.next_eval(step))
        self.train()
        return result

    def _losses(self, step: int, rays: RayBundle | Cameras, batch: dict[str, Any]) -> StepResult:
        """The losses of a step's phase on rays p, their latents z_p (..., c) and photos x_p, where these are targets.

        Equation 2 has gradients to the scene alone, equation 3 to scene and decoder.
        """
        scene = self.model.scene
        encoded = self.model.targets(batch["latent"], batch.get("colour"))  # z_p
        target = {"latent": encoded.flatten(0, -2)}
        of_rays = scene(rays.flatten() if isinstance(rays, RayBundle) else rays)
        outputs = of_latent_pixels(of_rays, len(target["latent"]))  # z~_p = F_theta(p), equation 1
        compared = weighted(outputs, target, self._weights(batch))
        if self.schedule.phase(step) is Phase.LATENT_SUPERVISION:
            metrics = scene.get_metrics_dict(outputs, target)
            losses = scene.get_loss_dict(*compared, metrics)  # equation 2
            if "pixel_colour" in batch:
                losses["pixel_loss"] = self._pixel_loss(of_rays["latent"], batch["pixel_colour"])
            return outputs, losses, metrics

        rendered = outputs["latent"].view(encoded.shape)
        latents, colours = rendered.tensor_split([self.model.latent_channels], dim=-1)
        decoded = self.model.decode(latents, size=batch["image"].shape[1:3])  # x~_p = D_psi(z~_p)
        losses = {"rgb_alignment_loss": squared_error(decoded, batch["image"], batch.get("valid_mask"))}  # equation 3
        if self.config.regularize_alignment:
            losses.update(scene.get_regularizers(*compared))
        first_third = self.schedule.latent_supervision_steps + self.schedule.rgb_alignment_steps / 3
        if self._perceptual is not None and step >= first_third:
            seen = decoded if "valid_mask" not in batch else decoded.where(batch["valid_mask"] > 0, batch["image"])
            distance = self._perceptual(*(image.permute(0, 3, 1, 2) for image in (seen, batch["image"])))
            losses["perceptual_loss"] = self.config.perceptual_weight * distance
        if self.config.colour_head:
            error = squared_error(colours, encoded[..., self.model.latent_channels :], batch.get("latent_weight"))
            losses["colour_loss"] = self.config.alignment_colour_weight * error
        return outputs, losses, {"psnr": -10 * torch.log10(losses["rgb_alignment_loss"].detach())}

    def _pixel_loss(self, rendered: Tensor, colours: Tensor) -> Tensor:
        """Of the colours (N, 3) of photo pixels, whose rays are the last N of those rendered (R, c + 3).

        It is what N rays without latents would add to equation 2, which takes the mean over c + 3 channels: a pixel's
        colour counts as much as the averaged colour of a latent pixel.
        """
        assert self.model.colour_normalizer is not None
        error = squared_error(rendered[-len(colours) :, -3:], self.model.colour_normalizer.normalize(colours))
        return self.config.colour_weight * 3 / rendered.shape[-1] * error

    def _weights(self, batch: dict[str, Any]) -> Tensor | None:
        """Weights (R, 1), (c + 3,) or (R, c + 3) of the squared errors of rays and channels; None: all are 1."""
        weights = None
        if "latent_weight" in batch:
            weights = batch["latent_weight"].reshape(-1, 1)
            weights = weights / weights.mean().clamp_min(1e-6)
        if self.config.colour_head:
            channels = torch.ones(self.model.latent_channels + 3, device=self.device)
            channels[-3:] = self.config.colour_weight
            weights = channels if weights is None else channels * weights
        return weights

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """The scene's groups under the method's own names, and `decoder`."""
        return {**self.datamanager.get_param_groups(), **self.model.get_param_groups()}

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """The rates of the step's phase, before everything else that happens in a step."""

        optimizers = attributes.optimizers
        assert optimizers is not None

        def enter_step(step: int) -> None:
            rates = self.schedule.set_learning_rates(optimizers, step)
            self._panel.follow(step)
            switch = self.schedule.latent_supervision_steps
            if step % 100 == 0 or step in (switch - 1, switch):  # the curves have an edge at the switch
                writer.put_dict(name="learning_rate_in_phase", scalar_dict=rates, step=step)
                writer.put_scalar(name="Phase", scalar=self.schedule.phase(step).number, step=step)

        before = TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], enter_step, 1)
        return [before, *super().get_training_callbacks(attributes)]

    # Evaluation ----------------------------------------------------------------------------------------------

    @profiler.time_function
    def get_eval_image_metrics_and_images(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Metrics and pictures of one evaluation image; without `lpips_vgg`, which takes long on a CPU."""
        self.eval()
        camera, batch = self.datamanager.next_eval_image(step)
        metrics, images = self._evaluate(camera, batch)
        self.train()
        self.last_evaluation = (metrics, images)
        return {**metrics, "num_rays": int(camera.height * camera.width)}, images

    @profiler.time_function
    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, Any]:
        """Metrics over all evaluation images; what `ns-eval` writes.

        `psnr`, `ssim`, `lpips` (AlexNet), `lpips_vgg`: decoded render against photo, where that is a target (masks).
        `latent_psnr`, `latent_ssim`: rendered against encoded latents, normalised, data range 1. `autoencoder_psnr`,
        `autoencoder_ssim`, `autoencoder_lpips`, `autoencoder_lpips_vgg`: photo through the untouched autoencoder, the
        ceiling. The latter two families need the autoencoder.

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
        per_image: dict[str, dict[str, float]] = {}
        loader = self.datamanager.fixed_indices_eval_dataloader
        dataset = loader.input_dataset
        for camera, batch in track(loader, "Evaluating", total=len(dataset), transient=True, console=CONSOLE):
            path = dataset.image_filenames[int(batch["image_idx"])]
            metrics, images = self._evaluate(camera, batch, networks=("alex", "vgg"))
            per_image[_unique_name(path, per_image)] = metrics
            if output_path is not None:
                _save_images(images, output_path, path.stem)
        self.train()
        result: dict[str, Any] = {}
        for name in common_names(list(per_image.values())):
            values = torch.tensor([metrics[name] for metrics in per_image.values()], dtype=torch.float64)
            result[name] = float(values.mean())
            if get_std:
                result[f"{name}_std"] = float(values.std()) if len(values) > 1 else 0.0
        if step is None:
            result["num_images"] = len(per_image)
            result["per_image"] = per_image
        return result

    @torch.no_grad()
    def _evaluate(
        self, camera: Cameras, batch: dict[str, Any], networks: Sequence[PerceptualNetwork] = ("alex",)
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Metrics and pictures of one camera and its photo."""
        model, photo = self.model, batch["image"].to(self.device)
        photo = photo if photo.ndim == 3 else photo[0]
        mask = batch["mask"].to(self.device) if "mask" in batch else None
        view = model.render(camera)
        metrics = self.image_metrics(view.rgb, photo, mask=mask, networks=networks)
        pictures, previews = [photo, view.rgb], [model.preview(view.latent)]
        autoencoded = encoded = None
        if self.autoencoder is not None:
            latents = self.autoencoder.encode(photo.permute(2, 0, 1)[None])
            encoded = model.normalizer.normalize(latents[0].permute(1, 2, 0))
            metrics.update(self.image_metrics(view.latent, encoded, prefix="latent_"))
            autoencoded = self.autoencoder.decode(latents, size=tuple(photo.shape[:2]))[0].permute(1, 2, 0)
            metrics.update(self.image_metrics(autoencoded, photo, "autoencoder_", mask, networks))
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

    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """Load a checkpoint's weights.

        Raises:
            InputError: the checkpoint was trained in another latent space, or with other model options.
        """
        saved = loaded_state.get("_model._extra_state")
        if saved is None:
            raise InputError("the checkpoint is not one of a latent NeRF; use the method that trained it")
        mine = self.model.get_extra_state()
        if saved.get("colour_head", False) != self.config.colour_head:
            raise InputError(
                f"the checkpoint was trained {'with' if saved.get('colour_head') else 'without'} a colour head; set "
                f"--pipeline.colour-head {bool(saved.get('colour_head'))}"
            )
        for name in ("latent_channels", "downscale", "autoencoder"):
            if saved[name] != mine[name]:
                differs = "another architecture" if name == "autoencoder" else f"{saved[name]} {name.replace('_', ' ')}"
                raise InputError(
                    f"the checkpoint was trained with an autoencoder of {differs}, unlike "
                    f"'{self.config.autoencoder.name_or_path}'; pass the one it was trained with to "
                    "--pipeline.autoencoder.name-or-path"
                )
        try:
            super().load_pipeline(loaded_state, step)
        except RuntimeError as error:  # torch lists keys and shapes, one a line
            raise InputError(
                f"the checkpoint does not fit the model ({one_line(error)[:200]} ...); igae-nerfstudio "
                f"{saved.get('version', 'of an earlier version')} wrote it, and this is {__version__}: pass the model "
                "options that it was trained with, or install that version"
            ) from error
        self._panel.show_steps(step + 1)


def _autoencoder_for(config: AutoencoderConfig, device: str, test_mode: str) -> Autoencoder | None:
    """The autoencoder of a run; None where a finished run can be used without it."""
    if test_mode == "inference":
        return None
    try:
        return load_autoencoder(config).to(device)
    except InputError:
        if test_mode == "val":
            raise
        warn(
            f"The original autoencoder '{config.name_or_path}' is out of reach: latent and autoencoder "
            "metrics are left out. The fine-tuned decoder comes from the checkpoint."
        )
        return None


def _perceptual_loss(weight: float, device: str) -> Callable[[Tensor, Tensor], Tensor] | None:
    """LPIPS, as a function so that it is no part of a checkpoint; None: not wanted, or its weights are out of reach."""
    if weight == 0:
        return None
    try:
        return PerceptualLoss().to(device).forward
    except InputError as error:
        warn(f"--pipeline.perceptual-weight {weight} has no effect: {error}")
        return None


def of_latent_pixels(of_rays: dict[str, Any], count: int) -> dict[str, Any]:
    """The outputs, and of those whose names begin with `latent` the first `count` rays, those of latent pixels."""
    return {name: value[:count] if name.startswith("latent") else value for name, value in of_rays.items()}


def weighted(
    outputs: dict[str, Any], target: dict[str, Tensor], weight: Tensor | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Renders and targets whose squared error is the weighted one: w (y - z)^2 is that of sqrt(w) y and sqrt(w) z.

    Args:
        outputs: of the scene model; its latents have names that begin with `latent`.
        target: {"latent": (R, c)}.
        weight: (R, 1), (c,) or (R, c), not negative; None: 1.
    """
    if weight is None:
        return outputs, target
    root = weight.sqrt()
    scaled = {name: root * value for name, value in outputs.items() if name.startswith("latent")}
    return {**outputs, **scaled}, {"latent": root * target["latent"]}


def squared_error(decoded: Tensor, photos: Tensor, valid_mask: Tensor | None = None) -> Tensor:
    """Equation 3: the mean over images (B, H, W, 3), or weighted with a mask (B, H, W, 1)."""
    error = (decoded - photos).square()
    if valid_mask is None:
        return error.mean()
    return (valid_mask * error).sum() / (3 * valid_mask.sum()).clamp_min(1)


def _unique_name(path: Path, taken: dict[str, Any]) -> str:
    """A file's name, with its folder where another file has the same name."""
    return path.name if path.name not in taken else str(Path(path.parent.name) / path.name)


def _save_images(images: dict[str, Tensor], folder: Path, stem: str) -> None:
    from torchvision.utils import save_image

    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        save_image(image.permute(2, 0, 1).cpu(), folder / f"{stem}_{name}.png")
