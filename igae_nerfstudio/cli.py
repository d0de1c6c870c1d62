"""`igae COMMAND ...`: the package's own commands behind one name."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Sequence

COMMANDS = {
    "train": ("igae_nerfstudio.joint.command", "train an inverse graphics autoencoder (IG-AE)"),
    "scenes": ("igae_nerfstudio.joint.scenes_command", "learn many scenes together, fit new ones, export them as runs"),
    "prior": ("igae_nerfstudio.prior.command", "learn a prior over scenes: new scenes from a few photos, or from none"),
    "render-objects": ("igae_nerfstudio.meshes.render_objects", "render posed views of textured meshes, to train on"),
    "bench": ("benchmarks.bench", "measure RGB and latent scenes side by side (in a clone of the repository)"),
    "compare": ("igae_nerfstudio.compare", "put finished runs side by side, as a picture or a film"),
}
"""By name: the module whose `main` it is, and what it does. Each is a console script `igae-NAME` too."""
REPOSITORY = Path(__file__).resolve().parents[1]
"""Of an editable install: `benchmarks/` is not in the wheel."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script."""
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name == "bench":
        bench(rest, prog="igae bench")
    elif name in COMMANDS:
        import_module(COMMANDS[name][0]).main(rest, prog=f"igae {name}")
    else:
        lines = [f"  {command:<16}{what}" for command, (_, what) in COMMANDS.items()]
        usage = "\n".join(["usage: igae COMMAND [OPTIONS]", "", *lines, "", "`igae COMMAND --help` has the options."])
        if name not in ("-h", "--help"):
            sys.exit(f"igae: there is no command '{name}'\n{usage}")
        print(usage)


def bench(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """The console script `igae-bench`."""
    if not (REPOSITORY / "benchmarks").is_dir():
        sys.exit("igae-nerfstudio: igae bench is a part of the repository; run it in a clone after `pip install -e .`")
    sys.path.insert(0, str(REPOSITORY))
    import_module(COMMANDS["bench"][0]).main(arguments, prog=prog)


if __name__ == "__main__":
    main()
