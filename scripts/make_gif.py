"""Turn a finished run into the README's moving picture: latent preview and decoded render, side by side.

    make demo
    python scripts/make_gif.py --load-config outputs/demo/lighthouse/igae-splatfacto/run/config.yml \\
        --camera-path outputs/demo/camera_path.json --output-path docs/images/demo.gif

The camera path is a JSON file as the viewer's render panel writes it. Latent pixels are shown as squares, as they are;
the decoded render is enlarged smoothly.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Sequence

from PIL import Image, ImageDraw

TITLE = 20
"""Height of the line of titles, in pixels."""
GAP = 8
"""Between the two pictures, in pixels."""


def main() -> None:
    """Render the path and write the GIF."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--load-config", type=Path, required=True, help="config.yml of a run")
    parser.add_argument("--camera-path", type=Path, required=True, help="JSON of the viewer's render panel")
    parser.add_argument("--output-path", type=Path, default=Path("flight.gif"), help="default: %(default)s")
    parser.add_argument("--enlarge", type=int, default=2, help="times the path's own size; default: %(default)s")
    parser.add_argument(
        "--colours", type=int, default=128, help="of the GIF's palette, at most 256; default: %(default)s"
    )
    arguments = parser.parse_args()

    from nerfstudio.cameras.camera_paths import get_path_from_json

    from igae_nerfstudio.figures import to_uint8
    from igae_nerfstudio.runs import load_run

    path = json.loads(arguments.camera_path.read_text(encoding="utf-8"))
    cameras = get_path_from_json(path)
    model = load_run(arguments.load_config).pipeline.model
    frames = []
    for i in range(len(cameras)):
        outputs = model.get_outputs_for_camera(cameras[i : i + 1])
        latent, rgb = (Image.fromarray(to_uint8(outputs[name])) for name in ("latent", "rgb"))
        frames.append(side_by_side(latent, rgb, arguments.enlarge))
    arguments.output_path.parent.mkdir(parents=True, exist_ok=True)
    write_gif(arguments.output_path, frames, path["seconds"] / len(frames), arguments.colours)
    print(f"{arguments.output_path}: {len(frames)} frames, {arguments.output_path.stat().st_size / 1e6:.2f} MB")


def side_by_side(latent: Image.Image, rgb: Image.Image, enlarge: int) -> Image.Image:
    """One frame: latent preview | decoded render, with titles."""
    width, height = rgb.width * enlarge, rgb.height * enlarge
    frame = Image.new("RGB", (2 * width + GAP, height + TITLE), "white")
    frame.paste(latent.resize((width, height), Image.Resampling.NEAREST), (0, TITLE))
    frame.paste(rgb.resize((width, height), Image.Resampling.BICUBIC), (width + GAP, TITLE))
    draw = ImageDraw.Draw(frame)
    draw.text((4, 4), "rendered: latents (preview)", fill="black")
    draw.text((width + GAP + 4, 4), "decoded: RGB", fill="black")
    return frame


def write_gif(path: Path, frames: Sequence[Image.Image], seconds: float, colours: int) -> None:
    """Write frames, `seconds` each, with one palette for all of them, so that nothing flickers."""
    step = max(1, len(frames) // 8)
    sample: list[Image.Image] = list(frames[::step])
    strip = Image.new("RGB", (sample[0].width, sample[0].height * len(sample)))
    for i, frame in enumerate(sample):
        strip.paste(frame, (0, i * frame.height))
    palette = strip.quantize(colours, method=Image.Quantize.MEDIANCUT)
    quantized = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    quantized[0].save(path, save_all=True, append_images=quantized[1:], duration=round(1000 * seconds), loop=0)


if __name__ == "__main__":
    main()
