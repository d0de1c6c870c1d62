"""Settings of the joint trainer: of an IG-AE (`igae-train`), and of many scenes that share a basis (`igae-scenes`).

The defaults are those of the papers: table 10 of "Bringing NeRFs to the Latent Space: Inverse Graphics Autoencoder",
and "Exploring 3D-aware Latent Spaces for Efficiently Learning Numerous Scenes" with its official code where that paper
is silent. YAML files and command lines hold what differs (`config_files.py`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from igae_nerfstudio.autoencoder.equivariance import Transforms
from igae_nerfstudio.autoencoder.normalization import LatentNormalization
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.joint.scene_parameters import MicroMacroConfig
from igae_nerfstudio.rendering.triplanes import TriPlaneConfig


@dataclass
class DataConfig:
    """Scenes and images to train on."""

    view_size: int = 128
    """Side of views and of crops of real images, pixels."""
    max_scenes: int | None = None
    """Take the first scenes only; None: all (paper: 500)."""
    max_views: int | None = None
    """Take so many training views of each scene, evenly over its list; None: all (paper: 300)."""
    hold_out_every: int | None = 20
    """Every so many-th real image is kept for validation; None: none is."""


@dataclass
class Stage1Config:
    """Tri-Planes on the latents of the autoencoder as it is (paper, section 4.2: before training)."""

    epochs: int = 50
    """Passes over all views (table 10: 50)."""
    views_per_batch: int = 32
    """Views of a step, over all processes."""
    views_per_scene: int = 4
    """Views of one scene in a step; a step has views_per_batch / views_per_scene scenes."""
    planes_lr: float = 1e-3
    """Adam's rate for the planes."""
    renderer_lr: float = 1e-3
    """Adam's rate for the shared feature decoder."""
    plane_tv: float = 1e-5
    """Weight of the planes' total variation."""


@dataclass
class Stage2Config:
    """Everything together (paper, equation 12)."""

    epochs: int = 75
    """Passes over all views (table 10: 75)."""
    views_per_batch: int = 12
    """Scene views of a step, over all processes (table 10: 12)."""
    views_per_scene: int = 3
    """Views of one scene in a step."""
    real_per_batch: int = 3
    """Real images of a step, over all processes (table 10: 3)."""
    latent_rescaling: float | None = None
    """Before the stage begins, scale each direction of the latent space by the share of its variance that the
    Tri-Planes explain, at least by this (`joint/latent_basis.py`); None: leave it, as in the paper."""
    encoder_lr: float = 5e-5
    """Adam's rate for E (table 10: 5e-5)."""
    decoder_lr: float = 5e-5
    """Adam's rate for D (table 10: 5e-5)."""
    convolutions_lr: float | None = None
    """Learning rate of Muon (`autoencoder/muon.py`) for the autoencoder's convolutions; None: they learn with Adam, as
    in the paper. Much faster where there is little time."""
    planes_lr: float = 1e-4
    """Adam's rate for the planes (table 10: 1e-4)."""
    renderer_lr: float = 1e-4
    """Adam's rate for the shared feature decoder (table 10: 1e-4)."""


@dataclass
class WeightsConfig:
    """The lambdas of equations 8, 10 and 11 (table 10); 0 switches a term off."""

    latent: float = 1.0
    """L_latent: encoded against rendered latents, to encoder and planes (equation 6)."""
    rgb: float = 1.0
    """L_RGB: decoded renders against views, to decoder and planes (equation 7)."""
    scene_autoencoding: float = 0.1
    """L_ae (synth): views through the autoencoder (equation 9)."""
    real_autoencoding: float = 0.1
    """L_ae (real): the whole of equation 10."""
    real_perceptual: float = 0.1
    """LPIPS within equation 10."""
    real_latent_tv: float = 1e-4
    """Total variation of real images' latents, (p, q) = (2, 1), within equation 10."""
    real_latent_moments: float = 0.0
    """Keeps mean and standard deviation of each latent channel on real images as they were, in units of that standard
    deviation. Not in the paper; without it, the encoder lowers L_latent most easily by shrinking all latents."""
    plane_tv: float = 1e-4
    """Total variation of the planes, (p, q) = (2, 2)."""
    equivariance_picture: float = 0.0
    """D(T E(x)) against T x, of views and real images x moved by random `transforms` T. Not in the paper."""
    equivariance_latent: float = 0.0
    """E(T x) against T E(x), both normalised. Not in the paper."""


