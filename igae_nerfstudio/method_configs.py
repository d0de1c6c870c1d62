"""Start here: the methods that `ns-train` knows once this package is installed.

    igae-vanilla-nerf   igae-instant-ngp   igae-tensorf   igae-kplanes   igae-nerfacto   igae-splatfacto
    igae-triplanes
        scene models in the latent space of an image autoencoder (`models/`), trained in two phases
        (`pipelines/latent_pipeline.py`) on cached latents (`data/`)
    igae-kplanes-rgb
        K-Planes in RGB, which Nerfstudio lacks: the baseline of igae-kplanes

`latent_method` makes a latent method of a scene model; a further one is a model file such as
`models/nerfacto.py` and one more call. Optimisers and schedules are Nerfstudio's own for each method; the factors
xi on their rates are those of the paper's table 11.
"""

from __future__ import annotations

from typing import Any

from nerfstudio.configs.base_config import LocalWriterConfig, LoggingConfig, ViewerConfig
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.optimizers import RAdamOptimizerConfig
from nerfstudio.engine.schedulers import CosineDecaySchedulerConfig, ExponentialDecaySchedulerConfig
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification

from igae_nerfstudio.data.latent_datamanager import LatentDataManagerConfig
from igae_nerfstudio.engine.optimizers import FusedAdamOptimizerConfig
from igae_nerfstudio.engine.trainer import LatentTrainerConfig, SafeTrainerConfig
from igae_nerfstudio.models.instant_ngp import LatentInstantNGPConfig
from igae_nerfstudio.models.kplanes import KPlanesModelConfig
from igae_nerfstudio.models.latent_kplanes import LatentKPlanesConfig
from igae_nerfstudio.models.nerfacto import LatentNerfactoConfig
from igae_nerfstudio.models.splatfacto import LatentSplatfactoConfig
from igae_nerfstudio.models.tensorf import LatentTensoRFConfig
from igae_nerfstudio.models.triplanes import LatentTriPlanesConfig
from igae_nerfstudio.models.vanilla_nerf import LatentVanillaNeRFConfig
from igae_nerfstudio.pipelines.latent_pipeline import LatentPipelineConfig

Optimizers = dict[str, Any]
"""Nerfstudio's optimizer section: parameter group -> {"optimizer": config, "scheduler": config or None}."""


def latent_method(
    name: str,
    description: str,
    model: ModelConfig,
    optimizers: Optimizers,
    latent_supervision_lr_factor: float,
    rgb_alignment_lr_factor: float,
    mixed_precision: bool = False,
    images_per_batch: int = 4,
) -> MethodSpecification:
    """A Nerfstudio method that trains a scene model in latent space.

    Args:
        name: the method's name for `ns-train`.
        description: one line for `ns-train --help`.
        model: config of a `LatentModel`.
        optimizers: of the scene's parameter groups, as Nerfstudio's own method has them.
        latent_supervision_lr_factor: xi_LS on the scene's rates (paper, table 11).
        rgb_alignment_lr_factor: xi_align on the scene's rates (paper, table 11).
        mixed_precision: train in half precision on GPUs, as Nerfstudio's own method does.
        images_per_batch: B, photos of a step (paper, table 11: 4).

    Returns:
        What an entry point `nerfstudio.method_configs` of a package must be. Its `config` can also be changed with
        `dataclasses.replace` and trained from Python with `nerfstudio.scripts.train.train_loop(0, 1, config)`.
    """
    return MethodSpecification(
        config=LatentTrainerConfig(
            method_name=name,
            steps_per_save=1000,
            mixed_precision=mixed_precision,
            pipeline=LatentPipelineConfig(
                datamanager=LatentDataManagerConfig(
                    dataparser=NerfstudioDataParserConfig(), images_per_batch=images_per_batch
                ),
                model=model,
                latent_supervision_lr_factor=latent_supervision_lr_factor,
                rgb_alignment_lr_factor=rgb_alignment_lr_factor,
            ),
            # Table 11: Adam at 1e-4; its decay of 0.9996 per step is `--pipeline.decoder-lr-decay`.
            optimizers={
                **optimizers,
                "decoder": {"optimizer": FusedAdamOptimizerConfig(lr=1e-4), "scheduler": None},
            },
            viewer=ViewerConfig(num_rays_per_chunk=1 << 12),
            vis="viewer",
            # The trainer shows its own progress, which knows the phases.
            logging=LoggingConfig(local_writer=LocalWriterConfig(enable=False)),
        ),
        description=description,
    )


def fused_adam(lr: float, lr_final: float, max_steps: int, eps: float = 1e-8) -> dict[str, Any]:
    """Adam whose rate decays exponentially."""
    return {
        "optimizer": FusedAdamOptimizerConfig(lr=lr, eps=eps),
        "scheduler": ExponentialDecaySchedulerConfig(lr_final=lr_final, max_steps=max_steps),
    }


