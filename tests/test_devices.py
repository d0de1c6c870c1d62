"""Every tensor is made on the device of what it meets, or moved there: a CPU's test of what GPUs need."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import LATENT_METHODS, latent_config
from watch_devices import WatchDevices

from igae_nerfstudio.engine.phases import Phase


def test_the_watch_finds_such_tensors() -> None:
    values = torch.ones(3)
    with pytest.raises(RuntimeError, match="add"), WatchDevices():
        values + (2 * torch.arange(3)).float()
    with pytest.raises(RuntimeError, match="cat"), WatchDevices():
        torch.cat([values, torch.tensor([1.0, 2.0])])
    with WatchDevices():
        assert float((values + torch.arange(3, device=values.device)).sum()) == 6
        assert float((values + torch.linspace(0, 1, 3).to(values.device)).sum()) == 4.5
        assert float((values * torch.tensor(2.0)).sum()) == 6
        assert float(values[torch.tensor([0, 2])].sum()) == 2
    mapped = torch.ones(4, 3)
    with pytest.raises(RuntimeError, match="mul"), WatchDevices(mapped):
        mapped[torch.tensor([1])] * values


@pytest.mark.parametrize("method", LATENT_METHODS)
def test_latent_methods_train_and_render_where_their_data_is(
    method: str, blender_scene: Path, autoencoder_dir: Path, tmp_path: Path
) -> None:
    pipeline = latent_config(method, blender_scene, autoencoder_dir, tmp_path).pipeline.setup(device="cpu")
    rays, batch = pipeline.datamanager.next_train(0)
    camera = pipeline.datamanager.eval_dataset.cameras[0:1]
    for phase in Phase:
        pipeline.phase = phase
        pipeline.train()
        with WatchDevices():
            _, losses, _ = pipeline._losses(rays, batch)
        sum(losses.values()).backward()
    pipeline.eval()
    with WatchDevices():
        pipeline.model.get_outputs_for_camera(camera)
