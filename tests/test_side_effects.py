"""Importing the package and building its objects leaves the process and the user's home as they were."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from conftest import latent_config, write_blender_scene

CODE = """
import os, signal, sys, threading
from pathlib import Path

import nerfstudio.configs.method_configs  # Nerfstudio's own effects come first
import diffusers, matplotlib.pyplot, yaml

def state():
    loader = yaml.Loader
    return {
        "yaml.Loader": (dict(loader.yaml_constructors), dict(loader.yaml_multi_constructors)),
        "sys.excepthook": sys.excepthook,
        "threading.excepthook": threading.excepthook,
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "environment": dict(os.environ),
        "argv": list(sys.argv),
        "home": sorted(str(path) for path in Path.home().rglob("*")),
        "diffusers": diffusers.utils.logging.get_verbosity(),
    }

before = state()
import igae_nerfstudio.method_configs
from nerfstudio.utils.eval_utils import eval_setup
config, pipeline, _, _ = eval_setup(Path(sys.argv[1]), test_mode="inference")
camera = pipeline.datamanager.eval_dataset.cameras[0:1]
assert pipeline.model.get_outputs_for_camera(camera)["rgb"].shape == (48, 48, 3)
after = state()
print("CHANGED", [name for name in before if before[name] != after[name]])
"""


def test_importing_and_building_a_pipeline_change_nothing(autoencoder_dir: Path, tmp_path: Path) -> None:
    scene = write_blender_scene(tmp_path / "scene", counts=(2, 1, 1))
    phases = {"latent_supervision_steps": 1, "rgb_alignment_steps": 1}
    trainer = latent_config("vanilla_nerf", scene, autoencoder_dir, tmp_path, **phases).setup()
    trainer.setup()
    trainer.train()
    (home := tmp_path / "home").mkdir()
    # A name of Nerfstudio's commands: what the package once looked for in sys.argv.
    (script := tmp_path / "ns-render").write_text(CODE)
    words = [sys.executable, "-W", "ignore", str(script), str(trainer.base_dir / "config.yml"), "--load-config", "x"]
    environment = {**os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment.pop("XDG_CACHE_HOME")
    result = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "CHANGED []" in result.stdout, result.stdout[-2000:]
