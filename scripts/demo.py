"""Train, evaluate and film a latent scene of the demo with the bundled autoencoder, on a CPU.

    make demo                                   # or, in an environment of your own:
    python scripts/demo.py --output-dir outputs/demo

Runs the same commands that a user would (`ns-train`, `ns-eval`, `ns-render`), shows their progress, and leaves in
the output folder

    lighthouse.png    ground truth | decoded render | latent preview, for three test views
    lighthouse.mp4    a flight around the scene
    metrics.json      what `ns-eval` wrote

and the run's own folder, which `ns-viewer --load-config .../config.yml` opens. Nothing is downloaded. About six
minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SCENE = ROOT / "demo" / "lighthouse"

TRAINING = """
--vis tensorboard
--pipeline.preset quick
--pipeline.datamanager.latent-cache-dir {latent_cache_dir}
--steps-per-save 200
--steps-per-eval-batch 1000000
--steps-per-eval-image 1000000
--logging.steps-per-log 20
"""


def run(title: str, *command: str | Path) -> None:
    """Run one command with its output on the terminal; end with its exit status if it fails."""
    print(f"\n=== {title}\n    {' '.join(map(str, command))}\n", flush=True)
    result = subprocess.run([str(part) for part in command], env=environment())
    if result.returncode != 0:
        sys.exit(f"demo: {command[0]} failed with exit status {result.returncode}; its last lines say why")


def environment() -> dict[str, str]:
    """This Python's own commands first, one thread per core of the smallest machine, and no deprecation noise."""
    folder = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"}
    env.setdefault("OMP_NUM_THREADS", str(min(os.cpu_count() or 1, 4)))
    env.setdefault("PYTHONWARNINGS", "ignore")
    return env


def link_ffmpeg() -> None:
    """`ns-render` needs an ffmpeg program; where there is none, take the one of the package imageio-ffmpeg."""
    if shutil.which("ffmpeg", path=environment()["PATH"]):
        return
    import imageio_ffmpeg

    (Path(sys.executable).parent / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())


def make_camera_path(path: Path, frames: int, size: int) -> None:
    """A circle around the scene, in the format of the viewer's render panel."""
    meta = json.loads((SCENE / "transforms_test.json").read_text())
    poses = [np.array(frame["transform_matrix"]) for frame in meta["frames"]]
    radius = float(np.mean([np.linalg.norm(pose[:3, 3]) for pose in poses]))
    height = float(np.mean([pose[2, 3] for pose in poses]))
    cameras = []
    for i in range(frames):
        azimuth = 2 * np.pi * i / frames
        across = np.sqrt(radius**2 - height**2)
        position = np.array([across * np.cos(azimuth), across * np.sin(azimuth), height])
        back = position / radius
        right = np.cross([0, 0, 1], back)
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3] = np.stack([right, np.cross(back, right), back, position], axis=-1)
        fov = np.degrees(meta["camera_angle_x"])
        cameras.append({"camera_to_world": pose.flatten().tolist(), "fov": fov, "aspect": 1.0})
    path.write_text(
        json.dumps(
            {"render_height": size, "render_width": size, "seconds": frames / 12, "camera_path": cameras},
            indent=1,
        )
    )


def contact_sheet(renders: Path, path: Path, views: list[int], enlarge: int = 2) -> None:
    """Rows of ground truth | decoded render | latent preview, their pixels enlarged as they are."""
    from igae_nerfstudio.figures import sheet

    columns = {"ground truth": "gt-rgb", "decoded render": "rgb", "latent preview": "latent"}
    pictures = {
        title: [np.asarray(Image.open(renders / "test" / name / f"r_{view:03d}.png").convert("RGB")) for view in views]
        for title, name in columns.items()
    }
    enlarged = {title: [p.repeat(enlarge, 0).repeat(enlarge, 1) for p in column] for title, column in pictures.items()}
    sheet(enlarged).save(path)


def main() -> None:
    """Train, evaluate, render, and say where everything is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=ROOT / "outputs" / "demo", help="default: %(default)s")
    parser.add_argument("--method", default="igae-splatfacto", help="one with a preset quick; default: %(default)s")
    parser.add_argument("--frames", type=int, default=48, help="of the video; default: %(default)s")
    arguments = parser.parse_args()
    output = arguments.output_dir.resolve()
    output.mkdir(parents=True, exist_ok=True)
    start = time.time()
    link_ffmpeg()
    options = TRAINING.format(latent_cache_dir=output / "latents").split()
    where = ["--output-dir", output, "--experiment-name", "lighthouse", "--timestamp", "run"]
    train = ["ns-train", arguments.method, "--data", SCENE, *where, *options, "blender-data"]
    run("Training: latent supervision, then RGB alignment", *train)
    trained = time.time()
    config = output / "lighthouse" / arguments.method / "run" / "config.yml"
    run("Evaluating", "ns-eval", "--load-config", config, "--output-path", output / "metrics.json")
    run(
        "Rendering the test views",
        "ns-render",
        "dataset",
        "--load-config",
        config,
        "--output-path",
        output / "renders",
        "--image-format",
        "png",
    )
    camera_path = output / "camera_path.json"
    make_camera_path(camera_path, arguments.frames, size=128)
    video = output / "lighthouse.mp4"
    run(
        "Rendering the video",
        "ns-render",
        "camera-path",
        "--load-config",
        config,
        "--camera-path-filename",
        camera_path,
        "--output-path",
        video,
    )
    sheet = output / "lighthouse.png"
    contact_sheet(output / "renders", sheet, views=[0, 4, 8])

    results = json.loads((output / "metrics.json").read_text())["results"]
    print(f"\nDone in {time.time() - start:.0f} s, {trained - start:.0f} s of it training.\n")
    labels = {"": "decoded render", "latent_": "rendered latents", "autoencoder_": "autoencoder (ceiling)"}
    for prefix, label in labels.items():
        found = [(m, results.get(prefix + m)) for m in ("psnr", "ssim", "lpips", "lpips_vgg")]
        print(f"  {label:22}", "  ".join(f"{m.upper()} {value:.3f}" for m, value in found if value is not None))
    print(f"\n  picture  {sheet}\n  video    {video}\n  metrics  {output / 'metrics.json'}")
    print(f"  viewer   ns-viewer --load-config {config}")


if __name__ == "__main__":
    main()
