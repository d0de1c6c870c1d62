"""Several processes train one scene as one process does."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import latent_config
from nerfstudio.utils import comms

from igae_nerfstudio.engine.processes import average_gradients
from igae_nerfstudio.errors import InputError


def join_group(rank: int, world: int, port: int) -> None:
    """What `ns-train` does in each process, which on CPUs it refuses."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=world, rank=rank)
    comms.LOCAL_PROCESS_GROUP = dist.new_group(list(range(world)))


def average(rank: int, folder: Path) -> None:
    both, one, none = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    both.grad = torch.tensor([1.0, 2.0]) + rank
    if rank == 1:
        one.grad = torch.tensor([3.0, 5.0])
    average_gradients([both, one, none])
    torch.save([both.grad, one.grad, none.grad], folder / f"gradients-{rank}.pt")


def check_gradients(folder: Path) -> None:
    for rank in (0, 1):
        both, one, none = torch.load(folder / f"gradients-{rank}.pt")
        assert both.tolist() == [1.5, 2.5] and one.tolist() == [1.5, 2.5] and none is None


def small_run(scene: Path, autoencoder: Path, folder: Path):
    config = latent_config(
        "vanilla_nerf",
        scene,
        autoencoder,
        folder,
        latent_supervision_steps=3,
        rgb_alignment_steps=3,
        latent_supervision_lr_factor=1.0,
        rgb_alignment_lr_factor=1.0,
    )
    config.pipeline.datamanager.latent_cache_dir = folder / "latents"
    return config


def train(rank: int, world: int, scene: Path, autoencoder: Path, folder: Path) -> None:
    """As Nerfstudio's `train_loop`, with samples at the same places in all processes."""
    torch.manual_seed(7 + rank)
    trainer = small_run(scene, autoencoder, folder).setup(local_rank=rank, world_size=world)
    trainer.setup()
    scene_model = trainer.pipeline.model.scene
    scene_model.sampler_uniform.train_stratified = scene_model.sampler_pdf.train_stratified = False
    before = tensors(trainer.pipeline)
    trainer.train()
    torch.save((before, tensors(trainer.pipeline)), folder / f"{world}-{rank}.pt")


def tensors(pipeline: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in pipeline.state_dict().items() if isinstance(value, torch.Tensor)}


def train_together(rank: int, port: int, scene: Path, autoencoder: Path, folder: Path) -> None:
    join_group(rank, 2, port)
    average(rank, folder)
    train(rank, 2, scene, autoencoder, folder)
    dist.destroy_process_group()


def test_two_processes_average_gradients_and_train_as_one(
    blender_scene: Path, autoencoder_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "together"
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    mp.spawn(train_together, args=(port, blender_scene, autoencoder_dir, folder), nprocs=2)
    check_gradients(folder)
    output = capfd.readouterr().out
    assert output.count("0 latent images from the cache, 6 encoded") == 1  # by the first process, for both
    assert output.count("6 latent images from the cache, 0 encoded") == 1
    (start, first), (_, second) = (torch.load(folder / f"2-{rank}.pt") for rank in (0, 1))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=0, msg=name)

    alone = tmp_path / "alone"
    alone.mkdir()
    train(0, 1, blender_scene, autoencoder_dir, alone)
    start_alone, single = torch.load(alone / "1-0.pt")
    for part in ("scene", "decoder"):
        names = [name for name in single if f".{part}." in name]
        moved = torch.cat([(single[name] - start_alone[name]).flatten() for name in names])
        moved_together = torch.cat([(first[name] - start[name]).flatten() for name in names])
        assert float(moved.norm()) > 1e-3
        # Adam's first steps are as long for a gradient of rounding errors as for any other.
        assert float((moved_together - moved).norm()) < 0.02 * float(moved.norm()), part

    # What two processes left, one resumes and renders.
    config = small_run(blender_scene, autoencoder_dir, folder)
    config.pipeline.rgb_alignment_steps = 5
    config.load_dir = folder / "test" / "igae-vanilla-nerf" / "now" / "nerfstudio_models"
    config.timestamp = "later"
    resumed = config.setup()
    resumed.setup()
    assert resumed._start_step == 6
    for name, value in first.items():
        torch.testing.assert_close(resumed.pipeline.state_dict()[name], value, rtol=0, atol=0, msg=name)
    resumed.train()
    camera = resumed.pipeline.datamanager.eval_dataset.cameras[0:1]
    assert resumed.pipeline.model.get_outputs_for_camera(camera)["rgb"].shape == (48, 48, 3)


def test_images_that_cannot_be_shared_equally(
    blender_scene: Path, autoencoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comms, "get_world_size", lambda: 4)
    with pytest.raises(InputError, match="is 2; it must be a positive multiple of the number of devices, 4"):
        latent_config("vanilla_nerf", blender_scene, autoencoder_dir, tmp_path).pipeline.setup(device="cpu")
