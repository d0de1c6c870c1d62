"""A prior trained, stopped, saved, and made into runs, with small networks on tiny scenes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_autoencoder, write_blender_scene
from nerfstudio.utils.eval_utils import eval_setup
from PIL import Image
from prior_data import DEBUG, make_trainer, small_config, train, write_data
from test_commands import command

from igae_nerfstudio.config_files import with_settings
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.joint.config import ManyScenesConfig
from igae_nerfstudio.joint.fit import fit_scenes
from igae_nerfstudio.prior.inference import interpolate, posterior_mean, reconstruct, render, sample
from igae_nerfstudio.prior.model import scenes_of
from igae_nerfstudio.prior.photos import Dataset, spread
from igae_nerfstudio.prior.saved import PRIOR_FILE, SavedPrior
from igae_nerfstudio.prior.training import begin, prior_trainer
from igae_nerfstudio.scenes.scene_views import SceneViews


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train/{a,b,c}`, `new`, `autoencoder` and the trained `prior`."""
    folder = write_data(tmp_path_factory.mktemp("prior"))
    train(folder, folder / "prior")
    return folder


# Training


def test_stage_2_teaches_all_of_the_prior_and_nothing_frozen(job: Path, tmp_path: Path) -> None:
    trainer = make_trainer(job, tmp_path)
    trainer.data.encode_views(trainer.accelerator, quiet=True)
    begin(trainer)
    model, stage = trainer.model, trainer.stages[1]
    trainer._enter(stage)
    frozen = {name: value.clone() for name, value in model.autoencoder.state_dict().items()}
    torch.nn.init.normal_(scenes_of(model).decoder.last.weight, std=0.1)  # at 0, no gradient passes to z
    losses = trainer.train_step(stage, 0)
    assert {"likelihood", "kl", "latent", "kl_nats", "active", "deviation", "total"} <= set(losses)
    for part in ("shared.encoder", "shared.decoder", "renderer"):
        missing = [name for name, p in model.get_submodule(part).named_parameters() if p.grad is None]
        assert not missing, part
    assert scenes_of(model).mean.grad is not None and scenes_of(model).log_deviation.grad is not None
    assert all(p.grad is None for p in model.autoencoder.parameters())
    assert all(torch.equal(value, frozen[name]) for name, value in model.autoencoder.state_dict().items())


def test_the_kl_warms_up(job: Path, tmp_path: Path) -> None:
    trainer = make_trainer(job, tmp_path, {"free_nats": 0.0, "kl_warm_up": 0.5})
    trainer.data.encode_views(trainer.accelerator, quiet=True)
    begin(trainer)
    stage, model = trainer.stages[1], trainer.model
    shares = []
    for progress in (0.0, 0.25, 0.5, 0.9):
        batch = trainer.batch(stage, 0)
        batch.progress = progress
        losses = stage.objective(model, batch)
        shares.append(float(losses["kl"] / losses["kl_nats"]))
    assert shares == pytest.approx([0, 0.5, 1, 1], abs=1e-5)


def test_one_object_is_overfitted(tmp_path: Path) -> None:
    data = write_data(tmp_path, ("only",))
    rates = {"network_lr": 3e-3, "renderer_lr": 1e-2, "planes_lr": 1e-2}
    longer = {"lr_decay": 1.0, "stage1": {"epochs": 1}, "stage2": {"epochs": 150, "views_per_batch": 6, **rates}}
    train(data, tmp_path / "prior", longer)
    lines = [json.loads(line) for line in (tmp_path / "prior" / "metrics.jsonl").read_text().splitlines()]
    errors = [line["latent"] for line in lines if line["stage"] == 2]
    assert sum(errors[-20:]) < 0.6 * sum(errors[:20])
    assert lines[-1]["deviation"] == pytest.approx((sum(errors[-20:]) / 20) ** 0.5, rel=0.2)  # it follows the error


