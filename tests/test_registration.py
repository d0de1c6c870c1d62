"""What `ns-train` sees of the package, and what it sees when the package is broken."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from nerfstudio.plugins.registry import discover_methods
from test_commands import command

METHODS = [
    "igae-vanilla-nerf",
    "igae-instant-ngp",
    "igae-tensorf",
    "igae-kplanes",
    "igae-kplanes-rgb",
    "igae-nerfacto",
    "igae-splatfacto",
    "igae-triplanes",
]


def test_every_method_is_an_entry_point_that_nerfstudio_accepts() -> None:
    from nerfstudio.plugins.types import MethodSpecification

    found = {e.name: e for e in entry_points(group="nerfstudio.method_configs") if e.name.startswith("igae-")}
    assert sorted(found) == sorted(METHODS)
    for name, entry in found.items():
        spec = entry.load()
        assert isinstance(spec, MethodSpecification)
        assert spec.config.method_name == name and spec.description


def test_the_defaults_are_the_papers() -> None:
    """Table 11: phases, batch, decoder optimiser, decay and the factors xi of each method."""
    from igae_nerfstudio import method_configs

    factors = {
        "vanilla_nerf": (0.1, 1),
        "instant_ngp": (0.001, 0.1),
        "tensorf": (0.01, 0.1),
        "kplanes": (0.1, 0.1),
    }
    for name, (supervision, alignment) in factors.items():
        config = getattr(method_configs, f"igae_{name}").config
        pipeline = config.pipeline
        assert (pipeline.latent_supervision_steps, pipeline.rgb_alignment_steps) == (10_000, 15_000)
        assert (pipeline.latent_supervision_lr_factor, pipeline.rgb_alignment_lr_factor) == (
            supervision,
            alignment,
        )
        assert pipeline.datamanager.images_per_batch == 4 and pipeline.decoder_lr_decay == 0.9996
        assert pipeline.autoencoder.name_or_path == "bundled"
        assert config.optimizers["decoder"]["optimizer"].lr == 1e-4


def test_help_of_every_method_names_the_options(tmp_path: Path) -> None:
    words = (
        "--pipeline.autoencoder.name-or-path",
        "--pipeline.latent-supervision-steps",
        "--pipeline.rgb-alignment-steps",
        "--pipeline.datamanager.images-per-batch",
        "--pipeline.datamanager.latent-cache-dir",
    )
    no_effect = ("--pipeline.datamanager.train-num-rays-per-batch", "--pipeline.datamanager.pixel-sampler")
    for method in METHODS:
        text = command("ns-train", method, "--help", cwd=tmp_path).stdout
        found = {word for word in words + no_effect if word in text}
        assert found == set(no_effect if method == "igae-kplanes-rgb" else words), method
    text = command("ns-train", "--help", cwd=tmp_path).stdout
    assert all(method in text for method in METHODS)


def test_a_failure_in_this_package_leaves_other_methods_working(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What every command of Nerfstudio does first, where importing the methods raises ImportError."""
    import igae_nerfstudio.method_configs  # which sets the attribute
    from igae_nerfstudio import plugin

    monkeypatch.setitem(sys.modules, "igae_nerfstudio.method_configs", None)
    monkeypatch.delattr(igae_nerfstudio, "method_configs")
    monkeypatch.setattr(plugin, "_reported", False)
    methods, _ = discover_methods()
    assert not any(name.startswith("igae-") for name in methods)
    said = capsys.readouterr().err
    assert said.count("igae-nerfstudio: its methods are unavailable (") == 1 and "method_configs" in said


def test_the_entry_point_module_is_light() -> None:
    code = (
        "import sys; before = set(sys.modules); import igae_nerfstudio.plugin; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    heavy = {"torch", "numpy", "nerfstudio", "diffusers", "tyro", "nerfacc", "torchmetrics"}
    assert "igae_nerfstudio" in result.stdout and not heavy & set(result.stdout.split()), result.stdout + result.stderr
    with pytest.raises(AttributeError):
        from igae_nerfstudio import plugin

        plugin.nothing  # noqa: B018
