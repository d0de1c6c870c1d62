"""What a training leaves: the part that scenes share, and scenes, as files that load with `weights_only=True`.

SHARED/autoencoder/              diffusers' format (latent scenes)
SHARED/shared.pt                 shared planes, renderer, normalisation, background, settings
OUT/scenes/NAME/scene.pt         a scene's own part, with the way to SHARED
OUT/scenes/NAME/result.json      its figures; written last, so a scene is done if and only if it is there
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
from torch import Tensor

from igae_nerfstudio.autoencoder.autoencoder import Autoencoder, AutoencoderConfig, first_line, load_autoencoder
from igae_nerfstudio.autoencoder.normalization import LatentNormalizer
from igae_nerfstudio.autoencoder.preview import LatentPreview
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.files import write_atomically
from igae_nerfstudio.joint.config import load_config, to_dict
from igae_nerfstudio.joint.many_scenes_config import ManyScenesConfig
from igae_nerfstudio.joint.micro_macro import MicroMacroConfig, MicroMacroPlanes, same_shapes
from igae_nerfstudio.rendering.triplanes import TriPlaneRender, TriPlaneRenderer
from igae_nerfstudio.scenes.scene_views import ViewCameras

FORMAT = 1
"""Raised when older files can no longer be read."""

SHARED_FILE, SCENE_FILE, RESULT_FILE = "shared.pt", "scene.pt", "result.json"

RAYS_AT_ONCE = 8192
"""Rays rendered in one go where nothing is learnt."""


@dataclass
class SharedPart:
    """What the scenes of a training share, and what a new one starts from."""

    config: ManyScenesConfig
    latent_channels: int
    """c; 3 for RGB."""
    downscale: int
    """l; 1 for RGB."""
    planes: MicroMacroPlanes
    """With the shared planes B."""
    renderer: TriPlaneRenderer
    """With the latent background."""
    normalizer: LatentNormalizer
    preview: LatentPreview
    mean_record: Tensor
    """(L,), of the training scenes."""
    background: Tuple[float, ...] = (1.0, 1.0, 1.0)
    """RGB in [0, 1] behind the scenes."""
    scenes: List[str] = field(default_factory=list)
    """Names of the training scenes."""
    folder: Optional[Path] = None
    """Where it was loaded from."""

    @cached_property
    def sha256(self) -> str:
        """Of `shared.pt`."""
        assert self.folder is not None
        return hashlib.sha256((self.folder / SHARED_FILE).read_bytes()).hexdigest()

    @property
    def bytes_shared(self) -> int:
        """Of the shared planes and the renderer, as stored."""
        renderer = 4 * sum(value.numel() for value in self.renderer.parameters())
        return 2 * self.planes.shared_numbers + renderer

    @property
    def bytes_of_record(self) -> int:
        """Of a scene's record, as stored."""
        return bytes_per_number(self.config) * self.planes.record_numbers

    def save(self, folder: Path) -> None:
        """Write `shared.pt`, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            "format": FORMAT,
            "config": to_dict(self.config),
            "latent_channels": self.latent_channels,
            "downscale": self.downscale,
            "planes": {name: value.half() for name, value in self.planes.state_dict().items()},
            "renderer": self.renderer.state_dict(),
            "normalizer": self.normalizer.state_dict(),
            "preview": self.preview.state_dict(),
            "mean_record": self.mean_record.half(),
            "background": [float(value) for value in self.background],
            "scenes": self.scenes,
        }
        write_atomically(folder / SHARED_FILE, lambda file: torch.save(state, file))

    @classmethod
    def load(cls, folder: Path) -> SharedPart:
        """Read `shared.pt` of a folder.

        Raises:
            InputError: it is not there, or cannot be read.
        """
        remedy = "pass the --output-dir of a finished `igae-scenes train` as --shared"
        state = read_checkpoint(Path(folder) / SHARED_FILE, remedy)
        try:
            return cls._from_state(state, Path(folder))
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise InputError(
                f"{Path(folder) / SHARED_FILE} is no shared part, or one whose numbers are of other shapes than its "
                f"settings say ({type(error).__name__}: {first_line(error)}); {remedy}"
            ) from error

    @classmethod
    def _from_state(cls, state: Dict[str, Any], folder: Path) -> SharedPart:
        config = load_config(of=ManyScenesConfig, base=state["config"])
        channels = state["latent_channels"]
        part = cls(
            config=config,
            latent_channels=channels,
            downscale=state["downscale"],
            planes=MicroMacroPlanes(config.triplanes, config.micro_macro),
            renderer=TriPlaneRenderer(config.triplanes, channels),
            normalizer=LatentNormalizer(channels, config.latent_normalization),
            preview=LatentPreview(channels),
            mean_record=state["mean_record"].float(),
            background=tuple(state["background"]),
            scenes=state["scenes"],
            folder=folder,
        )
        for name in ("planes", "renderer", "normalizer", "preview"):
            getattr(part, name).load_state_dict(state[name])
        return part

    @torch.no_grad()
    def as_plain(self) -> SharedPart:
        """The same without shared planes: all F features are a scene's own, and a new one starts where it would have.
        The renderer, the normalisation and the start are all that is left of the joint training."""
        config = dataclasses.replace(self.config, micro_macro=MicroMacroConfig(shared_planes=0))
        return dataclasses.replace(
            self,
            config=config,
            planes=MicroMacroPlanes(config.triplanes, config.micro_macro),
            mean_record=self.planes(self.mean_record[None])[0].flatten(),
            folder=None,
        )

    def training_records(self, limit: int) -> Iterator[Tensor]:
        """Records (L,) of the training scenes, evenly spread where there are more than `limit`."""
        assert self.folder is not None
        names = self.scenes[:: max(1, -(-len(self.scenes) // limit))]
        for name in names:
            path = self.folder / "scenes" / name / SCENE_FILE
            if path.exists():
                state = read_checkpoint(path, "train again")
                yield torch.cat([state["planes"].float(), state["weights"].float()])

    def load_autoencoder(self) -> Optional[Autoencoder]:
        """E and D, frozen; None for RGB."""
        if self.config.space == "rgb":
            return None
        assert self.folder is not None
        return load_autoencoder(AutoencoderConfig(name_or_path=str((self.folder / "autoencoder").resolve())))

    def check_fits(self, config: ManyScenesConfig) -> None:
        """Raises InputError where settings are not those that the shared part was learnt with."""
        own = self.config
        different = same_shapes((own.triplanes, own.micro_macro), (config.triplanes, config.micro_macro))
        if not different:
            pairs = {
                "space": (own.space, config.space),
                "data.view_size": (own.data.view_size, config.data.view_size),
                "latent_normalization": (own.latent_normalization, config.latent_normalization),
            }
            different = ", ".join(f"{name} is {a} and {b}" for name, (a, b) in pairs.items() if a != b)
        if different:
            raise InputError(
                f"{self.folder} was learnt with other settings than the config's: {different}; leave them out of the "
                "config, or pass another --shared"
            )


def bytes_per_number(config: ManyScenesConfig) -> int:
    """Of what a scene has of its own, as stored."""
    return 2 if config.exploit.precision == "half" else 4


def write_scene(
    folder: Path,
    name: str,
    own: Tensor,
    shared_folder: Path,
    shared: SharedPart,
    renderer: Optional[Dict[str, Tensor]] = None,
    decoder: Optional[Dict[str, Tensor]] = None,
) -> Dict[str, int]:
    """Write `scene.pt`, whole or not at all.

    Args:
        folder: of the scene.
        name: of the scene.
        own: its record (L,).
        shared_folder: of the shared part.
        shared: the same, loaded.
        renderer: the state of the scene's own renderer, where it has one.
        decoder: those tensors of the autoencoder, by name, that it fine-tuned.

    Returns:
        Bytes of each part.
    """
    half = shared.config.exploit.precision == "half"

    def stored(value: Tensor) -> Tensor:
        return (value.half() if half else value.float()).detach().cpu().contiguous()

    parts = {
        "planes": stored(own[: shared.planes.plane_numbers]),
        "weights": stored(own[shared.planes.plane_numbers :]),
        "renderer": {key: stored(value) for key, value in (renderer or {}).items()},
        "decoder": {key: stored(value) for key, value in (decoder or {}).items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    way = os.path.relpath(shared_folder.resolve(), folder.resolve())
    config = to_dict(shared.config)
    state = {
        "format": FORMAT,
        "name": name,
        "shared": way,
        "shared_sha256": shared.sha256 if shared.folder else None,
        "triplanes": config["triplanes"],
        "micro_macro": config["micro_macro"],
        **parts,
    }
    write_atomically(folder / SCENE_FILE, lambda file: torch.save(state, file))
    return {key: sum(v.numel() * v.element_size() for v in _tensors(part)) for key, part in parts.items()}


def _tensors(part: Any) -> List[Tensor]:
    return list(part.values()) if isinstance(part, dict) else [part]


@dataclass
class LearntScene:
    """A scene that can be rendered."""

    name: str
    planes: Tensor
    """(3, F, K, K), fused."""
    renderer: TriPlaneRenderer
    normalizer: LatentNormalizer
    autoencoder: Optional[Autoencoder]
    """With the scene's fine-tuned decoder; None for RGB."""
    preview: LatentPreview
    config: ManyScenesConfig
    downscale: int
    background: Tuple[float, ...]
    """RGB in [0, 1]."""

    def to(self, device: torch.device | str) -> LearntScene:
        """Move everything that renders; returns itself."""
        self.planes = self.planes.to(device)
        for module in (self.renderer, self.normalizer, self.preview, self.autoencoder):
            if module is not None:
                module.to(device)
        return self

    @torch.no_grad()
    def render(self, cameras: ViewCameras) -> Tensor:
        """Latents (n, h, w, c), normalised; of RGB scenes the colours."""
        self.renderer.eval()
        device = self.planes.device
        origins, directions = cameras.latent_rays(self.downscale)
        shape = origins.shape[:3]
        rays = zip(origins.reshape(-1, 3).split(RAYS_AT_ONCE), directions.reshape(-1, 3).split(RAYS_AT_ONCE))
        found: List[TriPlaneRender] = [
            self.renderer(self.planes[None], o[None].to(device), d[None].to(device)) for o, d in rays
        ]
        return torch.cat([part.latents[0] for part in found]).view(*shape, -1)

    @torch.no_grad()
    def images(self, cameras: ViewCameras) -> Tensor:
        """Decoded renders (n, 3, H, W) in [0, 1]."""
        latents = self.normalizer.denormalize(self.render(cameras)).permute(0, 3, 1, 2)
        if self.autoencoder is None:
            return latents.clamp(0, 1)
        size = (cameras.height, cameras.width)
        return torch.cat([self.autoencoder.decode(part, size) for part in latents.split(8)])


