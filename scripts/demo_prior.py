"""A scene from three photos of an object that the bundled prior has not seen, on a CPU.

    make demo-prior                             # or, in an environment of your own:
    python scripts/demo_prior.py --output-dir outputs/demo-prior

Runs `igae prior reconstruct` on three photos of `demo/lighthouse`, and leaves in the output folder

    photos-to-scene.png    the three photos | three new views | their truth
    turntable.mp4          once around the scene
    metrics.json           PSNR, SSIM and LPIPS on the 12 test views

and the run's own folder, which `ns-viewer --load-config .../config.yml` opens. Nothing is downloaded, but LPIPS's
weights, if they are not in torch's cache.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from copy import deepcopy
from pathlib import Path
from typing import Any, Iterator

import torch
from PIL import Image

from demo import ROOT, SCENE, run

PHOTOS, FRAMES = 3, 48


def around(cameras: Any) -> Iterator[Any]:
    """Cameras once around the vertical axis, from the first test camera on."""
    for i in range(FRAMES):
        camera, angle = deepcopy(cameras[:1]), torch.tensor(2 * math.pi * i / FRAMES)
        sine, cosine = angle.sin(), angle.cos()
        turn = torch.tensor([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
        camera.camera_to_worlds = turn @ camera.camera_to_worlds
        yield camera


def main() -> None:
    """Reconstruct, render, and say where everything is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=ROOT / "outputs" / "demo-prior", help="default: %(default)s")
    parser.add_argument("--prior", default="bundled", help="default: %(default)s")
    parser.add_argument("--refine", type=int, default=100, help="steps on z; default: %(default)s")
    arguments = parser.parse_args()
    output, start = arguments.output_dir.resolve(), time.time()
    output.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y-%m-%d_%H%M%S")
    program = Path(sys.executable).parent / "igae"
    options = ["--prior", arguments.prior, "--views", str(PHOTOS), "--refine", str(arguments.refine)]
    where = ["--data", SCENE, "--output-dir", output, "--timestamp", stamp]
    run("A scene from three photos", program, "prior", "reconstruct", *options, *where)

    from igae_nerfstudio.figures import sheet, to_uint8, write_film
    from igae_nerfstudio.prior.photos import spread
    from igae_nerfstudio.runs import load_run

    scene = load_run(output / SCENE.name / "igae-triplanes" / stamp)
    train = scene.pipeline.datamanager.train_dataset
    taken = spread(train.cameras.camera_to_worlds[..., 3], PHOTOS)
    views = [i * len(scene.cameras) // PHOTOS for i in range(PHOTOS)]
    columns = {
        "one of three photos": [to_uint8(train.get_image_float32(i)) for i in taken],
        "new view": [to_uint8(scene.render(scene.cameras[i : i + 1]).rgb) for i in views],
        "its truth": [to_uint8(scene.photo(i)) for i in views],
    }
    large = {title: [p.repeat(2, 0).repeat(2, 1) for p in column] for title, column in columns.items()}
    sheet(large).save(output / "photos-to-scene.png")
    frames = [scene.render(camera).rgb for camera in around(scene.cameras)]
    write_film(output / "turntable.mp4", [Image.fromarray(to_uint8(frame)) for frame in frames], 12)
    metrics = scene.evaluate()
    (output / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
    print(f"\n{shown} on {len(scene.cameras)} test views; {time.time() - start:.0f} s in all\n{output}")


if __name__ == "__main__":
    main()
