"""Joint training of many scenes in one latent space (3Da-AE), on the trainer of the IG-AE flow.

    stage 1    E and D frozen, latents of all views encoded once; shared planes, the scenes' records and the
               renderer learn them
    stage 2    everything together: latent + RGB + 0.1 autoencoding + total variation of the fused planes

What differs from `joint/trainer.py` is what planes are made of: the store holds each scene's record on disk, with
sparse Adam; the shared planes B are ordinary parameters. A step reads and writes the records of its batch alone, so
further scenes add disk and neither memory nor time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from igae_nerfstudio.autoencoder.identity import IdentityAutoencoder
from igae_nerfstudio.console import log
from igae_nerfstudio.files import write_atomically
from igae_nerfstudio.joint.export import export_autoencoder
from igae_nerfstudio.joint.many_scenes_config import ManyScenesConfig
from igae_nerfstudio.joint.micro_macro import MicroMacroPlanes
from igae_nerfstudio.joint.results import SharedPart, write_scene
from igae_nerfstudio.joint.trainer import IGAETrainer


class ManyScenesTrainer(IGAETrainer):
    """Both stages, checkpoints and the result; see `IGAETrainer`.

    The result in `output_dir`: `autoencoder/` (latent scenes), `shared.pt` (`results.SharedPart`) and
    `scenes/NAME/scene.pt` of every training scene.
    """

    STAGES = {1: "Stage 1: scenes and what they share", 2: "Stage 2: those and the autoencoder"}

    FREE_SETTINGS = (*IGAETrainer.FREE_SETTINGS, "exploit.")

    config: ManyScenesConfig
    shared: MicroMacroPlanes

    def make_autoencoder(self) -> Tuple[nn.Module, str]:
        if self.config.space == "rgb":
            return IdentityAutoencoder().to(self.device), "rgb00000"
        return super().make_autoencoder()

    # What a scene's planes are made of -----------------------------------------------------------------------

    def make_shared(self) -> None:
        self.shared = MicroMacroPlanes(self.config.triplanes, self.config.micro_macro).to(self.device)
        self.shared.reset_shared(torch.Generator().manual_seed(self.config.seed))

    def own_shape(self) -> Tuple[int, ...]:
        return (self.shared.record_numbers,)

    def initial_own(self, generator: torch.Generator) -> Tensor:
        return self.shared.initial_record(generator)

    def planes_of(self, own: Tensor) -> Tensor:
        return self.shared(own)

    def own_rates(self) -> Tensor:
        settings: Any = self.settings
        return self.shared.rates(settings.planes_lr, settings.weights_lr).to(self.device)

    def shared_groups(self) -> List[Dict[str, Any]]:
        if not self.shared.count:
            return []
        settings: Any = self.settings
        return [{"name": "shared", "params": list(self.shared.parameters()), "lr": settings.shared_lr}]

    def rate(self, group: Dict[str, Any], factor: float, epoch: int) -> float:
        rests = self.config.stage1.renderer_epochs
        if self.stage == 1 and group["name"] == "renderer" and rests is not None and epoch >= rests:
            return 0.0
        return super().rate(group, factor, epoch)

    def some_pixels(self, count: int) -> Optional[Tensor]:
        number = self.config.stage1.rays_per_view
        if self.stage == 2 or number is None or number >= count or not self.renderer.training:
            return None
        return torch.randperm(count)[:number]

    def modules(self) -> Dict[str, nn.Module]:
        return {**super().modules(), "shared": self.shared}

    # The result ----------------------------------------------------------------------------------------------

    def shared_part(self) -> SharedPart:
        """What the scenes share, as it is now; a new scene starts at the mean of theirs."""
        total = torch.zeros(self.own_shape(), dtype=torch.float64)
        for scene in range(len(self.planes)):
            total += self.planes.load([scene])[0]
        return SharedPart(
            config=self.config,
            latent_channels=self.autoencoder.latent_channels,
            downscale=self.downscale,
            planes=self.shared,
            renderer=self.renderer,
            normalizer=self.normalizer,
            preview=self.preview,
            mean_record=(total / len(self.planes)).float(),
            background=tuple(self.views.background),
            scenes=list(self.views.names),
        )

    def export(self, folder: Path) -> None:
        figures = self.validate()
        if self.config.space == "latent":
            export_autoencoder(folder, self.autoencoder.module, self.config, self.source, self.views, figures)
        part = self.shared_part()
        part.save(self.output_dir)
        for scene, name in enumerate(self.views.names):
            own = self.planes.load([scene])[0]
            write_scene(self.output_dir / "scenes" / name, name, own, self.output_dir, part)
        facts = {
            "scenes": self.views.names,
            "psnr": figures,
            "bytes_shared": part.bytes_shared,
            "bytes_per_scene": part.bytes_of_record,
        }
        text = json.dumps(facts, indent=1) + "\n"
        write_atomically(self.output_dir / "training.json", lambda file: file.write(text.encode()))
        log(f"{self.views.num_scenes} scenes and what they share are in {self.output_dir}: pass it to --shared")
