"""Settings files: what they can hold, what they change, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import pytest
import tyro
import yaml
from conftest import ROOT

from igae_nerfstudio import method_configs
from igae_nerfstudio.config_files import differing, parse_command, to_plain, with_settings
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.pipelines.latent_pipeline import LatentPipelineConfig

METHODS = ("vanilla_nerf", "instant_ngp", "tensorf", "kplanes", "nerfacto", "triplanes")


def resolved(method: str, settings: Path, **changes: Any) -> LatentPipelineConfig:
    config = getattr(method_configs, f"igae_{method}").config.pipeline
    return replace(config, settings=settings, **changes).resolved()


@pytest.fixture
def settings(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        return path

    return write


def test_strings_paths_dictionaries_and_tuples(settings, tmp_path: Path) -> None:
    text = f"""
autoencoder: {{name_or_path: bundled-ae}}
datamanager: {{latent_cache_dir: {tmp_path}, dataparser: {{train_split_fraction: 0.5}}}}
model: {{loss_coefficients: {{rgb_loss: 2.0}}, upsampling_iters: [3, 5]}}
rgb_alignment_lr_factor: 1e-2
"""
    config: Any = resolved("tensorf", settings(text))
    assert config.autoencoder.name_or_path == "bundled-ae" and config.datamanager.latent_cache_dir == tmp_path
    assert config.datamanager.dataparser.train_split_fraction == 0.5
    assert config.model.loss_coefficients == {"rgb_loss": 2.0} and config.model.upsampling_iters == (3, 5)
    assert config.rgb_alignment_lr_factor == 0.01


@pytest.mark.parametrize("method", METHODS)
def test_the_authors_schedule_is_read(method: str) -> None:
    before = to_plain_config(method)
    config = resolved(method, ROOT / "configs/latent_nerf/official.yaml")
    assert config.datamanager.images_per_batch == 1 and config.latent_normalization == "tanh"
    assert config.rgb_alignment_lr_factor == 0.1 and not config.regularize_alignment
    assert config.resolved() == config and config.settings is None
    assert to_plain_config(method) == before  # the method's own config is as it was


def test_the_papers_method_is_the_papers() -> None:
    """Whatever else has been set."""
    changes = {"colour_head": True, "colour_rays": 9, "perceptual_weight": 0.1}
    changes |= {"preset": "fast", "rgb_alignment_steps": 3}
    found = resolved("kplanes", ROOT / "configs/latent_nerf/paper.yaml", **changes)
    assert (found.latent_supervision_steps, found.rgb_alignment_steps) == (10_000, 15_000)
    assert (
        not found.colour_head
        and found.colour_rays == 0
        and found.perceptual_weight == 0
        and found.model.latent_channels == 16
    )
    assert (found.datamanager.images_per_batch, found.datamanager.random_latent_rays) == (4, 0)
    assert found.datamanager.alignment_patch_size == 0 and found.preset == "paper"


def to_plain_config(method: str) -> str:
    return yaml.dump(getattr(method_configs, f"igae_{method}").config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rgb_alignment_step: 3", "no setting 'rgb_alignment_step'; the nearest is 'rgb_alignment_steps'"),
        ("datamanager: {images_per_batch: many}", "'datamanager.images_per_batch' is 'many': .*integer"),
        ("datamanager: 3", "'datamanager' must be a group of settings"),
        ("model: {num_coarse_samples: 8}", "no setting 'model.num_coarse_samples'"),
        ("model: {upsampling_iters: [a, b]}", "'model.upsampling_iters' is .*integer"),
        ("latent_supervision_steps: .inf", "'latent_supervision_steps' is inf: .*finite"),
        ("latent_normalization: linear", "'standardize', 'tanh' or 'none'"),
        ("preset: huge", "'preset' is 'huge'"),
        ("[1, 2]", "must hold `key: value` lines"),
        ("a: [", "is no readable YAML"),
    ],
)
def test_bad_settings_are_named(text: str, message: str, settings) -> None:
    with pytest.raises(InputError, match=message):
        resolved("tensorf", settings(text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing.yaml does not exist"):
        resolved("tensorf", tmp_path / "missing.yaml")


@dataclass
class Inner:
    rate: float = 1.0
    """A rate."""
    folder: Path | None = None
    """A folder."""


@dataclass
class Settings:
    inner: Inner = field(default_factory=Inner)
    steps: int = 10
    """Steps."""


@dataclass
class Command:
    """Do something."""

    target: Path
    """Where to."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)
    config: tuple[Path, ...] = ()
    """Settings files."""


def parse(*words: object) -> Command:
    return parse_command(Command, Command(target=tyro.MISSING), [str(word) for word in words], prog="do")


def test_a_command_takes_defaults_then_files_in_order_then_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("steps: 3\ninner: {rate: 0.5, folder: /a}")
    (tmp_path / "b.yaml").write_text("inner: {rate: 1e-3}")
    command = parse("--config", tmp_path / "a.yaml", tmp_path / "b.yaml", "--steps", 7, "--target", "x")
    assert command.settings == Settings(Inner(rate=1e-3, folder=Path("/a")), steps=7) and command.target == Path("x")
    assert parse("--target", "x").settings == Settings()
    assert parse("--steps", 10, "--config", tmp_path / "a.yaml", "--target", "x").settings.steps == 10  # the default's


def test_help_of_a_command_says_what_each_setting_does(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    assert all(word in text for word in ("--inner.rate FLOAT", "A rate.", "--steps INT", "Steps.", "usage: do"))


def test_settings_as_plain_data_and_back() -> None:
    plain = to_plain(Settings(Inner(folder=Path("/a"))))
    assert (
        plain == {"inner": {"rate": 1.0, "folder": "/a"}, "steps": 10}
        and yaml.safe_load(yaml.safe_dump(plain)) == plain
    )
    assert with_settings(Settings(), plain, "here") == Settings(Inner(folder=Path("/a")))
    assert differing(plain, to_plain(Settings(Inner(rate=2.0)))) == ["inner.rate", "inner.folder"]
