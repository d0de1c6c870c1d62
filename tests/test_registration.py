"""What `ns-train` sees of the package, and what it sees when the package is broken."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

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

HELP = """
import contextlib, io, sys
{before}
from nerfstudio.scripts import train
for method in {methods!r}:
    sys.argv = ["ns-train", *method, "--help"]
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            train.entrypoint()
    except SystemExit as end:
        print("HELP", method, end.code, len(text.getvalue()), flush=True)
        for word in {words!r}:
            print("HAS", word, word in text.getvalue(), flush=True)
"""


def ns_train_help(methods: list[list[str]], before: str = "", words: tuple[str, ...] = ()) -> str:
    """Run `ns-train METHOD --help` in a process of its own, as the console script does."""
    code = HELP.format(before=before, methods=methods, words=words)
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


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


def test_help_of_every_method_names_the_options() -> None:
    words = (
        "--pipeline.autoencoder.name-or-path",
        "--pipeline.latent-supervision-steps",
        "--pipeline.rgb-alignment-steps",
        "--pipeline.datamanager.images-per-batch",
        "--pipeline.datamanager.latent-cache-dir",
    )
    no_effect = ("--pipeline.datamanager.train-num-rays-per-batch", "--pipeline.datamanager.pixel-sampler")
    methods = [[m] for m in METHODS if m != "igae-kplanes-rgb"]
    output = ns_train_help([*methods, ["igae-kplanes-rgb"], []], words=words + no_effect)
    for method in [*methods, ["igae-kplanes-rgb"], []]:
        assert f"HELP {method} 0" in output, output
    assert output.count("True") == len(words) * len(methods) + len(no_effect)  # which the RGB method has


def test_a_failure_in_this_package_leaves_other_methods_working() -> None:
    broken = "import sys; sys.modules['igae_nerfstudio.method_configs'] = None"  # importing it raises ImportError
    output = ns_train_help([["nerfacto"]], before=broken)
    assert "HELP ['nerfacto'] 0" in output
    assert output.count("igae-nerfstudio: its methods are unavailable (") == 1
    assert "method_configs" in output


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
