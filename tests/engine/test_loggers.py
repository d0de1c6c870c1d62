"""What TensorBoard, Weights & Biases (offline) and a run without either are left with."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from conftest import latent_config
from PIL import Image


@pytest.fixture(autouse=True)
def _own_writers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nerfstudio keeps the loggers of a process in module variables."""
    from nerfstudio.engine.trainer import writer  # from there, as the module cannot be imported first

    monkeypatch.setattr(writer, "EVENT_WRITERS", [])
    monkeypatch.setattr(writer, "EVENT_STORAGE", [])


STEPS = 6
"""Three of latent supervision, three of RGB alignment."""


def trained(logger: str, scene: Path, autoencoder: Path, folder: Path):
    phases = {"latent_supervision_steps": 3, "rgb_alignment_steps": 3}
    config = latent_config("kplanes", scene, autoencoder, folder, **phases)
    config.vis = logger
    config.steps_per_eval_image, config.steps_per_eval_batch, config.logging.steps_per_log = 2, 2, 1
    trainer = config.setup()
    trainer.setup()
    trainer.pipeline.image_metrics._lpips = {"alex": None}
    trainer.train()
    return trainer


SCALARS = {
    "Train Loss",
    "Train Loss Dict/latent_loss",  # phase 1
    "Train Loss Dict/rgb_alignment_loss",  # phase 2
    "Train Loss Dict/interlevel",  # the method's own
    "Eval Loss",
    "Eval Images Metrics/psnr",
    "Eval Images Metrics/ssim",
    "Eval Images Metrics/latent_psnr",
    "Eval Images Metrics/autoencoder_psnr",
    "Phase",
    "learning_rate_in_phase/decoder",
    "learning_rate_in_phase/fields",
    "learning_rate_in_phase/proposal_networks",
}
FIGURE = "Eval Images/figure"


def test_tensorboard(blender_scene: Path, autoencoder_dir: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = trained("tensorboard", blender_scene, autoencoder_dir, tmp_path)
    log = EventAccumulator(str(trainer.base_dir), size_guidance={"images": 0, "scalars": 0}).Reload()
    assert SCALARS <= set(log.Tags()["scalars"])
    phase = {event.step: event.value for event in log.Scalars("Phase")}
    assert phase == {0: 1, 2: 1, 3: 2}  # the edge stands between steps 2 and 3
    rate = {event.step: event.value for event in log.Scalars("learning_rate_in_phase/decoder")}
    assert rate[2] == 0 and rate[3] == pytest.approx(1e-4)
    images = log.Images(FIGURE)
    assert [image.step for image in images] == [2, 4, STEPS]  # at every evaluation image, and at the end
    import io

    figure = np.asarray(Image.open(io.BytesIO(images[-1].encoded_image_string)))
    kept = np.asarray(Image.open(trainer.base_dir / "figure.png"))
    assert figure.shape == kept.shape == (48 + 2 * 6 * (192 // 36), 4 * 48, 3)
    assert np.abs(figure.astype(int) - kept.astype(int)).max() <= 1


def test_weights_and_biases_offline(
    blender_scene: Path, autoencoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    trained("wandb", blender_scene, autoencoder_dir, tmp_path)
    wandb.finish()

    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    log = DataStore()
    log.open_for_scan(str(path))
    history: dict[str, dict[int, object]] = defaultdict(dict)
    while (data := log.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for item in record.history.item:
            name, *part = item.nested_key or [item.key]
            if part in ([], ["path"]):  # a number, or the file of a picture
                history[name][record.history.step.num] = json.loads(item.value_json)
    assert SCALARS <= set(history)
    assert history["Phase"] == {0: 1, 2: 1, 3: 2}
    assert sorted(history[FIGURE]) == [2, 4, STEPS]
    (picture,) = (tmp_path / "wandb").glob(f"offline-run-*/files/{history[FIGURE][4]}")
    assert Image.open(picture).size == (4 * 48, 48 + 2 * 6 * (192 // 36))


def test_no_logger_but_a_viewer_that_never_returns(
    blender_scene: Path, autoencoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--vis viewer`, the default: after the last step Nerfstudio keeps the page up until ctrl-C."""
    from nerfstudio.engine.trainer import Trainer

    class Interrupted(Exception):
        pass

    def wait(self) -> None:
        raise Interrupted

    monkeypatch.setattr(Trainer, "_train_complete_viewer", wait)
    with pytest.raises(Interrupted):
        trained("tensorboard", blender_scene, autoencoder_dir, tmp_path)
    (base,) = tmp_path.glob("test/igae-kplanes/now")
    lines = [json.loads(line) for line in (base / "metrics.jsonl").read_text().splitlines()]
    assert "eval_psnr" in lines[-1] and lines[-1]["step"] == STEPS - 1
    assert (base / "figure.png").exists()