def assemble(
    shared: SharedPart,
    name: str,
    own: Tensor,
    renderer: Optional[Dict[str, Tensor]] = None,
    decoder: Optional[Dict[str, Tensor]] = None,
    autoencoder: Optional[Autoencoder] = None,
) -> LearntScene:
    """A scene from its own part and the shared one; arguments as in `write_scene`, the autoencoder if it is loaded."""
    with torch.no_grad():
        planes = shared.planes(own.float()[None].to(shared.planes.shared.device))[0]
    own_renderer = shared.renderer
    if renderer:
        own_renderer = copy.deepcopy(shared.renderer)
        own_renderer.load_state_dict(renderer)
    if decoder:
        autoencoder = autoencoder or shared.load_autoencoder()
        module = copy.deepcopy(autoencoder.module)
        missing = set(decoder) - set(module.state_dict())
        if missing:
            raise InputError(f"scene {name} has decoder weights that its autoencoder lacks, such as {min(missing)}")
        module.load_state_dict({**module.state_dict(), **decoder})
        autoencoder = Autoencoder(module)
    return LearntScene(
        name=name,
        planes=planes,
        renderer=own_renderer,
        normalizer=shared.normalizer,
        autoencoder=autoencoder or shared.load_autoencoder(),
        preview=shared.preview,
        config=shared.config,
        downscale=shared.downscale,
        background=shared.background,
    )


