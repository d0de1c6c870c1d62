"""What a prior over scenes is worth on objects that it has not seen, against what needs no prior.

    python scripts/measure_prior.py --prior outputs/prior --scenes A B C --output-dir outputs/measured

Every folder of `--scenes` holds scenes in Blender format. Of a scene, photos far from each other are the context, and
the views of its test split are what is measured: PSNR of the picture and inside the object's dilated mask, SSIM and
LPIPS. Seconds are CPU seconds of one thread, which other work on the machine does not lengthen. Intervals are those of
2,000 bootstrap samples of name families (`wall_open` and `wall_half` are one). Writes `objects.jsonl`, a line for each
object and method, which a second call goes on with; `summary.json`; and `summary.md`.

    prior            z of k photos in one pass            refined      after `--refine` steps on z
    shuffled         photos with each other's cameras     mean         the mean scene
    nearest scene    of the training scenes as the prior has them, that which shows the context photos best
    nearest photo    the context photo whose camera is nearest to the asked one; white
    fit: START x N   Tri-Planes fitted to the k photos' latents from START in N times the prior's seconds
    many views       Tri-Planes fitted to all views of the train split from the mean scene, for `--many-seconds`
    start: ...       fitted to all views of the train split from START, after so many seconds
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from igae_nerfstudio.files import append_json_line
from igae_nerfstudio.joint.results import LearntScene, write_json
from igae_nerfstudio.metrics import ImageMetrics
from igae_nerfstudio.prior.inference import refined
from igae_nerfstudio.prior.photos import Photos, spread
from igae_nerfstudio.prior.saved import SavedPrior
from igae_nerfstudio.rendering.total_variation import plane_variation
from igae_nerfstudio.scenes.scene_views import SceneViews

MASK_MARGIN = 4
"""Pixels by which an object's mask is dilated."""
FIT = {"planes": 3e-2, "renderer": 5e-3, "plane_tv": 1e-3}
"""Rates and weight of fitted Tri-Planes, those of configs/many_scenes/cpu.yaml."""
FIT_RAYS = 1024
START_SECONDS = (0.5, 2.3, 4.6)