igae_vanilla_nerf = latent_method(
    "igae-vanilla-nerf",
    "NeRF in an autoencoder's latent space. (slow, and the best in quality)",
    model=LatentVanillaNeRFConfig(collider_params={"near_plane": 0.2, "far_plane": 4.0}),
    optimizers={"fields": {"optimizer": RAdamOptimizerConfig(lr=5e-4, eps=1e-8), "scheduler": None}},
    latent_supervision_lr_factor=0.1,
    rgb_alignment_lr_factor=1.0,
)

igae_instant_ngp = latent_method(
    "igae-instant-ngp",
    "Instant-NGP in an autoencoder's latent space.",
    model=LatentInstantNGPConfig(eval_num_rays_per_chunk=8192, far_plane=4.0),
    optimizers={"fields": fused_adam(1e-2, 1e-4, 200_000, eps=1e-15)},
    latent_supervision_lr_factor=0.001,
    rgb_alignment_lr_factor=0.1,
    mixed_precision=True,
)

igae_tensorf = latent_method(
    "igae-tensorf",
    "TensoRF in an autoencoder's latent space.",
    model=LatentTensoRFConfig(),
    optimizers={"fields": fused_adam(1e-3, 1e-4, 30_000), "encodings": fused_adam(2e-2, 2e-3, 30_000)},
    latent_supervision_lr_factor=0.01,
    rgb_alignment_lr_factor=0.1,
)


def kplanes_optimizers() -> Optimizers:
    """Adam at 1e-2 with a cosine decay after 512 steps of warm-up (Fridovich-Keil et al. 2023), for both groups."""
    return {
        group: {
            "optimizer": FusedAdamOptimizerConfig(lr=1e-2, eps=1e-12),
            "scheduler": CosineDecaySchedulerConfig(warm_up_end=512, max_steps=30_000),
        }
        for group in ("proposal_networks", "fields")
    }


igae_kplanes = latent_method(
    "igae-kplanes",
    "K-Planes in an autoencoder's latent space.",
    model=LatentKPlanesConfig(),
    optimizers=kplanes_optimizers(),
    latent_supervision_lr_factor=0.1,
    rgb_alignment_lr_factor=0.1,
    mixed_precision=True,
)

igae_kplanes_rgb = MethodSpecification(
    config=SafeTrainerConfig(
        method_name="igae-kplanes-rgb",
        steps_per_save=2000,
        max_num_iterations=30_000,
        mixed_precision=True,
        pipeline=VanillaPipelineConfig(
            datamanager=VanillaDataManagerConfig(
                dataparser=NerfstudioDataParserConfig(),
                train_num_rays_per_batch=4096,
                eval_num_rays_per_batch=4096,
            ),
            model=KPlanesModelConfig(),
        ),
        optimizers=kplanes_optimizers(),
        viewer=ViewerConfig(num_rays_per_chunk=1 << 12),
        vis="viewer",
    ),
    description="K-Planes in RGB: the baseline of igae-kplanes.",
)

igae_nerfacto = latent_method(
    "igae-nerfacto",
    "Nerfacto in an autoencoder's latent space.",
    model=LatentNerfactoConfig(average_init_density=0.01, far_plane=4.0),
    optimizers={name: fused_adam(1e-2, 1e-4, 200_000, eps=1e-15) for name in ("proposal_networks", "fields")},
    latent_supervision_lr_factor=0.1,  # not in the paper; the official code's factor, for both phases
    rgb_alignment_lr_factor=0.1,
    mixed_precision=True,
)

igae_splatfacto = latent_method(
    "igae-splatfacto",
    "Gaussian splatting in an autoencoder's latent space.",
    model=LatentSplatfactoConfig(),
    optimizers={  # splatfacto's
        "means": fused_adam(1.6e-4, 1.6e-6, 30_000, eps=1e-15),
        **{
            name: {"optimizer": FusedAdamOptimizerConfig(lr=lr, eps=1e-15), "scheduler": None}
            for name, lr in {
                "features_dc": 2.5e-3,
                "features_rest": 6e-4,
                "opacities": 5e-2,
                "scales": 5e-3,
                "quats": 1e-3,
            }.items()
        },
    },
    latent_supervision_lr_factor=1.0,  # not in the paper
    rgb_alignment_lr_factor=1.0,
    images_per_batch=1,  # as in splatfacto: many small steps win
)

igae_triplanes = latent_method(
    "igae-triplanes",
    "Tri-Planes in an autoencoder's latent space; also what igae-scenes exports.",
    model=LatentTriPlanesConfig(),
    optimizers={name: fused_adam(1e-2, 1e-3, 30_000) for name in ("planes", "fields")},
    latent_supervision_lr_factor=1.0,  # as in the exploitation phase of 3Da-AE
    rgb_alignment_lr_factor=0.1,
)
