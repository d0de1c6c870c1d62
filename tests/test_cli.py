"""One front door, and the names of the package."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

import igae_nerfstudio
from igae_nerfstudio import cli


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_here_and_under_its_own_name(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code in (0, None) and f"igae {name}" in capsys.readouterr().out
    (script,) = entry_points(group="console_scripts", name=f"igae-{name}")
    assert script.value == ("igae_nerfstudio.cli:bench" if name == "bench" else f"{cli.COMMANDS[name][0]}:main")


def test_what_is_no_command_is_named(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["trian"])
    assert "there is no command 'trian'" in str(end.value.code) and "render-objects" in str(end.value.code)
    cli.main([])
    assert "usage: igae COMMAND" in capsys.readouterr().out


def test_what_is_heavy_is_imported_when_it_is_used() -> None:
    code = (
        "import sys, igae_nerfstudio as i; assert 'torch' not in sys.modules;"
        "import igae_nerfstudio.method_configs; assert 'diffusers' not in sys.modules;"
        "print([callable(getattr(i, name)) for name in i.__all__ if name != '__version__'])"
    )
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    assert result.stdout.strip().endswith("[True, True, True, True]"), result.stderr
    with pytest.raises(AttributeError, match="no attribute 'load'"):
        igae_nerfstudio.load  # noqa: B018
