"""From a dataset to batches of latents.

images + cameras --encode once--> cached latents --per step--> rays, latents and photos of B images.

Whole images, because a decoder needs neighbours: single latent pixels cannot be decoded (paper, section 5.1). Where
images are larger than the paper's, a step takes as many latent pixels as those have: single ones in latent supervision,
and patches with all the neighbours that the decoder looks at in RGB alignment.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Callable, Iterator, Literal, Type

import torch
import torch.nn.functional as F
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.pixel_samplers import PixelSampler, PixelSamplerConfig
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader
from nerfstudio.data.utils.nerfstudio_collate import nerfstudio_collate
from nerfstudio.utils import comms
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import track
from torch import Tensor
from tyro.conf import Suppress

from igae_nerfstudio.autoencoder.autoencoder import Autoencoder, decoder_margin, pad_to_multiple, seen_share
from igae_nerfstudio.console import log, warn
from igae_nerfstudio.data.dataset_reader import DatasetReaderConfig
from igae_nerfstudio.data.latent_cache import LatentCache
from igae_nerfstudio.data.latent_cameras import latent_cameras
from igae_nerfstudio.data.latent_split import Batch, LatentSplit, Photos, batches_of_one_size, joined
from igae_nerfstudio.data.lenses import without_distortion
from igae_nerfstudio.data.photo_dataset import ExifOrientation, PhotoDataset
from igae_nerfstudio.data.scene_record import SceneRecordConfig, recorded_dataset, save_scene_record
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.files import user_cache
from igae_nerfstudio.phases import Phase, TwoPhaseSchedule

BACKGROUND_COLOURS = {"white": torch.ones(3), "black": torch.zeros(3)}

RAYS_PER_STEP = 1024
"""Latent rays of a step: those of the paper's four images of 128 x 128 pixels."""
PATCH_WITH_MARGIN = 16
"""Latent pixels a side of a patch with its margin: as many as the paper's images have."""
SMALLEST_PATCH = 8
"""Of which so many at least are no margin."""


@dataclass
class LatentDataManagerConfig(VanillaDataManagerConfig):
    """Batches of latent images."""

    _target: Type = field(default_factory=lambda: LatentDataManager)
    images_per_batch: int = 4
    """B, latent images per training step (paper, table 11: 4)."""
    random_latent_rays: int | None = None
    """Latent supervision on so many random rays of all images instead of B images; 0: whole images. None: 1,024 where
    B images have more, as those of more than 128 x 128 pixels have. Several devices share them. A method that renders
    pictures takes them as a square window of each of the B images."""
    alignment_patch_size: int | None = None
    """RGB alignment on patches of so many latent pixels a side, plus the margin that the decoder looks at; 0: whole
    images. None: where B images have more than 1,024 latent pixels, patches of 16 a side with their margin, unless the
    decoder looks at the whole picture."""
    latent_cache_dir: Path | None = None
    """Folder for encoded photos; None: `igae-nerfstudio/latents` in the user's cache folder. Any number of scenes and
    autoencoders can share it."""
    background_color: Literal["white", "black"] = "white"
    """Colour behind transparent pixels, where the dataparser has none."""
    exif_orientation: ExifOrientation = "fit"
    """Which photos are turned as their EXIF tag says. `fit`: those that fit their cameras only so; `obey`: all that
    have a tag; `ignore`: none."""
    photos_in_memory: float = 1.0
    """GiB of photos that stay in memory; the others are read again at steps of RGB alignment and with colour rays."""
    sampling_seed: int = 42
    """Seed of the order of training images."""
    scene_record: Suppress[Path | None] = None
    """File in the run's folder with the dataset's cameras (`data/scene_record.py`); part of a resolved config."""

    # Nerfstudio's options about rays of pixels, which have no effect here.
    train_num_rays_per_batch: Suppress[int] = RAYS_PER_STEP
    train_num_images_to_sample_from: Suppress[int] = -1
    train_num_times_to_repeat_images: Suppress[int] = -1
    eval_num_rays_per_batch: Suppress[int] = RAYS_PER_STEP
    eval_num_images_to_sample_from: Suppress[int] = -1
    eval_num_times_to_repeat_images: Suppress[int] = -1
    eval_image_indices: Suppress[tuple[int, ...] | None] = None
    collate_fn: Suppress[Callable[[Any], Any]] = staticmethod(nerfstudio_collate)
    patch_size: Suppress[int] = 1
    pixel_sampler: Suppress[PixelSamplerConfig] = field(default_factory=PixelSamplerConfig)
    masks_on_gpu: Suppress[bool] = False
    images_on_gpu: Suppress[bool] = False


