"""How consistent the latents of autoencoders are in 3D, without a NeRF.

    igae render-objects --meshes MESHES --output-dir SCENES --depth
    python scripts/measure_consistency.py --scenes SCENES --autoencoders standard=bundled-ae ig-ae=bundled

Prints, for each autoencoder, the reprojection error of its latents (`igae_nerfstudio/scenes/consistency.py`): 0 is the
same latents for one surface point in two views, 1 is no correlation. The row `averaged pixels` averages photos over the
pixels of a latent: it is as consistent as light and sampling allow.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from igae_nerfstudio.autoencoder.autoencoder import AutoencoderConfig, load_autoencoder
from igae_nerfstudio.scenes.consistency import read_depth_views, reprojection_error
from igae_nerfstudio.scenes.scene_folders import find_scenes


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=Path, required=True, help="folder of scenes with depth")
    parser.add_argument("--autoencoders", nargs="+", required=True, metavar="NAME=PATH")
    parser.add_argument("--split", default="train")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures (default: %(default)s)")
    parser.add_argument(
        "--max-angle", type=float, default=30.0, help="between optical axes, degrees (default: %(default)s)"
    )
    arguments = parser.parse_args()
    folders = find_scenes(arguments.scenes, arguments.split)
    scenes = [read_depth_views(folder, arguments.size, arguments.split) for folder in folders]
    rows, downscale = {}, 1
    for name, source in (item.split("=", 1) for item in arguments.autoencoders):
        autoencoder = load_autoencoder(AutoencoderConfig(source))
        downscale = max(downscale, autoencoder.downscale)
        latents = [torch.cat([autoencoder.encode(part) for part in scene.images.split(20)]) for scene in scenes]
        rows[name] = [reprojection_error(*pair, arguments.max_angle) for pair in zip(latents, scenes)]
    rows["averaged pixels"] = [
        reprojection_error(F.avg_pool2d(scene.images, downscale), scene, arguments.max_angle) for scene in scenes
    ]
    print(f"| | {' | '.join(folder.name for folder in folders)} | mean |\n|---|{'---|' * (len(folders) + 1)}")
    for name, errors in rows.items():
        print(f"| {name} | {' | '.join(f'{error:.3f}' for error in errors)} | {sum(errors) / len(errors):.3f} |")


if __name__ == "__main__":
    main()