@pytest.mark.parametrize("stop_at", [(1, 2), (2, 3)])
def test_a_stopped_training_ends_where_the_uninterrupted_one_does(
    job: Path, tmp_path: Path, stop_at: tuple[int, int]
) -> None:
    class Killed(BaseException):
        pass

    def killed(trainer, stage, done) -> None:
        if (stage.number, done) == stop_at:
            raise Killed

    often = {"minutes_per_checkpoint": 0}
    trainer = make_trainer(job, tmp_path, often)
    trainer.observe = killed
    with pytest.raises(Killed):
        trainer.run(begin)
    one, other = train(job, tmp_path, often), SavedPrior.load(job / "prior")
    states = [saved.model.state_dict() for saved in (one, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert torch.equal(one.codes, other.codes) and one.facts == other.facts


@pytest.mark.parametrize("conditioning", ["attention", "vector"])
def test_the_papers_ways_to_condition_train_and_render(
    job: Path, tmp_path: Path, conditioning: str, capsys: pytest.CaptureFixture
) -> None:
    saved = train(job, tmp_path / "prior", {"network": {"conditioning": conditioning}})
    assert saved.codes.shape == (3, 8, 4)
    reconstruct(tmp_path / "prior", job / "new", tmp_path / "out", views=2)
    assert "has no planes to export" in capsys.readouterr().out.replace("\n", " ")
    assert not list(tmp_path.glob("out/**/config.yml"))
    assert np.asarray(Image.open(tmp_path / "out" / "new" / "turntable.png")).std() > 0


# Use


def test_a_run_renders_what_the_prior_does(job: Path, tmp_path: Path) -> None:
    saved = SavedPrior.load(job / "prior")
    reconstruct(job / "prior", job / "new", tmp_path, views=3, timestamp="now")
    run = tmp_path / "new" / "igae-triplanes" / "now"
    _, pipeline, _, step = eval_setup(run / "config.yml", test_mode="test")
    dataset = Dataset.read(job / "new", saved)
    photos = dataset.photos(saved, 3)
    views = SceneViews.open(job, 48, tmp_path / "cache", "test", only=["new"])
    expected = render(saved, posterior_mean(saved, photos), views.cameras([0], [1]))[0].permute(1, 2, 0)
    camera = pipeline.datamanager.eval_dataset.cameras[1:2]
    torch.testing.assert_close(pipeline.model.get_outputs_for_camera(camera)["rgb"], expected, atol=1e-4, rtol=0)
    assert step == 1 and len(pipeline.datamanager.train_dataset) == 6
    assert Image.open(run / "context.png").width == 2 * 48


def test_photos_of_a_dataset_are_encoded_as_in_training(job: Path, tmp_path: Path) -> None:
    """The same latents and rays by the way of Nerfstudio's dataparser as by that of the trainer."""
    saved, trainer = SavedPrior.load(job / "prior"), make_trainer(job, tmp_path)
    trainer.data.encode_views(trainer.accelerator, quiet=True)
    photos = Dataset.read(job / "train" / "b", saved).chosen(saved, "train", [0, 4])
    from igae_nerfstudio.prior.training import rays_and_latents

    trainer.model.normalizer.load_state_dict(saved.model.normalizer.state_dict())
    for one, other, tolerance in zip(photos.encoded, rays_and_latents(trainer.data, 1, (0, 4)), (5e-3, 1e-5, 1e-5)):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


def test_refining_z_lowers_what_it_minimises(job: Path) -> None:
    saved = SavedPrior.load(job / "prior")
    torch.nn.init.normal_(saved.scenes.decoder.last.weight, std=0.1)
    photos = Dataset.read(job / "new", saved).photos(saved, 3)
    weights = {name: value.clone() for name, value in saved.model.state_dict().items()}

    def error(z: torch.Tensor) -> float:
        target, o, d = (value.flatten(1, 3) for value in photos.encoded)
        with torch.no_grad():
            return float((saved.model.renderer(saved.scenes.scene(z), o, d).latents - target).square().mean())

    first, last = (error(posterior_mean(saved, photos, steps)) for steps in (0, 40))
    assert last < 0.99 * first
    assert all(torch.equal(value, weights[name]) for name, value in saved.model.state_dict().items())


def test_new_scenes_have_the_training_scenes_mean_and_spread(job: Path, tmp_path: Path) -> None:
    saved = SavedPrior.load(job / "prior")
    drawn = saved.draw(4000, torch.Generator().manual_seed(0)).flatten(1)
    known = saved.codes.flatten(1)
    torch.testing.assert_close(drawn.mean(0), known.mean(0), atol=0.1 * float(known.std(0).max()), rtol=0)
    torch.testing.assert_close(drawn.std(0), known.std(0), atol=0.1 * float(known.std(0).max()), rtol=0)
    standard = saved.draw(4000, torch.Generator().manual_seed(0), standard=True)
    assert float(standard.std()) == pytest.approx(1, abs=0.02)
    sample(job / "prior", tmp_path, count=2, runs=1)
    path = tmp_path / "sample-00" / "igae-triplanes" / "seed-0" / "config.yml"
    _, pipeline, _, _ = eval_setup(path, test_mode="inference")
    assert not (tmp_path / "sample-01").exists() and Image.open(tmp_path / "samples.png").width == 6 * 48
    assert float(pipeline.model.scene.planes.std()) > 0


def test_interpolation_shows_both_ends(job: Path, tmp_path: Path) -> None:
    interpolate(job / "train" / "a", job / "new", prior=job / "prior", output_dir=tmp_path, views=2, steps=3)
    assert Image.open(tmp_path / "interpolation.png").size[0] == 6 * 48


def test_new_scenes_start_from_the_prior(job: Path, tmp_path: Path) -> None:
    """`igae scenes fit --shared PRIOR`: its default start, which the scene would keep if it learnt nothing."""
    from igae_nerfstudio.joint.fit import SceneFit
    from igae_nerfstudio.joint.results import SharedBasis

    basis = SharedBasis.load(job / "prior")
    assert basis.config.fit.start == "prior"
    few = {"fit": {phase: {"epochs": 1, "views_per_batch": 2, "views_per_scene": 2} for phase in PHASES}}
    config = with_settings(basis.config, few, "the test")
    fit = SceneFit(config, basis, job, ["new"], tmp_path / "work")
    fit.data.encode_views(fit.trainer.accelerator, quiet=True)
    code = fit.start_code(0)
    assert code.shape == basis.mean_record.shape and not torch.equal(code, basis.mean_record)
    report = fit_scenes([job / "train"], job / "prior", tmp_path / "out", config)
    assert sorted(report.learnt) == ["a", "b", "c"] and not report.failed


PHASES = ("latent_supervision", "rgb_alignment")


def test_the_commands(tmp_path: Path) -> None:
    """As processes, with configs/prior/debug.yaml: train, reconstruct, ns-eval."""
    for name in ("a", "b", "new"):
        write_blender_scene(tmp_path / "scenes" / name, (64, 64), counts=(6, 1, 2))
    tiny_autoencoder().save_pretrained(tmp_path / "autoencoder")
    out = tmp_path / "prior"
    where = ["--scenes", tmp_path / "scenes", "--output-dir", out, "--autoencoder", tmp_path / "autoencoder"]
    command("igae", "prior", "train", "--config", DEBUG, *where, cwd=tmp_path)
    assert {"prior.pt", "prior.json", "shared.pt", "autoencoder", "figures"} <= {path.name for path in out.iterdir()}
    assert json.loads((out / "prior.json").read_text())["scenes"] == ["a", "b", "new"]
    words = ["--prior", out, "--data", tmp_path / "scenes" / "new", "--refine", "2", "--timestamp", "now"]
    shown = command("igae", "prior", "reconstruct", *words, "--output-dir", tmp_path / "runs", cwd=tmp_path).stdout
    run = tmp_path / "runs" / "new" / "igae-triplanes" / "now"
    assert f"ns-viewer --load-config {run / 'config.yml'}" in shown and "ns-train igae-triplanes --load-dir" in shown
    command("ns-eval", "--load-config", run / "config.yml", "--output-path", tmp_path / "eval.json", cwd=tmp_path)
    assert 0 < json.loads((tmp_path / "eval.json").read_text())["results"]["psnr"] < 60
    more = next(line for line in shown.splitlines() if line.startswith("ns-train")).split()
    at = more.index("--data")
    short = ["--pipeline.latent-supervision-steps", "5", "--pipeline.rgb-alignment-steps", "2", "--vis", "tensorboard"]
    more = [*more[:at], *short, "--machine.device-type", "cpu", *more[at:]]
    assert "Checkpoint" in command(*more, cwd=tmp_path).stdout


# What can go wrong


def message(action, *arguments, **more) -> str:
    with pytest.raises(InputError) as raised:
        action(*arguments, **more)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_photos_that_cannot_be_used_are_named(job: Path, tmp_path: Path) -> None:
    prior = job / "prior"
    assert "learnt from 1 to 4 photos" in message(reconstruct, prior, job / "new", tmp_path, views=9)
    assert "there is no dataset" in message(reconstruct, prior, tmp_path / "nothing", tmp_path)
    (tmp_path / "empty").mkdir()
    assert "finds no transforms.json" in message(reconstruct, prior, tmp_path / "empty", tmp_path)
    shutil.copytree(job / "new" / "train", tmp_path / "bare")
    assert "photos but no camera poses" in message(reconstruct, prior, tmp_path / "bare", tmp_path)
    assert "there is no dataparser 'blend'" in message(reconstruct, prior, job / "new", tmp_path, dataparser="blend")
    away = shutil.copytree(job / "new", tmp_path / "away")
    meta = json.loads((away / "transforms_train.json").read_text())
    for frame in meta["frames"]:
        for row in frame["transform_matrix"][:3]:
            row[3] += 90.0
    (away / "transforms_train.json").write_text(json.dumps(meta))
    assert "look past the volume" in message(reconstruct, prior, away, tmp_path)
    assert not list(tmp_path.glob("**/config.yml"))


def test_priors_that_cannot_be_used_are_named(job: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(job / "prior", tmp_path / "broken")
    whole = (broken / PRIOR_FILE).read_bytes()
    (broken / PRIOR_FILE).write_bytes(whole[: len(whole) // 2])
    assert "prior.pt cannot be read" in message(SavedPrior.load, broken)
    content = torch.load(job / "prior" / PRIOR_FILE, weights_only=True)
    content["config"]["network"]["width"] = 16
    torch.save(content, broken / PRIOR_FILE)
    assert "does not fit its own settings" in message(SavedPrior.load, broken)
    (broken / PRIOR_FILE).write_bytes(whole)
    shutil.rmtree(broken / "autoencoder")
    tiny_autoencoder(seed=1).save_pretrained(broken / "autoencoder")
    content["config"]["network"]["width"] = 32
    said = message(SavedPrior.load, broken)
    assert content["encoder_hash"][:8] in said and "the one beside it" in said
    assert "prior.pt does not exist" in message(SavedPrior.load, tmp_path)
    config = with_settings(ManyScenesConfig(), {"fit": {"start": "prior"}}, "the test")
    assert config.fit.start == "prior"


def test_settings_that_do_not_fit_are_named(job: Path, tmp_path: Path) -> None:
    assert "set it to 6" in message(small_config({"stage2": {"views_per_scene": 4}}).check)
    assert "does not divide" in message(small_config({"network": {"plane_tokens": 3}}).check)
    assert "has no planes" in message(
        small_config({"network": {"conditioning": "vector"}, "stage1": {"plane_tv": 1.0}}).check
    )
    settings = {"network": {"deterministic": True}}
    saved = train(job, tmp_path / "upper", settings)
    assert "deterministic" in message(saved.draw, 1, torch.Generator())
    (tmp_path / "none").mkdir()
    empty = (small_config(), tmp_path / "none", tmp_path / "out", str(job / "autoencoder"))
    assert "holds no scene" in message(prior_trainer, *empty)


def test_photos_are_taken_from_cameras_far_from_each_other() -> None:
    line = torch.tensor([[0.0, 0, 0], [1, 0, 0], [10, 0, 0], [5, 0, 0]])
    assert spread(line, 3) == [0, 2, 3]