@dataclass
class TrainingConfig:
    """What every training of scenes in stages has (`joint/trainer.py`)."""

    data: DataConfig = field(default_factory=DataConfig)
    triplanes: TriPlaneConfig = field(default_factory=TriPlaneConfig)
    lr_decay: float = 0.988
    """Factor on all rates per epoch, from 1 at the start of each stage (table 10: 0.988)."""
    latent_normalization: LatentNormalization = "standardize"
    """How latents are scaled before they are compared: per channel to mean 1/2 and standard deviation 1/4, by the
    authors' `tanh(0.02 z)`, or not at all. Table 10's weights belong to tanh (paper.yaml); with the others L_latent is
    a thousand times larger, and needs a small weight (cpu.yaml)."""
    mixed_precision: bool = True
    """bfloat16 on GPUs that have it."""
    seed: int = 0
    """Of everything random."""
    minutes_per_checkpoint: float = 10.0
    """Minutes between checkpoints; there is also one at the end of each stage."""
    steps_per_log: int = 20
    """Steps between lines of metrics.jsonl."""
    steps_per_figure: int = 1000
    """Steps between figures and validations."""


@dataclass
class IGAEConfig(TrainingConfig):
    """One IG-AE training."""

    stage1: Stage1Config = field(default_factory=Stage1Config)
    stage2: Stage2Config = field(default_factory=Stage2Config)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    transforms: Transforms = field(default_factory=Transforms)
    sample_posterior: bool = False
    """Draw latents from a variational encoder's posterior instead of taking its mean."""

    def check(self) -> None:
        """Raises InputError for values that make no sense."""
        check_stage("stage1", self.stage1)
        check_stage("stage2", self.stage2)
        rescaling = self.stage2.latent_rescaling
        if rescaling is not None and not 0 < rescaling <= 1:
            raise InputError(f"stage2.latent_rescaling is {rescaling}; it must be above 0 and at most 1")
        for key, value in vars(self.weights).items():
            if not 0 <= value < float("inf"):
                raise InputError(f"weights.{key} is {value}; it must be 0 or a positive number")


def check_stage(name: str, stage: Stage1Config | Stage2Config) -> None:
    """Raises InputError for numbers of views that make no batches."""
    if stage.views_per_batch < 1 or stage.views_per_scene < 1 or stage.epochs < 0:
        raise InputError(f"{name} needs 1 view or more in a batch and of a scene, and 0 epochs or more")
    if stage.views_per_batch % stage.views_per_scene:
        raise InputError(
            f"{name}.views_per_batch is {stage.views_per_batch}, no multiple of {name}.views_per_scene "
            f"({stage.views_per_scene})"
        )


# --- Many scenes ---


@dataclass
class SharedStage1Config(Stage1Config):
    """Latent supervision: rendered against encoded latents, autoencoder frozen."""

    views_per_scene: int = 1
    planes_lr: float = 1e-2
    renderer_lr: float = 1e-2
    plane_tv: float = 1e-4
    weights_lr: float = 1e-2
    """Adam's rate for each scene's weights of the shared planes, and its bias."""
    shared_lr: float = 1e-2
    """Adam's rate for the shared planes."""
    renderer_epochs: int | None = 45
    """The shared feature decoder learns for so many epochs and then rests; None: to the end."""
    rays_per_view: int | None = None
    """Latent pixels of each view in a step, at random; None: all. For RGB, where a view has thousands."""


@dataclass
class SharedStage2Config(Stage2Config):
    """Scenes and autoencoder, through decoded renders."""

    epochs: int = 50
    views_per_batch: int = 32
    views_per_scene: int = 1
    encoder_lr: float = 1e-4
    decoder_lr: float = 1e-4
    planes_lr: float = 1e-3
    renderer_lr: float = 1e-3
    weights_lr: float = 1e-2
    """As in stage 1."""
    shared_lr: float = 1e-2
    """As in stage 1."""


