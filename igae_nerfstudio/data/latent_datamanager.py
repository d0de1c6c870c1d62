"""From a dataset to batches of latent images.

images + cameras --encode once--> cached latents --B per step--> rays (B, h, w), latents (B, h, w, c), photos.

Whole images, because a decoder needs neighbours: single latent pixels cannot be decoded (paper, section 5.1). Where
images are larger than the paper's, steps take as many pixels as those have: single ones where nothing is decoded, and
patches with all the neighbours that the decoder looks at where something is.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Dict, Iterator, List, Literal, Optional, Sequence, Tuple, Type

import torch
import torch.nn.functional as F
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.pixel_samplers import PixelSampler
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader
from nerfstudio.utils import comms
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import track
from torch import Tensor
from typing_extensions import Annotated
from tyro.conf import Suppress

from igae_nerfstudio.autoencoder.autoencoder import Autoencoder
from igae_nerfstudio.console import log, warn
from igae_nerfstudio.data.dataset_hints import hint
from igae_nerfstudio.data.latent_cache import LatentCache, default_cache_dir
from igae_nerfstudio.data.latent_cameras import latent_cameras
from igae_nerfstudio.data.memory import check_split_fits
from igae_nerfstudio.data.photo_dataset import PhotoDataset
from igae_nerfstudio.data.scene_record import SceneRecordConfig, recorded_dataset, save_scene_record
from igae_nerfstudio.engine.interruption import stopped
from igae_nerfstudio.errors import InputError

BACKGROUND_COLOURS = {"white": torch.ones(3), "black": torch.zeros(3)}

RAYS_PER_STEP = 1024
"""Latent rays of a step: those of the paper's four images of 128 x 128 pixels. Where whole images have more, steps take
as many at random, or patches."""
WINDOW = 16
"""Latent pixels a side of such a patch with its margin: as many as the paper's images have."""
SMALLEST_PATCH = 8
"""Of which so many at least are no margin."""


@dataclass
class LatentDataManagerConfig(VanillaDataManagerConfig):
    """Batches of full latent images; the fields about rays per batch and pixel samplers have no effect here."""

    _target: Type = field(default_factory=lambda: LatentDataManager)
    images_per_batch: int = 4
    """B, latent images per training step (paper, table 11: 4)."""
    random_latent_rays: Optional[int] = None
    """In latent supervision, take so many rays at random from all images instead of B images; 0: whole images. None:
    1,024 where B images have more, as those of more than 128 x 128 pixels have. Of several devices each takes its
    share."""
    alignment_patch_size: Optional[int] = None
    """In RGB alignment, render and compare patches of so many latent pixels a side, plus the margin that the decoder
    looks at; 0: whole images. None: where B images have more than 1,024 latent pixels, patches that have 16 a side with
    their margin, unless the decoder looks at the whole picture."""
    latent_cache_dir: Optional[Path] = None
    """Folder for encoded photos; None: `igae-nerfstudio/latents` in the user's cache folder. Latents of any
    number of scenes and autoencoders can share it."""
    background_color: Literal["white", "black"] = "white"
    """What shows through transparent pixels, where the dataparser has no opinion."""
    sampling_seed: int = 42
    """Seed of the order in which training images are visited."""
    scene_record: Annotated[Optional[Path], Suppress] = None
    """The file in the run's folder that holds the dataset's cameras; the trainer sets it."""


SplitName = Literal["train", "eval"]


