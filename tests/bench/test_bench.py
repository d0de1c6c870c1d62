"""RGB and latents side by side: what is compared, what a process measures, what is reported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from igae_nerfstudio.bench import sides, worker
from igae_nerfstudio.bench.bench import STEPS, BenchCommand, MethodBench, Results
from igae_nerfstudio.bench.report import write_report
from igae_nerfstudio.bench.sides import METHODS, RGB_RAYS, Side, trainer_config
from igae_nerfstudio.engine.interruption import STATUS
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.figures import photo_of
from igae_nerfstudio.phases import Phase


def side(scene: Path, folder: Path, method: str = "kplanes", space: str = "rgb", size: int = 64) -> Side:
    return Side(method, space, scene, "auto", size, "bundled", folder)


@pytest.mark.parametrize("method", METHODS)
def test_both_sides_see_the_same_pictures(method: str, blender_scene: Path, tmp_path: Path) -> None:
    rgb, latent = (trainer_config(side(blender_scene, tmp_path, method, space)) for space in ("rgb", "latent"))
    for config in (rgb, latent):
        data = config.pipeline.datamanager
        assert type(data.dataparser).__name__ == "BlenderDataParserConfig" and data.dataparser.data == blender_scene
        assert int(48 * data.camera_res_scale_factor) == 64
    assert rgb.pipeline.datamanager.train_num_rays_per_batch == RGB_RAYS
    assert latent.pipeline.datamanager.images_per_batch == 4
    assert latent.method_name == f"igae-{method}"
    assert not hasattr(rgb.pipeline.model, "latent_channels")


@pytest.mark.parametrize("space", ["rgb", "latent"])
def test_a_side_trains_renders_and_is_measured(
    space: str, blender_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sides, "RGB_RAYS", 64)
    original = sides.trainer_config

    def small(chosen: Side):
        config = original(chosen)
        model = config.pipeline.model
        model.grid_base_resolution, model.multiscale_factors, model.grid_feature_dim = (8, 8, 8), (1,), 4
        model.proposal_resolutions, model.num_proposal_samples_per_ray = (8,), (16,)
        model.num_nerf_samples_per_ray = 8
        return config

    monkeypatch.setattr(worker, "trainer_config", small)
    measured = worker.SideWorker(side(blender_scene, tmp_path, space=space))
    facts = measured.facts()
    assert (facts["views"], facts["height"], facts["width"]) == (6, 64, 64)
    if space == "latent":
        for phase in Phase:
            assert (facts["rays"][phase.value], facts["pixels"][phase.value]) == (4 * 8 * 8, 4 * 64 * 64)
        assert measured.set_schedule(2, 2) == (2, 2)
    stages = ("training",) if space == "rgb" else ("latent supervision", "RGB alignment")
    before = measured.psnr()
    measured.prepare_timing()
    for stage in stages:
        assert len(measured.train(stage, 0.0, at_least=2)) == 2
        longer = measured.train(stage, 0.3)
        assert sum(longer) >= 0.3 and all(seconds > 0 for seconds in longer)
    if space == "latent":
        assert measured.pipeline.phase.value == "RGB alignment"
        assert len(measured.pipeline.next_batch(0, Phase.RGB_ALIGNMENT)[1]["image"]) == 4
        measured.train("RGB alignment", 0.0, share=0.25)
        assert len(measured.pipeline.next_batch(0, Phase.RGB_ALIGNMENT)[1]["image"]) == 1
    assert measured.psnr() != before
    picture = measured.render(128, 100.0)
    assert picture["share"] == 1 and picture["seconds"] > 0
    assert ("decode" in picture) == (space == "latent")
    if space == "rgb":
        assert measured.render(128, 0.0)["share"] == worker.RENDER_RAYS / 128**2
    assert measured.memory()["RAM"] > 100 and measured.checkpoint_size() > 0.01
    measured.save_state(str(tmp_path / "state"))
    measured.load_state(str(tmp_path / "state"))


def test_occupancy_grids_rest_while_steps_are_timed(
    blender_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = sides.trainer_config

    def small(chosen: Side):
        config = original(chosen)
        model = config.pipeline.model
        model.grid_resolution, model.grid_levels, model.log2_hashmap_size, model.max_res = 16, 2, 8, 32
        model.render_step_size = 0.1
        return config

    monkeypatch.setattr(worker, "trainer_config", small)
    measured = worker.SideWorker(side(blender_scene, tmp_path, method="instant-ngp", space="latent", size=32))
    measured.prepare_timing()
    grid = measured._occupancy_grid()
    assert float(grid.binaries[0].float().mean()) == pytest.approx(4 / 3 * torch.pi / 64, rel=0.1)
    assert float(grid.binaries[1].float().mean()) == pytest.approx(4 / 3 * torch.pi / 512, rel=0.3)
    before = grid.binaries.clone()
    measured.train("latent supervision", 0.0, at_least=17)
    measured.train("RGB alignment", 0.0, at_least=17)
    assert measured.upkeep() > 0
    assert torch.equal(grid.binaries, before)


def test_psnr_of_a_known_picture(blender_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A render that is grey everywhere has the PSNR of grey against the photos, transparent pixels white."""
    measured = worker.SideWorker.__new__(worker.SideWorker)
    measured.side, measured.device = side(blender_scene, tmp_path, size=48), torch.device("cpu")
    config = sides.trainer_config(measured.side)
    config.pipeline.datamanager.train_num_images_to_sample_from = 1
    datamanager = config.pipeline.datamanager.setup(device="cpu", test_mode="val")

    class Grey(torch.nn.Module):
        def get_outputs_for_camera_ray_bundle(self, rays):
            return {"rgb": torch.full((*rays.shape, 3), 0.5)}

    measured.pipeline = torch.nn.Module()
    measured.pipeline.datamanager, measured.pipeline.model = datamanager, Grey()
    dataset = datamanager.eval_dataset
    photos = torch.stack([photo_of(dataset, i) for i in range(len(dataset))])
    assert photos.shape[-1] == 3 and float(photos[0, 0, 0].min()) == 1  # a corner
    expected = -10 * torch.log10((photos - 0.5).square().mean())
    assert measured.psnr() == pytest.approx(float(expected), abs=0.3)


