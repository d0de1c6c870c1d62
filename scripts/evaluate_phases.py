"""What RGB alignment adds: evaluate every checkpoint of a run on the test split (the paper's table 5).

    ns-train igae-tensorf ... --save-only-latest-checkpoint False --steps-per-save 999 \\
        --pipeline.latent-supervision-steps 1000 --pipeline.rgb-alignment-steps 1000
    python scripts/evaluate_phases.py --load-config outputs/.../config.yml --output-dir results

Steps are counted from 0 and saved at multiples of `--steps-per-save`, so with one less than the first phase's length a
checkpoint falls on its last step. Writes `NAME.json` with the averages of each checkpoint, and `NAME.png` with one row
per test view: photo, decoded render of each checkpoint, photo through the untouched autoencoder, latent preview.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import torch


def main() -> None:
    """Evaluate, print a table, write JSON and PNG."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--load-config", type=Path, required=True, help="config.yml of a run")
    parser.add_argument("--output-dir", type=Path, default=Path("results"), help="default: %(default)s")
    parser.add_argument("--views", type=int, nargs="*", default=[0, 7, 13], help="test views in the picture")
    arguments = parser.parse_args()

    from nerfstudio.utils.eval_utils import eval_setup

    from igae_nerfstudio.figures import sheet, to_uint8

    config, pipeline, _, _ = eval_setup(arguments.load_config, test_mode="test")
    dataset = pipeline.datamanager.fixed_indices_eval_dataloader.input_dataset
    views = [view for view in arguments.views if view < len(dataset)]
    folder = config.get_checkpoint_dir()
    steps = sorted(int(re.fullmatch(r"step-(\d+)\.ckpt", path.name)[1]) for path in folder.glob("step-*.ckpt"))
    first_of_alignment = config.pipeline.latent_supervision_steps
    table: dict[str, dict[str, float]] = {}
    columns = {"photo": [to_uint8(dataset.get_image_float32(view)) for view in views]}
    for step in steps:
        state = torch.load(folder / f"step-{step:09d}.ckpt", map_location="cpu", weights_only=True)
        pipeline.load_pipeline(state["pipeline"], state["step"])
        name = f"step {step + 1}, {'latent supervision' if step < first_of_alignment else 'RGB alignment'}"
        table[name] = pipeline.get_average_eval_image_metrics(step=step)
        pipeline.eval()
        outputs = [pipeline.model.get_outputs_for_camera(dataset.cameras[view : view + 1]) for view in views]
        columns[name] = [to_uint8(output["rgb"]) for output in outputs]
        metrics = "  ".join(f"{key} {value:.3f}" for key, value in table[name].items())
        print(f"{name}: {metrics}", flush=True)
    if pipeline.autoencoder is not None:
        columns["autoencoder (ceiling)"] = [
            to_uint8(autoencoded(pipeline.autoencoder, dataset.get_image_float32(view))) for view in views
        ]
    columns["latent preview"] = [to_uint8(output["latent"]) for output in outputs]

    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    stem = arguments.output_dir / f"{config.experiment_name}-{config.method_name}"
    stem.with_suffix(".json").write_text(json.dumps(table, indent=1))
    sheet(columns).save(stem.with_suffix(".png"))
    print(f"{stem}.json {stem}.png")


def autoencoded(autoencoder, photo: torch.Tensor) -> torch.Tensor:
    """A photo (H, W, 3) through the untouched autoencoder."""
    latents = autoencoder.encode(photo.permute(2, 0, 1)[None])
    return autoencoder.decode(latents, size=tuple(photo.shape[:2]))[0].permute(1, 2, 0)


if __name__ == "__main__":
    main()