@dataclass
class LatentSplit:
    """One split, encoded: everything a step needs, as stacked tensors."""

    photos: Tensor
    """(N, H, W, 3) uint8, on the CPU."""
    latents: Tensor
    """(N, h, w, c): z, the encoder's own numbers, as `compact` keeps them; batches are float32."""
    rays: RayBundle
    """(N, h, w) rays through the centres of the latent pixels."""
    downscale: int
    """l."""

    def batch(self, indices: Sequence[int], device: torch.device | str) -> Tuple[RayBundle, Dict[str, Any]]:
        """Rays (B, h, w) and {"latent": (B, h, w, c), "image": (B, H, W, 3) in [0, 1], "image_idx": (B,)}."""
        chosen = torch.as_tensor(indices)
        image = self.photos[chosen].to(device, non_blocking=True).float() / 255
        on_device = chosen.to(device)
        return self.rays[on_device], {"latent": self.latents[on_device].float(), "image": image, "image_idx": chosen}

    def patches(
        self, indices: Sequence[int], size: int, margin: int, generator: torch.Generator, device: torch.device | str
    ) -> Tuple[RayBundle, Dict[str, Any]]:
        """As `batch`, of a window of each image: `size` latent pixels a side and `margin` around them, n in all.

        Images are (B, n l, n l, 3); `inside` (B, n l, n l, 1) is 1 where the decoder sees all that it needs, which is
        up to the edge at the image's own edges, and 0 elsewhere.
        """
        (height, width), factor = self.latents.shape[1:3], self.downscale
        windows, photos, inside = [], [], []
        for index in indices:
            rows, good_rows = _window(height, size, margin, generator)
            columns, good_columns = _window(width, size, margin, generator)
            windows.append((int(index) * height + rows[:, None]) * width + columns)
            top, bottom, left, right = (
                int(end) * factor for end in (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)
            )
            photo = self.photos[index, top:bottom, left:right]
            good = (good_rows[:, None] & good_columns).repeat_interleave(factor, 0).repeat_interleave(factor, 1).float()
            below, beside = (whole - there for whole, there in zip(good.shape, photo.shape))  # beyond the photo's edge
            good[photo.shape[0] :], good[:, photo.shape[1] :] = 0, 0
            photos.append(F.pad(photo, (0, 0, 0, beside, 0, below)))
            inside.append(good[..., None])
        chosen = torch.stack(windows).to(device)
        return self.rays.flatten()[chosen], {
            "latent": self.latents.flatten(0, 2)[chosen].float(),
            "image": torch.stack(photos).to(device).float() / 255,
            "inside": torch.stack(inside).to(device),
            "image_idx": torch.as_tensor(indices),
        }

    def random_rays(self, count: int, generator: torch.Generator) -> Tuple[RayBundle, Dict[str, Any]]:
        """Rays (R,) and {"latent": (R, c)} of R latent pixels from anywhere."""
        pixels = self.latents.flatten(0, 2)
        chosen = torch.randint(len(pixels), (count,), generator=generator).to(pixels.device)
        return self.rays.flatten()[chosen], {"latent": pixels[chosen].float()}


def _window(side: int, size: int, margin: int, generator: torch.Generator) -> Tuple[Tensor, Tensor]:
    """Latent pixels along one side of a random window of `size` and margins, and which of them are not margin.

    A window that would stick out is moved in, so that the edges are seen as often as the middle; at an edge of the
    image there is no margin.
    """
    length = min(size + 2 * margin, side)
    first = int(torch.randint(-margin, side - length + margin + 1, (), generator=generator).clamp(0, side - length))
    pixels = torch.arange(first, first + length)
    low = first + margin if first > 0 else 0
    high = first + length - margin if first + length < side else side
    return pixels, (pixels >= low) & (pixels < high)


def compact(latents: Tensor) -> Tensor:
    """Latents in half precision, if that changes them by no more than a thousandth of their deviation (60 dB)."""
    half = latents.half()
    error = (half.float() - latents).square().mean().sqrt()
    return half if bool(error <= 1e-3 * latents.std()) else latents


