"""A trained prior as files.

OUT/prior.pt       settings, encoder, decoder, mean scene and renderer in half precision, and z of the training scenes
OUT/prior.json     what it was trained on, for readers
OUT/shared.pt      mean scene and renderer as a basis of plain planes, for `igae scenes fit`; where z makes planes
OUT/autoencoder/   diffusers' format, unless it is one that the package carries
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from igae_nerfstudio import __version__
from igae_nerfstudio.autoencoder.autoencoder import Autoencoder, load_autoencoder
from igae_nerfstudio.autoencoder.trainable import TrainableAutoencoder
from igae_nerfstudio.config_files import to_plain, with_settings
from igae_nerfstudio.errors import InputError, one_line
from igae_nerfstudio.files import write_atomically
from igae_nerfstudio.joint.config import ManyScenesConfig
from igae_nerfstudio.joint.model import JointModel
from igae_nerfstudio.joint.results import FORMAT, MODULES, SharedBasis, read_checkpoint, write_json
from igae_nerfstudio.joint.scene_parameters import MicroMacroConfig
from igae_nerfstudio.prior.config import PriorConfig
from igae_nerfstudio.prior.model import ScenePrior, prior_model, scenes_of

PRIOR_FILE = "prior.pt"
BUNDLED_PRIOR = Path(__file__).parent / "bundled"
"""The prior that comes with the package; `--prior bundled`."""
PASS_PRIOR = "pass the --output-dir of a finished `igae prior train` as --prior, or `bundled`"


@dataclass
class SavedPrior:
    """A trained prior with its autoencoder."""

    config: PriorConfig
    model: JointModel
    codes: Tensor
    """Posterior means (N, M, D) of the training scenes."""
    autoencoder: str
    """The name of one that the package carries; empty: the folder `autoencoder`."""
    facts: dict[str, Any]
    """`scenes`, names of the training scenes; `views`; `distance`, the median of their first cameras' from the origin;
    `steps` of the second stage."""
    folder: Path

    @property
    def scenes(self) -> ScenePrior:
        """Encoder and decoder."""
        return scenes_of(self.model)

    @property
    def bytes_stored(self) -> int:
        """Of `prior.pt`."""
        return (self.folder / PRIOR_FILE).stat().st_size

    def save(self) -> None:
        """Write all files; raises OSError where that is not possible."""
        source = Autoencoder(self.model.autoencoder.module)
        parts = {name: self.model.get_submodule(part).state_dict() for name, part in MODULES.items()}
        content: dict[str, Any] = {
            "format": FORMAT,
            "config": to_plain(self.config),
            "parts": {name: {key: value.half().cpu() for key, value in part.items()} for name, part in parts.items()},
            "codes": self.codes.half().cpu(),
            "background": list(self.model.background),
            "autoencoder": self.autoencoder,
            "encoder_hash": source.encoder_hash,
            "facts": self.facts,
        }
        for exact in ("normalizer", "preview"):
            content["parts"][exact] = {key: value.cpu() for key, value in parts[exact].items()}
        write_atomically(self.folder / PRIOR_FILE, lambda file: torch.save(content, file))
        if self.config.network.conditioning == "planes":
            self.basis().save()
        facts = {"igae_nerfstudio": __version__, "autoencoder": self.autoencoder or "autoencoder", **self.facts}
        write_json(self.folder / "prior.json", {**facts, "config": to_plain(self.config)})

    def basis(self) -> SharedBasis:
        """The mean scene and the renderer as what plain scenes start from."""
        config, mean = self.config, self.scenes.mean
        assert mean is not None, "only a prior of planes is a basis"
        settings = ManyScenesConfig(
            data=config.data,
            triplanes=config.triplanes,
            micro_macro=MicroMacroConfig(shared_planes=0),
            latent_normalization=config.latent_normalization,
            seed=config.seed,
        )
        settings.fit.start = "prior"
        states: Any = {name: self.model.get_submodule(part).state_dict() for name, part in MODULES.items()}
        states["planes"] = {}
        source = self.model.autoencoder
        return SharedBasis(
            settings,
            source.latent_channels,
            source.downscale,
            **states,
            mean_record=mean.detach().flatten().cpu(),
            background=self.model.background,
            scenes=[],
            folder=self.folder,
            autoencoder=self.autoencoder,
        )

    @classmethod
    def load(cls, folder: Path | str) -> SavedPrior:
        """Read a prior; `bundled` is the package's own.

        Raises:
            InputError: a file is missing, cut short, of other shapes, or of another autoencoder.
        """
        folder = BUNDLED_PRIOR if str(folder) == "bundled" else Path(folder)
        path = folder / PRIOR_FILE
        content = read_checkpoint(path, PASS_PRIOR)
        try:
            config = with_settings(PriorConfig(), content["config"], str(path))
            name, wanted = content["autoencoder"], content["encoder_hash"]
            parts, codes, facts = content["parts"], content["codes"].float(), content["facts"]
            background = content["background"]
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} holds no prior ({one_line(error)}); {PASS_PRIOR}") from error
        source = load_autoencoder(name or (folder / "autoencoder").resolve())
        if source.encoder_hash != wanted:
            raise InputError(
                f"the prior {folder} learnt from latents of the autoencoder {wanted[:8]}, and "
                f"{name or 'the one beside it'} is {source.encoder_hash[:8]}; put that one back, or train a new prior"
            )
        model = prior_model(config, TrainableAutoencoder(source), background)
        try:
            for part, where in MODULES.items():
                model.get_submodule(where).load_state_dict(parts[part])
            places = (config.network.anchors**3, config.network.dimensions)
            if codes.shape[1:] != places:
                raise ValueError(f"z is {tuple(codes.shape[1:])} and not {places}")
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{path} does not fit its own settings of network or triplanes ({one_line(error)[:200]}); {PASS_PRIOR}"
            ) from error
        return cls(config, model.eval().requires_grad_(False), codes, name, facts, folder)

    def draw(self, count: int, generator: torch.Generator, standard: bool = False) -> Tensor:
        """New z (count, M, D): of a Gaussian with mean and covariance of the training scenes' posterior means (what a
        prior that was learnt afterwards would begin with), or, `standard`, of N(0, I).

        Raises:
            InputError: the prior is deterministic, or has one training scene.
        """
        if self.config.network.deterministic:
            raise InputError(f"the prior {self.folder} is deterministic and has no new scenes; train without that")
        if standard:
            return torch.randn(count, *self.codes.shape[1:], generator=generator)
        scenes = len(self.codes)
        if scenes < 2:
            raise InputError(f"the prior {self.folder} learnt from one scene; pass --standard")
        mean = self.codes.mean(dim=0)
        shares = torch.randn(count, scenes, generator=generator) / math.sqrt(scenes - 1)
        return mean + torch.einsum("nk,kmd->nmd", shares, self.codes - mean)
