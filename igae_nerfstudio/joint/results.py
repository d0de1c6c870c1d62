"""What a training of many scenes leaves, as files that load with `weights_only=True`.

SHARED/autoencoder/              diffusers' format (latent scenes)
SHARED/shared.pt                 shared basis, renderer, normalisation, background, settings
OUT/scenes/NAME/scene.pt         a scene's code and what it fine-tuned, with the way to SHARED
OUT/scenes/NAME/result.json      its numbers; written last, so a scene is done if and only if it is there
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Iterator, Mapping

import torch
from torch import Tensor

from igae_nerfstudio.autoencoder.autoencoder import load_autoencoder
from igae_nerfstudio.autoencoder.trainable import IdentityAutoencoder, TrainableAutoencoder
from igae_nerfstudio.config_files import to_plain, with_settings
from igae_nerfstudio.errors import InputError, one_line
from igae_nerfstudio.files import write_atomically
from igae_nerfstudio.joint.config import ManyScenesConfig
from igae_nerfstudio.joint.model import JointModel
from igae_nerfstudio.joint.scene_parameters import scene_parameters
from igae_nerfstudio.scenes.plane_store import PlaneStore
from igae_nerfstudio.scenes.scene_views import ViewCameras

FORMAT = 1
"""Raised when older files can no longer be read."""

SHARED_FILE, SCENE_FILE, RESULT_FILE = "shared.pt", "scene.pt", "result.json"
MODULES = {"planes": "shared", "renderer": "renderer", "normalizer": "normalizer", "preview": "preview"}
"""Entries of `shared.pt` that are states of parts of a `JointModel`."""
RAYS_AT_ONCE = 8192
"""Rays rendered in one go where nothing is learnt."""
PASS_SHARED = "pass the --output-dir of a finished `igae-scenes train` as --shared"


@dataclass
class SharedBasis:
    """What the scenes of a training share, and what a new one starts from: the content of `shared.pt`."""

    config: ManyScenesConfig
    latent_channels: int
    """c; 3 for RGB."""
    downscale: int
    """l; 1 for RGB."""
    planes: dict[str, Tensor]
    """State of the shared basis B, in half precision in the file; empty for plain planes."""
    renderer: dict[str, Tensor]
    """State of the renderer, with the latent background."""
    normalizer: dict[str, Tensor]
    preview: dict[str, Tensor]
    mean_record: Tensor
    """(L,), the mean of the training scenes' codes."""
    background: tuple[float, ...]
    """RGB in [0, 1] behind the scenes."""
    scenes: list[str]
    """Names of the training scenes."""
    folder: Path
    """Where it is, beside the autoencoder."""
    autoencoder: str = ""
    """The name of one that the package carries and that took no part in the training; empty: the one beside it."""

    @classmethod
    def of(
        cls, model: JointModel, config: ManyScenesConfig, codes: PlaneStore, scenes: list[str], folder: Path
    ) -> SharedBasis:
        """What trained scenes share, for a folder; a new scene starts at the mean of their codes."""
        total = torch.zeros(model.shared.code_numbers, dtype=torch.float64)
        for scene in range(len(codes)):
            total += codes.load([scene])[0]
        states: Any = {name: model.get_submodule(part).state_dict() for name, part in MODULES.items()}
        sizes = (model.autoencoder.latent_channels, model.autoencoder.downscale)
        mean = (total / len(codes)).float()
        return cls(
            config, *sizes, **states, mean_record=mean, background=model.background, scenes=list(scenes), folder=folder
        )

    @classmethod
    def load(cls, folder: Path) -> SharedBasis:
        """Read `shared.pt` of a folder.

        Raises:
            InputError: it is not there, or cannot be read.
        """
        path = folder / SHARED_FILE
        content = read_checkpoint(path, PASS_SHARED)
        try:
            config = with_settings(ManyScenesConfig(), as_named_now(content.pop("config")), str(path))
            del content["format"]
            mean, background = content.pop("mean_record").float(), tuple(content.pop("background"))
            return cls(config, mean_record=mean, background=background, folder=folder, **content)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} holds no shared basis ({one_line(error)}); {PASS_SHARED}") from error

    def save(self) -> None:
        """Write `shared.pt`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        content |= {"format": FORMAT, "config": to_plain(self.config), "mean_record": self.mean_record.half()}
        content |= {"planes": {name: value.half() for name, value in self.planes.items()}}
        del content["folder"]
        write_atomically(self.folder / SHARED_FILE, lambda file: torch.save(content, file))

    @cached_property
    def sha256(self) -> str:
        """Of `shared.pt`."""
        return hashlib.sha256((self.folder / SHARED_FILE).read_bytes()).hexdigest()

    @property
    def autoencoder_source(self) -> str:
        """For `load_autoencoder`."""
        return self.autoencoder or str((self.folder / "autoencoder").resolve())

    @property
    def bytes_shared(self) -> int:
        """Of the shared planes and the renderer's network, as stored."""
        network = [value for name, value in self.renderer.items() if name.startswith("decoder.")]
        return sum(2 * value.numel() for value in self.planes.values()) + sum(4 * value.numel() for value in network)

    def make_model(self) -> JointModel:
        """A model as the joint training left it, with its autoencoder.

        Raises:
            InputError: states do not fit the settings, or there is no autoencoder.
        """
        config = self.config
        autoencoder: TrainableAutoencoder | IdentityAutoencoder = IdentityAutoencoder()
        if config.space == "latent":
            if not self.autoencoder and not (self.folder / "autoencoder").is_dir():
                raise InputError(f"{self.folder / 'autoencoder'} is missing; {PASS_SHARED}, with all that is in it")
            autoencoder = TrainableAutoencoder(load_autoencoder(self.autoencoder_source))
        model = JointModel(config, autoencoder, scene_parameters(config.triplanes, config.micro_macro), self.background)
        try:
            for name, part in MODULES.items():
                module = model.get_submodule(part)
                # Plain planes of earlier versions have an entry without numbers.
                module.load_state_dict({key: getattr(self, name)[key] for key in module.state_dict()})
        except (KeyError, RuntimeError) as error:
            raise InputError(
                f"{self.folder / SHARED_FILE} does not fit the settings of triplanes, micro_macro or space "
                f"({one_line(error)}); leave these as the joint training had them"
            ) from error
        return model

    def training_codes(self, limit: int) -> Iterator[Tensor]:
        """Codes (L,) of the training scenes, evenly spread where there are more than `limit`."""
        for name in self.scenes[:: max(1, -(-len(self.scenes) // limit))]:
            path = self.folder / "scenes" / name / SCENE_FILE
            if path.exists():
                yield code_of(read_checkpoint(path, "train again"))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, complete or not at all."""
    text = json.dumps(content, indent=1).encode()
    write_atomically(path, lambda file: file.write(text))


def as_named_now(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a file; `fit` was `exploit` in earlier versions."""
    return {"fit" if name == "exploit" else name: value for name, value in settings.items()}


# --- Scenes ---


def scene_state(
    name: str,
    code: Tensor,
    model: JointModel,
    config: ManyScenesConfig,
    renderer: Mapping[str, Tensor] = {},
    decoder: Mapping[str, Tensor] = {},
) -> dict[str, Any]:
    """What `scene.pt` holds of a scene with a code (L,), in the precision of the settings: also the state of its own
    renderer, where it has one, and those tensors of the autoencoder, by name, that it fine-tuned."""
    dtype, numbers = torch.float16 if config.fit.precision == "half" else torch.float32, model.shared.plane_numbers

    def stored(value: Tensor) -> Tensor:
        return value.detach().to("cpu", dtype, copy=True).contiguous()

    return {
        "format": FORMAT,
        "name": name,
        "triplanes": to_plain(config.triplanes),
        "micro_macro": to_plain(config.micro_macro),
        "planes": stored(code[:numbers]),
        "weights": stored(code[numbers:]),
        "renderer": {key: stored(value) for key, value in renderer.items()},
        "decoder": {key: stored(value) for key, value in decoder.items()},
    }


def write_scene(folder: Path, state: dict[str, Any], shared: Path, sha256: str | None = None) -> dict[str, int]:
    """Write `scene.pt` into the scene's folder: a `scene_state` and, of the basis, its folder and the hash of its file.

    Returns:
        Bytes of planes, weights, renderer and decoder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {**state, "shared": os.path.relpath(shared.resolve(), folder.resolve()), "shared_sha256": sha256}
    write_atomically(folder / SCENE_FILE, lambda file: torch.save(content, file))
    tensors = {name: [state[name]] for name in ("planes", "weights")}
    tensors |= {name: list(state[name].values()) for name in ("renderer", "decoder")}
    return {name: sum(value.numel() * value.element_size() for value in part) for name, part in tensors.items()}


def code_of(state: dict[str, Any]) -> Tensor:
    """The code (L,) in the content of `scene.pt`."""
    return torch.cat([state["planes"].float(), state["weights"].float()])


@dataclass
class LearntScene:
    """A scene that can be rendered."""

    name: str
    planes: Tensor
    """T (3, F, K, K)."""
    model: JointModel
    """With the scene's own renderer and decoder, where it has them."""

    @classmethod
    @torch.no_grad()
    def of(cls, state: dict[str, Any], model: JointModel) -> LearntScene:
        """A scene of a state and the model of its basis, which stays as it is."""
        planes = model.shared(code_of(state)[None].to(model.normalizer.mean.device))[0]
        if state["renderer"] or state["decoder"]:
            model = copy.deepcopy(model)
            model.renderer.load_state_dict({**model.renderer.state_dict(), **state["renderer"]})
            decoder = {f"module.{name}": value for name, value in state["decoder"].items()}
            model.autoencoder.load_state_dict({**model.autoencoder.state_dict(), **decoder})
        return cls(state["name"], planes, model)

    @torch.no_grad()
    def images(self, cameras: ViewCameras) -> Tensor:
        """Decoded renders (n, 3, H, W) in [0, 1], on the planes' device."""
        renderer, latent_rays = self.model.renderer.eval(), cameras.latent_rays(self.model.autoencoder.downscale)
        origins, directions = (rays.to(self.planes.device) for rays in latent_rays)
        rays = zip(origins.reshape(-1, 3).split(RAYS_AT_ONCE), directions.reshape(-1, 3).split(RAYS_AT_ONCE))
        latents = torch.cat([renderer(self.planes[None], o[None], d[None]).latents[0] for o, d in rays])
        views = latents.view(*origins.shape[:3], -1).split(8)
        decoded = torch.cat([self.model.decode_render(part).clamp(0, 1) for part in views])
        return decoded[..., : cameras.height, : cameras.width]


def load_scene(folder: Path, basis: SharedBasis | None = None) -> LearntScene:
    """The scene of a folder with a `scene.pt`; its basis is where the scene says that it was, unless given.

    Raises:
        InputError: a file is missing, cannot be read, or belongs to another basis.
    """
    state = read_checkpoint(folder / SCENE_FILE, "pass a folder OUT/scenes/NAME of `igae-scenes`")
    basis = basis or SharedBasis.load(shared_of(folder, state))
    model = basis.make_model()
    if state["shared_sha256"] not in (None, basis.sha256) or code_of(state).numel() != model.shared.code_numbers:
        raise InputError(
            f"scene {folder} was learnt with another shared basis than {basis.folder / SHARED_FILE} is now; learn the "
            "scene again, or put the basis back that it was learnt with"
        )
    return LearntScene.of(state, model)


def shared_of(folder: Path, state: dict[str, Any]) -> Path:
    """The folder of a scene's basis."""
    return Path(os.path.normpath(folder.resolve() / state["shared"]))


def read_checkpoint(path: Path, remedy: str) -> dict[str, Any]:
    """A file of this module.

    Raises:
        InputError: it is not there, damaged, or of another version.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; {remedy}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        version = state["format"]
    except Exception as error:
        raise InputError(f"{path} cannot be read ({one_line(error)}); {remedy}") from error
    if version != FORMAT:
        raise InputError(f"{path} is of format {version} and this version reads {FORMAT}; make it again")
    return state