class LatentDataManager(VanillaDataManager[PhotoDataset]):
    """Reads photos through a dataparser, encodes them once, and serves full latent images.

    A `VanillaDataManager` because Nerfstudio's scripts ask for one; of its machinery only the dataparser, the
    two datasets and the evaluation loader are used.
    """

    config: LatentDataManagerConfig

    def __init__(
        self,
        config: LatentDataManagerConfig,
        device: torch.device | str = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        **kwargs: Any,
    ) -> None:
        if config.images_per_batch < 1:
            raise InputError(
                f"--pipeline.datamanager.images-per-batch is {config.images_per_batch}; it must be 1 or more"
            )
        for name in ("alignment_patch_size", "random_latent_rays"):
            if (getattr(config, name) or 0) < 0:
                raise InputError(
                    f"--pipeline.datamanager.{name.replace('_', '-')} is {getattr(config, name)}; it must be 0 (whole "
                    "images) or more"
                )
        self.rank, self.processes = comms.get_rank(), comms.get_world_size()
        if config.images_per_batch % self.processes:
            raise InputError(
                f"--pipeline.datamanager.images-per-batch is {config.images_per_batch}, which {self.processes} devices "
                "cannot share equally; choose a multiple"
            )
        self.train_split: Optional[LatentSplit] = None
        self._autoencoder: Optional[Autoencoder] = None
        self._eval_split: Optional[LatentSplit] = None
        self._rays_of_last_batch = 0
        self.decoder_margin: Optional[int] = None
        """Latent pixels around its own that a decoded one depends on; None: all. The pipeline sets it."""
        self.photos_missing = test_mode != "val" and _only_the_record_is_left(config)
        if self.photos_missing:
            warn(
                f"The dataset {config.data or config.dataparser.data} is not there: cameras come from the run's "
                "folder, and grey pictures stand in for the photos."
            )
            config = replace(config, dataparser=SceneRecordConfig(record=config.scene_record))
        with _reading(config, "train"):
            super().__init__(config, device, test_mode, **kwargs)

    # Nerfstudio's set-up -------------------------------------------------------------------------------------

    def create_train_dataset(self) -> PhotoDataset:
        return self._dataset(self.train_dataparser_outputs, "train")

    def create_eval_dataset(self) -> PhotoDataset:
        with _reading(self.config, self.test_split):
            outputs = self.dataparser.get_dataparser_outputs(split=self.test_split)
        return self._dataset(outputs, self.test_split)

    def _dataset(self, outputs: DataparserOutputs, split: str) -> PhotoDataset:
        if len(outputs.image_filenames) == 0:
            raise InputError(f"the split '{split}' of {self.config.data} has no images; add some to its transforms")
        if outputs.mask_filenames is not None:
            warn("The dataset's masks are not used: a latent pixel mixes masked and unmasked pixels.")
        colour = BACKGROUND_COLOURS[self.config.background_color]
        return PhotoDataset(outputs, self.config.camera_res_scale_factor, colour, self.photos_missing)

    def save_scene_record(self, path: Path) -> None:
        """Keep the cameras of every split in the run's folder, see `data/scene_record.py`."""
        splits = {"train": self.train_dataparser_outputs}
        for split in ("val", "test"):
            try:
                splits[split] = self.dataparser.get_dataparser_outputs(split=split)
            except Exception:
                continue  # a dataset need not have every split
        self.config.scene_record = path
        try:
            save_scene_record(path, Path(self.config.data), splits)
        except OSError as error:
            warn(f"The cameras cannot be kept in {path}: {error}; commands on this run will need the dataset.")

    def setup_train(self) -> None:
        """Nothing yet: encoding waits for the autoencoder, see `encode_train_split`."""
        # `ns-export pointcloud` sets its number of rays on a pixel sampler; whole images need none.
        self.train_pixel_sampler = PixelSampler.__new__(PixelSampler)

    def setup_eval(self) -> None:
        self.fixed_indices_eval_dataloader = FixedIndicesEvalDataloader(self.eval_dataset, device=self.device)
        self.eval_dataloader = self.fixed_indices_eval_dataloader

    # Encoding ------------------------------------------------------------------------------------------------

    def encode_train_split(self, autoencoder: Autoencoder) -> LatentSplit:
        """Encode the training photos, or find their latents in the cache; the first step of both phases."""
        self._autoencoder = autoencoder
        self.train_split = self._encode(self.train_dataset, "training")
        return self.train_split

    def encode_eval_split(self) -> LatentSplit:
        """The evaluation photos, encoded when first asked for.

        A method and not a property: the viewer reads every property that it can reach from the pipeline.
        """
        if self._eval_split is None:
            assert self._autoencoder is not None, "encode_train_split comes first"
            self._eval_split = self._encode(self.eval_dataset, "evaluation")
        return self._eval_split

    def _encode(self, dataset: PhotoDataset, what: str) -> LatentSplit:
        size = (int(dataset.cameras.height[0]), int(dataset.cameras.width[0]))
        check_split_fits(len(dataset), size, self._autoencoder, self.device)
        photos = self._read_photos(dataset, what)
        cache = LatentCache(self.config.latent_cache_dir or default_cache_dir(), self._autoencoder)
        names = [str(path) for path in dataset.image_filenames]
        progress = partial(track, description=f"Encoding {what} images", transient=True, console=CONSOLE)
        try:
            latents, report = cache.latents(photos, names, progress)
        except KeyboardInterrupt:
            raise stopped(
                f"while encoding {what} images: those that are done stay in {cache.directory}; the same command goes "
                "on from there"
            ) from None
        log(f"{what.capitalize()} images: {report}; cache: {cache.directory}")
        for name in report.damaged:
            warn(f"The cached latents of {name} were damaged and have been made again.")
        if report.unwritable is not None:
            warn(
                f"Latents cannot be cached on disk: {report.unwritable}. Training goes on with latents in "
                "memory; free some space or set --pipeline.datamanager.latent-cache-dir."
            )
        cameras = latent_cameras(dataset.cameras, self._autoencoder.downscale)
        rays = stack_rays([cameras.generate_rays(camera_indices=i, keep_shape=True) for i in range(len(dataset))])
        downscale = self._autoencoder.downscale
        return LatentSplit(photos, compact(torch.stack(latents)).to(self.device), rays.to(self.device), downscale)

    def _read_photos(self, dataset: PhotoDataset, what: str) -> Tensor:
        """All photos (N, H, W, 3), uint8; none exists twice."""
        sizes = torch.cat([dataset.cameras.height, dataset.cameras.width], dim=-1)
        odd = (sizes != sizes[0]).any(dim=-1).nonzero().flatten().tolist()
        if odd:
            (h, w), (h0, w0) = sizes[odd[0]].tolist(), sizes[0].tolist()
            raise InputError(
                f"the {what} images have different sizes: {dataset.image_filenames[odd[0]]} gives {w} x {h} pixels "
                f"and {dataset.image_filenames[0]} {w0} x {h0}; resize or crop them to one size"
            )
        photos = torch.empty((len(dataset), *sizes[0].tolist(), 3), dtype=torch.uint8)

        def read(index: int) -> None:
            photos[index] = dataset.get_image_uint8(index)

        with ThreadPoolExecutor(max_workers=4) as executor:
            reads = executor.map(read, range(len(dataset)))
            for _ in track(reads, f"Reading {what} images", total=len(dataset), transient=True, console=CONSOLE):
                pass
        return photos

    # Batches -------------------------------------------------------------------------------------------------

    def next_train(self, step: int) -> Tuple[RayBundle, Dict[str, Any]]:
        """B latent images of the training split; which ones is a function of the step alone, so that a resumed
        run visits the images in the same order as one that was never interrupted."""
        if self.train_split is None:  # an exporter asks for rays of a finished run
            return self._random_view(), {}
        return self._counted(self.train_split.batch(self._visit(len(self.train_dataset), step), self.device))

    def next_rays(self, step: int, split: SplitName = "train") -> Tuple[RayBundle, Dict[str, Any]]:
        """Single latent rays of a split, see `LatentSplit.random_rays`; a function of the step alone."""
        share = max(1, self.random_latent_rays() // self.processes)
        return self._counted(self._split(split).random_rays(share, self._generator(step)))

    def next_patches(self, step: int, split: SplitName = "train") -> Tuple[RayBundle, Dict[str, Any]]:
        """Patches of the images of `next_train`, see `LatentSplit.patches`; a function of the step alone."""
        there = self._split(split)
        chosen, size, margin = self._visit(len(there.photos), step), self.alignment_patch_size(), self.decoder_margin
        assert margin is not None, "the decoder looks at the whole picture"
        return self._counted(there.patches(chosen, size, margin, self._generator(step), self.device))

    def random_latent_rays(self) -> int:
        """How many rays latent supervision takes at random in a step, on all devices; 0: whole images."""
        return self._chosen(self.config.random_latent_rays, RAYS_PER_STEP)

    def alignment_patch_size(self) -> int:
        """Latent pixels a side of RGB alignment's patches, without their margin; 0: whole images."""
        if self.decoder_margin is None:
            return 0
        return self._chosen(self.config.alignment_patch_size, max(WINDOW - 2 * self.decoder_margin, SMALLEST_PATCH))

    def would_take_patches(self) -> bool:
        """Whether RGB alignment takes patches, if the decoder allows them."""
        return self._chosen(self.config.alignment_patch_size, WINDOW) > 0

    def _chosen(self, setting: Optional[int], of_large_images: int) -> int:
        if setting is not None:
            return setting
        h, w = self.train_split.latents.shape[1:3]
        return of_large_images if self.config.images_per_batch * h * w > RAYS_PER_STEP else 0

    def _split(self, name: SplitName) -> LatentSplit:
        return self.train_split if name == "train" else self.encode_eval_split()

    def _counted(self, batch: Tuple[RayBundle, Dict[str, Any]]) -> Tuple[RayBundle, Dict[str, Any]]:
        self._rays_of_last_batch = batch[0].size
        return batch

    def _generator(self, step: int) -> torch.Generator:
        """Random numbers of a step of this process."""
        seed = (self.config.sampling_seed * self.processes + self.rank) * 1_000_003 + step
        return torch.Generator().manual_seed(seed)

    def next_eval(self, step: int) -> Tuple[RayBundle, Dict[str, Any]]:
        return self.encode_eval_split().batch(self._visit(len(self.eval_dataset), step), self.device)

    def next_eval_image(self, step: int) -> Tuple[Cameras, Dict[str, Any]]:
        index = self._visit(len(self.eval_dataset), step)[0]
        return self.eval_dataloader.get_camera(image_idx=index)

    def _visit(self, count: int, step: int) -> List[int]:
        """Indices of step `step` in an endless row of seeded permutations of `count` images; of several processes
        each takes its share."""
        share = self.config.images_per_batch // self.processes
        first = step * self.config.images_per_batch + self.rank * share
        visits = range(first, first + share)
        return [_permutation(self.config.sampling_seed, count, i // count)[i % count] for i in visits]

    def _random_view(self) -> RayBundle:
        """All pixel rays (H, W) of a random training photo."""
        index = int(torch.randint(len(self.train_dataset), ()))
        cameras = self.train_dataset.cameras.to(self.device)
        return cameras.generate_rays(camera_indices=index, keep_shape=True)

    def get_train_rays_per_batch(self) -> int:
        """Latent rays of the last step; of several processes, this one's."""
        return self._rays_of_last_batch or self.config.train_num_rays_per_batch


@lru_cache(maxsize=8)
def _permutation(seed: int, count: int, epoch: int) -> List[int]:
    """The order in which `count` images are visited in one epoch."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch)).tolist()


def stack_rays(bundles: List[RayBundle]) -> RayBundle:
    """Stack ray bundles of one shape (h, w) to (N, h, w)."""
    first = bundles[0]
    fields = ("origins", "directions", "pixel_area", "camera_indices", "nears", "fars", "times")
    stacked = {
        name: None if getattr(first, name) is None else torch.stack([getattr(bundle, name) for bundle in bundles])
        for name in fields
    }
    metadata = {
        name: torch.stack([bundle.metadata[name] for bundle in bundles])
        for name, value in first.metadata.items()
        if isinstance(value, Tensor)
    }
    return RayBundle(**stacked, metadata=metadata)


def _only_the_record_is_left(config: LatentDataManagerConfig) -> bool:
    """Whether the dataset of a finished run is gone while the run's record of its cameras is there."""
    data = Path(config.data or config.dataparser.data)
    if data.exists() or config.scene_record is None or not config.scene_record.exists():
        return False
    return recorded_dataset(config.scene_record) == data


@contextmanager
def _reading(config: LatentDataManagerConfig, split: str) -> Iterator[None]:
    """Turn whatever a dataparser stumbles over into one line that names the dataset and the split."""
    try:
        yield
    except Exception as error:
        parser = config.dataparser._target.__name__
        better = hint(Path(config.data or config.dataparser.data), parser)
        if better is not None:
            raise InputError(better) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{parser} cannot read the split '{split}' of {config.data or config.dataparser.data}: {reason}; check the "
            "path, choose another dataparser (for instance `blender-data` after the options), or repair the split"
        ) from error
