"""Context photos with their cameras, of any dataset that a dataparser of Nerfstudio reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from torch import Tensor

from igae_nerfstudio.autoencoder.autoencoder import pad_to_multiple
from igae_nerfstudio.data.colmap_model import colmap_models
from igae_nerfstudio.data.dataset_reader import DatasetReaderConfig
from igae_nerfstudio.data.latent_cameras import latent_cameras
from igae_nerfstudio.data.photo_dataset import PhotoDataset
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.prior.saved import SavedPrior
from igae_nerfstudio.rendering.ray_sampling import box_interval


@dataclass
class Photos:
    """k context photos of a scene."""

    images: Tensor
    """(k, 3, H, W) in [0, 1]."""
    latents: Tensor
    """y (1, k, h, w, c), normalised."""
    origins: Tensor
    """(1, k, h, w, 3) of the rays of latent pixels, scene units."""
    directions: Tensor
    """The same, of unit length."""
    names: list[str]
    """Of the files."""

    @property
    def encoded(self) -> tuple[Tensor, Tensor, Tensor]:
        """The encoder's arguments."""
        return self.latents, self.origins, self.directions


@dataclass
class Dataset:
    """The cameras and photos of a dataset's splits, in the prior's cube."""

    data: Path
    splits: dict[str, DataparserOutputs]
    options: str
    """The dataparser and its options, with which `ns-train` reads the same cameras."""

    @classmethod
    def read(cls, data: Path, prior: SavedPrior, dataparser: str | None = None) -> Dataset:
        """Read a dataset. Objects in Blender's format stay where they are. Others are centred at what the cameras look
        at, and scaled so that the cameras are as far away as the prior's.

        Args:
            data: its folder.
            prior: for which cameras and cube.
            dataparser: as `ns-train` calls it; by default what the folder's files tell.

        Raises:
            InputError: it is missing or cannot be read.
        """
        name = dataparser or dataparser_of(data)
        if name not in all_dataparsers:
            raise InputError(f"there is no dataparser '{name}'; choose one of {', '.join(sorted(all_dataparsers))}")
        config: Any = replace(all_dataparsers[name], data=data)
        options, focused = name, hasattr(config, "center_method")
        if focused:
            config = replace(config, center_method="focus", auto_scale_poses=False)
        splits = read_splits(config)
        if focused:
            positions = splits["train"].cameras.camera_to_worlds[..., 3]
            scale = float(prior.facts["distance"] / positions.norm(dim=-1).median().clamp(min=1e-9))
            config = replace(config, scale_factor=scale)
            splits = read_splits(config)
            options = f"{name} --center-method focus --auto-scale-poses False --scale-factor {scale:.6g}"
        extent = prior.config.triplanes.half_extent
        box = SceneBox(aabb=torch.tensor([[-extent] * 3, [extent] * 3]))
        return cls(data.resolve(), {split: replace(found, scene_box=box) for split, found in splits.items()}, options)

    def photos(self, prior: SavedPrior, count: int) -> Photos:
        """Context photos, from cameras far from each other, encoded by the prior's autoencoder.

        Raises:
            InputError: there are too few or too many, a photo cannot be read, or a camera looks past the volume.
        """
        train, most = self.splits["train"], max(prior.config.context)
        if not 1 <= count <= most:
            raise InputError(f"--views is {count}; the prior {prior.folder} learnt from 1 to {most} photos: take these")
        there = len(train.image_filenames)
        if count > there:
            raise InputError(f"--views is {count}, and {self.data} has {there} photos; take fewer, or add photos")
        chosen = spread(train.cameras.camera_to_worlds[..., 3], count)
        return self.chosen(prior, "train", chosen)

    def chosen(self, prior: SavedPrior, split: str, views: list[int]) -> Photos:
        """These photos of a split."""
        outputs = self.splits[split]
        some = replace(
            outputs,
            image_filenames=[outputs.image_filenames[i] for i in views],
            cameras=outputs.cameras[torch.tensor(views)],
            mask_filenames=outputs.mask_filenames and [outputs.mask_filenames[i] for i in views],
        )
        largest = float(torch.maximum(some.cameras.width, some.cameras.height).max())
        background = torch.tensor(prior.model.background)
        dataset = PhotoDataset(some, min(1.0, prior.config.data.view_size / largest), background)
        sizes = {tuple(dataset.get_numpy_image(i).shape) for i in range(len(views))}
        if len(sizes) > 1:
            raise InputError(f"the photos {', '.join(names_of(some))} have different sizes; resize them to one")
        images = torch.stack([dataset.get_image_float32(i).permute(2, 0, 1) for i in range(len(views))])
        images = images.to(prior.model.normalizer.mean.device)
        downscale, model = prior.model.autoencoder.downscale, prior.model
        rays = latent_cameras(dataset.cameras, downscale).generate_rays(torch.arange(len(views))[:, None])
        o, d = (value.permute(2, 0, 1, 3)[None].to(images.device) for value in (rays.origins, rays.directions))
        self._check(prior, o, d, names_of(some))
        latents = model.normalized(model.encode(pad_to_multiple(images, downscale)))[None]
        return Photos(images, latents, o, d, names_of(some))

    def _check(self, prior: SavedPrior, origins: Tensor, directions: Tensor, names: list[str]) -> None:
        extent = prior.config.triplanes.half_extent
        near, far = box_interval(origins, directions, extent)
        blind = ~(far > near).flatten(2).any(dim=2)[0]
        if blind.any():
            first = names[int(blind.nonzero()[0])]
            raise InputError(
                f"{int(blind.sum())} of the {len(names)} photos of {self.data} look past the volume [-{extent:g}, "
                f"{extent:g}]^3 that the prior knows, first {first}; move the object to the origin and scale it to a "
                f"diagonal of about 1.6"
            )


def names_of(outputs: DataparserOutputs) -> list[str]:
    """The files of a split."""
    return [str(path) for path in outputs.image_filenames]


def read_splits(config: Any) -> dict[str, DataparserOutputs]:
    """All splits, checked."""
    reader = DatasetReaderConfig(data=config.data, inner=config).setup()
    return {split: reader.get_dataparser_outputs(split) for split in ("train", "val", "test")}


def dataparser_of(data: Path) -> str:
    """The dataparser that reads a folder, by its files; where nothing tells, Nerfstudio's, which says what is wrong."""
    if (data / "transforms_train.json").is_file():
        return "blender-data"
    if data.is_dir() and not (data / "transforms.json").is_file() and colmap_models(data):
        return "colmap"
    return "nerfstudio-data"


def spread(positions: Tensor, count: int) -> list[int]:
    """Indices of cameras at positions (n, 3) that are far from each other: the first, then always the farthest one."""
    chosen = [0]
    while len(chosen) < count:
        nearest = torch.cdist(positions.float(), positions[chosen].float()).amin(dim=1)
        chosen.append(int(nearest.argmax()))
    return chosen
