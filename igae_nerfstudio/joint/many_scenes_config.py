"""Settings of `igae-scenes`, read like those of `igae-train` (`joint/config.py`).

The defaults are the reference's: the paper "Exploring 3D-aware Latent Spaces for Efficiently Learning Numerous Scenes"
and, where it is silent, its official code.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal, Optional

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.joint.config import IGAEConfig, Stage1Config, Stage2Config, WeightsConfig
from igae_nerfstudio.joint.micro_macro import MicroMacroConfig

Space = Literal["latent", "rgb"]


@dataclass
class SharingStage1Config(Stage1Config):
    """Latent supervision: rendered against encoded latents, autoencoder frozen."""

    views_per_scene: int = 1
    planes_lr: float = 1e-2
    renderer_lr: float = 1e-2
    plane_tv: float = 1e-4
    weights_lr: float = 1e-2
    """Adam's rate for each scene's weights of the shared planes, and its bias."""
    shared_lr: float = 1e-2
    """Adam's rate for the shared planes."""
    renderer_epochs: Optional[int] = 45
    """The shared feature decoder learns for so many epochs and then rests; None: to the end."""
    rays_per_view: Optional[int] = None
    """Latent pixels of each view in a step, at random; None: all. For RGB, where a view has thousands."""


@dataclass
class SharingStage2Config(Stage2Config):
    """Scenes and autoencoder, through decoded renders."""

    epochs: int = 50
    views_per_batch: int = 32
    views_per_scene: int = 1
    encoder_lr: float = 1e-4
    decoder_lr: float = 1e-4
    planes_lr: float = 1e-3
    renderer_lr: float = 1e-3
    weights_lr: float = 1e-2
    """Adam's rate for each scene's weights of the shared planes, and its bias."""
    shared_lr: float = 1e-2
    """Adam's rate for the shared planes."""


def _joint_weights() -> WeightsConfig:
    return WeightsConfig(real_autoencoding=0.0, real_perceptual=0.0, real_latent_tv=0.0)


@dataclass
class ExploitConfig:
    """New scenes, with the autoencoder and the shared part learnt before."""

    latent_supervision: SharingStage1Config = field(
        default_factory=lambda: SharingStage1Config(plane_tv=0.0, renderer_epochs=None, shared_lr=0.0)
    )
    """The first phase, as stage 1 of the joint training."""
    rgb_alignment: SharingStage2Config = field(
        default_factory=lambda: SharingStage2Config(encoder_lr=0.0, shared_lr=0.0)
    )
    """The second phase: decoded renders against views alone."""
    plane_tv: float = 0.0
    """Weight of the planes' total variation in the second phase."""
    lr_decay: float = 0.94157
    """Factor on all rates per epoch of either phase (official code)."""
    train_shared: bool = False
    """Learn all scenes in one training, and the shared planes and one decoder with them; else each scene learns alone
    beside the shared planes as they are. The rates are the phases' shared_lr."""
    fine_tuned_decoder: Literal["all", "outer", "none"] = "all"
    """What of the decoder a scene fine-tunes and keeps: all of it, its layers at the highest resolution that it works
    at inside, or nothing."""
    start: Literal["nearest", "mean", "noise"] = "mean"
    """Where a new scene starts: that scene of the joint training whose renders are nearest to the new one's latents,
    the mean of them all, or noise, as in the official code."""
    precision: Literal["half", "full"] = "half"
    """In which a scene is stored, and measured."""
    steps_per_validation: int = 0
    """Steps between measurements on held-out views, for a curve in result.json; 0: only after each phase. Their time
    is not counted as the scene's."""
    validation_views: int = 4
    """Held-out views of those measurements; after each phase all are measured."""


@dataclass
class ManyScenesConfig(IGAEConfig):
    """The joint training of many scenes, and new ones."""

    space: Space = "latent"
    """`rgb` has no autoencoder: plain Tri-Planes of colours, as the baseline."""
    micro_macro: MicroMacroConfig = field(default_factory=MicroMacroConfig)
    stage1: SharingStage1Config = field(default_factory=SharingStage1Config)
    stage2: SharingStage2Config = field(default_factory=SharingStage2Config)
    weights: WeightsConfig = field(default_factory=_joint_weights)
    exploit: ExploitConfig = field(default_factory=ExploitConfig)
    lr_decay: float = 1.0
    """Factor on all rates per epoch, from 1 at the start of each stage."""

    def check(self) -> None:
        """Raises InputError for values that make no sense."""
        super().check()
        self.micro_macro.check(self.triplanes)
        if self.space == "rgb" and self.stage2.epochs:
            raise InputError("space is rgb, which has no autoencoder for stage 2; set stage2.epochs: 0")
        for name in ("latent_supervision", "rgb_alignment"):
            phase = getattr(self.exploit, name)
            if phase.views_per_batch < 1 or phase.views_per_scene < 1 or phase.epochs < 0:
                raise InputError(f"exploit.{name} needs 1 view or more in a batch, and 0 epochs or more")
            if phase.views_per_batch % phase.views_per_scene:
                raise InputError(
                    f"exploit.{name}.views_per_batch is {phase.views_per_batch}, no multiple of "
                    f"exploit.{name}.views_per_scene ({phase.views_per_scene})"
                )
        rates = [getattr(self.exploit, name).shared_lr for name in ("latent_supervision", "rgb_alignment")]
        if self.exploit.train_shared and self.micro_macro.shared_planes and not any(rates):
            raise InputError(
                "exploit.train_shared is set, and the shared planes' rates are 0; set "
                "exploit.latent_supervision.shared_lr and exploit.rgb_alignment.shared_lr, or take "
                "configs/many_scenes/together.yaml"
            )
        for phase in (self.stage1, self.exploit.latent_supervision):
            if phase.rays_per_view is not None and phase.rays_per_view < 1:
                raise InputError(f"rays_per_view is {phase.rays_per_view}; it must be 1 or more, or none for all")


def for_new_scenes(config: ManyScenesConfig) -> ManyScenesConfig:
    """The training of new scenes as a training of its own: the phases are its stages."""
    exploit = config.exploit
    second = dataclasses.replace(exploit.rgb_alignment)
    if config.space == "rgb":
        second.epochs = 0
    if exploit.fine_tuned_decoder == "none":
        second.decoder_lr = 0.0
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, max_scenes=None),
        stage1=exploit.latent_supervision,
        stage2=second,
        weights=WeightsConfig(
            latent=0.0,
            rgb=1.0,
            scene_autoencoding=0.0,
            real_autoencoding=0.0,
            real_latent_moments=0.0,
            plane_tv=exploit.plane_tv,
        ),
        lr_decay=exploit.lr_decay,
        steps_per_figure=10**9,
    )
