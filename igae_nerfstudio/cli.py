"""`igae COMMAND ...`: the package's own commands behind one name."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Sequence

COMMANDS = {
    "train": ("joint.command", "train an inverse graphics autoencoder (IG-AE)"),
    "scenes": ("joint.scenes_command", "learn many scenes together, fit new ones, export them as runs"),
    "render-objects": ("meshes.render_objects", "render posed views of textured meshes, to train on"),
    "bench": ("bench.bench", "measure RGB and latent scenes side by side"),
    "compare": ("compare", "put finished runs side by side, as a picture or a film"),
}
"""By name: the module whose `main` it is, and what it does. Each is a console script `igae-NAME` too."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script."""
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name in COMMANDS:
        import_module(f"igae_nerfstudio.{COMMANDS[name][0]}").main(rest, prog=f"igae {name}")
        return
    lines = [f"  {command:<16}{what}" for command, (_, what) in COMMANDS.items()]
    usage = "\n".join(["usage: igae COMMAND [OPTIONS]", "", *lines, "", "`igae COMMAND --help` has the options."])
    if name in ("-h", "--help"):
        print(usage)
    else:
        sys.exit(f"igae: there is no command '{name}'\n{usage}")


if __name__ == "__main__":
    main()