@dataclass
class FitConfig:
    """New scenes, with the autoencoder and the shared basis learnt before (the paper's "exploitation")."""

    latent_supervision: SharedStage1Config = field(
        default_factory=lambda: SharedStage1Config(plane_tv=0.0, renderer_epochs=None, shared_lr=0.0)
    )
    """The first phase, as stage 1 of the joint training."""
    rgb_alignment: SharedStage2Config = field(default_factory=lambda: SharedStage2Config(encoder_lr=0.0, shared_lr=0.0))
    """The second phase: decoded renders against views alone."""
    plane_tv: float = 0.0
    """Weight of the planes' total variation in the second phase."""
    lr_decay: float = 0.94157
    """Factor on all rates per epoch of either phase (official code)."""
    train_shared: bool = False
    """Fit all scenes in one training, and the shared planes and one decoder with them; else each scene is fitted alone
    beside the frozen basis. The rates are the phases' shared_lr."""
    fine_tuned_decoder: Literal["all", "outer", "none"] = "all"
    """What a scene fine-tunes and stores of the decoder: all of it, only the layers at its highest internal resolution,
    or nothing."""
    start: Literal["nearest", "mean", "noise", "prior"] = "mean"
    """Where a new scene starts: the training scene whose renders are nearest to the new one's latents, the mean of all
    training scenes, noise, as in the official code, or what a prior makes of a few of its views, where --shared is the
    result of `igae prior train`."""
    precision: Literal["half", "full"] = "half"
    """Precision of the stored scene, with which it is also measured."""
    steps_per_validation: int = 0
    """Steps between measurements on held-out views, for a curve in result.json; 0: only after each phase. Their time
    is not counted as the scene's."""
    validation_views: int = 4
    """Held-out views of those measurements; after each phase all are measured."""


@dataclass
class ManyScenesConfig(IGAEConfig):
    """The joint training of many scenes, and the fitting of new ones."""

    space: Literal["latent", "rgb"] = "latent"
    """`rgb` has no autoencoder: Tri-Planes of colours, as the baseline."""
    micro_macro: MicroMacroConfig = field(default_factory=MicroMacroConfig)
    stage1: SharedStage1Config = field(default_factory=SharedStage1Config)
    stage2: SharedStage2Config = field(default_factory=SharedStage2Config)
    weights: WeightsConfig = field(
        default_factory=lambda: WeightsConfig(real_autoencoding=0.0, real_perceptual=0.0, real_latent_tv=0.0)
    )
    fit: FitConfig = field(default_factory=FitConfig)
    lr_decay: float = 1.0
    """Factor on all rates per epoch, from 1 at the start of each stage."""

    def check(self) -> None:
        """Raises InputError for values that make no sense."""
        super().check()
        self.micro_macro.check(self.triplanes)
        fit = self.fit
        check_stage("fit.latent_supervision", fit.latent_supervision)
        check_stage("fit.rgb_alignment", fit.rgb_alignment)
        if self.space == "rgb" and self.stage2.epochs:
            raise InputError("space is rgb, which has no autoencoder for stage 2; set stage2.epochs: 0")
        rates = (fit.latent_supervision.shared_lr, fit.rgb_alignment.shared_lr)
        if fit.train_shared and self.micro_macro.shared_planes and not any(rates):
            raise InputError(
                "fit.train_shared is set, and the shared planes' rates are 0; set fit.latent_supervision.shared_lr and "
                "fit.rgb_alignment.shared_lr, or take configs/many_scenes/together.yaml"
            )

    def for_new_scenes(self) -> ManyScenesConfig:
        """The fitting of new scenes as a training of its own: its phases are the stages."""
        fit = self.fit
        second = dataclasses.replace(fit.rgb_alignment)
        if self.space == "rgb":
            second.epochs = 0
        if fit.fine_tuned_decoder == "none":
            second.decoder_lr = 0.0
        rgb_alone = WeightsConfig(
            latent=0.0, rgb=1.0, scene_autoencoding=0.0, real_autoencoding=0.0, plane_tv=fit.plane_tv
        )
        return dataclasses.replace(
            self,
            data=dataclasses.replace(self.data, max_scenes=None),
            stage1=fit.latent_supervision,
            stage2=second,
            weights=rgb_alone,
            lr_decay=fit.lr_decay,
        )