def test_work_is_counted_as_it_is_done(blender_scene: Path, tmp_path: Path) -> None:
    """Of larger pictures random rays and patches, and of a share of a step a share of both."""
    config = replace(side(blender_scene, tmp_path, space="latent", size=256), preset="fast")
    measured = worker.SideWorker(config)
    facts = measured.facts()
    assert (facts["rays"]["latent supervision"], facts["pixels"]["latent supervision"]) == (1024, 1024 * 64)
    assert facts["rays"]["RGB alignment"] == 4 * (3 + 10 + 3) ** 2
    assert 4 * 80**2 <= facts["pixels"]["RGB alignment"] <= 4 * 104**2  # no margin at the pictures' edges
    measured._set_share(0.25)
    assert measured.facts()["rays"] == {"latent supervision": 256, "RGB alignment": 16**2}
    measured._set_share(1.0)
    assert measured.facts()["rays"] == facts["rays"]


class Scripted:
    """A worker whose every step and picture takes a known time."""

    def __init__(self, steps: dict, picture: dict) -> None:
        self.steps, self.picture, self.calls = steps, picture, []
        self.facts = {
            "rays": dict.fromkeys(steps, 1000),
            "pixels": dict.fromkeys(steps, 2000),
            "height": 128,
            "width": 128,
            "parameters": 7,
            "views": 3,
        }

    def __call__(self, command: str, *arguments):
        self.calls.append((command, *arguments))
        if command == "train":
            share = arguments[3] if len(arguments) > 3 else 1
            count = arguments[2] if len(arguments) > 2 else 1
            return [self.steps[arguments[0]] * share] * count
        return {"render": self.picture, "memory": {"RAM": 10.0}, "checkpoint_size": 2.0, "upkeep": 0.0}[command]