class LatentDataManager(VanillaDataManager[PhotoDataset]):
    """Reads photos through a dataparser, encodes them once, and serves batches of latents.

    A `VanillaDataManager` because Nerfstudio's scripts ask for one; of its machinery only the dataparser, the
    two datasets and the evaluation loader are used.

    Raises:
        InputError: the dataset cannot be read, or an option makes no sense.
    """

    config: LatentDataManagerConfig

    def __init__(
        self,
        config: LatentDataManagerConfig,
        device: torch.device | str = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        **kwargs: Any,
    ) -> None:
        self.rank, self.processes = comms.get_rank(), comms.get_world_size()
        if config.images_per_batch < 1 or config.images_per_batch % self.processes:
            raise InputError(
                f"--pipeline.datamanager.images-per-batch is {config.images_per_batch}; it must be a positive multiple "
                f"of the number of devices, {self.processes}"
            )
        self.train_split: LatentSplit | None = None
        self.photos_missing = test_mode != "val" and _only_the_record_is_left(config)
        """Whether a finished run's dataset is gone: cameras come from the run's folder, photos are grey."""
        if self.photos_missing:
            warn(
                f"The dataset {config.data or config.dataparser.data} is not there: cameras come from the run's "
                "folder, and grey pictures stand in for the photos."
            )
            assert config.scene_record is not None
            config = replace(config, dataparser=SceneRecordConfig(record=config.scene_record))
        config = replace(config, dataparser=DatasetReaderConfig(data=config.dataparser.data, inner=config.dataparser))
        self._eval_split: LatentSplit | None = None
        self._rays_of_last_batch = 0
        super().__init__(config, device, test_mode, **kwargs)

    # Nerfstudio's set-up -------------------------------------------------------------------------------------

    def create_train_dataset(self) -> PhotoDataset:
        return self._dataset(self.train_dataparser_outputs)

    def create_eval_dataset(self) -> PhotoDataset:
        return self._dataset(self.dataparser.get_dataparser_outputs(split=self.test_split))

    def _dataset(self, outputs: DataparserOutputs) -> PhotoDataset:
        return PhotoDataset(
            outputs,
            self.config.camera_res_scale_factor,
            BACKGROUND_COLOURS[self.config.background_color],
            self.photos_missing,
            self.config.exif_orientation,
        )

    def save_scene_record(self) -> None:
        """Keep the cameras of every split in the run's folder, see `data/scene_record.py`."""
        splits = {split: self.dataparser.get_dataparser_outputs(split=split) for split in ("train", "val", "test")}
        assert self.config.scene_record is not None and self.config.data is not None
        save_scene_record(self.config.scene_record, Path(self.config.data), splits)

    def setup_train(self) -> None:
        """Nothing yet: encoding waits for the autoencoder, see `encode`."""
        # `ns-export pointcloud` sets its number of rays on a pixel sampler; whole images need none.
        self.train_pixel_sampler = PixelSampler.__new__(PixelSampler)

    def setup_eval(self) -> None:
        self.fixed_indices_eval_dataloader = FixedIndicesEvalDataloader(self.eval_dataset, device=self.device)
        self.eval_dataloader = self.fixed_indices_eval_dataloader
        if self.test_mode == "test" and len(self.eval_dataset) == 1:
            # `ns-render interpolate` moves between these cameras by default, and needs two; the loader keeps the photo.
            self.eval_dataset = copy(self.train_dataset)
            if len(self.train_dataset) == 1:
                self.eval_dataset.cameras = self.train_dataset.cameras[torch.tensor([0, 0])]

    # Encoding ------------------------------------------------------------------------------------------------

    def encode(
        self,
        autoencoder: Autoencoder,
        schedule: TwoPhaseSchedule,
        colours: bool = False,
        colour_rays: int = 0,
        pictures: bool = False,
    ) -> LatentSplit:
        """Encode the training photos, or find their latents in the cache; comes before the first step.

        Args:
            autoencoder: E.
            schedule: which phase a step is in.
            colours: batches have the averaged colours of latent pixels as well.
            colour_rays: after the rays of latents, batches of latent supervision have so many of random pixels of the
                step's photos, shared by the processes, and the `pixel_colour` (N, 3) of these. A batch has none where
                its photos have no targets.
            pictures: batches have latent cameras (B,) of images or windows of them in place of rays.

        Raises:
            InputError: patches are asked for, and the decoder looks at the whole picture.
        """
        self.autoencoder, self.schedule, self._with_colours = autoencoder, schedule, colours
        self._pictures = pictures
        self._colour_rays = -(-colour_rays // self.processes)
        self.train_split = self._encode(self.train_dataset, "training")
        self.rays_per_step, self.patch_size, self.patch_margin = self._size_of_steps(self.train_split)
        return self.train_split

    def encode_eval_split(self) -> LatentSplit:
        """The evaluation photos, encoded when first asked for.

        A method and not a property: the viewer reads every property that it can reach from the pipeline.
        """
        if self._eval_split is None:
            self._eval_split = self._encode(self.eval_dataset, "evaluation")
        return self._eval_split

    def _size_of_steps(self, split: LatentSplit) -> tuple[int, int, int]:
        """Random rays of latent supervision, and side and margin of RGB alignment's patches; 0: whole images."""
        rays, patch = self.config.random_latent_rays, self.config.alignment_patch_size
        large = self.config.images_per_batch * max(height * width for height, width in split.sizes) > RAYS_PER_STEP
        if rays is None:
            rays = RAYS_PER_STEP if large else 0
        if patch == 0 or (patch is None and not large):
            return rays, 0, 0
        margin = decoder_margin(self.autoencoder.make_decoder(), self.autoencoder.latent_channels)
        if margin is None:
            if patch:
                raise InputError(
                    "the decoder looks at the whole picture, so it cannot be trained on patches; leave out "
                    "--pipeline.datamanager.alignment-patch-size"
                )
            log("RGB alignment takes whole images, as this decoder looks at the whole picture.")
            return rays, 0, 0
        return rays, patch or max(PATCH_WITH_MARGIN - 2 * margin, SMALLEST_PATCH), margin

    def _encode(self, dataset: PhotoDataset, what: str) -> LatentSplit:
        photos = Photos(dataset.photo_and_mask, len(dataset), int(self.config.photos_in_memory * 2**30))
        cache = LatentCache(self.config.latent_cache_dir or user_cache("latents"), self.autoencoder)
        names = [str(path) for path in dataset.image_filenames]
        weights: list[Tensor] = []
        colours: list[Tensor] = []

        def read() -> Iterator[Tensor]:
            progress = f"Reading and encoding {what} images"
            for photo, mask in track(photos, progress, len(photos), transient=True, console=CONSOLE):
                weights.append(self._weights(photo, mask))
                if self._with_colours:
                    colours.append(averaged(photo, self.autoencoder.downscale))
                yield photo

        latents, report = cache.latents(read(), names)
        log(f"{what.capitalize()} images: {report}; cache: {cache.directory}")
        for name in report.damaged:
            warn(f"The cached latents of {name} were damaged and have been made again.")
        if report.unwritable is not None:
            warn(
                f"Latents cannot be cached on disk: {report.unwritable}. Training goes on with latents in "
                "memory; free some space or set --pipeline.datamanager.latent-cache-dir."
            )
        row = torch.cat([latent.flatten(0, 1) for latent in latents]).to(self.device)
        latents.clear()
        return LatentSplit(
            photos,
            row,
            latent_cameras(dataset.cameras, self.autoencoder.downscale).to(self.device),
            self.autoencoder.downscale,
            torch.cat(colours).to(self.device) if colours else None,
            None if all(bool((weight == 1).all()) for weight in weights) else torch.cat(weights).to(self.device),
            self._pictures,
        )

    def _weights(self, photo: Tensor, mask: Tensor | None) -> Tensor:
        """(h w,): the share of what each latent pixel looks at that is a target."""
        downscale = self.autoencoder.downscale
        height, width = (-(-side // downscale) for side in photo.shape[:2])
        if mask is None:
            return torch.ones(1).expand(height * width)  # no memory of its own
        share = F.avg_pool2d(pad_to_multiple(mask[None, None].float(), downscale), downscale)
        return seen_share(share, self.autoencoder.encoder_influence.sqrt().float().cpu())[0, 0].flatten()

    # Batches -------------------------------------------------------------------------------------------------

    def next_train(self, step: int) -> Batch:
        """What the phase of `step` takes of the training split, a function of the step alone: a resumed run sees the
        same images in the same order as one that was never interrupted."""
        if self.train_split is None:  # an exporter asks for rays of a finished run
            return self._random_view(), {}
        return self._batch(self.train_split, step)

    def next_eval(self, step: int) -> Batch:
        """The same of the evaluation split."""
        return self._batch(self.encode_eval_split(), step)

    def _batch(self, split: LatentSplit, step: int) -> Batch:
        indices, generator = self._images_of(split.groups, step), self._generator(step)
        supervision = self.schedule.phase(step) is Phase.LATENT_SUPERVISION
        colour_rays = self._colour_rays if supervision else 0
        random = supervision and self.rays_per_step > 0
        if random and self._pictures:
            rays, batch = split.latent_windows(indices, max(1, self.rays_per_step // self.processes), generator)
        elif random:
            rays, batch = split.random_rays(max(1, self.rays_per_step // self.processes), generator)
        elif not supervision and self.patch_size:
            rays, batch = split.patches(indices, self.patch_size, self.patch_margin, generator, self.device)
        else:
            rays, batch = split.images(indices, self.device)
        if colour_rays:
            pixel_rays, colours = split.photo_pixels(indices, colour_rays, generator)
            if len(colours):
                rays, batch["pixel_colour"] = joined(rays, pixel_rays), colours
        if colour_rays or not random:
            split.photos.expect(self._images_of(split.groups, step + 1))
        self._rays_of_last_batch = rays.size if isinstance(rays, RayBundle) else batch["latent"][..., 0].numel()
        return rays, batch

    def next_eval_image(self, step: int) -> tuple[Cameras, dict[str, Any]]:
        everything = [list(range(len(self.eval_dataset)))]
        return self.eval_dataloader.get_camera(image_idx=self._images_of(everything, step)[0])

    def _images_of(self, groups: list[list[int]], step: int) -> list[int]:
        """The images of step `step`, those of one size each, in seeded order; several processes share them."""
        order = partial(_permutation, self.config.sampling_seed)
        images = batches_of_one_size(groups, self.config.images_per_batch, step, order)
        share = len(images) // self.processes
        return images[self.rank * share : (self.rank + 1) * share]

    def _generator(self, step: int) -> torch.Generator:
        """Random numbers of a step of this process."""
        seed = (self.config.sampling_seed * self.processes + self.rank) * 1_000_003 + step
        return torch.Generator().manual_seed(seed)

    def _random_view(self) -> RayBundle:
        """All pixel rays (H, W) of a pinhole camera in the place of a random training photo."""
        index = int(torch.randint(len(self.train_dataset), ()))
        camera = without_distortion(self.train_dataset.cameras[index : index + 1]).to(self.device)
        return camera.generate_rays(camera_indices=0, keep_shape=True)

    def get_train_rays_per_batch(self) -> int:
        """Latent rays of the last step of this process."""
        return self._rays_of_last_batch or self.config.train_num_rays_per_batch


def averaged(photo: Tensor, downscale: int) -> Tensor:
    """(h w, 3) float16 in [0, 1]: a photo (H, W, 3), uint8, averaged over the pixels of each latent pixel."""
    pixels = pad_to_multiple(photo.permute(2, 0, 1)[None].float() / 255, downscale)
    return F.avg_pool2d(pixels, downscale)[0].permute(1, 2, 0).flatten(0, 1).half()


@lru_cache(maxsize=8)
def _permutation(seed: int, count: int, epoch: int) -> list[int]:
    """The order of `count` images in one epoch."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch)).tolist()


def _only_the_record_is_left(config: LatentDataManagerConfig) -> bool:
    """Whether the dataset of a finished run is gone while the run's record of its cameras is there."""
    data = Path(config.data or config.dataparser.data)
    if data.exists() or config.scene_record is None or not config.scene_record.exists():
        return False
    return recorded_dataset(config.scene_record) == data
