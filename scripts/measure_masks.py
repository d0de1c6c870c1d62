"""What masks are worth: the demo scene with a distractor in each training photo, with and without masks.

    python scripts/measure_masks.py --output-dir outputs/masks

A striped rectangle that moves from photo to photo covers a tenth of each training photo. Test photos are clean. Four
runs of igae-tensorf with the settings of `make demo` and the same steps: the clean photos, the distractor with masks,
with masks and `--mask-color`, and without masks. Writes `masks.json` and `masks.png` (what the encoder sees, its mask,
a test photo and its render, for each run). About ten CPU minutes.
"""

from __future__ import annotations

import argparse
import json
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image

from igae_nerfstudio import method_configs
from igae_nerfstudio.config_files import read_yaml, with_settings
from igae_nerfstudio.figures import sheet
from igae_nerfstudio.images import composite, read_image
from igae_nerfstudio.presets import QUICK

ROOT = Path(__file__).resolve().parents[1]
SHARE = 0.1
"""Of a photo that the distractor covers."""


def write_scene(folder: Path, blender: Path, distractor: bool, masks: bool, seed: int = 0) -> None:
    """A Blender scene on white as `transforms.json`, with the distractor in its training photos."""
    random, frames, splits = np.random.default_rng(seed), [], {}
    for split in ("train", "test"):
        meta = json.loads((blender / f"transforms_{split}.json").read_text())
        splits[split] = []
        for frame in meta["frames"]:
            picture = composite(read_image(blender / f"{frame['file_path']}.png"), np.ones(3)).copy()
            height, width = picture.shape[:2]
            entry = {"file_path": f"images/{split}_{len(splits[split]):03d}.png"}
            entry["transform_matrix"] = frame["transform_matrix"]
            if split == "train" and distractor:
                shape = np.sqrt(SHARE) * np.array([height * 1.25, width / 1.25])
                top, left = (int(random.integers(0, side - part)) for side, part in zip((height, width), shape))
                box = (slice(top, top + round(shape[0])), slice(left, left + round(shape[1])))
                stripes = (np.arange(round(shape[0]))[:, None, None] // 3 + random.integers(9)) % 2
                picture[box] = np.where(stripes == 1, random.integers(0, 256, 3), random.integers(0, 256, 3))
                mask = np.full((height, width), 255, np.uint8)
                mask[box] = 0
                if masks:
                    entry["mask_path"] = entry["file_path"].replace("images", "masks")
                    (folder / "masks").mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask).save(folder / entry["mask_path"])
            elif masks:  # Nerfstudio wants one for each photo or for none
                entry["mask_path"] = "masks/all.png"
                Image.fromarray(np.full((height, width), 255, np.uint8)).save(folder / "masks" / "all.png")
            (folder / "images").mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / entry["file_path"])
            frames.append(entry)
            splits[split].append(entry["file_path"])
    focal = width / 2 / np.tan(meta["camera_angle_x"] / 2)
    lens = {"fl_x": focal, "fl_y": focal, "cx": width / 2, "cy": height / 2, "w": width, "h": height}
    names = {"train_filenames": splits["train"], "val_filenames": splits["test"], "test_filenames": splits["test"]}
    (folder / "transforms.json").write_text(json.dumps({**lens, **names, "frames": frames}))


def train(scene: Path, name: str, args: argparse.Namespace, **parser: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics over all test photos, and the pictures of the last one evaluated."""
    config: Any = deepcopy(method_configs.igae_tensorf.config)
    config.output_dir, config.experiment_name, config.timestamp = args.output_dir / "runs", name, "run"
    config.vis, config.logging.local_writer.enable = "tensorboard", False
    config.steps_per_eval_batch = config.steps_per_eval_image = 10**9
    settings = read_yaml(QUICK)["igae-tensorf"]["pipeline"]
    config.pipeline = pipeline = with_settings(config.pipeline, settings, str(QUICK))
    pipeline.latent_supervision_steps, pipeline.rgb_alignment_steps = args.steps
    pipeline.decoder_lr_decay = 0.997
    config.optimizers["decoder"]["optimizer"].lr = 1e-3
    pipeline.datamanager.latent_cache_dir = args.output_dir / "latents"
    pipeline.datamanager.dataparser = NerfstudioDataParserConfig(
        data=scene,
        orientation_method="none",
        center_method="none",
        auto_scale_poses=False,
        scene_scale=1.5,
        eval_mode="filename",
        **parser,
    )
    trainer = config.setup()
    trainer.setup()
    start = time.process_time()
    trainer.train()
    seconds = time.process_time() - start
    metrics = trainer.pipeline.get_average_eval_image_metrics(step=0)
    _, images = trainer.pipeline.get_eval_image_metrics_and_images(0)
    photo, mask = trainer.pipeline.datamanager.train_dataset.photo_and_mask(0)
    shown = {"seen": photo, "test": (255 * images["img"]).byte().cpu().numpy()}
    shown["mask"] = np.full_like(photo, 255) if mask is None else 255 * np.repeat(mask[..., None], 3, 2).astype("u1")
    return {**{key: metrics[key] for key in ("psnr", "ssim", "lpips") if key in metrics}, "cpu_s": seconds}, shown


def main() -> None:
    """Make the scenes, train, write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "demo" / "lighthouse")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/masks"))
    parser.add_argument("--steps", type=int, nargs=2, default=(150, 300), metavar=("SUPERVISION", "ALIGNMENT"))
    args = parser.parse_args()
    kinds: dict[str, tuple[bool, bool, dict[str, Any]]] = {
        "clean": (False, False, {}),
        "masks": (True, True, {}),
        "mask_color": (True, True, {"mask_color": (1.0, 1.0, 1.0)}),
        "no masks": (True, False, {}),
    }
    results, columns = {}, {}
    for name, (distractor, masks, options) in kinds.items():
        scene = args.output_dir / name.replace(" ", "_")
        write_scene(scene, args.data, distractor, masks)
        results[name], shown = train(scene, name.replace(" ", "_"), args, **options)
        height, width = shown["seen"].shape[:2]
        columns[name] = [shown["seen"], shown["mask"], shown["test"][:, :width], shown["test"][:, width : 2 * width]]
        print(name, json.dumps(results[name]), flush=True)
        (args.output_dir / "masks.json").write_text(json.dumps(results, indent=1))
    sheet(columns).save(args.output_dir / "masks.png")


if __name__ == "__main__":
    main()