def test_quick_extrapolates_long_steps_of_both_sides_and_says_so(tmp_path: Path) -> None:
    rgb = Scripted({"training": 40.0}, {})
    latent = Scripted({"latent supervision": 20.0, "RGB alignment": 0.5}, {})
    command = BenchCommand(tmp_path, tmp_path, quick=True, sizes=(128,), rounds=2, seconds=4)
    results = Results()
    MethodBench(command, "vanilla-nerf", results)._training(rgb, latent)
    shares = {call[1]: call[-1] for call in rgb.calls + latent.calls if call[0] == "train"}
    assert shares == {"training": 0.25, "latent supervision": 0.25, "RGB alignment": 1.0}
    step = results.get("vanilla-nerf", "rgb", 128, "training", "step")
    assert step["median"] == 40 and "25% of their rays" in step["note"]
    assert "note" not in results.get("vanilla-nerf", "latent", 128, "RGB alignment", "step")


class Learner(Scripted):
    """A worker whose PSNR grows with its steps."""

    def __init__(self, steps: dict, gain: float) -> None:
        super().__init__(steps, {})
        self.gain, self.taken, self.schedule = gain, 0, None

    def __call__(self, command: str, *arguments):
        if command == "set_schedule":
            self.schedule = arguments
            return arguments
        if command == "psnr":
            return 10 + self.gain * self.taken
        if command == "train" and arguments[0] == "training":
            count = round(arguments[1] / self.steps["training"])
            self.taken += count
            return [self.steps["training"]] * count
        if command == "train" and len(arguments) == 2:
            self.taken += 1
        return super().__call__(command, *arguments)

    def replace(self) -> None:
        self.taken = 0


def test_how_much_sooner_the_defaults_get_where_a_peer_ends(tmp_path: Path) -> None:
    """The peer's steps take half as long as ours and bring a fifth; it ends at 14 dB after 40 s, ours is there
    after 16 s."""
    phases = ("latent supervision", "RGB alignment")
    sides = {
        "rgb": Learner({"training": 1.0}, 0.05),
        "latent": Learner(dict.fromkeys(phases, 0.5), 0.125),
        "peer": Learner(dict.fromkeys(phases, 0.25), 0.025),
    }
    results = Results()
    bench = MethodBench(BenchCommand(tmp_path, tmp_path, peer=tmp_path), "tensorf", results)
    bench._quality(sides, 40.0)
    assert sides["latent"].schedule == (28, 52) and sides["latent"].taken == 80
    assert sides["peer"].schedule == (56, 104) and sides["peer"].taken == 160
    assert [len(curve) for curve in results.curves["tensorf"].values()] == [10, 10, 10]

    def seconds(space: str):
        return results.get("tensorf", space, 128, "short schedule", "time to the peer's last PSNR")

    assert seconds("peer")["median"] == pytest.approx(40)
    assert seconds("latent")["median"] == pytest.approx(16)
    assert seconds("rgb") is None  # it ends at 12 dB
    write_report(tmp_path, results, {"scene": "a", "seconds": 1.0})
    (row,) = [line for line in (tmp_path / "bench.md").read_text().splitlines() if "the peer's last" in line]
    assert row.split(" | ")[2:] == ["-", "16 s", "-", "40 s", "**2.50** |"]
    assert (tmp_path / "psnr_over_time.png").stat().st_size > 5000