def load_scene(folder: Path, shared_folder: Optional[Path] = None, shared: Optional[SharedPart] = None) -> LearntScene:
    """A learnt scene.

    Args:
        folder: with a `scene.pt`.
        shared_folder: of the shared part; None: where the scene says that it was.
        shared: the same, if it is loaded.

    Raises:
        InputError: a file is missing, cannot be read, or belongs to another M, F or K.
    """
    folder = Path(folder)
    state = read_checkpoint(folder / SCENE_FILE, "pass a folder OUT/scenes/NAME of `igae-scenes`")
    if shared is None:
        shared = SharedPart.load(shared_folder or Path(os.path.normpath(folder.resolve() / state["shared"])))
    own = load_config(
        of=ManyScenesConfig,
        base={**to_dict(shared.config), "triplanes": state["triplanes"], "micro_macro": state["micro_macro"]},
    )
    config = shared.config
    different = same_shapes((config.triplanes, config.micro_macro), (own.triplanes, own.micro_macro))
    if different:
        raise InputError(
            f"scene {folder} does not belong to the shared part in {shared.folder}: {different}; pass the one that it "
            "was learnt with"
        )
    if state["shared_sha256"] not in (None, shared.sha256):
        raise InputError(
            f"scene {folder} was learnt with another shared part than {shared.folder / SHARED_FILE} is now; pass the "
            "one that it was learnt with, or learn the scene again"
        )
    record = torch.cat([state["planes"].float(), state["weights"].float()])
    numbers = shared.planes.record_numbers
    if record.numel() != numbers:
        raise InputError(
            f"{folder / SCENE_FILE} holds {record.numel()} numbers and its settings say {numbers}; learn it again"
        )
    renderer = {key: value.float() for key, value in state["renderer"].items()}
    decoder = {key: value.float() for key, value in state["decoder"].items()}
    return assemble(shared, state["name"], record, renderer, decoder)


def read_checkpoint(path: Path, remedy: str) -> Dict[str, Any]:
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
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} cannot be read ({reason}); {remedy}") from error
    if version != FORMAT:
        raise InputError(f"{path} is of format {version} and this version reads {FORMAT}; make it again")
    return state