class Object:
    """One object: its context photos and the views that are measured."""

    def __init__(self, prior: SavedPrior, scenes: Path, name: str, cache: Path, targets: int) -> None:
        self.prior, self.name = prior, name
        size, background = prior.config.data.view_size, prior.model.background
        opened = {
            split: SceneViews.open(scenes, size, cache / split, split, background, only=[name], quiet=True)
            for split in ("train", "test")
        }
        self.train, self.test = opened["train"], opened["test"]
        count = self.test.num_views(0)
        self.rows = [i * count // min(targets, count) for i in range(min(targets, count))]
        self.truth = self.test.images([0] * len(self.rows), self.rows)
        masks = [np.asarray(Image.open(scenes / self.test.files[row]).convert("RGBA"))[..., 3] > 0 for row in self.rows]
        grown = F.max_pool2d(torch.tensor(np.stack(masks)).float()[:, None], 2 * MASK_MARGIN + 1, 1, MASK_MARGIN)
        self.masks = grown > 0
        self.cameras = self.test.cameras([0] * len(self.rows), self.rows)
        everything = list(range(self.train.num_views(0)))
        self.all_photos, self.encode_seconds = self.photos(everything)
        self.order = spread(self.train.cameras([0] * len(everything), everything).camera_to_world[..., 3], 8)

    @torch.no_grad()
    def photos(self, views: list[int]) -> tuple[Photos, float]:
        """These photos, encoded, and CPU seconds a photo."""
        images = self.train.images([0] * len(views), views)
        begin = time.process_time()
        latents = self.prior.model.normalized(self.prior.model.encode(images))
        seconds = (time.process_time() - begin) / len(views)
        rays = self.train.cameras([0] * len(views), views).latent_rays(self.prior.model.autoencoder.downscale)
        return Photos(images, latents[None], rays[0][None], rays[1][None], []), seconds

    def context(self, count: int) -> Photos:
        """The first so many of 8 photos far from each other."""
        some, photos = torch.tensor(self.order[:count]), self.all_photos
        images, rays = photos.images[some], (photos.origins[:, some], photos.directions[:, some])
        return Photos(images, photos.latents[:, some], *rays, [])

    @torch.no_grad()
    def pictures(self, scene: Tensor, renderer: Any = None) -> Tensor:
        """Decoded renders of a scene (1, ...) at the measured views."""
        model = self.prior.model
        own, model.renderer = model.renderer, renderer or model.renderer
        try:
            return LearntScene(self.name, scene[0], model).images(self.cameras)
        finally:
            model.renderer = own

    def measured(self, pictures: Tensor, metrics: ImageMetrics) -> dict[str, float]:
        """Means over the measured views."""
        found = defaultdict(list)
        for picture, photo, mask in zip(pictures, self.truth, self.masks):
            for key, value in metrics(picture.permute(1, 2, 0), photo.permute(1, 2, 0)).items():
                found[key].append(value)
            error = (picture - photo).square().mean(dim=0)[mask[0]].mean()
            found["mask_psnr"].append(float(-10 * torch.log10(error.clamp(min=1e-12))))
        return {key: sum(values) / len(values) for key, values in found.items()}


def fitted(
    prior: SavedPrior, start: Tensor, photos: Photos, at: Sequence[float], seed: int = 0
) -> Iterator[tuple[Tensor, Any, dict[str, float]]]:
    """Planes (1, 3, F, K, K) fitted to photos' latents from a start, with a renderer of their own, after so many CPU
    seconds each, and what that took."""
    torch.manual_seed(seed)
    planes, renderer = start.clone().requires_grad_(True), copy.deepcopy(prior.model.renderer).requires_grad_(True)
    groups = [
        {"params": [planes], "lr": FIT["planes"]},
        {"params": renderer.decoder.parameters(), "lr": FIT["renderer"]},
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    target, o, d = (value.flatten(1, 3) for value in photos.encoded)
    seconds, steps = 0.0, 0
    for limit in at:
        begin = time.process_time() - seconds
        renderer.train()
        while time.process_time() - begin < limit:
            some = torch.randperm(o.shape[1])[:FIT_RAYS]
            loss = (renderer(planes, o[:, some], d[:, some]).latents - target[:, some]).square().mean()
            loss = loss + FIT["plane_tv"] * plane_variation(planes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
        seconds = time.process_time() - begin
        yield planes.detach(), renderer.eval(), {"seconds": seconds, "steps": steps}


def timed(action: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What it returns, and its CPU seconds: the shorter of two runs."""
    times = []
    for _ in range(2):
        begin = time.process_time()
        with torch.no_grad():
            result = action()
        times.append(time.process_time() - begin)
    return result, min(times)


def measure(item: Object, options: argparse.Namespace, metrics: ImageMetrics) -> dict[str, dict[str, float]]:
    """All methods on one object."""
    prior = item.prior
    scenes, mean = prior.scenes, prior.scenes(torch.zeros(1, 1)).detach()
    found: dict[str, dict[str, float]] = {}

    def note(name: str, pictures: Tensor, **more: float) -> None:
        found[name] = {**item.measured(pictures, metrics), **more}

    seconds = 0.0
    for count in options.photos:
        photos = item.context(count)
        scene, took = timed(lambda photos=photos: scenes.scene(scenes.encoder(*photos.encoded).mean))
        note(f"prior, k = {count}", item.pictures(scene), seconds=took, from_photos=took + count * item.encode_seconds)
        seconds = took if count == options.context else seconds
    photos = item.context(options.context)
    note("white", torch.ones_like(item.truth))
    note("mean", item.pictures(mean))
    distances = torch.cdist(item.cameras.camera_to_world[..., 3], photos.origins[0, :, 0, 0])
    note("nearest photo", photos.images[distances.argmin(dim=1)])
    target, o, d = (value.flatten(1, 3) for value in photos.encoded)
    with torch.no_grad():
        known = [scenes.scene(code[None]) for code in prior.codes]
        errors = [float((prior.model.renderer(each, o, d).latents - target).square().mean()) for each in known]
    nearest = known[int(np.argmin(errors))]
    note("nearest scene", item.pictures(nearest))
    order = torch.arange(options.context).roll(1)
    with torch.no_grad():
        wrong = scenes.scene(scenes.encoder(photos.latents[:, order], photos.origins, photos.directions).mean)
        z = scenes.encoder(*photos.encoded).mean
    note("shuffled", item.pictures(wrong))
    begin = time.process_time()
    better = refined(prior, z, photos, options.refine)
    note("refined", item.pictures(scenes.scene(better).detach()), seconds=time.process_time() - begin + seconds)
    if not options.fits:
        return found
    noise = 0.1 * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    of_prior = scenes.scene(z).detach()
    for name, start in (("noise", noise), ("mean", mean), ("nearest", nearest), ("prior", of_prior)):
        fits = fitted(prior, start, photos, (seconds, 10 * seconds))
        for times, (planes, renderer, took) in zip((1, 10), fits):
            note(f"fit: {name} x {times}", item.pictures(planes, renderer), **took)
    for name, start in (("prior", of_prior), ("nearest", nearest), ("mean", mean)):
        limits = (*START_SECONDS, options.many_seconds) if name == "mean" else START_SECONDS
        for limit, (planes, renderer, took) in zip(limits, fitted(prior, start, item.all_photos, limits)):
            title = f"start: {name}, {limit:g} s" if limit in START_SECONDS else "many views"
            note(title, item.pictures(planes, renderer), **took, views=item.train.num_views(0))
    return found


def interval(values: dict[str, list[float]], draws: int = 2000) -> tuple[float, float, float]:
    """Mean over objects, and the 2.5 and 97.5 percentiles of its bootstrap by family."""
    rng, families = np.random.default_rng(0), [np.array(value) for value in values.values()]
    sums, counts = (np.array([f(family) for family in families]) for f in (np.sum, len))
    picked = rng.integers(len(families), size=(draws, len(families)))
    means = sums[picked].sum(axis=1) / counts[picked].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(sums.sum() / counts.sum()), float(low), float(high)


def summarise(path: Path) -> tuple[dict[str, Any], str]:
    """Means and intervals of `objects.jsonl`, and a table of them for each folder."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    summary: dict[str, Any] = {}
    text = []
    for folder in dict.fromkeys(line["folder"] for line in lines):
        here = [line for line in lines if line["folder"] == folder]
        names = {line["object"] for line in here}
        text += [f"\n{folder}: {len(names)} objects, {len({n.split('_')[0] for n in names})} families\n"]
        text += ["| method | mask PSNR (95 %) | PSNR | SSIM | LPIPS | CPU seconds |", "|---|---|---|---|---|---|"]
        for method in dict.fromkeys(line["method"] for line in here):
            of_method = [line for line in here if line["method"] == method]
            by_family: dict[str, list[float]] = defaultdict(list)
            for line in of_method:
                by_family[line["object"].split("_")[0]].append(line["mask_psnr"])
            mean, low, high = interval(by_family)
            rest = {
                key: float(np.mean([line[key] for line in of_method]))
                for key in of_method[0]
                if key not in ("folder", "object", "method", "mask_psnr")
            }
            summary.setdefault(folder, {})[method] = {"mask_psnr": mean, "low": low, "high": high, **rest}
            lpips = f"{rest['lpips']:.3f}" if "lpips" in rest else ""
            took = f"{rest['seconds']:.2f}" if "seconds" in rest else ""
            cells = (method, f"{mean:.2f} ({low:.1f} to {high:.1f})", f"{rest['psnr']:.2f}", f"{rest['ssim']:.3f}")
            text.append(f"| {' | '.join((*cells, lpips, took))} |")
    return summary, "\n".join(text) + "\n"


def main() -> None:
    """Measure, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prior", required=True, help="the --output-dir of `igae prior train`, or bundled")
    parser.add_argument("--scenes", type=Path, nargs="+", required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--photos", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--context", type=int, default=4, help="k of all but the prior itself; default: %(default)s")
    parser.add_argument("--targets", type=int, default=12, help="measured views of an object; default: %(default)s")
    parser.add_argument("--objects", type=int, help="of each folder, evenly spread; default: all")
    parser.add_argument("--refine", type=int, default=50, help="steps; default: %(default)s")
    parser.add_argument("--many-seconds", type=float, default=15.0, help="default: %(default)s")
    parser.add_argument("--no-fits", dest="fits", action="store_false", help="leave all fitting of planes out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    prior, metrics, path = SavedPrior.load(options.prior), ImageMetrics(), options.output_dir / "objects.jsonl"
    done = (
        {(line["folder"], line["object"]) for line in map(json.loads, path.read_text().splitlines())}
        if path.exists()
        else set()
    )
    for folder in options.scenes:
        names = sorted(each.parent.name for each in folder.glob("[!.]*/transforms_test.json"))
        count = min(options.objects or len(names), len(names))
        for name in (names[i * len(names) // count] for i in range(count)):
            if (folder.name, name) in done:
                continue
            item = Object(prior, folder, name, options.output_dir / "cache", options.targets)
            for method, values in measure(item, options, metrics).items():
                append_json_line(path, {"folder": folder.name, "object": name, "method": method, **values})
            print(folder.name, name, flush=True)
    summary, text = summarise(path)
    write_json(options.output_dir / "summary.json", {"prior": prior.facts, **summary})
    (options.output_dir / "summary.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