def test_the_schedule_is_extrapolated_and_the_ratio_is_rgb_over_latent(tmp_path: Path) -> None:
    rgb = Scripted({"training": 0.6}, {"seconds": 2.0, "share": 0.5})
    latent = Scripted({"latent supervision": 0.1, "RGB alignment": 0.2}, {"seconds": 0.5, "decode": 0.1, "share": 1.0})
    command = BenchCommand(tmp_path, tmp_path, sizes=(128,), rounds=3, seconds=3)
    results = Results()
    bench = MethodBench(command, "tensorf", results)
    bench._training(rgb, latent)
    bench._rendering(rgb, latent)
    bench._size(rgb, latent)
    turns = [call[1] for call in rgb.calls + latent.calls if call[0] == "train"]
    assert turns.count("training") == turns.count("RGB alignment") == 4  # a warm-up and three rounds
    minutes = results.get("tensorf", "rgb", 128, "whole schedule", "training")
    assert minutes["median"] == pytest.approx(STEPS * 0.6 / 60)
    minutes = results.get("tensorf", "latent", 128, "whole schedule", "training")
    assert minutes["median"] == pytest.approx((10_000 * 0.1 + 15_000 * 0.2) / 60)
    assert results.get("tensorf", "rgb", 128, "training", "rays")["median"] == pytest.approx(1000 / 0.6)
    assert results.get("tensorf", "rgb", 128, "rendering", "picture")["median"] == 2000
    assert "50%" in results.get("tensorf", "rgb", 128, "rendering", "picture")["note"]

    results.curves["tensorf"] = {"rgb": [(1.0, 10.0), (2.0, 12.0)], "latent": [(1.0, 14.0), (2.0, 15.0)]}
    write_report(tmp_path, results, {"cores": 2, "seconds": 5.0})
    records = json.loads((tmp_path / "bench.json").read_text())
    keys = {"method", "space", "size", "phase", "metric", "unit", "median", "min", "max", "n"}
    assert all(keys <= record.keys() <= keys | {"note"} for record in records)
    table = (tmp_path / "bench.md").read_text()
    assert "**3.75**" in table and "4.60" in table  # 250 over 66.7 minutes; the paper's 92 over 20
    assert "**4.00**" in table  # 2,000 over 500 ms
    for name in ("psnr_over_time.png", "time_per_picture.png"):
        assert (tmp_path / name).stat().st_size > 5000


def test_a_step_that_takes_longer_than_its_turn_is_not_repeated(tmp_path: Path) -> None:
    rgb, latent = Scripted({"training": 60.0}, {}), Scripted({"latent supervision": 0.1, "RGB alignment": 0.2}, {})
    MethodBench(BenchCommand(tmp_path, tmp_path, rounds=1, seconds=3), "tensorf", Results())._training(rgb, latent)
    assert [call[0] for call in rgb.calls] == ["train", "upkeep"]
    assert len(latent.calls) == 5


def test_bad_input_is_named(blender_scene: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ({"data": tmp_path / "nowhere"}, "does not exist"),
        ({"dataparser": "blender"}, "no dataparser 'blender'"),
        ({"dataparser": "nerfstudio-data"}, "cannot be read"),
        ({"methods": ("nerfacto",)}, "no method 'nerfacto'"),
        ({"sizes": (16,)}, "32 or more"),
    ):
        with pytest.raises(InputError, match=message):
            BenchCommand(**{"data": blender_scene, "output_dir": tmp_path / "out", **arguments}).run()


def test_ctrl_c_kills_the_sides_and_says_what_is_kept(
    blender_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    killed = []

    class Busy:
        def __init__(self, side: Side) -> None:
            self.side = side

        def ready(self) -> None:
            raise KeyboardInterrupt

        def kill(self) -> None:
            killed.append(self.side.space)

        def close(self) -> None:
            assert self.side.space in killed  # a busy one would not hear of it for a while

    monkeypatch.setattr(worker, "Worker", Busy)
    with pytest.raises(SystemExit) as end:
        BenchCommand(blender_scene, tmp_path / "out").run()
    assert end.value.code == STATUS and killed == ["rgb", "latent"]
    line = f"Stopped by ctrl-C while measuring: methods that were finished before are in {tmp_path / 'out'}; the same "
    assert f"{line}command starts again" in capsys.readouterr().out


def test_a_side_that_fails_ends_in_one_line(blender_scene: Path, tmp_path: Path) -> None:
    """In a process of its own, through the real pipe."""
    broken = Side("kplanes", "latent", blender_scene, "auto", 48, str(tmp_path / "no-autoencoder"), tmp_path)
    process = worker.Worker(broken)
    try:
        with pytest.raises(InputError, match="kplanes-latent-48: InputError: .*no-autoencoder.*its log is"):
            process.ready()
    finally:
        process.close()
